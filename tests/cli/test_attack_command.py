"""`lipctrl attack fit|apply`, and fitted attacks and critics in `evaluate`: whole runs, repeatable files, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipctrl.attacks import adversary
from lipctrl.attacks.critic import StateValue
from lipctrl.attacks.fitted import FittedAttack
from lipctrl.attacks.threat import Threat
from lipctrl.cli.attack_fit import AttackFitSettings, facts_of
from lipctrl.cli.contenders import contender_named
from lipctrl.cli.experts import make_env
from lipctrl.cli.fitted import critic_attack
from lipctrl.cli.loading import pid_of
from lipctrl.nn.plain import PlainNet

Run = Callable[..., tuple[int, str, str]]
SMALL: dict[str, list[object]] = {
    "sa-rl": ["--steps", 2048, "--candidates", 2],
    "pa-ad": ["--steps", 1024, "--candidates", 1],
    "robust-sarsa": ["--steps", 2000, "--candidates", 2, "--updates", 400],
}


def gain(folder: Path) -> Path:
    PlainNet(({0: -np.array([[0.4, 0.8]])},), (np.zeros(1),), ()).save(folder / "net.npz")
    return folder / "net.npz"


@pytest.mark.parametrize("kind", SMALL)
def test_fit_is_stored_repeatable_reported_on_new_seeds_and_applied(kind: str, tmp_path: Path, run: Run) -> None:
    common: list[object] = [gain(tmp_path), "--attack", kind, "--radius", 0.05, "--episodes", 3, *SMALL[kind]]
    for name in ("a", "b"):
        status, out, _ = run("attack", "fit", *common, "--out", tmp_path / f"{name}.npz")
        assert status == 0 and "on new seeds" in out
        assert kind != "robust-sarsa" or out.count("Bellman error") == 2
    stored = FittedAttack.load(tmp_path / "a.npz")
    assert stored.sha256() == FittedAttack.load(tmp_path / "b.npz").sha256()
    facts = stored.facts
    assert facts["attacked"] < facts["nominal"] < 0 and facts["training steps"] >= SMALL[kind][1]  # type: ignore[operator]
    assert facts["policy sha256"] == PlainNet.load(tmp_path / "net.npz").sha256() and facts["radius"] == 0.05
    status, _, _ = run("attack", "fit", *common, "--seed", 1, "--out", tmp_path / "c.npz")
    assert status == 0 and FittedAttack.load(tmp_path / "c.npz").net.sha256() != stored.net.sha256()
    assert run("attack", "fit", *common, "--out", tmp_path / "a.npz")[0] == 2  # exists

    arguments = [tmp_path / "a.npz", tmp_path / "net.npz", "lqr", "--episodes", 4, "--out", tmp_path / "t.json"]
    status, out, _ = run("attack", "apply", *arguments)
    own, other = json.loads((tmp_path / "t.json").read_text())
    assert status == 0 and other["policy"] == "expert"
    for row in (own, other):
        assert row["fitted"] < row["nominal"] and row["mad"] < row["nominal"] and row["failures"] == 0
    calm = [*arguments[:-1], tmp_path / "u.json", "--radius", 0]
    assert run("attack", "apply", *calm)[0] == 0
    for row in json.loads((tmp_path / "u.json").read_text()):
        assert row["fitted"] == row["mad"] == row["vertex"] == row["nominal"]


def test_a_fitted_attack_is_an_attack_of_evaluate_and_compare(tmp_path: Path, run: Run) -> None:
    net, file = gain(tmp_path), tmp_path / "a.npz"
    assert run("attack", "fit", net, "--radius", 0.05, "--episodes", 2, *SMALL["sa-rl"], "--out", file)[0] == 0
    arguments: list[object] = ["--threat", "observation:linf:raw", "--episodes", 3]
    status, _, _ = run(
        "evaluate",
        net,
        *arguments,
        "--attacks",
        "none",
        file,
        "--radii",
        0,
        0.05,
        "--fresh",
        2,
        "--out",
        tmp_path / "e",
    )
    (section,) = json.loads((tmp_path / "e" / "report.json").read_text())["sections"]
    means = {(row["attack"], row["radius"]): row["mean"] for row in section["table"]}
    spent = FittedAttack.load(file).facts["training steps"]
    assert (
        f"sa-rl, fitted to {net}" in section["facts"][str(file)] and f"{spent} training" in section["facts"][str(file)]
    )
    assert status == 0 and means[str(file), 0.0] == means["none", 0.0] > means[str(file), 0.05]
    assert run("compare", net, "lqr", *arguments, "--attack", file, "--radius", 0.05)[0] == 0
    status, _, err = run("evaluate", "lqr", "--env", "lipctrl/CartPole-v0", "--attacks", file)
    assert status == 2 and "4 observations and 1 actions" in err


@pytest.mark.parametrize("algorithm", ["sac", "ppo"])
def test_the_critic_of_a_run_folder_and_of_its_zip(algorithm: str, tmp_path: Path, run: Run) -> None:
    trained: list[Any] = ["--env", "InvertedPendulum-v5", "--algorithm", algorithm, "--hidden", 8, "--timesteps", 200]
    assert run("train", "sb3", *trained, "--out", tmp_path / "r")[0] == 0
    found = []
    for policy, folder in ((tmp_path / "r", "folder"), (tmp_path / "r" / "model.zip", "zip")):
        arguments: list[object] = ["--attacks", "none", "critic", "--radii", 0, 0.1, "--episodes", 2, "--fresh", 0]
        assert run("evaluate", policy, *trained[:2], *arguments, "--out", tmp_path / folder)[0] == 0
        table = json.loads((tmp_path / folder / "report.json").read_text())["sections"][0]["table"]
        found.append([(row["attack"], row["radius"], row["mean"], row["deviation"]) for row in table])
    assert found[0] == found[1] and found[0][-1][-1] > 0


def test_behind_vecnormalize_the_run_folder_knows_what_the_critic_sees(tmp_path: Path, run: Run) -> None:
    trained: list[Any] = ["--env", "InvertedPendulum-v5", "--hidden", 8, "--timesteps", 200, "--normalize"]
    assert run("train", "sb3", *trained, "--out", tmp_path / "r")[0] == 0
    found, actor = critic_attack("p", tmp_path / "r", 4).critic, PlainNet.load(tmp_path / "r" / "policy.npz")
    assert isinstance(found, StateValue) and np.array_equal(found.net.blocks[0][0], actor.blocks[0][0])
    bare = critic_attack("p", tmp_path / "r" / "model.zip", 4).critic
    x = np.ones((3, 4))
    assert isinstance(bare, StateValue) and not np.allclose(bare.net(x), found.net(x))


def test_refusals(tmp_path: Path, run: Run) -> None:
    net = gain(tmp_path)
    for arguments, words in (
        (["evaluate", "lqr", "--attacks", "critic"], "expert has none"),
        (["evaluate", net, "--attacks", "critic"], "has none"),
        (["evaluate", "lqr", "--attacks", "robust-sarsa"], "is fitted first"),
        (["evaluate", "lqr", "--attacks", tmp_path / "missing.npz"], "lipctrl attack fit"),
        (["evaluate", "lqr", "--attacks", net], "not a whole fitted attack"),
        (["compare", "lqr", net, "--attack", "sa-rl"], "is fitted first"),
        (["attack", "fit"], "needs a policy"),
        (["attack", "apply"], "needs an attack and a policy"),
        (["attack", "apply", tmp_path / "missing.npz", "lqr"], "no fitted attack"),
        (["attack", "fit", "lqr", "--threat", "observation:l3:raw"], "l2"),
    ):
        status, _, err = run(*arguments)
        assert status == 2 and words in " ".join(err.split()), (arguments, err)
    for arguments in (
        ["evaluate", "lqr", "--attacks", "sarl"],
        ["attack", "fit", "lqr", "--radius", 0],
        ["attack", "fit", "lqr", "--candidates", 28],
        ["attack", "fit", "lqr", "--attack", "robust-sarsa", "--candidates", 31],
        ["attack", "fit", "lqr", "--steps", 0],
        ["attack", "fit", "lqr", "--attack", "mad"],
        ["attack", "fit", "lqr", "--out", "a.zip"],
        ["attack", "apply", "a.npz", "lqr", "--radius", -1],
        ["attack", "apply", "a.npz", "lqr", "--episodes", 0],
    ):
        assert run(*arguments)[0] == 2, arguments
    assert list(tmp_path.iterdir()) == [net]


def test_an_adversary_begins_as_a_copy_of_a_stored_attack(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is one of the candidates."""
    monkeypatch.setattr(adversary, "SHOWN", 1000)
    net, first = gain(tmp_path), tmp_path / "sarsa.npz"
    common: list[object] = ["attack", "fit", net, "--radius", 0.05, "--episodes", 3]
    assert run(*common, "--attack", "robust-sarsa", *SMALL["robust-sarsa"], "--out", first)[0] == 0
    arguments = [*common, "--start", first, "--steps", 1024, "--candidates", 1, "--out", tmp_path / "copied.npz"]
    status, out, _ = run(*arguments)
    assert status == 0 and "copy of" in out
    stored = FittedAttack.load(tmp_path / "copied.npz")
    assert stored.kind == "sa-rl" and stored.facts["start"] == FittedAttack.load(first).sha256()
    assert (
        stored.facts["training steps"] == 2000 + 200 + 1000 + 1024
    )  # the start's, with a tenth to check it, are counted
    assert stored.facts["attacked"] < stored.facts["nominal"]
    for start, kind, words in (
        (tmp_path / "missing.npz", "sa-rl", "no fitted attack"),
        (first, "pa-ad", "start is for sa-rl"),
    ):
        wrong = [*common, "--attack", kind, "--start", start, "--out", tmp_path / "no.npz"]
        status, _, err = run(*wrong)
        assert status == 2 and words in " ".join(err.split()), err
    assert not (tmp_path / "no.npz").exists()


def test_a_pid_controller_is_known_by_its_gains(tmp_path: Path) -> None:
    file, env, found = tmp_path / "pid.yaml", make_env("lipctrl/DoubleIntegrator-v0"), []
    for ki in (0.0, 0.1):
        file.write_text(f"kp: [[0.5, 1.4]]\nki: [[{ki}, 0]]\nsetpoint: [0, 0]\n")
        one = contender_named(str(file), env, None, 10)
        found.append(facts_of(AttackFitSettings(), one, Threat.parse("observation:linf:raw", np.ones(2), ("a", "b"))))
        assert found[-1]["policy sha256"] == pid_of(file, env).sha256()
    assert found[0]["policy sha256"] != found[1]["policy sha256"]
