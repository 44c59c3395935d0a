"""Exact resume of agents in the middle of an episode: everything that decides what comes next, in one file.

Weights, Adam's moments, replay and model buffers, the dynamics model, all random number generators, and the environment
itself: of every wrapper and of the task the attributes that are plain data, of a MuJoCo task the integrator's whole
state with its warm start. The file holds tensors and plain values only, so that reading it runs no code.
"""

import io
from collections import deque
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from lipctrl.files import UserError

from .gail import GAIL
from .mbpo import MBPO
from .sac import SAC
from .termination import LearnedTermination

FORMAT = "lipctrl-agents-1"
COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_measured")
FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
PLAIN = (bool, int, float, str, type(None))


def save_agents(agents: Sequence[SAC]) -> bytes:
    """What `load_agents` needs."""
    stream = io.BytesIO()
    torch.save({"format": FORMAT, "agents": [_state(agent) for agent in agents]}, stream)
    return stream.getvalue()


def load_agents(agents: Sequence[SAC], data: bytes) -> None:
    """Bring newly built agents of the same settings to the state that was saved.

    Raises:
        UserError: not such a file, or one of other agents.
    """
    try:
        saved = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        raise UserError("the checkpoint is damaged: it cannot be read") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT or len(saved["agents"]) != len(agents):
        raise UserError(f"the checkpoint is not one of {len(agents)} agents of this version")
    for agent, state in zip(agents, saved["agents"], strict=True):
        try:
            _restore(agent, state)
        except (RuntimeError, KeyError, ValueError) as error:
            raise UserError(f"the checkpoint does not fit these settings: {str(error).splitlines()[0]}") from error


def _state(agent: SAC) -> dict[str, Any]:
    memory, observation = agent.replay_buffer, agent._last_obs
    assert memory is not None and isinstance(observation, np.ndarray)
    filled = memory.size()
    state: dict[str, Any] = {
        "policy": agent.policy.state_dict(),
        "memory": agent.memory.state_dict(),
        "counters": {name: getattr(agent, name) for name in COUNTERS},
        "seconds": dict(agent.seconds),
        "deviation": agent._deviation,
        "draws": [agent.draws.get_state(), agent.steps.get_state()],
        "observation": torch.as_tensor(observation),
        "episodes": [[float(one["r"]), int(one["l"])] for one in agent.ep_info_buffer or ()],
        "replay": {name: torch.as_tensor(getattr(memory, name)[:filled]) for name in FIELDS},
        "position": [memory.pos, int(memory.full)],
        "warm_up": _encoded(agent.action_space.np_random.bit_generator.state),
        "environment": environment_state(_single(agent)),
    }
    if isinstance(agent, MBPO):
        buffer = agent.model_buffer
        state["model"] = agent.model.state_dict()
        state["model_buffer"] = {"fields": buffer.fields, "position": buffer.position, "filled": buffer.filled}
        state["model_draws"] = [agent.model_draws.get_state(), agent.diagnostics.draws.get_state()]
        state["history"] = agent.history
        if isinstance(agent.termination, LearnedTermination):
            state["termination"] = agent.termination.state_dict()
    if isinstance(agent, GAIL):
        state |= {"history": agent.history, "warned": agent._warned, "monitor": agent.monitor.draws.get_state()}
    return state


