"""Branch and bound on the signs of kinked activations: exact on small networks, valid whenever it is stopped (numpy).

A neuron whose activation is max(z, 0) + p min(z, 0) (ReLU, leaky ReLU, abs; the pairs of MaxMin and Householder as
well) is split into z >= 0 and z <= 0, where its slope is known, and the Jacobian is bounded on each part (Shi et al.
2022, arXiv 2210.07394). Parts that hold no input are closed: a linear program over the box finds multipliers pi >= 0
for which sum_i pi_i sign_i z_i is negative on the whole part, though none of its terms may be (Farkas). That this sum
is negative is then proved by forward bounds, so that checking the tree needs no solver.

The proof is a tree: {"step", "neuron", "+": tree, "-": tree} or {"bounded"} (the Jacobian bound of that part is below
the certificate's) or {"empty": [[step, neuron, pi], ...]}. A bounded part may hold points on its border where an
argument is 0; they are almost no inputs, or the argument is constant there and the slope does not matter, and the
Lipschitz constant on a convex region is the essential supremum of the Jacobian's norm.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from lipctrl.certify.certificate import Box, Certificate
from lipctrl.certify.crown import Crown
from lipctrl.certify.enclosure import Enclosure
from lipctrl.certify.forward import Infeasible, relaxed
from lipctrl.certify.jacobian import MARGIN, Gradients, gradient_norm
from lipctrl.certify.relaxation import kinked
from lipctrl.certify.scalar_form import Affine, ScalarForm, scalar_form
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
Neuron = tuple[int, int]  # (step, neuron), both from 0
Tree = dict[str, Any]
Multiplier = tuple[int, int, float]  # step, neuron, pi
MOST_PARTS, WORK = 500, 2_000_000_000
PART_EMPTY = -1e-9  # largest margin (relative to the rows) at which a linear program calls a part empty


@dataclass
class _Part:
    """A node of the tree: the inputs on which some arguments have known signs, and the neuron to split next."""

    signs: dict[Neuron, int]
    bound: float
    split: Neuron | None = None
    empty: list[Multiplier] | None = None
    children: list["_Part"] = field(default_factory=list)

    @property
    def value(self) -> float:
        """The smallest bound that the tree proves for this part."""
        if self.empty is not None:
            return 0.0
        return min(self.bound, max((c.value for c in self.children), default=np.inf))

    def tree(self) -> Tree:
        """The proof, without branches that did not help."""
        if self.empty is not None:
            return {"empty": [list(m) for m in self.empty]}
        if self.split is None or not self.children or self.bound <= self.value:
            return {"bounded": True}
        step, neuron = self.split
        return {"step": step, "neuron": neuron, "+": self.children[0].tree(), "-": self.children[1].tree()}


def branch_and_bound(net: PlainNet, norm: NormPair, region: Box, *, parts: int | None = None) -> Certificate | None:
    """Bound the Jacobian on a box by branch and bound, the part with the largest bound first.

    Args:
        net, norm, region: what is certified, and where.
        parts: budget: about how many parts are bounded; by default what takes a second or two, at most 500.

    Returns:
        The certificate; None only if the weights overflow.

    Raises:
        UserError: the box has another dimension than the input.
    """
    form = scalar_form(net)
    budget = _affordable(form) if parts is None else parts
    root = _bounded(form, norm, region, {})
    queue, made = [(-root.bound, 0, root)], 1
    while queue and made < budget:
        part = heapq.heappop(queue)[2]
        if part.split is None:  # every slope is known: this is the value on the part
            break
        for sign in (1, -1):
            child = _bounded(form, norm, region, {**part.signs, part.split: sign})
            part.children.append(child)
            made += 1
            if child.empty is None:
                heapq.heappush(queue, (-child.bound, made, child))
    if not np.isfinite(root.value):
        return None
    return Certificate(
        bound=root.value * MARGIN,
        method="branch-and-bound",
        norm=norm,
        region=region,
        weights_sha256=net.sha256(),
        proof={"kind": "branches", "tree": root.tree()},
        input_names=net.input_names,
        output_names=net.output_names,
    )


def _affordable(form: ScalarForm) -> int:
    """A number of parts by the cost of one: matrix products for every output."""
    widths = [len(step.argument.bias.mid) for step in form.steps]
    cost = len(form.preactivations[-1].bias.mid) * sum(widths) * max(widths, default=0) ** 2
    return min(MOST_PARTS, WORK // max(cost, 1))


def _bounded(form: ScalarForm, norm: NormPair, region: Box, signs: dict[Neuron, int]) -> _Part:
    """A part with its bound, or with what proves it empty."""
    try:
        gradients = Gradients(form, region, signs)
    except Infeasible:
        return _Part(signs, 0.0, empty=[])
    multipliers = _separation(form, gradients, region, signs)
    if multipliers is not None and _is_empty(form, region, signs, multipliers):
        return _Part(signs, 0.0, empty=multipliers)
    return _Part(signs, gradient_norm(gradients, norm), _choose(form, gradients))


def _choose(form: ScalarForm, gradients: Gradients) -> Neuron | None:
    """The undecided kinked neuron that moves the Jacobian most: |derivative by its value| times |its weights|."""
    best, chosen = 0.0, None
    for k, step in enumerate(form.steps):
        if kinked(step.activation) is None:
            continue
        a, b = gradients.slopes[k]
        weights = sum((np.abs(block.mid).sum(1) for block in step.argument.blocks.values()), np.zeros(1))
        score = gradients.steps[k] * (b - a) * weights
        neuron = int(np.argmax(score)) if len(score) else 0
        if len(score) and score[neuron] > best:
            best, chosen = float(score[neuron]), (k, neuron)
    return chosen


def _linear_rows(form: ScalarForm, gradients: Gradients) -> list[tuple[Array, Array]]:
    """Per step, its arguments as W x + c where that is what they are on the part (NaN rows elsewhere)."""
    inputs = len(gradients.forward.values[0][0])
    values: list[tuple[Array, Array]] = [(np.eye(inputs), np.zeros(inputs))]
    rows = list[tuple[Array, Array]]()
    for step, (a, b) in zip(form.steps, gradients.slopes, strict=True):
        w, c = np.zeros((len(a), inputs)), step.argument.bias.mid[:, 0].copy()
        for j, block in step.argument.blocks.items():
            linear = np.isfinite(values[j][1])
            mixed = (block.mid[:, ~linear] != 0).any(1)
            w += block.mid[:, linear] @ values[j][0][linear]
            c += block.mid[:, linear] @ values[j][1][linear]
            c[mixed] = np.nan
        known = (a == b) & (kinked(step.activation) is not None)
        rows.append((w, c))
        values.append((a[:, None] * w, np.where(known, np.where(a == 0, 0.0, a * c), np.nan)))
    return rows


def _separation(
    form: ScalarForm, gradients: Gradients, region: Box, signs: dict[Neuron, int]
) -> list[Multiplier] | None:
    """Multipliers that a linear program says prove the part empty, or None.

    maximise m over x in the box, m <= 1, sign_i (w_i x + c_i) >= m |w_i|: if the largest m is negative, the dual
    variables of the constraints are the multipliers.
    """
    rows, used = _linear_rows(form, gradients), list[Neuron]()
    left, right, lengths = list[Array](), list[float](), list[float]()
    for (k, neuron), sign in signs.items():
        w, c = rows[k]
        length = float(np.linalg.norm(w[neuron]))
        if np.isfinite(c[neuron]) and length > 0:
            used.append((k, neuron))
            lengths.append(length)
            left.append(np.append(-sign * w[neuron] / length, 1.0))
            right.append(sign * float(c[neuron]) / length)
    if not used:
        return None
    limits = [*zip(region.low, region.high, strict=True), (None, 1.0)]
    cost = np.append(np.zeros(len(region.low)), -1.0)
    result = linprog(cost, A_ub=np.array(left), b_ub=np.array(right), bounds=limits, method="highs")
    if result.status != 0 or -result.fun > PART_EMPTY:
        return None
    weights = np.maximum(-result.ineqlin.marginals, 0.0)
    return [(k, i, float(p / q)) for (k, i), p, q in zip(used, weights, lengths, strict=True) if p > 0]


def _is_empty(form: ScalarForm, region: Box, signs: dict[Neuron, int], multipliers: Sequence[Multiplier]) -> bool:
    """Prove that no input of the box has these signs.

    Every multiplier is nonnegative, so that sum_i pi_i sign_i z_i >= 0 where the signs hold; it is negative.
    """
    try:
        crown: Crown = relaxed(form, region, signs)
    except Infeasible:
        return True
    total: Affine | None = None
    for step, neuron, pi in multipliers:
        if not 0 <= pi < np.inf:
            return False
        row = np.zeros((1, len(crown.ranges[step][0])))
        row[0, neuron] = pi * signs[step, neuron]
        term = form.steps[step].argument.mapped(Enclosure.exact(row))
        total = term if total is None else total + term
    return total is not None and bool(crown.bounds(total)[1][0] < 0)


def _bounded_by(form: ScalarForm, norm: NormPair, region: Box, signs: dict[Neuron, int]) -> float:
    try:
        return gradient_norm(Gradients(form, region, signs), norm)
    except Infeasible:
        return 0.0


def check(net: PlainNet, certificate: Certificate) -> bool:
    """Check a certificate of kind "branches": every part of the tree is bounded or proved to be empty."""
    if certificate.region is None:
        return False
    form, norm, region = scalar_form(net), certificate.norm, certificate.region
    open_parts: list[tuple[Tree, dict[Neuron, int]]] = [(certificate.proof["tree"], {})]
    while open_parts:
        tree, signs = open_parts.pop()
        if "empty" in tree:
            if not _is_empty(form, region, signs, [(int(k), int(i), float(pi)) for k, i, pi in tree["empty"]]):
                return False
        elif "bounded" in tree:
            if not _bounded_by(form, norm, region, signs) <= certificate.bound:
                return False
        else:
            split = (int(tree["step"]), int(tree["neuron"]))
            if split[0] < 0 or split[1] < 0 or kinked(form.steps[split[0]].activation) is None:
                return False
            open_parts += [(tree["+"], {**signs, split: 1}), (tree["-"], {**signs, split: -1})]
    return True
