"""Adversaries: search over a disturbance set, with the cost counted."""

from lipctrl.attacks.attack import Attack, Context, Cost
from lipctrl.attacks.blackbox import Spsa
from lipctrl.attacks.blind import Constant, Held, NoAttack, RandomVertex, Uniform
from lipctrl.attacks.mad import MaximalActionDeviation
from lipctrl.attacks.search import SEARCHES, Search

ATTACKS: dict[str, tuple[type[Attack], str]] = {
    "none": (NoAttack, "the nominal loop"),
    "uniform": (Uniform, "uniform noise in the ball"),
    "vertex": (RandomVertex, "random extreme points of the ball"),
    "constant": (Constant, "a random extreme point of the ball, held over the episode"),
    "mad": (MaximalActionDeviation, "maximal action deviation by projected gradient with restarts"),
    "spsa": (Spsa, "maximal action deviation by queries alone, for policies without gradients"),
}
"""Attack and one-line description by name."""

PLANT_ATTACKS = {"lookahead": "plans ahead through the plant's equations, for networks of the plant's state"}
"""Attacks that need the equations of the plant, which the environment has to hand in: description by name."""

FITTED_ATTACKS = {
    "critic": "descends the critic of the policy's own Stable-Baselines3 zip",
    "robust-sarsa": "descends an action value fitted to the policy (lipctrl attack fit; then by the file's name)",
    "sa-rl": "perturbations learned by PPO (lipctrl attack fit; then by the file's name)",
    "pa-ad": "directions of the action learned by PPO (lipctrl attack fit; then by the file's name)",
}
"""Attacks that need something learned: description by name."""

DESCRIPTIONS = {
    **{name: text for name, (_, text) in ATTACKS.items()},
    **PLANT_ATTACKS,
    **FITTED_ATTACKS,
    **{name: text for name, (_, text) in SEARCHES.items()},
}
"""One-line description of everything that `lipctrl evaluate --attacks` takes, by name."""

__all__ = [
    "ATTACKS",
    "DESCRIPTIONS",
    "FITTED_ATTACKS",
    "PLANT_ATTACKS",
    "SEARCHES",
    "Attack",
    "Constant",
    "Context",
    "Cost",
    "Held",
    "MaximalActionDeviation",
    "NoAttack",
    "RandomVertex",
    "Search",
    "Spsa",
    "Uniform",
]
