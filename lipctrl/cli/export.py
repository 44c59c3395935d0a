"""`lipctrl export`: a policy for deployment, with its certificate beside it."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from lipctrl.certify.certificate import Certificate
from lipctrl.cli.certify import check_certificate, default_path
from lipctrl.cli.loading import KINDS, load_network
from lipctrl.config import parse
from lipctrl.files import RequirementFailed, UserError, write_atomically, write_text
from lipctrl.nn.plain import PlainNet

Format = Literal["npz", "c", "casadi", "onnx"]


@dataclass(frozen=True)
class ExportSettings:
    """Settings of `lipctrl export`."""

    network: tyro.conf.Positional[str] = ""
    """Run folder, .npz network, Stable-Baselines3 .zip with an MLP policy, torch .pt state dict, or ONNX MLP."""
    format: Format = "npz"
    """npz (numpy arrays), c (one C99 file), casadi (a serialised function), onnx (an MLP in float64)."""
    certificate: str | None = None
    """Certificate file; by default the one that `lipctrl certify NETWORK` writes."""
    activation: str | None = None
    """Activation between the layers of a torch state dict, e.g. tanh; other files say it themselves."""
    out: str = "export"
    """Folder to write policy.FORMAT and certificate.json into; it must not hold either."""


def _npz(net: PlainNet, path: Path) -> PlainNet:
    net.save(path)
    return PlainNet.load(path)


def _c(net: PlainNet, path: Path) -> PlainNet:
    from lipctrl.symbolic.c_code import c_code

    write_text(path, c_code(net))
    return net  # literals that read back exactly, which the tests of c_code check


def _casadi(net: PlainNet, path: Path) -> PlainNet:
    from lipctrl.symbolic.network import to_casadi

    to_casadi(net).save(str(path))
    return net  # stored in binary


def _onnx(net: PlainNet, path: Path) -> PlainNet:
    from lipctrl.nn.onnx import read_onnx, write_onnx

    write_onnx(net, path)
    return read_onnx(path)


WRITERS: dict[Format, Callable[[PlainNet, Path], PlainNet]] = {"npz": _npz, "c": _c, "casadi": _casadi, "onnx": _onnx}
"""Each writes a network to a path and returns the network that the file holds."""


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    write_atomically(target, lambda stream: stream.write(content))


def certificate_of(network: Path, given: str | None) -> Path:
    """Where the certificate of a network is.

    Raises:
        UserError: it is not there.
    """
    path = default_path(network) if given is None else Path(given)
    if not path.is_file():
        raise UserError(f"no certificate at {path}; make one with: lipctrl certify {network}")
    return path


def export(net: PlainNet, certificate: Path, *, format: Format, out: Path) -> Path:
    """Write policy.FORMAT and certificate.json into a folder; nothing is written unless the proof holds.

    Args:
        net: the network. certificate: file with its certificate. format: key of `WRITERS`. out: folder, made if needed.

    Returns:
        The path of the policy.

    Raises:
        UserError: the certificate is of other weights, the format cannot hold the network exactly, or the folder
            already holds an export. RequirementFailed: the proof does not hold.
    """
    check_certificate(certificate, net)
    target = out / f"policy.{format}"
    for path in (target, out / "certificate.json"):
        if path.exists():
            raise UserError(f"{path} exists; choose another --out or remove it")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / target.name
        written = WRITERS[format](net, made)
        if not Certificate.load(certificate).verify(written):
            raise RequirementFailed(
                f"{format} does not hold this network exactly, so its certificate says nothing about the file (ONNX "
                "stores the parameter of elu and leaky_relu in single precision, and limits on both sides only)"
            )
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create {out}: {error.strerror or error}") from error
        _copy(certificate, out / "certificate.json")
        _copy(made, target)
    return target


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        ExportSettings(),
        group="export",
        prog="lipctrl export",
        description=f"Write a network ({KINDS}) for deployment, with its certificate beside it. The certificate is "
        "verified against what is written first.",
        args=arguments,
    )
    if not settings.network:
        raise UserError("export needs a network: lipctrl export NETWORK --format c --out FOLDER")
    path = Path(settings.network)
    net = load_network(path, activation=settings.activation)
    target = export(net, certificate_of(path, settings.certificate), format=settings.format, out=Path(settings.out))
    if path.suffix == ".zip":
        print(
            "a Stable-Baselines3 zip does not hold VecNormalize: trained behind one, this policy takes normalised "
            "observations"
        )
    print(f"policy: {target}")
    print(f"certificate: {target.parent / 'certificate.json'}")
