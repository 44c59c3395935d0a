"""What a path on the command line stands for: a run folder, a network file, a checkpoint of somebody else's."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.reward import is_reward
from lipctrl.pid import PidPolicy, load_pid
from lipctrl.runs import Run

if TYPE_CHECKING:  # torch takes seconds to import
    from lipctrl.models.model import ProcessModel

Env = gymnasium.Env[Any, Any]
KINDS = "a run folder, a .npz network, a Stable-Baselines3 .zip, a torch .pt state dict, or a .onnx network"


def load_network(path: Path, *, activation: str | None = None) -> PlainNet:
    """The plain network behind a path.

    Args:
        path: see `KINDS`.
        activation: between the layers of a torch state dict, which does not store it.

    Raises:
        UserError: missing, of no known kind, damaged, or with layers that cannot be certified.
    """
    if path.is_dir():
        run = Run.open(path)
        return PlainNet.load(run.checked("network.npz" if is_model_run(path) else "policy.npz"))
    if is_pid(path):
        raise UserError(f"{path} is a PID controller, if anything: it can be evaluated and compared, but is no network")
    if not path.exists():
        raise UserError(f"nothing at {path}; expected {KINDS}")
    if path.suffix == ".npz":
        if is_reward(path):
            raise UserError(f"{path} holds a learned reward: lipctrl reward certify {path}")
        return PlainNet.load(path)
    if path.suffix == ".zip":
        from lipctrl.nn.sb3 import load_zip

        return load_zip(path)
    if path.suffix == ".onnx":
        from lipctrl.nn.onnx import read_onnx

        return read_onnx(path)
    if path.suffix in (".pt", ".pth"):
        return read_state_dict(path, activation)
    raise UserError(f"{path} is not {KINDS}")


def is_pid(path: Path) -> bool:
    """Whether a path is the file of a PID controller."""
    return path.suffix in (".yaml", ".yml")


def pid_of(path: Path, env: Env) -> PidPolicy:
    """The PID controller in a file, with limits and sampling time of an environment; see `load_pid`.

    Raises:
        UserError: see `load_pid`; or the environment does not say how long its step is.
    """
    inner, space = env.unwrapped, env.action_space
    dt = getattr(getattr(inner, "plant", inner), "dt", None)
    if dt is None:
        raise UserError(f"{path}: {type(inner).__name__} does not say how long a step is, which a PID controller needs")
    assert isinstance(space, gymnasium.spaces.Box) and env.observation_space.shape
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return load_pid(path, low=low, high=high, observations=env.observation_space.shape[0], dt=float(dt))


def is_model_run(path: Path) -> bool:
    """Whether a path is a run folder of `lipctrl train model`."""
    return path.is_dir() and (path / "model.npz").exists()


def load_model(path: Path) -> "ProcessModel":
    """The process model of a run of `lipctrl train model`, or of its model.npz.

    Raises:
        UserError: missing, damaged, or of another kind.
    """
    from lipctrl.models.model import ProcessModel

    return ProcessModel.load(Run.open(path).checked("model.npz") if path.is_dir() else path)


def read_state_dict(path: Path, activation: str | None) -> PlainNet:
    """The MLP of a torch state dict: its matrices in order, each with the bias of the same prefix.

    Raises:
        UserError: no activation given, damaged, pickled objects inside, or not the weights of an MLP.
    """
    import torch

    if activation is None:
        raise UserError(f"{path} does not say which activation stands between its layers: add --activation, e.g. tanh")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        matrices = {name: value for name, value in state.items() if name.endswith("weight") and value.ndim == 2}
        biases = [state.get(f"{name.removesuffix('weight')}bias", torch.zeros(len(w))) for name, w in matrices.items()]
        others = set(state) - set(matrices) - {f"{name.removesuffix('weight')}bias" for name in matrices}
    except Exception as error:  # torch raises whatever zip or its unpickler raised
        raise UserError(f"{path} is not a whole torch state dict ({type(error).__name__})") from error
    if others or not matrices:
        raise UserError(
            f"{path} is not the state dict of an MLP: it also holds {', '.join(sorted(others)) or 'nothing'}"
        )
    return PlainNet.mlp(
        [w.double().numpy() for w in matrices.values()], [b.double().numpy() for b in biases], activation
    )
