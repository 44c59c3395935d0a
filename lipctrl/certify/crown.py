"""Bounds of affine functions of a graph whose nodes lie between lines: interval arithmetic and CROWN, proved (numpy).

A node is v_j = some function of t_j = sum_{i<j} A[j][i] v_i + b_j that stays between two lines in t_j. An affine
function of the nodes is bounded by replacing each node by its upper or lower line, from the last node to the first,
down to the box of v_0 (CROWN; Zhang et al. 2018, arXiv 1811.00866), and by interval arithmetic; both are valid and
the intersection is taken. Coefficients stay plain floating-point numbers: what rounding does to a coefficient is at
most a known matrix E, and its effect on the result at most E |v|, which is added to the constant.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.enclosure import TINY, UNIT, Enclosure, gamma
from lipctrl.certify.relaxation import Lines
from lipctrl.certify.scalar_form import Affine

Array = NDArray[np.float64]
GROWN = 1 + 1e-9  # covers the rounding of error bounds themselves: sums of fewer than 10^6 nonnegative terms in a row


def _known(low: Array, high: Array) -> tuple[Array, Array]:
    """Bounds with what overflow left undefined made infinite."""
    return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)


class Crown:
    """Nodes between lines over a box.

    Args:
        low, high: the box of v_0, finite.
    """

    def __init__(self, low: Array, high: Array) -> None:
        self.values: list[tuple[Array, Array]] = [(low, high)]
        self.arguments: list[Affine] = []
        self.ranges: list[tuple[Array, Array]] = []
        self.lines: list[Lines] = []
        self._sizes = [np.maximum(np.abs(low), np.abs(high))]  # bounds of |v_j|
        self._errors: list[Array] = []  # what rounding and radii do to each argument, per row

    def append(self, argument: Affine, low: Array, high: Array, relax: Callable[[Array, Array], Lines]) -> None:
        """Add the node whose argument is known to be in [low, high] and whose lines there are relax(low, high)."""
        with np.errstate(all="ignore"):
            lines = relax(low, high)
            self._errors.append(self._error(argument))
        self.arguments.append(argument)
        self.ranges.append((low, high))
        self.lines.append(lines)
        values = _known(lines.low, lines.high)
        self.values.append(values)
        self._sizes.append(np.maximum(*np.abs(values)))

    def bounds(self, target: Affine) -> tuple[Array, Array]:
        """Proved lower and upper bounds of an affine function of the nodes, entrywise."""
        with np.errstate(all="ignore"):
            low, high = self._intervals(target)
            if self.lines:
                rows = len(target.bias.mid)
                both = {
                    j: Enclosure(np.vstack([b.mid, -b.mid]), np.vstack([b.rad] * 2)) for j, b in target.blocks.items()
                }
                bias = target.bias
                twice = Enclosure(np.vstack([bias.mid, -bias.mid]), np.vstack([bias.rad] * 2))
                upper = self._largest(Affine(both, twice))
                low, high = np.fmax(low, -upper[rows:]), np.fmin(high, upper[:rows])
        return _known(low, high)

    def _error(self, argument: Affine) -> Array:
        """Effect, per row, of what is unknown of the coefficients and of rounding in a product with them."""
        total = argument.bias.rad[:, 0]
        for j, block in argument.blocks.items():
            total = total + (block.rad + gamma(len(block.mid) + 2) * np.abs(block.mid) + TINY) @ self._sizes[j]
        return total

    def _intervals(self, target: Affine) -> tuple[Array, Array]:
        bias = target.bias
        low, high, size, terms = bias.mid[:, 0], bias.mid[:, 0], np.abs(bias.mid[:, 0]), 2
        falling = np.maximum(bias.rad[:, 0] - low, 0.0)  # zero where no term of the lower bound is negative
        rising = np.maximum(bias.rad[:, 0] + high, 0.0)  # zero where no term of the upper bound is positive
        for j, block in target.blocks.items():
            positive, negative = np.maximum(block.mid, 0.0), np.minimum(block.mid, 0.0)
            least, most = self.values[j]
            low = low + positive @ least + negative @ most
            high = high + positive @ most + negative @ least
            unsure = block.rad.sum(1)
            falling = falling + unsure + positive @ (least < 0) - negative @ (most > 0)
            rising = rising + unsure + positive @ (most > 0) - negative @ (least < 0)
            size = size + (np.abs(block.mid) + TINY) @ self._sizes[j]
            terms += 2 * block.mid.shape[1] + 2
        unknown = sum((b.rad @ self._sizes[j] for j, b in target.blocks.items()), bias.rad[:, 0])
        error = (gamma(terms) * size + unknown) * GROWN + TINY
        low, high = low - error, high + error
        return np.where(falling == 0, np.fmax(low, 0.0), low), np.where(rising == 0, np.fmin(high, 0.0), high)

    def _largest(self, target: Affine) -> Array:
        """Upper bounds by substituting lines from the last node to the box."""
        coefficients = {j: block.mid for j, block in target.blocks.items()}
        constant, size = target.bias.mid[:, 0].copy(), np.abs(target.bias.mid[:, 0])
        error = target.bias.rad[:, 0] + sum((b.rad @ self._sizes[j] for j, b in target.blocks.items()), np.zeros(1))
        terms = 8
        for j in range(len(self.lines), 0, -1):
            if j not in coefficients:
                continue
            a, lines, argument = coefficients.pop(j), self.lines[j - 1], self.arguments[j - 1]
            offsets = a * np.where(a > 0, lines.high_offset, lines.low_offset)
            a = a * np.where(a > 0, lines.high_slope, lines.low_slope)
            reach = np.maximum(*(np.abs(end) for end in self.ranges[j - 1]))
            absolute, bias = np.abs(a), argument.bias
            constant += offsets.sum(1) + a @ bias.mid[:, 0]
            size += np.abs(offsets).sum(1) + absolute @ np.abs(bias.mid[:, 0])
            error = error + (absolute * UNIT + TINY) @ reach + absolute @ self._errors[j - 1]
            for i, block in argument.blocks.items():
                added = a @ block.mid
                if i in coefficients:
                    added = added + coefficients[i]
                    error = error + (np.abs(added) * UNIT) @ self._sizes[i]
                coefficients[i] = added
                error = error + TINY * self._sizes[i].sum()
            terms += 2 * a.shape[1] + 4
        if 0 in coefficients:
            a = coefficients[0]
            low, high = self.values[0]
            constant += np.maximum(a, 0.0) @ high + np.minimum(a, 0.0) @ low
            size += np.abs(a) @ self._sizes[0]
            terms += 2 * a.shape[1] + 4
        return constant + (gamma(terms) * size + error) * GROWN + TINY
