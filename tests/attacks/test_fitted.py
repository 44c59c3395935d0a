"""Fitted attacks as files: read back to the same bytes of perturbations; damaged, changed or misfit files refused."""

from pathlib import Path

import numpy as np
import pytest

from lipctrl.attacks import Context
from lipctrl.attacks.fitted import SIZES, FittedAttack
from lipctrl.disturb.sets import Ball
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import PlainPolicy


def network(inputs: int, outputs: int) -> PlainNet:
    r = np.random.default_rng(0)
    weights = [r.normal(size=(6, inputs)), r.normal(size=(outputs, 6))]
    return PlainNet.mlp(weights, [r.normal(size=6), r.normal(size=outputs)], "tanh")


def context() -> Context:
    x = np.random.default_rng(1).normal(size=(5, 3))
    return Context(x, PlainPolicy(network(3, 2)), Ball("l2", np.full(5, 0.2), np.ones(3)), 5, np.random.default_rng(2))


@pytest.mark.parametrize("kind", SIZES)
def test_a_file_gives_the_same_attack(kind: str, tmp_path: Path) -> None:
    first = FittedAttack(kind, network(*SIZES[kind](3, 2)), {"env": "x", "radius": 0.1, "versions": {"a": "1"}})
    first.save(tmp_path / "a.npz")
    again = FittedAttack.load(tmp_path / "a.npz")
    assert again.facts == first.facts and again.sha256() == first.sha256()
    d = first.attack(3, 2).perturb(context())
    assert (d != 0).any() and np.array_equal(d, again.attack(3, 2).perturb(context()))
    with pytest.raises(UserError, match="4 observations and 2 actions needs"):
        again.attack(4, 2)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'sa-rl'"):
        FittedAttack("sarl", network(3, 3), {})
    with pytest.raises(UserError, match=r"\.npz"):
        FittedAttack("sa-rl", network(3, 3), {}).save(tmp_path / "a.zip")
    with pytest.raises(UserError, match="lipctrl attack fit"):
        FittedAttack.load(tmp_path / "missing.npz")
    network(3, 3).save(tmp_path / "net.npz")
    with pytest.raises(UserError, match="not a whole fitted attack"):
        FittedAttack.load(tmp_path / "net.npz")
    FittedAttack("sa-rl", network(3, 3), {"radius": 0.1}).save(tmp_path / "a.npz")
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a whole fitted attack"):
        FittedAttack.load(tmp_path / "cut.npz")
    with np.load(tmp_path / "a.npz") as stored:
        header = stored["header"].tobytes().replace(b'"radius": 0.1', b'"radius": 0.2')
        np.savez(tmp_path / "changed.npz", header=np.frombuffer(header, np.uint8), net=stored["net"])
    with pytest.raises(UserError, match="does not match its own hash"):
        FittedAttack.load(tmp_path / "changed.npz")
