"""A process model from noisy plant data, proved convex and of bounded gain, inside nonlinear and convex MPC.

Four coupled tanks, two pumps. The model predicts ten steps from the measured levels and the pump voltages; every
predicted level is convex in them, so that "keep the levels below a limit with little pumping effort" is a convex
problem, solved to global optimality with a proved gap.
"""

from dataclasses import replace

import casadi as ca
import numpy as np

from lipctrl.envs.quad_tank import quad_tank_plant
from lipctrl.models.fit import FitSettings, fit
from lipctrl.models.validation import horizon_gain, validate, validate_baselines
from lipctrl.models.windows import from_plant
from lipctrl.mpc.controller import NMPC
from lipctrl.mpc.convex import ConvexCost, ConvexMPC
from lipctrl.mpc.loop import simulate
from lipctrl.mpc.mpc_policy import MPCPolicy
from lipctrl.mpc.problem import regulation
from lipctrl.symbolic.network import to_casadi

plant = quad_tank_plant()
data = from_plant(plant, windows=3000, horizon=10, seed=0, noise=np.full(4, 0.02))
train, validation, test = data.split(0)
(model,) = fit(FitSettings(width=16, epochs=30), train, validation, seeds=(0,)).models

errors = {"model": validate(model, test), **validate_baselines(train, model, test)}
for name, found in errors.items():
    print(f"{name:12} rmse of level 1 after ten steps: {found.rmse[-1, 0]:.3f} cm")

net = model.to_plain()  # refuses weights that break the claim of convexity
gain = horizon_gain(net, model, test)
attained, proved = gain.attained.bound, gain.everywhere.bound
print(f"constant over ten steps per range of the data: {attained:.2f} witness, {proved:.2f} proved")

# Nonlinear MPC that believes the model, on the true plant.
x, u, w = ca.MX.sym("x", 4), ca.MX.sym("u", 2), ca.MX.sym("w", len(plant.disturbance))
step = ca.Function("update", [x, u, w], [to_casadi(model.to_plain(steps=1))(ca.vertcat(x, u))])
learned = replace(plant, update=step, ode=None)
Q, R = np.diag([1.0, 1.0, 0.1, 0.1]), 0.1 * np.eye(2)
problem = regulation(plant, Q, R, horizon=10)
start = plant.equilibrium[0] + [1.5, -1.5, 0.5, -0.5]


def stage_cost(x, u):
    dx, du = x - plant.equilibrium[0], u - plant.equilibrium[1]
    return float(dx @ Q @ dx + du @ R @ du)


for name, believed in (("true model", plant), ("learned model", learned)):
    loop = simulate(plant, MPCPolicy(NMPC(believed, problem)), start, 60, stage_cost=stage_cost)
    offset = np.abs(loop.states[-1] - plant.equilibrium[0]).max()
    print(f"NMPC with the {name}: cost {loop.cost:.2f}, offset {offset:.3f} cm, {1e3 * np.median(loop.times):.1f} ms")

# Convex MPC: levels above the limits cost their square, pumping is cheap near 2.5 V.
s = model.scaling
cost = ConvexCost(
    price=np.zeros(4),
    weight=np.full(4, 10.0),
    limit=plant.equilibrium[0] + 0.5,
    R=np.eye(2),
    u_ref=np.full(2, 3.2),
    u_low=s.input_low,
    u_high=s.input_low + s.input_width,
)
plan = ConvexMPC(net, cost).solve(start)
print(f"convex plan: cost {plan.cost:.4f}, no plan costs less than {plan.cost - plan.gap:.4f} (proved)")
