"""Pictures of environments in numpy: strokes and filled convex polygons on a white canvas, with smooth edges."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]

WIDTH, HEIGHT = 320, 240  # pixels
GREY, BLUE, RED, ORANGE, GREEN = (150, 150, 150), (51, 92, 156), (196, 60, 60), (222, 134, 51), (70, 140, 80)


@dataclass(frozen=True)
class Shape:
    """A polyline of the given width with round ends (one point is a disc), or, with width 0, a filled convex polygon.

    Attributes:
        points: in the coordinates of the scene; a polygon runs counter-clockwise.
        width: of the line, in horizontal units of the scene.
        colour: red, green, blue from 0 to 255.
    """

    points: Sequence[tuple[float, float]]
    width: float
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """What to draw: shapes from back to front, and the window (left, right, bottom, top) that is seen."""

    window: tuple[float, float, float, float]
    shapes: Sequence[Shape]


def circle(centre: tuple[float, float], radii: tuple[float, float]) -> list[tuple[float, float]]:
    """Points of a closed ellipse, counter-clockwise."""
    angles = np.linspace(0, 2 * np.pi, 49)
    return [(centre[0] + radii[0] * float(np.cos(a)), centre[1] + radii[1] * float(np.sin(a))) for a in angles]


def draw(scene: Scene) -> Picture:
    """The scene as an image, shape (HEIGHT, WIDTH, 3)."""
    left, right, bottom, top = scene.window
    scale = np.array([WIDTH / (right - left), -HEIGHT / (top - bottom)])
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    canvas = np.full((HEIGHT, WIDTH, 3), 255.0)
    for shape in scene.shapes:
        points = (np.array(shape.points, dtype=np.float64) - [left, top]) * scale
        if shape.width:
            depth = shape.width * scale[0] / 2 - _distance_to_line(columns, rows, points)
        else:
            depth = _depth_in_polygon(columns, rows, points)
        cover = np.clip(depth + 0.5, 0.0, 1.0)[..., None]  # one pixel of transition
        canvas = (1 - cover) * canvas + cover * np.array(shape.colour)
    return np.round(canvas).astype(np.uint8)


def _distance_to_line(columns: Array, rows: Array, points: Array) -> Array:
    ends = points[1:] if len(points) > 1 else points
    nearest = np.full(columns.shape, np.inf)
    for (ax, ay), (bx, by) in zip(points, ends, strict=False):
        across, down = bx - ax, by - ay
        t = ((columns - ax) * across + (rows - ay) * down) / max(across**2 + down**2, 1e-12)
        t = np.clip(t, 0.0, 1.0)
        nearest = np.minimum(nearest, (columns - ax - t * across) ** 2 + (rows - ay - t * down) ** 2)
    return np.asarray(np.sqrt(nearest))


def _depth_in_polygon(columns: Array, rows: Array, points: Array) -> Array:
    depth = np.full(columns.shape, np.inf)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if length := np.hypot(bx - ax, by - ay):
            # rows grow downwards, so the inside of a counter-clockwise polygon is on this side
            depth = np.minimum(depth, ((columns - ax) * (by - ay) - (rows - ay) * (bx - ax)) / length)
    return depth
