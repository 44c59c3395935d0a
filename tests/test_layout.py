"""The layout is a promise: links, who may import whom, and a wheel that holds every file."""

import ast
import importlib.resources
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = ("envs", "agents", "configs")

# Who may import whom inside lipctrl. A unit is a subpackage or a module directly in lipctrl.
BASE = {"files", "norms", "seeding"}
ALLOWED: dict[str, set[str]] = {
    "files": set(),
    "seeding": {"files"},
    "norms": {"files"},
    "config": {"files"},
    "runs": {"files", "config"},
    "plant": {"files"},
    "nn": BASE,
    "policy": BASE | {"nn"},
    "pid": BASE | {"config"},
    "disturb": BASE | {"plant"},
    "demos": BASE | {"nn", "policy"},
    "certify": BASE | {"nn", "plant"},
    "models": BASE | {"nn", "plant", "certify"},
    "symbolic": BASE | {"nn", "models", "plant"},  # a model is checked against the signals of its plant
    "mpc": BASE | {"nn", "plant", "policy", "certify", "symbolic", "models"},
    "envs": BASE | {"plant", "disturb"},
    "agents": BASE | {"config", "runs", "nn", "policy", "demos", "certify", "models", "plant"},
    "attacks": BASE | {"config", "nn", "plant", "policy", "disturb", "certify"},
    "evaluation": BASE | {"config", "runs", "nn", "policy", "demos", "certify", "disturb", "attacks", "models"},
}


def sources() -> list[tuple[str, Path]]:
    """(unit, file) of every Python file of the package."""
    found = []
    for path in sorted(ROOT.glob("lipctrl/*.py")):
        found.append((path.stem, path))
    for folder in [p for p in sorted((ROOT / "lipctrl").iterdir()) if p.is_dir()]:
        found += [(folder.name, path) for path in sorted(folder.resolve().rglob("*.py"))]
    return [(unit, path) for unit, path in found if "__pycache__" not in path.parts]


def imported_units(path: Path) -> set[str]:
    """Units of lipctrl that a file imports absolutely, anywhere in it."""
    units = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "lipctrl" else [node.module]
            )
        units |= {name.split(".")[1] for name in names if name.startswith("lipctrl.")}
        bare = {name.split(".")[0] for name in names} & set(LINKS)
        assert not bare, f"{path} imports {bare} by its bare name"
    return units - {"__version__"}


@pytest.mark.parametrize("name", LINKS)
def test_links_point_to_the_top_level_folders(name: str) -> None:
    link = ROOT / "lipctrl" / name
    assert link.is_symlink() and os.readlink(link) == f"../{name}"


@pytest.mark.parametrize(("unit", "path"), sources(), ids=lambda value: str(getattr(value, "name", value)))
def test_import_directions(unit: str, path: Path) -> None:
    if unit in ("cli", "__main__"):
        return
    extra = imported_units(path) - ALLOWED.get(unit, set()) - {unit}
    assert not extra, f"{path} ({unit}) imports {extra}"


def test_nothing_imports_the_command_line() -> None:
    guilty = [path for unit, path in sources() if unit not in ("cli", "__main__") and "cli" in imported_units(path)]
    assert not guilty


def test_every_test_imports_only_what_the_dev_extra_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    declared = {re.split(r"[\[<>=~! ]", name)[0].replace("-", "_").lower() for name in wanted}
    declared |= {"yaml", "lipctrl", "tests", "benchmarks"} | set(sys.stdlib_module_names)
    for path in sorted((ROOT / "tests").rglob("*.py")):
        found = {name.split(".")[0] for node in ast.parse(path.read_text()).body for name in module_names(node)}
        assert found <= declared, f"{path} imports {found - declared}: use pytest.importorskip inside the test"


def module_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and node.level == 0 else []


def test_importing_lipctrl_is_light() -> None:
    code = "import sys, lipctrl, lipctrl.envs; print([m for m in ('torch', 'casadi', 'mujoco') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"


def test_certificates_are_verified_without_torch_or_solvers() -> None:
    code = (
        "import sys, lipctrl.certify.lmi, lipctrl.certify.product, lipctrl.certify.certificate;"
        "print([m for m in ('torch', 'casadi', 'cvxpy', 'scs', 'clarabel') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"


def test_presets_are_found_as_package_data() -> None:
    assert (importlib.resources.files("lipctrl.configs") / "bc" / "double-integrator.yaml").is_file()


@pytest.mark.slow
def test_wheel_from_the_source_distribution_holds_every_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"lipctrl/{path.relative_to(ROOT / 'lipctrl')}"
        for pattern in ("*.py", "*.yaml", "*.xml", "*.html", "py.typed")
        for path in (ROOT / "lipctrl").rglob(pattern)
    } | {
        f"lipctrl/{path.relative_to(ROOT)}"
        for name in LINKS
        for pattern in ("*.py", "*.yaml", "*.xml")
        for path in (ROOT / name).rglob(pattern)
    }
    assert expected <= inside, sorted(expected - inside)
    assert {name.split("/")[0] for name in inside} == {"lipctrl", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}
