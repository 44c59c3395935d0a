"""`lipctrl certify`: what is proved about a network, and what is attained."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lipctrl.certify.bracket import Bracket, certify
from lipctrl.certify.certificate import Box, Certificate
from lipctrl.certify.guarantees import Guarantee
from lipctrl.certify.jacobian import gains
from lipctrl.cli.experts import plant_env
from lipctrl.cli.loading import KINDS, is_model_run, load_model, load_network
from lipctrl.cli.progress import CONSOLE
from lipctrl.config import parse
from lipctrl.files import RequirementFailed, UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

FEW = 12  # names that are listed in full


@dataclass(frozen=True)
class CertifySettings:
    """Settings of `lipctrl certify`."""

    network: tyro.conf.Positional[str] = ""
    """Run folder, .npz network, Stable-Baselines3 .zip with an MLP policy, torch .pt state dict, or ONNX MLP."""
    activation: str | None = None
    """Activation between the layers of a torch state dict, e.g. tanh; other files say it themselves."""
    norm: str = "l2"
    """Norm of inputs and outputs, l2 or linf; or INPUT:OUTPUT for a pair, e.g. linf:l2."""
    normalised: bool = False
    """Measure inputs in standard deviations of the training observations instead of raw units."""
    input_scale: tuple[float, ...] | None = None
    """Weights: raw units per unit of each input (instead of --normalised)."""
    output_scale: tuple[float, ...] | None = None
    """Weights: raw units per unit of each output."""
    region: str | None = None
    """Box of inputs in raw units, "LOW:HIGH" per input separated by commas, for example -1:1,-0.5:0.5."""
    gains: bool = False
    """Also print proved bounds of every gain d output / d input on the region."""
    per_output: bool = False
    """Also print the bound of each output alone."""
    method: str = "auto"
    """Method of the upper bound; auto takes the smallest of all that apply."""
    require: float | None = None
    """Exit with status 3 if the proved bound is larger than this."""
    closed_loop: bool = False
    """Also print what the bound means in the loop of --plant: stability, tolerable measurement error, regret; for a
    process model, by how much sensor errors move its predictions and what MPC must keep in reserve."""
    plant: str = "double-integrator"
    """Plant for --closed-loop, by short name or environment id; needs an LQR expert and the state as observation."""
    measurement: float = 0.0
    """Largest measurement error for --closed-loop, l2, in raw units of the observation."""
    sensor_error: tuple[float, ...] | None = None
    """For --closed-loop of a process model: largest error of each measured state, in its unit."""
    level: float | None = None
    """Level of sqrt(x'Px) for --closed-loop; none: where the largest measurement error is tolerated."""
    start: tuple[float, ...] | None = None
    """Start state for the regret in --closed-loop."""
    check: str | None = None
    """Check this certificate file against the network instead of computing one."""
    seed: int = 0
    """Seed of the search for the lower bound."""
    out: str | None = None
    """Where to save the certificate; by default certificate.json in a run folder, else beside the network."""

    def __post_init__(self) -> None:
        if self.require is not None and not self.require >= 0:
            raise ValueError(f"require must not be negative, found {self.require}")
        if not 0 <= self.measurement < float("inf") or (self.level is not None and not self.level > 0):
            raise ValueError(f"measurement must not be negative and level be positive, found {self.measurement}")


def parse_region(text: str, net: PlainNet) -> Box:
    """A box from "LOW:HIGH,LOW:HIGH,...".

    Raises:
        UserError: not of that form, or not one interval per input.
    """
    try:
        pairs = [tuple(float(x) for x in part.split(":")) for part in text.split(",")]
        lows, highs = zip(*pairs, strict=True)
    except ValueError as error:
        raise UserError(f"a region is LOW:HIGH per input separated by commas; found {text!r}") from error
    if len(lows) != net.input_size:
        raise UserError(f"the region has {len(lows)} intervals; the network has {net.input_size} inputs")
    return Box(lows, highs)


def parse_norm(settings: CertifySettings, net: PlainNet) -> NormPair:
    """The norm pair of the settings, with its scales.

    Raises:
        UserError: unknown norm, or normalised units of a network that does not have any.
    """
    first, _, second = settings.norm.partition(":")
    scale = settings.input_scale
    if settings.normalised:
        if net.input_scale is None or scale is not None:
            raise UserError("--normalised needs a network with stored normalisation, and no --input-scale beside it")
        scale = tuple(float(s) for s in net.input_scale)
    return NormPair(first, second or first, scale, settings.output_scale)  # type: ignore[arg-type]  # checked there


def show_gains(net: PlainNet, region: Box) -> None:
    """Print proved bounds of every entry of the Jacobian on a region."""
    low, high = gains(net, region)
    inputs = net.input_names or tuple(f"input {j}" for j in range(net.input_size))
    outputs = net.output_names or tuple(f"output {i}" for i in range(net.output_size))
    table = Table("gain (proved)", *(escape(name) for name in inputs))
    for i, name in enumerate(outputs):
        table.add_row(escape(name), *(f"{low[i, j]:.4g} .. {high[i, j]:.4g}" for j in range(net.input_size)))
    Console().print(table)


def show(title: str, bracket: Bracket, net: PlainNet) -> None:
    """Print a bracket: lower (witness), upper (proved), ratio, methods, times, units."""
    upper, lower = bracket.upper, bracket.lower
    console = Console()
    console.print(f"[bold]{title}[/bold]  sha256 {net.sha256()[:12]}")
    region = (
        "everywhere" if upper.region is None else f"on {list(zip(upper.region.low, upper.region.high, strict=True))}"
    )
    console.print(f"Lipschitz constant, {upper.norm}, {region}:")
    console.print(f"  [bold]\\[{lower.bound:.6g}, {upper.bound:.6g}][/bold]  ratio {bracket.ratio:.4f}")
    table = Table("method", "bound", "label", "seconds")
    proved = {certificate.method: certificate.bound for certificate in (upper, *bracket.others)}
    for name, seconds in bracket.seconds.items():
        if name in proved:
            table.add_row(name, f"{proved[name]:.6g}", "proved", f"{seconds:.3f}")
    table.add_row(lower.method, f"{lower.bound:.6g}", "witness", f"{bracket.seconds['lower']:.3f}")
    console.print(table)
    if upper.execution_error is not None:
        console.print(f"float64 execution adds at most {upper.execution_error:.3g} to a difference of outputs")
    if upper.norm.input_scale is None and upper.norm.output_scale is None:
        if net.input_names:
            console.print(f"inputs: {_listed(net.input_names)}; outputs: {_listed(net.output_names)}", markup=False)
    elif net.input_scale is not None:
        console.print(f"one input unit is: {', '.join(f'{s:.4g}' for s in net.input_scale)}")


def _listed(names: Sequence[str]) -> str:
    if len(names) <= FEW:
        return ", ".join(names)
    return f"{', '.join(names[: FEW // 2])}, .., {names[-1]} ({len(names)})"


def check_certificate(path: Path, net: PlainNet) -> None:
    """Verify a certificate file.

    Raises:
        UserError: not a certificate, or of other weights. RequirementFailed: the proof does not hold.
    """
    certificate = Certificate.load(path)
    if certificate.weights_sha256 != net.sha256():
        raise UserError(
            f"{path} was made for the weights {certificate.weights_sha256[:12]}; the network has {net.sha256()[:12]}"
        )
    if not certificate.verify(net):
        raise RequirementFailed(f"{path}: the proof of the bound {certificate.bound:.6g} does not hold")
    print(f"verified: {certificate.norm} bound {certificate.bound:.10g} ({certificate.method})")


def model_rows(path: Path, settings: CertifySettings) -> tuple[Guarantee, ...]:
    """What sensor errors do to the predictions of a process model in the loop of a plant.

    Raises:
        UserError: see `lipctrl.cli.model_loop`.
    """
    from lipctrl.cli.model_loop import model_table
    from lipctrl.cli.mpc_modes import plant_of

    return model_table(load_model(path), plant_of(plant_env(settings.plant)).plant, settings.sensor_error)


def default_path(network: Path) -> Path:
    """Where the certificate of a network goes."""
    return network / "certificate.json" if network.is_dir() else network.with_suffix(".certificate.json")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        CertifySettings(),
        group="certify",
        prog="lipctrl certify",
        description=f"Bracket the Lipschitz constant of a network ({KINDS}) between a witnessed lower and a proved "
        "upper bound, and save the certificate.",
        args=arguments,
    )
    if not settings.network:
        raise UserError("certify needs a network: lipctrl certify NETWORK")
    path = Path(settings.network)
    net = load_network(path, activation=settings.activation)
    if settings.check is not None:
        check_certificate(Path(settings.check), net)
        return
    norm = parse_norm(settings, net)
    region = None if settings.region is None else parse_region(settings.region, net)
    if settings.gains and region is None:
        raise UserError("--gains needs a --region: gains are bounded on a box")
    predictions = model_rows(path, settings) if settings.closed_loop and is_model_run(path) else None
    with CONSOLE.status("certifying"):
        bracket = certify(
            net, norm, region=region, per_output=settings.per_output, method=settings.method, seed=settings.seed
        )
    show(str(path), bracket, net)
    if settings.gains and region is not None:
        show_gains(net, region)
    if predictions is not None:
        from lipctrl.cli.closed_loop import show_rows

        show_rows(f"predictions in the loop of {settings.plant}", predictions)
    elif settings.closed_loop:
        from lipctrl.cli.closed_loop import closed_loop, loop_of, show_closed_loop

        start = None if settings.start is None else np.array(settings.start)
        table = closed_loop(
            loop_of(plant_env(settings.plant)), net, measurement=settings.measurement, level=settings.level, start=start
        )
        show_closed_loop(f"in the loop of {settings.plant}", table)
    for k, one in enumerate(bracket.outputs):
        name = net.output_names[k] if net.output_names else f"output {k}"
        print(f"  {name}: [{one.lower.bound:.6g}, {one.upper.bound:.6g}] ({one.upper.method})")
    if path.suffix == ".zip":
        print(
            "a Stable-Baselines3 zip does not hold VecNormalize: behind one, this bound is for normalised observations"
        )
    target = Path(settings.out) if settings.out else default_path(path)
    bracket.upper.save(target)
    print(f"certificate: {target}")
    if settings.require is not None and bracket.upper.bound > settings.require:
        raise RequirementFailed(f"the proved bound {bracket.upper.bound:.6g} is larger than {settings.require:g}")
