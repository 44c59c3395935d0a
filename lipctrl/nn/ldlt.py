"""LDLT networks: an end-to-end l2 bound by a block LDL' factorisation of the LipSDP matrix.

(Juston et al. 2025, arXiv 2512.05915; re-derived, with a learnable diagonal and with the corner term of the residual
form, without which the bound fails.) Both forms build a 1-Lipschitz network g and return sqrt(lip) g(sqrt(lip) x),
which is better conditioned than a bound inside the recursion. With D_0 = I and D_k = 2 I - W_k D_{k-1}^-1 W_k' the LMI
with Lambda = I asks for D_k > 0 and W_{l+1}' W_{l+1} <= D_l. Free V_k and alpha_k > 0 give the contraction
N_k = V_k R_k^-1 with R_k'R_k = V_k'V_k + alpha_k I, and with L_k L_k' = V_k V_k' + alpha_k I,

    D_k = 2 alpha_k (L_k L_k')^-1,   W_k = sqrt(2) N_k D_{k-1}^{1/2},   W_{l+1} = N_{l+1} D_l^{1/2}.

A diagonal Psi_k > 0 between the layers turns Lambda = I into Lambda_k = Psi_k^2. It enlarges the family for activations
that are not positively homogeneous.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipctrl.nn.activations import Activation
from lipctrl.nn.graph import GraphNet, Weights, needs_slopes_in_unit_interval, xavier

SMALLEST_ALPHA = 1e-4
FIRST_LOG_ALPHA = -2.0


class _Ldlt(GraphNet):
    def __init__(
        self, sizes: Sequence[int], lip: float, *, activation: str, learnable_lip: bool, generator: torch.Generator
    ) -> None:
        super().__init__(sizes, lip, activation=activation, learnable_lip=learnable_lip, generator=generator)
        self.free = nn.ParameterList([xavier(m, n, generator) for n, m in self.pairs])
        self.log_alpha = nn.ParameterList([nn.Parameter(torch.tensor(FIRST_LOG_ALPHA)) for _ in self.pairs])
        self.log_scale = nn.ParameterList([nn.Parameter(torch.zeros(m)) for m in sizes[1:-1]])

    def accepts(self, activation: Activation) -> None:
        """Slopes in [0, 1] only."""
        needs_slopes_in_unit_interval(activation, "ldlt")

    def _hidden(self, root: Tensor, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """W_1..W_l, and the roots of D_1..D_l (D_k = root' root), from the root of D_0."""
        maps, roots = [], []
        for k in range(len(self.pairs) - 1):
            contraction, alpha, lower = _contraction(self.free[k], self.log_alpha[k], dtype)
            maps.append(2**0.5 * contraction @ root)
            root = (2 * alpha).sqrt() * torch.linalg.inv(lower)
            roots.append(root)
        return maps, roots

    def _scaled(self, maps: list[Tensor], last: dict[int, Tensor], dtype: torch.dtype) -> Weights:
        """Put the diagonals Psi between the layers and the root of the bound at both ends."""
        root = self.factor(dtype).sqrt()
        scales = [scale.to(dtype).clamp(-20, 20).exp() for scale in self.log_scale]
        blocks: list[dict[int, Tensor]] = []
        for k, w in enumerate(maps):
            w = w / scales[k][..., None]
            blocks.append({k: root * w if k == 0 else w * scales[k - 1][..., None, :]})
        blocks.append({j: root**2 * w if j == 0 else root * w * scales[-1][..., None, :] for j, w in last.items()})
        return Weights(
            blocks, [bias.to(dtype) for bias in self.bias], [root[..., 0] ** 2 * scale**2 for scale in scales]
        )


def _contraction(free: Tensor, log_alpha: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """N = V R^-1, alpha, and the lower factor L of V V' + alpha I."""
    v, alpha = free.to(dtype), (log_alpha.to(dtype).exp() + SMALLEST_ALPHA)[..., None, None]
    rows, columns = v.shape[-2:]
    eye = torch.eye(max(rows, columns), dtype=dtype, device=v.device)
    upper = torch.linalg.cholesky(v.mT @ v + alpha * eye[:columns, :columns], upper=True)
    lower = torch.linalg.cholesky(v @ v.mT + alpha * eye[:rows, :rows])
    return torch.linalg.solve_triangular(upper, v, upper=True, left=False), alpha, lower


class Ldlt(_Ldlt):
    """LDLT layers with learnable diagonal, end-to-end bound"""

    def weights(self, dtype: torch.dtype) -> Weights:
        """The MLP of the factorisation."""
        root = torch.eye(self.sizes[0], dtype=dtype, device=self.log_lip.device)
        maps, roots = self._hidden(root, dtype)
        contraction = _contraction(self.free[-1], self.log_alpha[-1], dtype)[0]
        return self._scaled(maps, {len(maps): contraction @ (roots[-1] if roots else root)}, dtype)


class LdltResidual(_Ldlt):
    """LDLT layers with a linear skip from input to output, end-to-end bound"""

    def __init__(
        self, sizes: Sequence[int], lip: float, *, activation: str, learnable_lip: bool, generator: torch.Generator
    ) -> None:
        super().__init__(sizes, lip, activation=activation, learnable_lip=learnable_lip, generator=generator)
        self.skip = xavier(sizes[-1], sizes[0], generator)
        self.skip_log_alpha = nn.Parameter(torch.tensor(FIRST_LOG_ALPHA))

    def weights(self, dtype: torch.dtype) -> Weights:
        """y = A x + B x_l with B shifted by the corner term of the LMI."""
        v = self.skip.to(dtype)
        a, alpha, _ = _contraction(v, self.skip_log_alpha, dtype)
        eye = torch.eye(self.sizes[0], dtype=dtype, device=v.device)
        upper = torch.linalg.cholesky(v.mT @ v + alpha * eye, upper=True)
        root = alpha.sqrt() * torch.linalg.inv(upper)  # D_0 = I - A'A = root' root
        maps, roots = self._hidden(root, dtype)
        if not maps:
            return self._scaled(maps, {0: a}, dtype)
        phi, total = eye.expand(root.shape), torch.zeros_like(root)  # expanded: a stack of matrices, not of vectors
        for w, r in zip(maps, [root, *roots[:-1]], strict=True):
            whitened = torch.linalg.solve(r.mT, phi)  # phi' D^-1 phi = |D^-1/2 phi|^2
            total = total + whitened.mT @ whitened
            phi = w @ torch.linalg.solve(r, whitened)
        q = torch.eye(a.shape[-2], dtype=dtype, device=v.device) + a @ total @ a.mT
        corner = a @ phi.mT
        shift = torch.linalg.solve(q, corner)
        inner = torch.linalg.cholesky(roots[-1].mT @ roots[-1] + corner.mT @ shift, upper=True)
        last = _contraction(self.free[-1], self.log_alpha[-1], dtype)[0]
        factor = torch.linalg.cholesky(q)
        b = torch.linalg.solve_triangular(factor.mT, last @ inner, upper=True) - shift
        return self._scaled(maps, {0: a, len(maps): b}, dtype)
