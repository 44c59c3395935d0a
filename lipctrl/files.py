"""User errors and writing files so that nothing on disk is ever damaged."""

import difflib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO


class UserError(Exception):
    """A mistake of the user's: one clear sentence, exit status 2, no traceback."""


def nearest(name: str, known: Iterable[str], kind: str) -> UserError:
    """The error for an unknown name: says what is known and which comes nearest."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"
    return UserError(f"unknown {kind} {name!r}{hint}")


class RequirementFailed(Exception):
    """A requirement that a command checks does not hold: exit status 3, so that a pipeline can gate on it."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name and rename it, so that `path` is either whole or as it was before.

    Raises:
        UserError: the folder is missing or cannot be written to.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    write_atomically(path, lambda stream: stream.write(text.encode()))


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
