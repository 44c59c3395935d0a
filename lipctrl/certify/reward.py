"""What is proved of a learned reward: how fast it can change with the state, with the action and with both.

The bound of the logit network is a certificate like any other; times the slope of the reward form it bounds the reward
(`nn.reward_forms`). A block of the inputs is measured by a norm that counts a change of any other input `OTHERS` times
as much as one of the block, so that one certificate of the whole network bounds the change with the block, whatever
the values of the other inputs are.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from lipctrl.certify.bracket import certify, upper_bounds
from lipctrl.certify.certificate import Box, Certificate, Witness
from lipctrl.certify.forward import relaxed
from lipctrl.certify.jacobian import MARGIN, attained_gain
from lipctrl.certify.lower import lower_bound, start_points, witness
from lipctrl.certify.scalar_form import scalar_form
from lipctrl.files import UserError, write_text
from lipctrl.nn.reward import Block, LearnedReward
from lipctrl.nn.reward_forms import REWARD_FORMS, ROUNDED_UP, least_slope, reward_range, reward_slope
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
FORMAT = "lipctrl-reward-certificate-1"
OTHERS = 1e6
QUICK = ("own", "product")
Units = Literal["raw", "normalised"]


@dataclass(frozen=True)
class RewardWitness:
    """A proved lower bound of a reward's Lipschitz constant: an input and a direction that attain it.

    Attributes:
        bound: at most |r'(z) J d| / |d| at x, reward per unit of `norm`. x: network input (n,), raw. direction: (n,).
    """

    bound: float
    x: tuple[float, ...]
    direction: tuple[float, ...]
    norm: NormPair

    def verify(self, reward: LearnedReward) -> bool:
        """Prove that the bound is attained in exact arithmetic: no tolerance."""
        try:
            return 0 <= self.bound <= attained_slope(reward, self.norm, np.array(self.x), np.array(self.direction))
        except (UserError, ValueError):  # sizes of another network, numbers that are not finite
            return False


@dataclass(frozen=True)
class RewardSlope:
    """Bounds of how fast logit and reward change with one block of the inputs, l2.

    Attributes:
        block: which inputs change; the others are fixed at any value. units: raw, or standard deviations of the
            normaliser that was folded into the network.
        logit: certificate of the logit network. logit_witness: what it attains.
        reward: proved bound for the reward. reward_witness: what it attains.
    """

    block: Block
    units: Units
    logit: Certificate
    logit_witness: Witness
    reward: float
    reward_witness: RewardWitness


@dataclass(frozen=True)
class RewardCertificate:
    """Everything proved of a learned reward.

    Attributes:
        reward_sha256: hash of the reward. form, clip: of the reward; clip None: none.
        low, high: limits of the reward; None where it has none.
        slopes: per units and block.
    """

    reward_sha256: str
    form: str
    clip: float | None
    low: float | None
    high: float | None
    slopes: tuple[RewardSlope, ...]

    def of(self, block: Block = "all", units: Units = "raw") -> RewardSlope:
        """The bounds of one block in one kind of units.

        Raises:
            UserError: the reward has no such block, or no normaliser.
        """
        for slope in self.slopes:
            if (slope.block, slope.units) == (block, units):
                return slope
        known = ", ".join(f"{slope.block} in {slope.units} units" for slope in self.slopes)
        raise UserError(f"no bound for the block {block!r} in {units} units; known: {known}")

    def verify(self, reward: LearnedReward) -> bool:
        """Check every proof against the stored reward, with no solver: one per block and kind of units at least."""
        if reward.sha256() != self.reward_sha256 or (self.form, _finite(reward.clip)) != (reward.form, self.clip):
            return False
        if (self.low, self.high) != tuple(map(_finite, reward_range(reward.form, reward.clip))):
            return False
        wanted = {(block, unit) for unit in _units(reward) for block in reward.blocks}
        if not wanted <= {(slope.block, slope.units) for slope in self.slopes}:
            return False
        return all(self._holds(slope, reward) for slope in self.slopes)

    @staticmethod
    def _holds(slope: RewardSlope, reward: LearnedReward) -> bool:
        try:
            norm = block_norm(reward, slope.block, slope.units)
        except UserError:
            return False
        return (
            slope.logit.norm == slope.logit_witness.norm == slope.reward_witness.norm == norm
            and slope.logit.verify(reward.logit)
            and slope.reward >= _chained(reward, slope.logit.bound)
            and slope.logit_witness.verify(reward.logit)
            and slope.reward_witness.verify(reward)
        )

    def save(self, path: Path) -> None:
        """Write as JSON; numbers keep all their digits."""
        write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> "RewardCertificate":
        """Read a file written by `save`.

        Raises:
            UserError: missing, not JSON, or with fields missing or of the wrong kind.
        """
        try:
            data = json.loads(path.read_text())
            if data.pop("format") != FORMAT:
                raise UserError(f"{path} is not a certificate of a reward that this version of lipctrl reads")
            return TypeAdapter(RewardCertificate).validate_python(data)
        except FileNotFoundError as error:
            raise UserError(f"no certificate at {path}") from error
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a whole certificate file of a reward ({error})") from error


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _chained(reward: LearnedReward, logit_bound: float) -> float:
    slope = reward_slope(reward.form, reward.clip)
    return logit_bound if slope == 1 else slope * logit_bound * ROUNDED_UP


def block_norm(reward: LearnedReward, block: Block, units: Units) -> NormPair:
    """The norm in which a change of the block alone has its l2 length, and of anything else `OTHERS` times its length.

    Raises:
        UserError: the reward has no such block, or its network no normaliser.
    """
    if block not in reward.blocks:
        raise UserError(f"this reward has no block {block!r}; known: {', '.join(reward.blocks)}")
    scale = np.ones(reward.logit.input_size)
    if units == "normalised":
        if reward.logit.input_scale is None:
            raise UserError("this reward has no normalised units: no normaliser was folded into its network")
        scale = reward.logit.input_scale.copy()
    columns = reward.columns(block)
    if columns.all() and units == "raw":
        return NormPair()
    scale[~columns] /= OTHERS
    return NormPair(input_scale=tuple(scale.tolist()))


@np.errstate(all="ignore")
def attained_slope(reward: LearnedReward, norm: NormPair, x: Array, d: Array) -> float:
    """A proved lower bound of the reward's slope at x in direction d: that of the logit times the least |r'| there.

    Args:
        x: network input (n,). d: direction (n,).

    Raises:
        UserError: x has another size than the input, or is not finite.
    """
    gain = attained_gain(reward.logit, norm, x, d)
    point = tuple(x.tolist())
    form = scalar_form(reward.logit)
    low, high = relaxed(form, Box(point, point)).bounds(form.preactivations[-1])
    slope = least_slope(reward.form, float(low[0]), float(high[0]), reward.clip) * gain * (2 - ROUNDED_UP)
    return slope if np.isfinite(slope) else 0.0


def _steepest_sample(reward: LearnedReward, norm: NormPair, region: Box | None, seed: int) -> tuple[Array, Array]:
    """(x, d) of the steepest reward among samples."""
    x = start_points(reward.logit, region, np.random.default_rng(seed))
    scale = np.ones(x.shape[1]) if norm.input_scale is None else np.array(norm.input_scale)
    slopes = reward.logit.jacobian(x)[:, 0] * scale
    z = reward.logit(x)[:, 0]
    factor = np.abs(REWARD_FORMS[reward.form].derivative(np.clip(z, -reward.clip, reward.clip)))
    best = int(np.argmax(np.where(np.abs(z) < reward.clip, factor, 0.0) * np.linalg.norm(slopes, axis=1)))
    return x[best], slopes[best] * scale


def _witnesses(
    reward: LearnedReward, norm: NormPair, mask: NDArray[np.bool_], found: Witness, region: Box | None, seed: int
) -> tuple[Witness, RewardWitness]:
    """What logit and reward attain along directions that change the block alone."""
    x, d = np.array(found.x), np.array(found.direction) * mask
    logit = witness(reward.logit, norm, x, d, found.method)
    if REWARD_FORMS[reward.form].monotone:
        other = lower_bound(reward.as_network(), norm, region=region, seed=seed)
        points = [(x, d), (np.array(other.x), np.array(other.direction) * mask)]
    else:
        y, e = _steepest_sample(reward, norm, region, seed)
        points = [(x, d), (y, e * mask)]
    attained = [attained_slope(reward, norm, x, d) / MARGIN for x, d in points]
    best = int(np.argmax(attained))
    x, d = points[best]
    return logit, RewardWitness(attained[best], tuple(x.tolist()), tuple(d.tolist()), norm)


def certify_reward(
    reward: LearnedReward,
    *,
    region: Box | None = None,
    method: str = "auto",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> RewardCertificate:
    """Prove how fast a learned reward can change, per block of its inputs, in raw and in normalised units.

    Args:
        region: box of network inputs in raw units where the bounds must hold; everywhere by default.
        method: of the upper bounds, see `bracket.upper_bounds`; "own" is quick for a network that exported multipliers
            (none with maxmin, groupsort, householder), "auto" also finds what the training left unused.
        seed: of the search for witnesses.
        progress: called with what is computed next.

    Raises:
        UserError: the method is unknown or does not apply, or the region has another size than the input.
    """
    slopes = []
    for unit in _units(reward):
        for block in reward.blocks:
            norm, title = block_norm(reward, block, unit), f"{block}, {unit} units"
            step = None if progress is None else _titled(progress, title)
            bracket = certify(reward.logit, norm, region=region, method=method, seed=seed, progress=step)
            mask = reward.columns(block)
            logit, attained = _witnesses(reward, norm, mask, bracket.lower, region, seed)
            bound = _chained(reward, bracket.upper.bound)
            slopes.append(RewardSlope(block, unit, bracket.upper, logit, bound, attained))
    low, high = map(_finite, reward_range(reward.form, reward.clip))
    return RewardCertificate(reward.sha256(), reward.form, _finite(reward.clip), low, high, tuple(slopes))


def proved_slopes(reward: LearnedReward) -> dict[tuple[Block, Units], float]:
    """The smaller of the two quick bounds of `certify_reward`, everywhere, without a search for witnesses.

    They are the network's own, and the product of its norms: layer-wise families with group activations (orthogonal
    and aol of `lipctrl train gail`) are bounded by construction, but have no multipliers.

    Raises:
        UserError: the weights overflow.
    """
    found: dict[tuple[Block, Units], float] = {}
    for unit in _units(reward):
        for block in reward.blocks:
            norm = block_norm(reward, block, unit)
            bounds = [one.bound for method in QUICK for one in upper_bounds(reward.logit, norm, method=method)]
            if not bounds:
                raise UserError("this reward has no proved slope: its weights overflow")
            found[block, unit] = _chained(reward, min(bounds))
    return found


def _units(reward: LearnedReward) -> tuple[Units, ...]:
    return ("raw", "normalised") if reward.logit.input_scale is not None else ("raw",)


def _titled(progress: Callable[[str], None], title: str) -> Callable[[str], None]:
    return lambda method: progress(f"{title}: {method}")
