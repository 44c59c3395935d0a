"""One seed -> independent generators, one per named purpose. No module reads a global seed."""

import zlib

import numpy as np

from lipctrl.files import UserError


def seed_of(seed: int, *purpose: str | int) -> int:
    """A 32-bit seed for one purpose, for libraries that want an integer (torch, gymnasium)."""
    return int(sequence(seed, *purpose).generate_state(1)[0])


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator for one purpose, independent of every other purpose's, for example `generator(0, "dither")`."""
    return np.random.default_rng(sequence(seed, *purpose))


def sequence(seed: int, *purpose: str | int) -> np.random.SeedSequence:
    """The seed sequence behind both.

    Raises:
        UserError: a negative seed.
    """
    if seed < 0:
        raise UserError(f"seed must not be negative, found {seed}")
    words = [part if isinstance(part, int) else zlib.crc32(part.encode()) for part in purpose]
    return np.random.SeedSequence([seed, *words])
