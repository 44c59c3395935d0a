"""Stock algorithms from settings: which policy they get, normalisation in the exported network, bad settings."""

import gymnasium
import numpy as np
import pytest
from stable_baselines3.common.base_class import BaseAlgorithm

from lipctrl.agents.sb3 import ALGORITHMS, Sb3Settings, build
from lipctrl.certify.bracket import certify
from lipctrl.nn.sb3 import actor_to_plain


def trained(settings: Sb3Settings) -> BaseAlgorithm:
    return build(settings, gymnasium.make(settings.env)).learn(settings.timesteps)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("lip", [None, 3.0])
def test_every_algorithm_with_and_without_a_bound(algorithm: str, lip: float | None) -> None:
    model = trained(Sb3Settings(algorithm=algorithm, lip=lip, hidden=(8, 8), timesteps=150))  # type: ignore[arg-type]
    net = actor_to_plain(model.policy)
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    answers = np.array([model.predict(row, deterministic=True)[0] for row in x])
    assert np.allclose(answers, net(x.astype(np.float64)), atol=1e-5)
    assert lip is None or certify(net).upper.bound <= lip * (1 + 1e-6)
    assert type(model) is ALGORITHMS[algorithm]


def test_normalisation_is_in_the_exported_network() -> None:
    model = trained(Sb3Settings(normalize=True, hidden=(8,), timesteps=2100))
    normalizer = model.get_vec_normalize_env()
    assert normalizer is not None
    net = actor_to_plain(model.policy, normalizer=normalizer)
    x = np.random.default_rng(0).normal(size=(20, 3)) * 5
    seen = normalizer.normalize_obs(x).astype(np.float32)
    answers = np.array([model.predict(row, deterministic=True)[0] for row in seen])
    assert np.allclose(answers, net(x), atol=1e-5)
    assert np.allclose(net.input_mean, normalizer.obs_rms.mean)  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lip": -1.0}, "lip must be"),
        ({"family": "unconstrained"}, "unknown family"),
        ({"hidden": ()}, "hidden needs"),
        ({"timesteps": 0}, "timesteps must"),
        ({"discount": 1.5}, "discount"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sb3Settings(**settings)  # type: ignore[arg-type]
