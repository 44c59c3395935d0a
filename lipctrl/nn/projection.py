"""Enforce norm bounds on ordinary weights after an optimiser step: one hook for any optimiser.

For loops whose modules cannot be replaced, and for warm starts from unconstrained policies; certify the result, which
is usually far below the product of these norms. Maps act on singular values (Newhouse et al. 2025, arXiv 2507.13338):

* "svd": min(s, bound), exact to rounding. Use this up to widths of a few hundred.
* "hard": a composition of four odd quintics close to min(s, 1), without an SVD. Its supremum on [0, 3.5] is 1.0109, not
  1, so the budget is divided by that; matrices beyond that range are first scaled into it by an upper bound of their
  norm.
* "soft": s - a s^3 followed by s + a s^3, with the strength a coupled to the largest norm k = bound (1 - decay) + step
  that one update can reach. For large steps the coupled map is not monotone and exceeds the bound inside [0, k]: it is
  checked, and refused.
"""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lipctrl.files import UserError

Method = Literal["svd", "hard", "soft"]
HARD_CAP = (
    (0.805032, 0.206361, -0.019763),
    (0.649867, 0.162935, -0.011150),
    (1.810259, -0.200265, 0.008251),
    (1.004384, -0.183490, 0.014413),
)
HARD_SUPREMUM = 1.0109
HARD_RANGE = 3.5
MUON_NORM = 1.21  # largest norm of torch's bfloat16 Newton-Schulz output relative to the learning rate


def soft_cap_strength(bound: float, step: float, decay: float = 0.0) -> float:
    """The strength a of the soft cap for updates of norm at most `step`.

    The smallest nonnegative root of -k^9 a^4 + 3 k^7 a^3 - 3 k^5 a^2 + k - bound = 0 with k = bound (1 - decay) + step,
    which makes the cap of k equal to the bound.

    Raises:
        UserError: no such root, or the coupled map exceeds the bound somewhere on [0, k].
    """
    k = bound * (1 - decay) + step
    if k <= bound:
        return 0.0
    roots = np.roots([-(k**9), 3 * k**7, -3 * k**5, 0.0, k - bound])
    real = sorted(r.real for r in roots if abs(r.imag) < 1e-9 * max(1.0, abs(r)) and r.real >= 0)
    if real:
        a = float(real[0])
        grid = np.linspace(0.0, k, 20_001)
        if _soft(grid, a).max() <= bound * (1 + 1e-6):
            return a
    raise UserError(f"a soft cap at {bound:g} cannot hold updates of norm {step:g}: take smaller steps or method 'svd'")


def _soft(s: Any, a: float) -> Any:
    first = s - a * s**3
    return first + a * first**3


def _odd(w: Tensor, c1: float, c3: float, c5: float) -> Tensor:
    """The map c1 s + c3 s^3 + c5 s^5 on the singular values of w."""
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    factor = c1 * torch.eye(len(gram), dtype=w.dtype, device=w.device) + c3 * gram + c5 * gram @ gram
    return factor @ w if w.shape[0] <= w.shape[1] else w @ factor


def _norm_above(w: Tensor) -> Tensor:
    """An upper bound of the spectral norm without an SVD, too large by a factor of at most rank^(1/32).

    |W'W|^16 is at most the squared Frobenius norm of (W'W)^8 (Gram iteration: Delattre et al. 2023, arXiv 2305.16173).
    """
    size = torch.linalg.matrix_norm(w).clamp(min=torch.finfo(w.dtype).tiny)
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    gram = gram / size**2
    for _ in range(3):
        gram = gram @ gram
    bound: Tensor = size * torch.linalg.matrix_norm(gram) ** (1 / 16)
    return bound


def capped(w: Tensor, bound: float, method: Method = "svd", *, strength: float | None = None) -> Tensor:
    """A matrix with norm at most `bound`: `w` itself where it is already well inside, up to the method's accuracy.

    Args:
        w: shape (rows, columns). bound: of the spectral norm. method: see the module. strength: a, for "soft" only.

    Raises:
        UserError: an unknown method, or "soft" without a strength (see `soft_cap_strength`).
    """
    if method not in ("svd", "hard", "soft") or (method == "soft") != (strength is not None):
        raise UserError(f"method is 'svd', 'hard', or 'soft' with a strength; found {method!r}, strength {strength}")
    if method == "svd":
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        clipped: Tensor = (u * s.clamp(max=bound)) @ vh
        return clipped
    if strength is not None:
        return _odd(_odd(w, 1.0, -strength, 0.0), 1.0, strength, 0.0)
    budget = bound / HARD_SUPREMUM
    x = w / budget
    x = x / (_norm_above(x) / HARD_RANGE).clamp(min=1.0)
    for coefficients in HARD_CAP:
        x = _odd(x, *coefficients)
    return budget * x


@torch.no_grad()
def project_(
    matrices: Iterable[Tensor], bound: float, method: Method = "svd", *, strength: float | None = None
) -> None:
    """Cap every matrix in place.

    Raises:
        UserError: a bound that is not positive, or a parameter that is not a matrix.
    """
    if not bound > 0:
        raise UserError(f"bound must be positive, found {bound}")
    for w in matrices:
        if w.ndim != 2:
            raise UserError(f"only matrices can be projected; found a parameter of shape {tuple(w.shape)}")
        w.copy_(capped(w, bound, method, strength=strength))


def project_after_steps(
    optimiser: torch.optim.Optimizer,
    matrices: Iterable[Tensor],
    bound: float,
    method: Method = "svd",
    *,
    strength: float | None = None,
) -> Any:
    """Make any optimiser cap the matrices after each of its steps; returns the handle, whose `remove()` ends it."""
    kept = list(matrices)
    return optimiser.register_step_post_hook(lambda *_: project_(kept, bound, method, strength=strength))


def matrices_of(module: nn.Module) -> list[Tensor]:
    """The weight matrices of a module."""
    return [p for p in module.parameters() if p.ndim == 2]


def muon_step(learning_rate: float, shape: tuple[int, int]) -> float:
    """Largest norm of one `torch.optim.Muon` update of a matrix: 1.21 lr sqrt(max(1, rows / columns))."""
    return MUON_NORM * learning_rate * float(np.sqrt(max(1.0, shape[0] / shape[1])))


def muon(module: nn.Module, learning_rate: float, *, bound: float, decay: float = 0.0) -> list[torch.optim.Optimizer]:
    """Muon with a soft cap for the matrices of a module, Adam for its biases.

    Args:
        module: an ordinary network. learning_rate: of both; a schedule may lower it, never raise it, as the caps are
            coupled to it. bound: on the norm of every matrix. decay: weight decay per step.

    Raises:
        UserError: steps too large for the cap to hold.
    """
    matrices = matrices_of(module)
    project_(matrices, bound)
    muon_optimiser = torch.optim.Muon(matrices, lr=learning_rate, weight_decay=decay / learning_rate)
    for w in matrices:
        strength = soft_cap_strength(bound, muon_step(learning_rate, (w.shape[0], w.shape[1])), decay)
        project_after_steps(muon_optimiser, [w], bound, "soft", strength=strength)
    return [muon_optimiser, torch.optim.Adam([p for p in module.parameters() if p.ndim != 2], lr=learning_rate)]