def _restore(agent: SAC, state: dict[str, Any]) -> None:
    memory = agent.replay_buffer
    assert memory is not None
    agent.policy.load_state_dict(state["policy"])
    agent._refresh()
    agent.memory.load_state_dict(state["memory"])
    for name, value in state["counters"].items():
        setattr(agent, name, value)
    agent.seconds, deviation = dict(state["seconds"]), state["deviation"]
    agent._deviation = None if deviation is None else deviation.to(agent.device)
    for draws, value in zip((agent.draws, agent.steps), state["draws"], strict=True):
        draws.set_state(value)
    agent._last_obs = state["observation"].numpy().copy()
    agent.ep_info_buffer = deque(({"r": r, "l": length} for r, length in state["episodes"]), maxlen=100)
    agent.ep_success_buffer = deque(maxlen=100)
    for name, rows in state["replay"].items():
        getattr(memory, name)[: len(rows)] = rows.numpy()
    memory.pos, memory.full = state["position"][0], bool(state["position"][1])
    agent.action_space.np_random.bit_generator.state = _decoded(state["warm_up"])
    restore_environment(_single(agent), state["environment"])
    if isinstance(agent, MBPO):
        agent.model.load_state_dict(state["model"])
        saved = state["model_buffer"]
        agent.model_buffer.fields = [field.to(agent.device) for field in saved["fields"]]
        agent.model_buffer.position, agent.model_buffer.filled = saved["position"], saved["filled"]
        for draws, value in zip((agent.model_draws, agent.diagnostics.draws), state["model_draws"], strict=True):
            draws.set_state(value)
        agent.history = [dict(row) for row in state["history"]]
        if isinstance(agent.termination, LearnedTermination):
            agent.termination.load_state_dict(state["termination"])
    if isinstance(agent, GAIL):
        agent.history, agent._warned = [dict(row) for row in state["history"]], state["warned"]
        agent.monitor.draws.set_state(state["monitor"])


def _single(agent: SAC) -> gymnasium.Env[Any, Any]:
    if not isinstance(agent.env, DummyVecEnv) or agent.n_envs != 1:
        raise UserError("an agent can be resumed exactly with one environment in this process only")
    return agent.env.envs[0]


def environment_state(env: gymnasium.Env[Any, Any]) -> list[dict[str, Any]]:
    """The plain data of every layer of an environment, from the outermost wrapper to the task."""
    return [_layer_state(layer) for layer in _layers(env)]


def restore_environment(env: gymnasium.Env[Any, Any], state: Sequence[dict[str, Any]]) -> None:
    """Bring an environment of the same structure to a state of `environment_state`."""
    env.reset()  # makes what is made at the first reset
    for layer, saved in zip(_layers(env), state, strict=True):
        vars(layer).update(_decoded(saved["attributes"]))
        if "generator" in saved:
            layer.np_random.bit_generator.state = _decoded(saved["generator"])
        if "physics" in saved:
            import mujoco  # only a task of MuJoCo has it

            mujoco.mj_setState(layer.model, layer.data, saved["physics"].numpy(), mujoco.mjtState.mjSTATE_INTEGRATION)


def _layers(env: Any) -> list[Any]:
    found = [env]
    while isinstance(found[-1], gymnasium.Wrapper):
        found.append(found[-1].env)
    return found


def _layer_state(layer: Any) -> dict[str, Any]:
    plain = {name: value for name, value in vars(layer).items() if _is_plain(value)}
    state: dict[str, Any] = {"attributes": _encoded(plain)}
    if isinstance(vars(layer).get("_np_random"), np.random.Generator):
        state["generator"] = _encoded(layer._np_random.bit_generator.state)
    if hasattr(layer, "model") and hasattr(layer, "data") and type(layer.data).__name__ == "MjData":
        import mujoco  # only a task of MuJoCo has it

        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.zeros(mujoco.mj_stateSize(layer.model, kind))
        mujoco.mj_getState(layer.model, layer.data, physics, kind)
        state["physics"] = torch.as_tensor(physics)
    return state


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | deque):
        return all(_is_plain(part) for part in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "bif"
    return isinstance(value, (*PLAIN, np.bool_, np.integer, np.floating))


def _encoded(value: Any) -> Any:
    """As tensors and builtin values; an integer that no tensor holds as text."""
    if isinstance(value, dict):
        return {key: _encoded(part) for key, part in value.items()}
    if isinstance(value, deque):
        return {"__deque__": [_encoded(part) for part in value], "length": value.maxlen}
    if isinstance(value, tuple):
        return tuple(_encoded(part) for part in value)
    if isinstance(value, list):
        return [_encoded(part) for part in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value, copy=True))
    if isinstance(value, np.generic):
        return {"__scalar__": torch.as_tensor(np.array(value))}
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"__scalar__"}:
        return value["__scalar__"].numpy()[()]
    if isinstance(value, dict) and "__deque__" in value:
        return deque((_decoded(part) for part in value["__deque__"]), maxlen=value["length"])
    if isinstance(value, dict):
        return {key: _decoded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_decoded(part) for part in value)
    return value.numpy().copy() if isinstance(value, torch.Tensor) else value
