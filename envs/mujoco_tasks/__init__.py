"""MuJoCo tasks: gymnasium's own, never copied. Importing this imports no physics.

`gymnasium.make("Hopper-v5")` makes one; `lipctrl.disturb.wrapper.DisturbanceWrapper` puts disturbances around it;
`batched.BatchedTask` steps many at once; `linearise.linearise` gives its matrices.
"""

TASKS: dict[str, str] = {
    "InvertedPendulum-v5": "balance a pole on a cart",
    "InvertedDoublePendulum-v5": "balance two poles on top of each other on a cart",
    "Reacher-v5": "move the tip of a two-joint arm to a target",
    "Hopper-v5": "hop forward on one leg without falling",
    "Walker2d-v5": "walk forward on two legs in a plane without falling",
    "HalfCheetah-v5": "run forward in a plane",
    "Ant-v5": "walk forward on four legs",
    "Humanoid-v5": "walk forward on two legs in space without falling",
}
"""Gymnasium ids of the supported tasks, and what each asks for."""
