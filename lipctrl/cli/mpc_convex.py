"""`lipctrl mpc --controller convex`: a problem that is convex in the inputs if the model is, or why it is not.

States cost their excess over --state-high, inputs their distance from a reference; nothing asks for a state to be
higher. With an input-convex model over the whole horizon that is a convex problem, solved to a proved gap; otherwise
nonlinear MPC solves the same problem, and the command says why.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError
from lipctrl.models.convexity import is_convex
from lipctrl.models.model import ProcessModel
from lipctrl.mpc.controller import NMPC
from lipctrl.mpc.convex import ConvexController, why_not_convex
from lipctrl.mpc.mpc_policy import Controller
from lipctrl.mpc.problem import OCP, Softness
from lipctrl.nn.plain import PlainNet
from lipctrl.plant import Plant
from lipctrl.symbolic.process import check_plant

Array = NDArray[np.float64]
NEGLIGIBLE = 1e-9  # linear price of an excess, which the nonlinear path must have


def one_sided(ocp: OCP, u_ref: tuple[float, ...] | None, *, keep_low: bool) -> OCP:
    """The problem: soft upper limits weighted as the states' deviations were, inputs near a reference.

    Args:
        ocp: whose weights, limits and horizon are taken.
        u_ref: reference of the inputs, (m,), or None: as in `ocp`.
        keep_low: lower limits of the states stay, which is not convex.

    Raises:
        UserError: no state has an upper limit, or not one reference per input.
    """
    weight = np.diag(ocp.Q)
    if not np.isfinite(ocp.x_high[weight > 0]).any():
        raise UserError("convex MPC keeps states below limits: give --state-high, one number per state (inf for none)")
    if u_ref is not None and len(u_ref) != len(ocp.u_ref):
        raise UserError(f"--input-reference needs {len(ocp.u_ref)} numbers, found {len(u_ref)}")
    zero = np.zeros_like(ocp.Q)
    return replace(
        ocp,
        Q=zero,
        P=zero,
        u_ref=ocp.u_ref if u_ref is None else np.array(u_ref),
        x_low=ocp.x_low if keep_low else np.full_like(ocp.x_low, -np.inf),
        soft=Softness(np.full(len(weight), NEGLIGIBLE), np.maximum(weight, NEGLIGIBLE)),
    )


def network_of(model: ProcessModel, plant: Plant, horizon: int) -> PlainNet | str:
    """The model over the horizon, one input per sampling period, or why it is not convex."""
    hold = check_plant(model, plant)
    if horizon * hold > model.horizon:
        return model.extrapolation(horizon * hold)
    if not model.cell.convex:
        return f"the family {model.family} is not convex in its inputs"
    net = model.to_plain(steps=horizon * hold, hold=hold)
    return net if is_convex(net) else "the weights are not convex in the inputs by structure"


def convex_or_not(plant: Plant, model: ProcessModel | None, ocp: OCP, believed: Plant) -> tuple[Controller, str]:
    """The controller of a one-sided problem, and what is to be said of its convexity.

    Args:
        plant: with its own equations. believed: with the model in their place.

    Raises:
        UserError: a model of another plant.
    """
    reason = why_not_convex(ocp)
    if model is None:
        reason = "the plant's own equations are not known to be convex in the inputs; give an input-convex --model"
    elif reason is None:
        net = network_of(model, plant, ocp.horizon)
        if isinstance(net, PlainNet):
            return ConvexController(net, ocp), "convex: every plan is optimal up to its proved gap"
        reason = net
    return NMPC(believed, ocp, "ipopt"), f"solved as nonlinear MPC, without a proof: {reason}"


def cost_of(ocp: OCP, x: Array, u: Array) -> float:
    """The stage cost of a one-sided problem at a state (n,) and input (m,)."""
    assert ocp.soft is not None
    limited, du = np.isfinite(ocp.x_high), u - ocp.u_ref
    over = np.where(limited, np.maximum(x - np.where(limited, ocp.x_high, 0), 0), 0.0)
    return float(over**2 @ ocp.soft.quadratic + du @ ocp.R @ du)
