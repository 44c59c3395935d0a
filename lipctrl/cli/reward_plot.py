"""`lipctrl reward plot`: a learned reward over two of its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from lipctrl.cli.demos_info import read
from lipctrl.config import parse
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.evaluation.plots import reward_map
from lipctrl.files import UserError, nearest, write_text
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.reward import LearnedReward

Array = NDArray[np.float64]
SPREAD = 3.0  # standard deviations on each side that are drawn by default


@dataclass(frozen=True)
class RewardPlotSettings:
    """Settings of `lipctrl reward plot`."""

    file: tyro.conf.Positional[str] = ""
    """File of a learned reward, reward.npz."""
    across: str = "0"
    """Input on the horizontal axis: its number, its name, or the name without the unit."""
    up: str = "1"
    """Input on the vertical axis, likewise."""
    at: tuple[float, ...] | None = None
    """Values of all inputs in raw units (those on the axes are ignored); none: the normaliser's means, or zeros."""
    range: str | None = None
    """Range of both axes, "LOW:HIGH,LOW:HIGH"; none: three standard deviations around the mean, or -1:1,-1:1."""
    demos: str | None = None
    """Demonstration file, or minari:DATASET_ID, to draw as dots."""
    out: str = "reward.svg"
    """Figure to write."""


def axis_of(name: str, net: PlainNet) -> int:
    """The number of an input by number or name.

    Raises:
        UserError: no such input; names the nearest.
    """
    short = {label.partition(" [")[0]: k for k, label in enumerate(net.input_names)}
    numbers = {str(k): k for k in range(net.input_size)}
    known = numbers | short | {label: k for k, label in enumerate(net.input_names)}
    if name not in known:
        raise nearest(name, [*short, *numbers], "input of the reward")
    return known[name]


def parse_ranges(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(low, high) of both axes from "LOW:HIGH,LOW:HIGH".

    Raises:
        UserError: not of that form.
    """
    try:
        (a, b), (c, d) = ((float(x) for x in part.split(":")) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"a range of both axes is LOW:HIGH,LOW:HIGH; found {text!r}") from error
    return (a, c), (b, d)


def demonstrated(reward: LearnedReward, demos: Demonstrations) -> Array:
    """The reward's inputs (N, n) at the demonstrated transitions.

    Raises:
        UserError: demonstrations of other sizes than the reward's.
    """
    parts = [reward.inputs_of(one.observations[:-1], one.actions, one.observations[1:]) for one in demos.trajectories()]
    return np.concatenate(parts)


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        RewardPlotSettings(),
        group="reward-plot",
        prog="lipctrl reward plot",
        description="Draw a learned reward over two of its inputs, with level lines, and demonstrations as dots.",
        args=arguments,
    )
    if not settings.file:
        raise UserError("reward plot needs a file: lipctrl reward plot FILE")
    reward = LearnedReward.load(Path(settings.file))
    net = reward.logit
    axes = axis_of(settings.across, net), axis_of(settings.up, net)
    centre = np.zeros(net.input_size) if net.input_mean is None else net.input_mean
    at = centre if settings.at is None else np.array(settings.at)
    if settings.range is not None:
        low, high = parse_ranges(settings.range)
    else:
        width = np.ones(net.input_size) if net.input_scale is None else SPREAD * net.input_scale
        low, high = ((centre + side * width)[list(axes)].tolist() for side in (-1, 1))
    points = None if settings.demos is None else demonstrated(reward, read(settings.demos))
    write_text(Path(settings.out), reward_map(reward, axes, at, low, high, points))
    print(settings.out)
