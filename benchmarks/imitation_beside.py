"""GAIL of the package `imitation` (1.0.1) beside ours on Pendulum-v1: the same four demonstrations and evaluations.

`imitation` declares gymnasium 0.29 and Stable-Baselines3 2.2; it runs on today's versions if installed beside them,
without its dependencies, in a folder of its own:

    pip install --no-deps --target /tmp/imitation imitation==1.0.1 seals tqdm tensorboard absl-py
    export PYTHONPATH=/tmp/imitation OMP_NUM_THREADS=1
    python benchmarks/imitation_beside.py ppo-25k sac-25k    # equal environment steps, as `gail_study.py pendulum`
    python benchmarks/imitation_beside.py ppo-own sac-own    # 3 minutes of one core for each seed
    python benchmarks/imitation_beside.py table              # with the finished cells of `gail_study.py`

Each row writes benchmarks/results/imitation/<row>.json after every evaluation; finished seeds are not run again.
Settings: their SAC learner has the networks, batch, learning rate and one update per step of ours, their discriminator
sees the last 25,000 transitions in place of those of the last step and is updated as often as the agent, and replay is
relabelled by the reward that the discriminator gives now (`ReplayBufferRewardWrapper`, whose stored actions are scaled
to [-1, 1]: they are scaled back, which the package does not do). Their PPO learner has the settings of their quick
start, eight environments, in rounds of 2,048 steps and eight steps of the discriminator. Seconds
are those of the process without evaluations; in the table those of ours are of the clock, six agents as one compiled
batch.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from certify_speed import processor
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from lipctrl.cli.demos_collect import CollectSettings, collect_demonstrations
from lipctrl.files import write_text
from lipctrl.runs import package_versions

ENV, EPISODES, EVERY, STEPS = "Pendulum-v1", 10, 2_500, 25_000
OWN_SECONDS, OWN_EVERY = 180.0, 25_000  # six of our agents as one batch took 150 to 190 s
SEEDS = (0, 1, 2)
FOLDER = Path(__file__).parent / "results" / "imitation"
ROWS = {f"{learner}-{budget}": (learner, budget) for learner in ("ppo", "sac") for budget in ("25k", "own")}


class Spent(Exception):
    """The budget is used."""


def demonstrations() -> Any:
    """Those of `gail_study.py`, as their trajectories."""
    from imitation.data.types import Trajectory

    demos = collect_demonstrations(CollectSettings(env=ENV, expert="swing-up", episodes=4, dither=0.0))
    return [
        Trajectory(one.observations.astype(np.float32), one.labels.astype(np.float32), None, one.terminated)
        for one in demos.trajectories()
    ]


def trainer(learner: str, seed: int) -> Any:
    """Their GAIL with a learner of Stable-Baselines3."""
    from imitation.algorithms.adversarial.gail import GAIL, RewardNetFromDiscriminatorLogit
    from imitation.data.wrappers import RolloutInfoWrapper
    from imitation.policies.replay_buffer_wrapper import ReplayBufferRewardWrapper
    from imitation.rewards.reward_nets import BasicRewardNet
    from imitation.util.logger import configure
    from imitation.util.networks import RunningNorm
    from imitation.util.util import make_vec_env

    torch.manual_seed(seed)
    on_policy = learner == "ppo"
    wrappers = [lambda env, _: RolloutInfoWrapper(env)]
    venv = make_vec_env(ENV, rng=np.random.default_rng(seed), n_envs=8 if on_policy else 1, post_wrappers=wrappers)
    net = BasicRewardNet(venv.observation_space, venv.action_space, normalize_input_layer=RunningNorm)
    if on_policy:
        settings = {"batch_size": 64, "ent_coef": 0.0, "learning_rate": 4e-4, "gamma": 0.95, "n_epochs": 5}
        agent: Any = PPO("MlpPolicy", venv, n_steps=256, seed=seed, device="cpu", **settings)  # type: ignore[arg-type]
        rounds = {"gen_train_timesteps": 2048, "gen_replay_buffer_capacity": 2048, "n_disc_updates_per_round": 8}
        batch = 512
    else:
        reward, half = RewardNetFromDiscriminatorLogit(net), float(venv.action_space.high[0])  # type: ignore[attr-defined]

        def relabelled(state: Any, action: Any, next_state: Any, done: Any) -> Any:
            return reward.predict_processed(state, half * action, next_state, done)

        agent = SAC(
            "MlpPolicy",
            venv,
            seed=seed,
            device="cpu",
            buffer_size=STEPS,
            batch_size=128,
            learning_rate=1e-3,
            learning_starts=1000,
            policy_kwargs={"net_arch": [64, 64]},
            replay_buffer_class=ReplayBufferRewardWrapper,
            replay_buffer_kwargs={"replay_buffer_class": ReplayBuffer, "reward_fn": relabelled},
        )
        rounds = {"gen_train_timesteps": 500, "gen_replay_buffer_capacity": STEPS, "n_disc_updates_per_round": 500}
        batch = 128
    return GAIL(
        demonstrations=demonstrations(),
        demo_batch_size=batch,
        venv=venv,
        gen_algo=agent,
        reward_net=net,
        custom_logger=configure(tempfile.mkdtemp(), []),
        **rounds,
    )


def run(row: str, seed: int, save: Callable[[dict[str, Any]], None]) -> None:
    """Train one seed; steps, returns and seconds so far are saved at each evaluation."""
    learner, budget = ROWS[row]
    own, made, test = budget == "own", trainer(learner, seed), Monitor(gymnasium.make(ENV))
    every, last = (OWN_EVERY, 10**9) if own else (EVERY, STEPS)
    found: dict[str, Any] = {"seed": seed, "finished": False, "steps": [], "returns": [], "seconds": []}
    spent, start = 0.0, time.process_time()

    def after_round(_: int) -> None:
        nonlocal spent, start
        spent += time.process_time() - start
        steps, full = made.gen_algo.num_timesteps, own and spent >= OWN_SECONDS
        if full or steps // every > len(found["steps"]):
            test.reset(seed=1000)
            scores = evaluate_policy(made.policy, test, EPISODES, return_episode_rewards=True)[0]
            found["steps"].append(steps)
            found["returns"].append(float(np.mean(scores)))  # type: ignore[arg-type]
            found["seconds"].append(spent)
            print(row, seed, steps, round(found["returns"][-1], 1), round(spent), flush=True)
            save(found)
        if full:
            raise Spent
        start = time.process_time()

    try:
        made.train(last, after_round)
    except Spent:
        pass
    save(found | {"finished": True})


def record(row: str) -> None:
    """Run the seeds of a row that are not finished."""
    from imitation import __version__ as version

    path = FOLDER / f"{row}.json"
    known = json.loads(path.read_text())["seeds"] if path.exists() else []
    facts = {"row": row, "processor": processor(), "versions": package_versions() | {"imitation": version}}
    done = [one for one in known if one["finished"]]

    def save(found: dict[str, Any]) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(facts | {"seeds": [*done, found]}) + "\n")

    for seed in SEEDS[len(done) :]:
        run(row, seed, save)
        done = json.loads(path.read_text())["seeds"]


def table() -> None:
    """Print last returns, steps and seconds of each seed, theirs and ours."""
    print("| method | steps | return of each seed | mean | seconds per seed |")
    print("|---|---|---|---|---|")
    for row in ROWS:
        if (path := FOLDER / f"{row}.json").exists():
            seeds = json.loads(path.read_text())["seeds"]
            lines = [[one[key][-1] for one in seeds] for key in ("steps", "returns", "seconds")]
            print_row(f"imitation, {row}", int(np.mean(lines[0])), lines[1], float(np.mean(lines[2])))
    for cell in ("none", "one-sided", "certified"):
        if (path := FOLDER.parent / "gail" / f"pendulum-{cell}-1.json").exists():
            found = json.loads(path.read_text())
            seconds = sum(found["seconds"].values()) / len(found["returns"][-1])
            print_row(f"lipctrl, {cell} (six as one batch)", found["steps"][-1], found["returns"][-1], seconds)


def print_row(name: str, steps: int, returns: list[float], seconds: float) -> None:
    """One line of the table."""
    each = ", ".join(f"{score:.0f}" for score in returns)
    print(f"| {name} | {steps} | {each} | {np.mean(returns):.0f} | {seconds:.0f} |")


def main() -> None:
    """Run the rows that are named, or print the table."""
    if sys.argv[1:] == ["table"]:
        table()
        return
    torch.set_num_threads(1)
    for row in sys.argv[1:]:
        record(row)


if __name__ == "__main__":
    main()
