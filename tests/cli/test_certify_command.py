"""`lipctrl certify` on what people bring: state dicts, norm pairs, regions, gains."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lipctrl.certify.certificate import Certificate
from lipctrl.nn.plain import PlainNet

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def linear(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A saved linear network and its matrix: every answer is known."""
    matrix = np.array([[1.0, -2.0], [0.5, 3.0]])
    PlainNet(({0: matrix},), (np.zeros(2),), (), input_scale=np.array([0.5, 2.0])).save(tmp_path / "n.npz")
    return tmp_path / "n.npz", matrix


@pytest.mark.parametrize("norm", ["l2", "linf", "l2:linf", "linf:l2"])
def test_every_norm_pair_of_a_linear_map(norm: str, linear: tuple[Path, np.ndarray], run: Run) -> None:
    path, matrix = linear
    signs = np.array([[1, 1], [1, -1]]) @ matrix.T
    exact = {
        "l2": np.linalg.norm(matrix, 2),
        "linf": np.abs(matrix).sum(1).max(),
        "l2:linf": np.linalg.norm(matrix, axis=1).max(),
        "linf:l2": np.linalg.norm(signs, axis=1).max(),
    }[norm]
    assert run("certify", path, "--norm", norm)[0] == 0
    certificate = Certificate.load(path.with_suffix(".certificate.json"))
    slack = 0.25 if norm == "linf:l2" else 1e-6  # that pair is bounded row by row
    assert exact <= certificate.bound <= exact * (1 + slack) and certificate.verify(PlainNet.load(path))


def test_units_enter_the_bound(linear: tuple[Path, np.ndarray], run: Run) -> None:
    path, matrix = linear
    for arguments, expected in (
        (["--normalised"], matrix * [0.5, 2.0]),
        (["--input-scale", 3, 1], matrix * [3.0, 1.0]),
        (["--output-scale", 2, 4], matrix / np.array([[2.0], [4.0]])),
    ):
        assert run("certify", path, *arguments)[0] == 0
        bound = Certificate.load(path.with_suffix(".certificate.json")).bound
        assert bound == pytest.approx(np.linalg.norm(expected, 2), rel=1e-6)
    assert run("certify", path, "--normalised", "--input-scale", 1, 1)[0] == 2


def test_gains_and_outputs(linear: tuple[Path, np.ndarray], run: Run) -> None:
    path, _ = linear
    status, out, _ = run("certify", path, "--region=-1:1,-1:1", "--gains", "--per-output")
    assert status == 0 and "-2 .. -2" in out and "output 1: [3.04138, 3.04138]" in out
    assert "execution adds at most" in out
    assert run("certify", path, "--gains")[0] == 2


def test_torch_state_dict(tmp_path: Path, run: Run) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    torch.save(net.state_dict(), tmp_path / "n.pt")
    status, out, _ = run("certify", tmp_path / "n.pt", "--activation", "tanh")
    assert status == 0 and "proved" in out
    bound = Certificate.load(tmp_path / "n.certificate.json").bound
    x = torch.randn(200, 3)
    jacobians = torch.func.vmap(torch.func.jacrev(net))(x)
    assert float(torch.linalg.matrix_norm(jacobians, 2).max().detach()) <= bound
    status, _, err = run("certify", tmp_path / "n.pt")
    assert status == 2 and "--activation" in err
    torch.save(torch.nn.Conv1d(1, 1, 1).state_dict(), tmp_path / "c.pt")
    status, _, err = run("certify", tmp_path / "c.pt", "--activation", "tanh")
    assert status == 2 and "not the state dict of an MLP" in err
    (tmp_path / "c.pt").write_bytes((tmp_path / "n.pt").read_bytes()[:300])
    status, _, err = run("certify", tmp_path / "c.pt", "--activation", "tanh")
    assert status == 2 and "not a whole torch state dict" in err


def test_a_strangers_sb3_zip_and_onnx_file(tmp_path: Path, run: Run) -> None:
    import gymnasium
    from stable_baselines3 import PPO

    from lipctrl.nn.onnx import write_onnx
    from lipctrl.nn.sb3 import actor_to_plain

    model = PPO("MlpPolicy", gymnasium.make("Pendulum-v1"), seed=0)
    model.save(tmp_path / "m.zip")
    status, out, _ = run("certify", tmp_path / "m.zip")
    assert status == 0 and "proved" in out and "VecNormalize" in out
    onnx = pytest.importorskip("onnx")
    assert onnx
    write_onnx(actor_to_plain(model.policy), tmp_path / "n.onnx")
    assert run("certify", tmp_path / "n.onnx")[0] == 0
    bounds = [Certificate.load(tmp_path / f"{name}.certificate.json").bound for name in ("m", "n")]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)
