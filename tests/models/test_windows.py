"""Windows: the published grid, simulated plants, recorded series with every defect, the file."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lipctrl.envs.cstr import LEVEL, P, cstr_plant
from lipctrl.envs.linear import linear_plant
from lipctrl.files import UserError
from lipctrl.models.baselines import baselines, causal_affine
from lipctrl.models.model import Scaling
from lipctrl.models.reactor import reactor_grid
from lipctrl.models.windows import Windows, from_plant, from_series, read_columns

PLANT = linear_plant([[0.9, 0.2], [0.0, 0.8]], [[0.1], [1.0]], dt=0.5, state_limit=50.0, input_limit=1.0)


@pytest.fixture(scope="module")
def grid() -> Windows:
    return reactor_grid(cstr_plant(), P, LEVEL)


def test_the_published_grid(grid: Windows) -> None:
    """772 states times 16 inputs; the first rows of the published data, as deviations."""
    x_e, _ = cstr_plant().equilibrium
    assert len(grid) == 12352 and len(np.unique(grid.starts, axis=0)) == 772 and grid.horizon == 10
    row = np.argmin(np.abs(grid.starts - x_e - [1.44023939, -74.5999727]).sum(1))
    deviations = grid.states[row, :3] - x_e
    expected = [(1.4325163, -75.72458929), (1.4248451, -76.84802004), (1.41722366, -77.97016868)]
    np.testing.assert_allclose(deviations, expected, atol=2e-3)
    np.testing.assert_allclose(grid.inputs[row, 0] - cstr_plant().equilibrium[1], [-3.5, -5e5])


def test_least_squares_on_the_published_grid(grid: Windows) -> None:
    """Persistence 5.46e-4, affine 9.2e-6, quadratic 2.2e-6 in scaled units, with another shuffle."""
    train, validation, test = grid.split(123)
    assert (len(train), len(validation), len(test)) == (6484, 2162, 3706)
    scaling = Scaling.of(train)
    p, u, y = scaling.scaled(test)
    errors = {k: float(((b.predict(p, u) - y) ** 2).mean()) for k, b in baselines(train, scaling).items()}
    assert errors == {
        "persistence": pytest.approx(5.46e-4, rel=0.03),
        "affine": pytest.approx(9.2e-6, rel=0.06),
        "quadratic": pytest.approx(2.2e-6, rel=0.06),
    }


def test_windows_of_a_plant_follow_its_equations_and_its_seed() -> None:
    found = from_plant(PLANT, windows=30, horizon=7, seed=3, hold=3)
    for k in range(7):
        before = found.starts if k == 0 else found.states[:, k - 1]
        np.testing.assert_allclose(found.states[:, k], PLANT.step(before, found.inputs[:, k]), atol=1e-12)
    assert (found.inputs[:, 0] == found.inputs[:, 2]).all() and (found.inputs[:, 2] != found.inputs[:, 3]).any()
    again = from_plant(PLANT, windows=30, horizon=7, seed=3, hold=3)
    assert again.states.tobytes() == found.states.tobytes()
    noisy = from_plant(PLANT, windows=4000, horizon=2, seed=3, noise=np.array([0.1, 0.2]))
    rest = noisy.states[:, 1] - PLANT.step(noisy.states[:, 0], noisy.inputs[:, 1])
    A = PLANT.linearise(*PLANT.equilibrium)[0]
    expected = np.sqrt(np.array([0.01, 0.04]) + (A**2) @ [0.01, 0.04])
    np.testing.assert_allclose(rest.std(0), expected, rtol=0.05)


def test_an_affine_plant_is_learned_exactly_by_least_squares() -> None:
    windows = from_plant(PLANT, windows=200, horizon=4, seed=0)
    scaling = Scaling.of(windows)
    p, u, y = scaling.scaled(windows)
    assert np.abs(baselines(windows, scaling)["affine"].predict(p, u) - y).max() < 1e-6
    from_start, from_inputs, offset = causal_affine(p, u, y)
    found = np.einsum("tij,bj->bti", from_start, p) + np.einsum("tsij,bsj->bti", from_inputs, u) + offset
    assert np.abs(found - y).max() < 1e-6 and (from_inputs[0, 1:] == 0).all()


def columns(rows: int = 60) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    u, x = rng.uniform(-1, 1, rows), np.zeros(rows)
    for k in range(rows - 1):
        x[k + 1] = 0.9 * x[k] + 0.1 * u[k]
    return {"time [min]": 0.5 * np.arange(rows), "level [cm]": x, "valve [-]": u}


NAMES = {"states": ("level [cm]",), "inputs": ("valve [-]",), "time": "time [min]"}


def test_windows_of_a_series_are_pieces_of_it(tmp_path: Path) -> None:
    data = columns()
    with (tmp_path / "plant.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(data)
        writer.writerows(zip(*data.values(), strict=True))
    found = from_series(read_columns(tmp_path / "plant.csv"), **NAMES, horizon=5, stride=2)  # type: ignore[arg-type]
    assert found.dt == 0.5 and found.time_unit == "min" and len(found) == 28
    np.testing.assert_allclose(found.states[3, :, 0], data["level [cm]"][7:12])
    np.testing.assert_allclose(found.inputs[3, :, 0], data["valve [-]"][6:11])
    np.savez(tmp_path / "plant.npz", **data)
    assert read_columns(tmp_path / "plant.npz").keys() == data.keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("valve [-]"), "column"),
        (lambda d: d.__setitem__("valve [-]", np.ones(60)), "constant"),
        (lambda d: d["level [cm]"].__setitem__(3, np.nan), "not finite"),
        (lambda d: d["time [min]"].__setitem__(3, 1.6), "not uniformly sampled"),
        (lambda d: d.update({k: v[:12] for k, v in d.items()}), "at least 20"),
    ],
)
def test_defects_of_a_series_are_named(change, words: str) -> None:  # type: ignore[no-untyped-def]
    data = columns()
    change(data)
    with pytest.raises(UserError, match=words):
        from_series(data, **NAMES, horizon=5)  # type: ignore[arg-type]


def test_a_column_without_unit_is_refused() -> None:
    data = columns()
    data["level"] = data["level [cm]"]
    with pytest.raises(UserError, match="no unit"):
        from_series(data, states=("level",), inputs=("valve [-]",), time="time [min]", horizon=5)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data"):
        read_columns(tmp_path / "none.csv")
    for text, words in (("a,b\n", "no rows"), ("a,b\n1,x\n", "could not convert"), ("a,b\n1\n", "other lengths")):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(UserError, match=words):
            read_columns(tmp_path / "bad.csv")
    found = from_plant(PLANT, windows=30, horizon=2, seed=0)
    found.save(tmp_path / "w.npz")
    assert Windows.load(tmp_path / "w.npz").states.tobytes() == found.states.tobytes()
    (tmp_path / "w.npz").write_bytes((tmp_path / "w.npz").read_bytes()[:-40])
    for path, words in ((tmp_path / "w.npz", "whole file"), (tmp_path / "x.npz", "no windows")):
        with pytest.raises(UserError, match=words):
            Windows.load(path)


def test_bad_windows() -> None:
    found = from_plant(PLANT, windows=30, horizon=2, seed=0)
    with pytest.raises(UserError, match="too few"):
        found.take(np.arange(5))
    with pytest.raises(UserError, match="expected"):
        replace(found, starts=found.starts[:, :1])
    with pytest.raises(UserError, match="not finite"):
        replace(found, starts=found.starts * np.nan)
    with pytest.raises(UserError, match="constant"):
        Scaling.of(replace(found, inputs=np.zeros_like(found.inputs)))


def test_parts_of_a_series_share_no_sample() -> None:
    found = from_series(columns(400), **NAMES, horizon=5, stride=2)  # type: ignore[arg-type]
    parts = [set(np.append(p.starts.ravel(), p.states.ravel()).tolist()) for p in found.split(0)]
    assert not parts[0] & parts[1] and not parts[1] & parts[2] and not parts[0] & parts[2]
