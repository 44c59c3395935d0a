"""Certificates as objects: what is stored, what verification notices, and that it needs no solver."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lipctrl.certify.bracket import upper_bounds
from lipctrl.certify.certificate import Box, Certificate, Witness
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair


def nonnegative(rng: np.random.Generator) -> PlainNet:
    """Nonnegative ReLU networks have the constant |W_3 W_2 W_1|, and LipSDP is exact on them."""
    sizes = (3, 6, 5, 2)
    weights = [rng.uniform(size=(b, a)) for a, b in zip(sizes, sizes[1:], strict=False)]
    return PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], "relu")


def certificates(net: PlainNet) -> list[Certificate]:
    pairs = [NormPair(), NormPair("linf", "linf"), NormPair("l2", "linf"), NormPair("linf", "l2")]
    return [c for norm in pairs for c in upper_bounds(net, norm)]


def test_round_trip(tmp_path: Path) -> None:
    net = nonnegative(np.random.default_rng(0))
    kinds = set()
    for certificate in certificates(net):
        certificate.save(tmp_path / "c.json")
        again = Certificate.load(tmp_path / "c.json")
        assert again == certificate and again.verify(net)
        kinds.add(certificate.proof["kind"])
    assert kinds == {"all-active", "lmi", "lmi-linf", "norms"}


def changed(net: PlainNet, layer: int, entry: tuple[int, int], factor: float) -> PlainNet:
    blocks = [dict(row) for row in net.blocks]
    blocks[layer][layer] = blocks[layer][layer].copy()
    blocks[layer][layer][entry] *= factor
    return replace(net, blocks=tuple(blocks))


def test_every_weight_of_a_tight_network_matters() -> None:
    """A larger weight makes the exact constant of a nonnegative network larger: no certificate may survive it."""
    rng = np.random.default_rng(1)
    net = nonnegative(rng)
    for certificate in upper_bounds(net, method="lipsdp-neuron") + upper_bounds(
        net, NormPair("linf", "linf"), method="lipsdp-neuron"
    ):
        for layer, w in enumerate(net.blocks):
            for entry in np.ndindex(*w[layer].shape):
                other = changed(net, layer, entry, 1 + 1e-3)
                assert not certificate.verify(other)  # by the hash
                renamed = replace(certificate, weights_sha256=other.sha256())
                if certificate.norm.output == "l2":
                    assert not renamed.verify(other)  # by the proof
        everywhere = replace(net, blocks=tuple({k: b * (1 + 1e-3) for k, b in row.items()} for row in net.blocks))
        assert not replace(certificate, weights_sha256=everywhere.sha256()).verify(everywhere)


def test_forged_proofs() -> None:
    net = nonnegative(np.random.default_rng(2))
    for certificate in certificates(net):
        assert not replace(certificate, bound=certificate.bound * 0.99).verify(net)
        assert not replace(certificate, bound=-certificate.bound).verify(net)
        assert not replace(certificate, bound=float("nan")).verify(net)
        assert not replace(certificate, proof={"kind": "lmi"}).verify(net)
        assert not replace(certificate, proof={"kind": "trust me"}).verify(net)
        assert not replace(certificate, proof={}).verify(net)
    (l2, *_) = upper_bounds(net, method="lipsdp-neuron")
    assert not replace(l2, norm=NormPair("linf", "linf")).verify(net)
    assert not replace(l2, norm=NormPair("l2", "l2", (0.1, 0.1))).verify(net)  # one scale too few
    assert not replace(l2, norm=NormPair("l2", "l2", (2.0, 2.0, 2.0))).verify(net)
    assert replace(l2, norm=NormPair("l2", "l2", (0.5, 0.5, 0.5)), bound=l2.bound).verify(net)  # half the units


def test_weights_of_l_inf_proofs_must_sum_to_at_most_one() -> None:
    net = nonnegative(np.random.default_rng(3))
    (good,) = upper_bounds(net, NormPair("linf", "linf"), method="lipsdp-neuron")
    parts = [{**part, "weights": [2 * w for w in part["weights"]]} for part in good.proof["parts"]]
    assert not replace(good, bound=good.bound, proof={**good.proof, "parts": parts}).verify(net)
    assert not replace(good, proof={**good.proof, "parts": good.proof["parts"][:1]}).verify(net)


SCRIPT = """
import sys
from pathlib import Path
for name in ("torch", "cvxpy", "scs", "clarabel", "mosek"):
    sys.modules[name] = None  # an import of it fails
from lipctrl.certify.certificate import Certificate
from lipctrl.nn.plain import PlainNet
net = PlainNet.load(Path(sys.argv[1]))
print([Certificate.load(Path(p)).verify(net) for p in sys.argv[2:]])
"""


def test_verification_needs_no_solver_and_no_torch(tmp_path: Path) -> None:
    net = nonnegative(np.random.default_rng(4))
    net.save(tmp_path / "net.npz")
    paths = []
    for k, certificate in enumerate(certificates(net)):
        paths.append(str(tmp_path / f"{k}.json"))
        certificate.save(Path(paths[-1]))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "net.npz"), *paths]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == str([True] * len(paths))


def test_bad_files(tmp_path: Path) -> None:
    net = nonnegative(np.random.default_rng(5))
    path = tmp_path / "c.json"
    with pytest.raises(UserError, match="no certificate"):
        Certificate.load(path)
    upper_bounds(net, method="product")[0].save(path)
    text = path.read_text()
    data = json.loads(text)
    for wrong in (
        text[: len(text) // 2],
        "[]",
        json.dumps({**data, "format": "other"}),
        json.dumps({**data, "proof": {"kind": "unknown"}}),
        json.dumps({**data, "bound": "four"}),
        json.dumps({k: v for k, v in data.items() if k != "weights_sha256"}),
    ):
        path.write_text(wrong)
        with pytest.raises(UserError):
            Certificate.load(path)


def test_boxes() -> None:
    box = Box((-1.0, 0.0), (1.0, 0.0))
    assert box.contains(np.array([1.0, 0.0])) and not box.contains(np.array([1.1, 0.0]))
    for low, high in (((0.0,), (-1.0,)), ((0.0,), (1.0, 2.0)), ((float("nan"),), (1.0,))):
        with pytest.raises(UserError, match="region"):
            Box(low, high)


def test_a_witness_is_a_proof() -> None:
    net = PlainNet.mlp([[[3.0, 4.0]], [[2.0]]], [[0.0], [0.0]], "relu")
    good = Witness(9.999999999, (1.0, 1.0), (3.0, 4.0), NormPair(), "hand")
    assert good.verify(net)
    assert not replace(good, bound=10.000000001).verify(net)
    assert not replace(good, x=(-1.0, -1.0)).verify(net)  # on the flat side
    assert not replace(good, x=(0.0, 0.0)).verify(net)  # at the kink, where the slope may be 0
    assert not replace(good, x=(4.0, -3.0)).verify(net)
    for odd in (replace(good, x=(1.0,)), replace(good, direction=(0.0, 0.0)), replace(good, x=(np.nan, 1.0))):
        assert not odd.verify(net)
    assert not replace(good, bound=np.nan).verify(net) and not replace(good, direction=(1.0, 1.0, 1.0)).verify(net)
    limited = replace(net, low=np.array([-15.0]), high=np.array([15.0]))
    assert good.verify(limited) and not replace(good, x=(2.0, 1.0)).verify(limited)  # 20 is cut to 15
