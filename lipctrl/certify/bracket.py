"""[lower, upper]: run every method that applies and report the smallest proved bound with the largest witness."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from lipctrl.certify.all_active import all_active_certificate
from lipctrl.certify.branch import branch_and_bound
from lipctrl.certify.certificate import Box, Certificate, Witness
from lipctrl.certify.eclipse import eclipse, eclipse_fast
from lipctrl.certify.execution import execution_error
from lipctrl.certify.jacobian import jacobian_certificate
from lipctrl.certify.linf import linf_certificate
from lipctrl.certify.lipsdp import Mode, lipsdp
from lipctrl.certify.lmi import certify_with, own_multipliers, widened_slopes
from lipctrl.certify.loop_form import loop_form
from lipctrl.certify.lower import lower_bound
from lipctrl.certify.product import product_certificate
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Method = Callable[[PlainNet, NormPair], Certificate | None]
LocalMethod = Callable[[PlainNet, NormPair, Box], Certificate | None]


def own_certificate(net: PlainNet, norm: NormPair) -> Certificate | None:
    """The bound that the network's parametrisation proves with its own multipliers; None if it exported none."""
    if (norm.input, norm.output) != ("l2", "l2"):
        return None
    found = []
    inside = any(a.is_scalar and (a.slopes[0] > 0 or a.slopes[1] < 1) for a in net.activations)
    for widened in (False, True) if inside else (False,):
        form = loop_form(net, norm, widened_slopes(net) if widened else None)
        multipliers = own_multipliers(net, form)
        if multipliers is not None:
            found.append(certify_with(net, form, multipliers, method="own", norm=norm, widened=widened))
    return min((one for one in found if one is not None), key=lambda one: one.bound, default=None)


def _lipsdp(net: PlainNet, norm: NormPair, region: Box | None, mode: Mode) -> Certificate | None:
    program = lipsdp if (norm.input, norm.output) == ("l2", "l2") else linf_certificate
    return program(net, norm, region, mode=mode)


GLOBAL: dict[str, Method] = {
    "product": product_certificate,
    "all-active": all_active_certificate,
    "own": own_certificate,
    "eclipse-fast": eclipse_fast,
    "eclipse": eclipse,
    "lipsdp-layer": lambda net, norm: _lipsdp(net, norm, None, "layer"),
    "lipsdp-neuron": lambda net, norm: _lipsdp(net, norm, None, "neuron"),
}
LOCAL: dict[str, LocalMethod] = {
    "jacobian": jacobian_certificate,
    "lipsdp-neuron-local": lambda net, norm, region: _lipsdp(net, norm, region, "neuron"),
    "branch-and-bound": branch_and_bound,
}
DOMINATED = ("eclipse", "lipsdp-layer")  # never below lipsdp-neuron: on request only
BRANCHED = 200  # hidden neurons above which branch and bound gains little for its minutes: on request only
ALIASES = {"sandwich": "own"}


@dataclass(frozen=True)
class Bracket:
    """What is known of a Lipschitz constant: proved from above, attained from below.

    Attributes:
        upper: the smallest certificate found. lower: the largest witness found.
        seconds: time of each method that ran.
        others: the remaining certificates, smallest first.
        outputs: the same for each output alone (its certificates belong to `output_net(net, i)`), if asked for.
    """

    upper: Certificate
    lower: Witness
    seconds: Mapping[str, float]
    others: tuple[Certificate, ...] = ()
    outputs: tuple["Bracket", ...] = field(default=())

    @property
    def ratio(self) -> float:
        """upper / lower: 1 is exact."""
        return self.upper.bound / self.lower.bound if self.lower.bound > 0 else float("inf")


def _methods(net: PlainNet, norm: NormPair, region: Box | None) -> dict[str, Callable[[], Certificate | None]]:
    """The methods that apply, cheapest first."""
    methods: dict[str, Callable[[], Certificate | None]] = {
        name: partial(run, net, norm) for name, run in GLOBAL.items()
    }
    if region is not None:
        methods |= {name: partial(run, net, norm, region) for name, run in LOCAL.items()}
    return methods


def _chosen(methods: Mapping[str, Callable[[], Certificate | None]], method: str, neurons: int) -> list[str]:
    """The names that a method's name stands for."""
    name = ALIASES.get(method, method)
    if name == "auto":
        skipped = DOMINATED if neurons <= BRANCHED else (*DOMINATED, "branch-and-bound")
        return [key for key in methods if key not in skipped]
    if name in LOCAL and name not in methods:
        raise UserError(f"method {method!r} needs a region")
    if name not in methods:
        raise UserError(f"unknown method {method!r}; known: auto, {', '.join([*GLOBAL, *LOCAL, *ALIASES])}")
    return [name]


