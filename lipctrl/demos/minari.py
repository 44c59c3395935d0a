"""Exchange with Farama's Minari data sets, through the extra `minari` (its writer needs JAX)."""

from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.demos.demonstrations import Demonstrations, Trajectory
from lipctrl.files import UserError

INSTALL = 'pip install "lipctrl[minari]"'


def _minari() -> Any:
    try:
        import h5py  # noqa: F401  # Minari's file format needs it, and Minari does not say so at import
        import minari
    except ImportError as error:
        raise UserError(f"Minari data sets need an extra that is not installed: {INSTALL}") from error
    return minari


def from_minari(dataset_id: str) -> Demonstrations:
    """Read a local Minari data set; actions serve as labels.

    Raises:
        UserError: the extra is missing, the data set is not on this machine, or its spaces are not one-axis boxes.
    """
    minari = _minari()
    try:
        dataset = minari.load_dataset(dataset_id)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"no Minari data set {dataset_id!r} on this machine ({error})") from error
    trajectories = []
    for episode in dataset.iterate_episodes():
        observations, actions = np.asarray(episode.observations), np.asarray(episode.actions)
        if observations.dtype == object or observations.ndim != 2 or actions.ndim != 2:
            raise UserError(f"Minari data set {dataset_id!r} does not have one-axis box spaces")
        actions = actions.astype(np.float64)
        trajectories.append(
            Trajectory(
                observations.astype(np.float64),
                actions,
                actions,
                np.asarray(episode.rewards, dtype=np.float64),
                bool(episode.terminations[-1]),
                bool(episode.truncations[-1]) or not bool(episode.terminations[-1]),
            )
        )
    spec = dataset.env_spec
    provenance = {
        "env_id": None if spec is None else spec.id,
        "env_spec": None if spec is None else spec.to_json(),
        "expert": f"Minari data set {dataset_id}",
    }
    return Demonstrations.from_trajectories(trajectories, provenance)


def to_minari(demos: Demonstrations, dataset_id: str) -> Path:
    """Write a local Minari data set and return its folder. Labels and provenance that Minari lacks are dropped.

    Raises:
        UserError: the extra is missing, the environment is unknown, or the data set exists.
    """
    minari = _minari()
    import gymnasium
    from minari.data_collector import EpisodeBuffer

    spec = demos.provenance.get("env_spec")
    if spec is None:
        raise UserError("these demonstrations do not say which environment they come from; Minari needs it")
    buffers = []
    for k, t in enumerate(demos.trajectories()):
        steps = len(t.rewards)
        last = np.arange(steps) == steps - 1
        buffers.append(
            EpisodeBuffer(
                id=k,
                observations=list(t.observations),
                actions=list(t.actions),
                rewards=[float(r) for r in t.rewards],
                terminations=[bool(x) for x in last & t.terminated],
                truncations=[bool(x) for x in last & t.truncated],
                infos={},
            )
        )
    env = gymnasium.envs.registration.EnvSpec.from_json(str(spec))
    try:
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            env=env,
            eval_env=env,
            description=f"Recorded by lipctrl from {demos.provenance.get('expert')}",
            algorithm_name=str(demos.provenance.get("expert", "unknown"))[:60],
            author="lipctrl",
            author_email="none",
            code_permalink="none",
        )
    except ValueError as error:
        raise UserError(f"cannot write the Minari data set {dataset_id!r}: {error}") from error
    return Path(dataset.storage.data_path)
