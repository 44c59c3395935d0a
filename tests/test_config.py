"""Settings: presets, files, flags, and errors that name the nearest valid key."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lipctrl.config import parse, presets, read_config, to_yaml, updated
from lipctrl.files import UserError, nearest


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True)
class Example:
    steps: int = 3
    name: str = "a"
    widths: tuple[int, ...] = (4, 4)
    bound: float | None = None
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")


def run(*args: str) -> Example:
    return parse(Example(), group="none", prog="x", description="d", args=args)


def test_flags_override_file_and_file_overrides_defaults(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("steps: 7\nname: b\ninner: {rate: 1e-3}\n")  # YAML 1.1 reads 1e-3 as text
    result = run("--config", str(file), "--name", "c")
    assert result == Example(steps=7, name="c", inner=Inner(1e-3))


def test_yaml_round_trip_is_exact() -> None:
    settings = Example(5, "q", (1, 2, 3), 0.1 + 0.2, Inner(1e-17))
    import yaml

    assert updated(Example(), yaml.safe_load(to_yaml(settings)), "text") == settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz: 3", ["stepz", "steps"]),
        ("inner: {rat: 3}", ["rat", "rate"]),
        ("steps: many", ["steps", "many"]),
        ("steps: 0", ["at least 1"]),
        ("widths: 3", ["widths"]),
        ("- 1\n- 2", ["mapping"]),
        ("a: [", ["YAML"]),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        run("--config", str(file))
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_bad_flag_values_and_misspelt_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        run("--steps", "0")
    assert status.value.code == 2 and "at least 1" in "".join(capsys.readouterr())
    with pytest.raises(SystemExit) as status:
        run("--stepz", "3")
    assert status.value.code == 2
    assert "steps" in "".join(capsys.readouterr())


def test_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        run("--print-config", "--steps", "9")
    assert status.value.code == 0 and "steps: 9" in capsys.readouterr().out


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'double-integrator'"):
        read_config("double-integratr", "bc")
    assert "lipctrl/DoubleIntegrator-v0" in presets("bc")["double-integrator"]


def test_nearest_lists_what_is_known_when_nothing_is_close() -> None:
    assert "known: aa, bb" in str(nearest("zzzz", ["aa", "bb"], "thing"))
