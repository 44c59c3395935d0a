"""`lipctrl export`: what is written is the certified network; nothing is written without a proof."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import casadi as ca
import numpy as np
import pytest
from stable_baselines3 import PPO

from lipctrl.certify.certificate import Certificate
from lipctrl.nn.onnx import read_onnx
from lipctrl.nn.plain import PlainNet
from lipctrl.symbolic.c_code import c_code

Run = Callable[..., tuple[int, str, str]]
FORMATS = ("npz", "c", "casadi", "onnx")


def network(activation: str = "tanh") -> PlainNet:
    rng = np.random.default_rng(0)
    return PlainNet.mlp(
        [rng.normal(size=(4, 3)), rng.normal(size=(2, 4))], [rng.normal(size=4), np.ones(2)], activation
    )


@pytest.fixture
def certified(tmp_path: Path, run: Run) -> Path:
    """A saved network with its certificate."""
    network().save(tmp_path / "net.npz")
    assert run("certify", tmp_path / "net.npz", "--method", "product")[0] == 0
    return tmp_path / "net.npz"


def test_every_format_holds_the_certified_network(certified: Path, tmp_path: Path, run: Run) -> None:
    net, points = network(), np.random.default_rng(1).normal(size=(10, 3))
    for name in FORMATS:
        out = tmp_path / "deep" / name
        status, text, _ = run("export", certified, "--format", name, "--out", out)
        assert status == 0 and str(out / f"policy.{name}") in text and "verified" in text
        assert sorted(path.name for path in out.iterdir()) == ["certificate.json", f"policy.{name}"]
        assert Certificate.load(out / "certificate.json").verify(net)
    folder = tmp_path / "deep"
    assert PlainNet.load(folder / "npz" / "policy.npz").sha256() == net.sha256()
    assert read_onnx(folder / "onnx" / "policy.onnx").sha256() == net.sha256()
    assert (folder / "c" / "policy.c").read_text() == c_code(net)
    function = ca.Function.load(str(folder / "casadi" / "policy.casadi"))
    np.testing.assert_allclose(np.array([np.asarray(function(x)).ravel() for x in points]), net(points), rtol=1e-13)


def test_a_network_without_certificate_is_told_how_to_make_one(tmp_path: Path, run: Run) -> None:
    network().save(tmp_path / "net.npz")
    status, _, error = run("export", tmp_path / "net.npz", "--out", tmp_path / "out")
    assert status == 2 and f"make one with: lipctrl certify {tmp_path / 'net.npz'}" in error
    assert not (tmp_path / "out").exists()


def test_a_proof_that_does_not_hold_is_refused(certified: Path, tmp_path: Path, run: Run) -> None:
    path = certified.with_suffix(".certificate.json")
    forged = json.loads(path.read_text())
    forged["bound"] /= 2
    (tmp_path / "forged.json").write_text(json.dumps(forged))
    status, _, error = run("export", certified, "--certificate", tmp_path / "forged.json", "--out", tmp_path / "out")
    assert status == 3 and "does not hold" in error and not (tmp_path / "out").exists()


def test_a_certificate_of_other_weights_is_refused(certified: Path, tmp_path: Path, run: Run) -> None:
    network("relu").save(tmp_path / "other.npz")
    certificate = certified.with_suffix(".certificate.json")
    status, _, error = run("export", tmp_path / "other.npz", "--certificate", certificate, "--out", tmp_path / "out")
    assert status == 2 and "was made for the weights" in error and not (tmp_path / "out").exists()


def test_a_format_that_rounds_the_network_is_refused(tmp_path: Path, run: Run) -> None:
    """ONNX stores 0.1 in single precision; 0.125 is exact in both."""
    for slope, expected in ((0.1, 3), (0.125, 0)):
        path = tmp_path / f"{slope}.npz"
        network(f"leaky_relu:{slope}").save(path)
        assert run("certify", path, "--method", "product")[0] == 0
        status, _, error = run("export", path, "--format", "onnx", "--out", tmp_path / str(slope))
        assert status == expected and ("does not hold this network exactly" in error) == (expected == 3)
        assert (tmp_path / str(slope)).exists() == (expected == 0)


def test_a_run_folder_exports_its_policy(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    network().save(folder / "policy.npz")
    assert run("certify", folder, "--method", "product")[0] == 0
    assert run("export", folder, "--format", "c", "--out", tmp_path / "out")[0] == 0
    assert network().sha256() in (tmp_path / "out" / "policy.c").read_text()


def test_a_zip_says_what_it_cannot_hold(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "model.zip"
    model = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [4]}, device="cpu")
    model.save(path)
    assert run("certify", path, "--method", "product")[0] == 0
    status, text, _ = run("export", path, "--format", "c", "--out", tmp_path / "out")
    assert status == 0 and "takes normalised observations" in text


def test_bad_arguments_and_existing_exports(certified: Path, tmp_path: Path, run: Run) -> None:
    assert run("export")[0] == 2
    assert run("export", tmp_path / "nothing.npz")[0] == 2
    assert run("export", certified, "--format", "java")[0] == 2
    out = tmp_path / "out"
    assert run("export", certified, "--out", out)[0] == 0
    before = (out / "policy.npz").read_bytes()
    for name in ("npz", "c"):  # an export is not overwritten, nor is its certificate
        status, _, error = run("export", certified, "--format", name, "--out", out)
        assert status == 2 and "exists" in error
    assert (out / "policy.npz").read_bytes() == before
    (tmp_path / "file").write_text("")
    status, _, error = run("export", certified, "--out", tmp_path / "file" / "deeper")
    assert status == 2 and "cannot create" in error


def snippets(language: str) -> list[str]:
    text = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_documented_program_prints_the_actions(certified: Path, tmp_path: Path, run: Run) -> None:
    (program,) = snippets("c")
    (tmp_path / "main.c").write_text(program)
    assert run("export", certified, "--format", "c", "--out", tmp_path / "deploy")[0] == 0
    source = [str(tmp_path / "main.c"), str(tmp_path / "deploy" / "policy.c")]
    subprocess.run(
        ["cc", "-std=c99", "-O3", "-Wall", "-Werror", *source, "-o", str(tmp_path / "a.out"), "-lm"], check=True
    )
    out = subprocess.run([str(tmp_path / "a.out")], capture_output=True, text=True, check=True).stdout
    expected = network()(np.array([0.1, -0.2, 0.3]))
    np.testing.assert_allclose([float(word) for word in out.split()], expected, rtol=1e-12)


def test_the_documented_python_runs() -> None:
    (program,) = snippets("python")
    names: dict[str, ca.Function] = {}
    exec(program, names)
    shapes = {name: names[name].size_out(0) for name in ("policy", "stages", "critic", "step", "horizon")}
    assert shapes == {"policy": (2, 1), "stages": (2, 20), "critic": (1, 1), "step": (16, 1), "horizon": (16, 10)}
