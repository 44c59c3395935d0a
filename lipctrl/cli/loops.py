"""Closed loops of an environment by its id: MuJoCo tasks by the batched stepper, everything else one by one."""

from functools import partial

from lipctrl.attacks.threat import Threat
from lipctrl.cli.experts import make_env, reference_of
from lipctrl.envs.mujoco_tasks import TASKS
from lipctrl.evaluation.rollout import Loops, surrounded


def loops_of(env_id: str, threat: Threat) -> Loops:
    """Loops in an environment with the channel of a threat around it.

    Raises:
        UserError: no such environment, or a channel that it lacks.
    """
    batched = None
    if env_id in TASKS:
        from lipctrl.envs.mujoco_tasks.disturbed import DisturbedTask  # imports MuJoCo

        batched = partial(DisturbedTask, env_id, channels=threat.channels)
    return Loops(lambda: surrounded(make_env(env_id), threat), reference_of(make_env(env_id)), batched)
