"""The map of a learned reward shows the reward, the right way round."""

import numpy as np
import pytest

from lipctrl.evaluation.plots import reward_grid, reward_map
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.reward import LearnedReward

NET = PlainNet.mlp([np.array([[1.0, 10.0, 100.0]])], [np.zeros(1)], [])
REWARD = LearnedReward(NET, "airl", "state-action", 2)
AT = np.array([0.5, 0.0, 0.2])


def test_values_lie_where_the_axes_say() -> None:
    x, y, values = reward_grid(REWARD, (2, 0), AT, (-1, 0), (1, 3))
    assert (x[0], x[-1], y[0], y[-1]) == (-1, 1, 0, 3)
    assert values[0, 0] == pytest.approx(-100) and values[0, -1] == pytest.approx(100)
    assert values[-1, 0] == pytest.approx(-97)
    assert reward_grid(REWARD, (0, 1), AT, (0, 0), (1, 1))[2][0, 0] == pytest.approx(20)  # the action is 0.2


def test_the_figure_is_reproducible_and_names_its_axes() -> None:
    first = reward_map(REWARD, (0, 1), AT, (0, 0), (1, 1), points=np.zeros((4, 3)))
    assert first.startswith("<svg") and first == reward_map(REWARD, (0, 1), AT, (0, 0), (1, 1), points=np.zeros((4, 3)))
    assert "input 0" in first and "input 1" in first and "log D - log(1 - D) = z" in first
    assert first != reward_map(REWARD, (0, 1), AT, (0, 0), (1, 1))
    flat = LearnedReward(PlainNet.mlp([np.zeros((1, 3))], [np.zeros(1)], []), "d", "state-action", 2)
    assert reward_map(flat, (0, 1), AT, (0, 0), (1, 1)).startswith("<svg")


def test_maps_that_cannot_be_drawn_are_refused() -> None:
    for axes, at, low, high in (
        ((0, 0), AT, (0, 0), (1, 1)),
        ((0, 3), AT, (0, 0), (1, 1)),
        ((-1, 0), AT, (0, 0), (1, 1)),
        ((0, 1), AT[:2], (0, 0), (1, 1)),
        ((0, 1), AT * np.nan, (0, 0), (1, 1)),
        ((0, 1), AT, (0, 1), (1, 1)),
        ((0, 1), AT, (0, 0), (1, np.inf)),
    ):
        with pytest.raises(UserError, match="a map of the reward needs"):
            reward_map(REWARD, axes, at, low, high)
