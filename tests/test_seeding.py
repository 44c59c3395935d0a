"""Named generators are reproducible and independent."""

import numpy as np

from lipctrl.seeding import generator, seed_of


def test_same_name_same_stream_other_name_other_stream() -> None:
    a, b, c = (generator(3, name).random(4) for name in ("x", "x", "y"))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert seed_of(3, "x", 1) != seed_of(3, "x", 2) != seed_of(4, "x", 2)