def _check_sizes(net: PlainNet, norm: NormPair, region: Box | None) -> None:
    lengths = {"input_scale": (norm.input_scale, net.input_size), "output_scale": (norm.output_scale, net.output_size)}
    if region is not None:
        lengths["region"] = (region.low, net.input_size)
    for name, (found, expected) in lengths.items():
        if found is not None and len(found) != expected:
            raise UserError(f"{name} has {len(found)} entries; expected {expected} for this network")


def _rank(certificate: Certificate) -> float:
    """The bound, with ties in the sixth digit in favour of the region, where the execution error is known."""
    return certificate.bound * (1.0 if certificate.region is None else 1 - 1e-6)


def _attempt(run: Callable[[], Certificate | None]) -> Certificate | None:
    """What a method finds; None where numbers overflow, since every proof checks that they are finite."""
    with np.errstate(all="ignore"):
        try:
            return run()
        except np.linalg.LinAlgError:
            return None


def _timed(
    net: PlainNet, norm: NormPair, region: Box | None, method: str, progress: Callable[[str], None] | None
) -> tuple[list[Certificate], dict[str, float]]:
    _check_sizes(net, norm, region)
    found, seconds = list[Certificate](), dict[str, float]()
    methods = _methods(net, norm, region)
    for key in _chosen(methods, method, sum(net.widths)):
        if progress is not None:
            progress(key)
        start = time.perf_counter()
        certificate = _attempt(methods[key])
        seconds[key] = time.perf_counter() - start
        if certificate is not None:
            found.append(certificate)
    return sorted(found, key=_rank), seconds


def upper_bounds(
    net: PlainNet, norm: NormPair | None = None, *, region: Box | None = None, method: str = "auto"
) -> list[Certificate]:
    """Every proved bound that was found, smallest first (a global one after an equal one of the region).

    Args:
        net: the network in raw units.
        norm: norms and scales; l2 -> l2 in raw units by default.
        region: where the bound must hold; everywhere by default. A global bound holds on every region.
        method: "auto" for all that apply (without dominated ones, and without branch and bound above 200 hidden
            neurons), or one name: "product", "all-active" (nonnegative hidden weights), "own" (also
            "sandwich": the network's own multipliers), "eclipse-fast", "eclipse", "lipsdp-layer", "lipsdp-neuron"; with
            a region also "jacobian", "lipsdp-neuron-local", "branch-and-bound".

    Raises:
        UserError: unknown method, or scales or region of the wrong length.
    """
    return _timed(net, norm or NormPair(), region, method, None)[0]


def output_net(net: PlainNet, output: int) -> PlainNet:
    """The network of one output alone."""
    last = {j: block[output : output + 1] for j, block in net.blocks[-1].items()}
    return replace(
        net,
        blocks=(*net.blocks[:-1], last),
        biases=(*net.biases[:-1], net.biases[-1][output : output + 1]),
        low=None if net.low is None else net.low[output : output + 1],
        high=None if net.high is None else net.high[output : output + 1],
        output_names=net.output_names[output : output + 1],
    )


def certify(
    net: PlainNet,
    norm: NormPair | None = None,
    *,
    region: Box | None = None,
    per_output: bool = False,
    method: str = "auto",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Bracket:
    """Bracket the Lipschitz constant of a network.

    Args:
        net, norm, region, method: as in `upper_bounds`.
        per_output: also bracket every output alone.
        seed: of the search for a witness.
        progress: called with the name of each method before it runs.

    Raises:
        UserError: the method is unknown or does not apply to this network and these norms.
    """
    norm = norm or NormPair()
    found, seconds = _timed(net, norm, region, method, progress)
    if not found:
        advice = "" if method == "auto" else "; the method auto runs all that apply"
        raise UserError(f"method {method!r} gives no bound for this network in {norm}{advice}")
    upper = found[0]
    if upper.region is not None:
        upper = replace(upper, execution_error=execution_error(net, upper.region, norm=norm))
    start = time.perf_counter()
    lower = lower_bound(net, norm, region=region, seed=seed)
    seconds["lower"] = time.perf_counter() - start
    outputs = tuple[Bracket, ...]()
    if per_output:
        outputs = tuple(
            certify(output_net(net, i), _of_output(norm, i), region=region, method=method, seed=seed)
            for i in range(net.output_size)
        )
    return Bracket(upper, lower, seconds, tuple(found[1:]), outputs)


def _of_output(norm: NormPair, output: int) -> NormPair:
    scale = norm.output_scale
    return norm if scale is None else replace(norm, output_scale=scale[output : output + 1])
