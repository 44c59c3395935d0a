"""What is known of a Lipschitz constant, and how well: four words, four types.

* `Certificate`: proved. Its `verify` needs the network and nothing else: no solver, no training code.
* `UnverifiedBound`: what a solver printed. Never stored as a certificate.
* `Witness`: a concrete input (and direction) that attains a value, hence a lower bound.
* `Estimate`: statistics with an interval.

A certificate says: for all x, y in the region, |f(x) - f(y)| <= bound |x - y| in the norms and units of `norm`, for the
function f that the stored weights define in exact arithmetic. The floating-point execution of f adds at most
`execution_error` (see `certify.execution`).
"""

import importlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from lipctrl import __version__
from lipctrl.files import UserError, write_text
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
FORMAT = "lipctrl-certificate-1"

# Kind of proof -> "module:function" that checks it; each function takes (net, certificate) and returns a bool.
CHECKS = {
    "all-active": "lipctrl.certify.all_active:check",
    "branches": "lipctrl.certify.branch:check",
    "jacobian": "lipctrl.certify.jacobian:check",
    "lmi": "lipctrl.certify.lmi:check",
    "lmi-linf": "lipctrl.certify.linf:check",
    "norms": "lipctrl.certify.product:check",
}


@dataclass(frozen=True)
class Box:
    """An axis-aligned box of inputs in raw units."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not all(a <= b for a, b in zip(self.low, self.high, strict=True)):
            raise UserError(f"a region needs lower <= upper limits of equal length; found {self.low}, {self.high}")

    def contains(self, x: Array) -> bool:
        """Whether an input lies in the box."""
        return bool((np.array(self.low) <= x).all() and (x <= np.array(self.high)).all())


def versions() -> dict[str, str]:
    """Versions of what computed a result."""
    return {"lipctrl": __version__, "numpy": np.__version__, "python": platform.python_version()}


@dataclass(frozen=True)
class Certificate:
    """A proved Lipschitz bound of a stored network.

    Attributes:
        bound: the constant, in the units that `norm` states.
        method: what found it, for example "sandwich" or "lipsdp-neuron".
        norm: norms and scales on both sides.
        region: where it holds; None for everywhere.
        weights_sha256: hash of the PlainNet.
        proof: {"kind": ..., and the numbers that kind needs}, for example the multipliers of a matrix inequality.
        input_names, output_names: with units.
        execution_error: bound of |f(x) - f(y)| - bound |x - y| for the float64 execution on the region (same norm as
            the output), or None where there is no bounded region.
        versions: of the program that made it.
    """

    bound: float
    method: str
    norm: NormPair
    region: Box | None
    weights_sha256: str
    proof: Mapping[str, Any]
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    execution_error: float | None = None
    versions: Mapping[str, str] = field(default_factory=versions)

    rigor: Literal["verified"] = "verified"

    def verify(self, net: PlainNet) -> bool:
        """Check the proof against the stored weights: True only if the bound holds in exact arithmetic."""
        if net.sha256() != self.weights_sha256 or not (np.isfinite(self.bound) and self.bound >= 0):
            return False
        if self.proof.get("kind") not in CHECKS:
            return False
        module, _, function = CHECKS[self.proof["kind"]].partition(":")
        check: Callable[[PlainNet, Certificate], bool] = getattr(importlib.import_module(module), function)
        try:
            return check(net, self)
        except (KeyError, TypeError, ValueError, IndexError):  # a proof with fields missing or of the wrong shape
            return False

    def save(self, path: Path) -> None:
        """Write as JSON; numbers keep all their digits."""
        write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> "Certificate":
        """Read a file written by `save`.

        Raises:
            UserError: missing, not JSON, or with fields missing or of the wrong kind.
        """
        try:
            data = json.loads(path.read_text())
            if data.pop("format") != FORMAT or data["proof"]["kind"] not in CHECKS:
                raise UserError(f"{path} is not a certificate that this version of lipctrl reads")
            return TypeAdapter(Certificate).validate_python(data)
        except FileNotFoundError as error:
            raise UserError(f"no certificate at {path}") from error
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a whole certificate file ({error})") from error


@dataclass(frozen=True)
class UnverifiedBound:
    """A number that a solver says is an upper bound; `rigor` says how far that can be trusted."""

    bound: float
    method: str
    norm: NormPair
    region: Box | None
    rigor: Literal["float64", "heuristic"]


@dataclass(frozen=True)
class Witness:
    """An input that attains a sensitivity: a proved lower bound of the Lipschitz constant.

    Attributes:
        bound: at most |J(x) d| / |d| in the norms of `norm`, for the network as deployed, with its output limits.
        x: the input (n,), raw units. direction: d (n,).
        method: what found it.
    """

    bound: float
    x: tuple[float, ...]
    direction: tuple[float, ...]
    norm: NormPair
    method: str

    def verify(self, net: PlainNet) -> bool:
        """Prove that every generalised Jacobian at x attains the bound in exact arithmetic: no tolerance."""
        from lipctrl.certify.jacobian import attained_gain

        if not (np.isfinite(self.bound) and self.bound >= 0):
            return False
        try:
            return attained_gain(net, self.norm, np.array(self.x), np.array(self.direction)) >= self.bound
        except (UserError, ValueError):  # sizes of another network, numbers that are not finite
            return False


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval."""

    value: float
    low: float
    high: float
    confidence: float
    method: str
