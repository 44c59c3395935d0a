"""Pictures: areas of discs, lines and polygons, orientation, and pictures of every environment."""

import gymnasium
import numpy as np
import pytest

from lipctrl.envs import ENVIRONMENTS
from lipctrl.envs.base import PlantEnv
from lipctrl.envs.drawing import BLUE, HEIGHT, RED, WIDTH, Scene, Shape, circle, draw
from lipctrl.files import UserError

WINDOW = (-16.0, 16.0, -12.0, 12.0)  # ten pixels per unit
BLACK = (0, 0, 0)


def covered(shape: Shape) -> np.ndarray:
    """Covered share of each pixel."""
    return 1.0 - draw(Scene(WINDOW, [shape]))[..., 0] / 255.0


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        (Shape([(3.0, 2.0)], 6.0, BLACK), np.pi * 9),
        (Shape([(-5.0, 0.0), (3.0, 6.0)], 1.0, BLACK), 10 + np.pi / 4),
        (Shape([(-5.0, -5.0), (5.0, -5.0), (5.0, 5.0), (-5.0, 5.0)], 0.0, BLACK), 100),
        (Shape([(0.0, 0.0), (8.0, 0.0), (0.0, 6.0)], 0.0, BLACK), 24),
        (Shape(circle((1.0, -2.0), (6.0, 4.0)), 0.0, BLACK), np.pi * 24),
    ],
)
def test_areas(shape: Shape, area: float) -> None:
    assert covered(shape).sum() / 100 == pytest.approx(area, rel=0.01)


def test_up_is_up_right_is_right_and_later_shapes_cover_earlier_ones() -> None:
    picture = draw(Scene(WINDOW, [Shape([(8.0, 6.0)], 4.0, RED), Shape([(8.0, 6.0)], 2.0, BLUE)]))
    assert picture.shape == (HEIGHT, WIDTH, 3) and picture.dtype == np.uint8
    assert tuple(picture[60, 240]) == BLUE and tuple(picture[60, 255]) == RED
    assert tuple(picture[180, 240]) == tuple(picture[60, 80]) == (255, 255, 255)


@pytest.mark.parametrize("name", list(ENVIRONMENTS))
def test_every_environment_draws_its_state(name: str) -> None:
    env = gymnasium.make(name, render_mode="rgb_array").unwrapped
    assert isinstance(env, PlantEnv)
    env.reset(seed=0)
    first = env.render()
    assert first is not None and len(np.unique(first.reshape(-1, 3), axis=0)) > 2
    np.testing.assert_array_equal(first, env.render())
    env.reset(seed=1)
    assert not np.array_equal(first, env.render())
    assert type(env)().render() is None
    with pytest.raises(UserError, match="render_mode must be"):
        type(env)(render_mode="human")  # type: ignore[call-arg]
