"""The functions of an optimisation problem as machine code: CasADi writes C, the machine's compiler translates it."""

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import casadi as ca

from lipctrl.files import UserError

_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # removed when the interpreter ends


def compiled(solver: ca.Function) -> Path:
    """A shared library of the functions that a solver calls, in a temporary folder of its own.

    Raises:
        UserError: there is no C compiler, or it fails.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UserError("compiled MPC needs a C compiler (cc, gcc or clang) on the path; none was found")
    folder = tempfile.TemporaryDirectory(prefix="lipctrl-")
    _FOLDERS.append(folder)
    source, library = Path(folder.name) / "functions.c", Path(folder.name) / "functions.so"
    # CasADi writes into the working directory only
    with contextlib.chdir(folder.name):
        solver.generate_dependencies(source.name)
    done = subprocess.run(
        [compiler, "-O2", "-fPIC", "-shared", str(source), "-o", str(library), "-lm"], capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise UserError(f"the C compiler failed: {said[-1]}")
    return library
