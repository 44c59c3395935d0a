"""What a path on the command line stands for: a run folder, a network file, a checkpoint of somebody else's."""

from pathlib import Path

from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.runs import Run

KINDS = "a run folder, a .npz network, a Stable-Baselines3 .zip, or a .onnx network"


def load_network(path: Path) -> PlainNet:
    """The plain network behind a path.

    Raises:
        UserError: missing, of no known kind, damaged, or with layers that cannot be certified.
    """
    if path.is_dir():
        return PlainNet.load(Run.open(path).checked("policy.npz"))
    if not path.exists():
        raise UserError(f"nothing at {path}; expected {KINDS}")
    if path.suffix == ".npz":
        return PlainNet.load(path)
    if path.suffix == ".zip":
        from lipctrl.nn.sb3 import load_zip

        return load_zip(path)
    if path.suffix == ".onnx":
        from lipctrl.nn.onnx import read_onnx

        return read_onnx(path)
    raise UserError(f"{path} is not {KINDS}")
