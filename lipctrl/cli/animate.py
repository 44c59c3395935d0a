"""Replay of a recorded episode as an animation: MuJoCo tasks by their renderer, plants by their drawing."""

from typing import Any

import numpy as np

from lipctrl.attacks.threat import Threat
from lipctrl.cli.experts import Env, make_env
from lipctrl.disturb.wrapper import DisturbanceWrapper
from lipctrl.envs.base import PlantEnv
from lipctrl.evaluation.plots import gif
from lipctrl.evaluation.recording import Recording
from lipctrl.evaluation.rollout import surrounded
from lipctrl.seeding import seed_of

FRAMES, WIDTH, HEIGHT = 60, 320, 240


def film(recording: Recording, threat: Threat) -> str | None:
    """The episode, stepped again, as a base64 GIF; None where the task or the machine cannot render."""
    facts = recording.facts
    inner = make_env(facts.env).unwrapped
    plain = isinstance(inner, PlantEnv)
    env = surrounded(make_env(facts.env, render_mode="rgb_array") if plain else make_env(facts.env), threat)
    model = getattr(inner, "model", None)
    if not plain and model is None:
        return None
    camera = None if plain else _camera(env.unwrapped.model)  # type: ignore[attr-defined]  # MuJoCo's tasks have one
    if not plain and camera is None:
        return None
    keep = set(np.linspace(0, facts.length, min(FRAMES, facts.length + 1)).astype(int).tolist())
    frames: list[Any] = []

    def shoot(step: int) -> None:
        if step in keep:
            frames.append(env.render() if camera is None else camera(env.unwrapped.data))  # type: ignore[attr-defined]  # see above

    _play(env, recording, threat, shoot)
    return gif(frames, 20.0)


def _play(env: Env, recording: Recording, threat: Threat, shoot: Any) -> None:
    """Step the environment through the episode; `shoot` is called with the number of steps done."""
    once = threat.kind.lasts == "episode"
    if once:
        _apply(env, threat, recording.disturbances[0])
    env.reset(seed=seed_of(recording.facts.seed, "episode", recording.facts.episode))
    shoot(0)
    for t, action in enumerate(recording.actions):
        if threat.channels and not once:
            _apply(env, threat, recording.disturbances[t])
        env.step(action.astype(env.action_space.dtype))
        shoot(t + 1)


def _apply(env: Env, threat: Threat, value: Any) -> None:
    assert isinstance(env, DisturbanceWrapper)
    first = 0
    for channel, size in threat.channels:
        env.apply(channel.name, channel.neutral + value[first : first + size])
        first += size


def _camera(model: Any) -> Any:
    """A function from MjData to a frame, or None where nothing can be rendered."""
    import mujoco

    # Shadows, reflections and multisampling cost a factor of fifteen under software rendering.
    model.vis.quality.shadowsize = 0
    model.vis.quality.offsamples = 0
    model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.5, 0.8
    try:
        renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
    except Exception:  # no display and no EGL: MuJoCo raises whatever its backend raised
        return None
    view = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, view)
    tracked = 1 if model.nbody > 1 else 0

    def shoot(data: Any) -> Any:
        view.lookat[:] = data.xpos[tracked]
        renderer.update_scene(data, camera=view)
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        return renderer.render().copy()

    return shoot
