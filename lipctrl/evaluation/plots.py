"""Figures of a report as inline SVG, readable without the text, and the animation of an attacked episode as GIF."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib

matplotlib.use("svg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from lipctrl.evaluation.rollout import Trace
from lipctrl.evaluation.summary import Row
from lipctrl.files import UserError
from lipctrl.models.validation import Validation
from lipctrl.models.windows import Windows
from lipctrl.nn.reward import LearnedReward
from lipctrl.nn.reward_forms import REWARD_FORMS

matplotlib.rcParams["svg.hashsalt"] = "lipctrl"  # identical bytes for identical figures
STYLE = {"none": ":", "uniform": "-.", "vertex": "--", "mad": "-", "lookahead": (0, (5, 1))}


def svg_of(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def return_curves(table: Sequence[Row], radius_label: str) -> str:
    """Return against radius: one line per policy and attack, band = one standard deviation over episodes."""
    figure = Figure(figsize=(6.4, 4.0))
    axes = figure.subplots()
    policies = list(dict.fromkeys(row.policy for row in table))
    for row_key in dict.fromkeys((row.policy, row.attack) for row in table):
        policy, attack = row_key
        if attack == "none":
            continue
        own = [row for row in table if (row.policy, row.attack) == row_key]
        x, mean, std = ([getattr(row, name) for row in own] for name in ("radius", "mean", "std"))
        colour = f"C{policies.index(policy)}"
        style = STYLE.get(attack, "-")
        axes.plot(x, mean, linestyle=style, color=colour, marker="o", ms=3, label=f"{policy}, {attack}")
        low, high = np.subtract(mean, std), np.add(mean, std)
        axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    axes.set_xlabel(f"attack radius [{radius_label}]")
    axes.set_ylabel("return (mean over episodes)")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
    return svg_of(figure)


def sweep_curves(
    table: Sequence[Row], lips: Mapping[str, float], slope: float, chosen: float, tolerances: Mapping[str, float]
) -> str:
    """Mean return against the Lipschitz bound of each policy, one line per radius, band from worst to best training.

    Args:
        lips: bound of each policy. slope: of the data. chosen: bound.
        tolerances: tolerated measurement error per policy, or empty.
    """
    figure = Figure(figsize=(6.4, 5.6 if tolerances else 4.0))
    grid = figure.subplots(2 if tolerances else 1, 1, sharex=True, squeeze=False)[:, 0]
    bounds = sorted(set(lips.values()))
    for k, radius in enumerate(sorted({row.radius for row in table})):
        returns = [[row.mean for row in table if row.radius == radius and lips[row.policy] == lip] for lip in bounds]
        grid[0].plot(bounds, [np.mean(r) for r in returns], "-o", ms=3, color=f"C{k}", label=f"radius {radius:g}")
        grid[0].fill_between(bounds, [min(r) for r in returns], [max(r) for r in returns], color=f"C{k}", alpha=0.15)
    if tolerances:
        found = [[value for name, value in tolerances.items() if lips.get(name) == lip] for lip in bounds]
        grid[1].plot(bounds, [np.mean(f) for f in found], "-o", ms=3, color="C4")
        grid[1].fill_between(bounds, [min(f) for f in found], [max(f) for f in found], color="C4", alpha=0.15)
        grid[1].set_ylabel("tolerated error (proved)")
    for axes in grid:
        axes.axvline(slope, color="0.3", ls=":", lw=1)
        axes.axvline(chosen, color="0.3", ls="--", lw=1)
        axes.grid(alpha=0.3)
    grid[-1].set_xlabel("Lipschitz bound of the policy")
    grid[0].set_ylabel("return (mean over episodes)")
    grid[0].legend(fontsize=8)
    return svg_of(figure)


def error_map(
    bound: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    points: NDArray[np.float64],
    chosen: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> str:
    """A pointwise bound over a box of two observations, with the data as dots and the states to label as numbers."""
    figure = Figure(figsize=(6.4, 5.0))
    axes = figure.subplots()
    x, y = (np.linspace(a, b, 200) for a, b in zip(low, high, strict=True))
    values = bound(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)).reshape(200, 200)
    picture = axes.pcolormesh(x, y, values, cmap="viridis", rasterized=True)
    figure.colorbar(picture, ax=axes, label="bound of the policy's error")
    axes.plot(*points.T, ".", ms=2, color="white", alpha=0.6)
    for k, state in enumerate(chosen):
        axes.annotate(str(k + 1), state, color="red", ha="center", va="center", fontsize=9, weight="bold")
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="observation 0", ylabel="observation 1")
    return svg_of(figure)


def deviation_curves(table: Sequence[Row], radius_label: str) -> str:
    """Largest action deviation found by the strongest attack against the proved bound."""
    figure = Figure(figsize=(6.4, 4.0))
    axes = figure.subplots()
    for k, policy in enumerate(dict.fromkeys(row.policy for row in table)):
        own = [row for row in table if row.policy == policy]
        radii = sorted({row.radius for row in own})
        found = [max(row.deviation for row in own if row.radius == radius) for radius in radii]
        proved = {row.radius: row.certified for row in own if row.certified is not None}
        axes.plot(radii, found, "-o", ms=3, color=f"C{k}", label=f"{policy}: found (witness)")
        if proved:
            axes.plot(radii, [proved[radius] for radius in radii], "--", color=f"C{k}", label=f"{policy}: proved bound")
    axes.set_xlabel(f"attack radius [{radius_label}]")
    axes.set_ylabel("largest change of the action")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return svg_of(figure)


def trajectories(traces: Sequence[tuple[str, Trace]], names: Sequence[str], action_names: Sequence[str]) -> str:
    """Observations and actions over time of several runs from the same start, one colour per run."""
    n, m = len(names), len(action_names)
    figure = Figure(figsize=(6.4, 1.5 * (n + m)))
    axes = figure.subplots(n + m, 1, sharex=True, squeeze=False)[:, 0]
    for k, (label, trace) in enumerate(traces):
        for i in range(n):
            axes[i].plot(trace.observations[:, i], color=f"C{k}", lw=1, label=label)
        for j in range(m):
            axes[n + j].plot(trace.actions[:, j], color=f"C{k}", lw=1)
    for axis, name in zip(axes, [*names, *action_names], strict=True):
        axis.set_ylabel(name, fontsize=8)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    axes[-1].set_xlabel("step")
    return svg_of(figure)


def gif(frames: Sequence[NDArray[np.uint8]], frames_per_second: float) -> str:
    """Frames (height, width, 3) as a base64 GIF for a data URL."""
    from PIL import Image

    images = [Image.fromarray(frame).quantize(64) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(
        buffer, format="GIF", save_all=True, append_images=images[1:], duration=1000 / frames_per_second, loop=0
    )
    return base64.b64encode(buffer.getvalue()).decode()


def model_figure(predicted: NDArray[np.float64], test: Windows, table: Mapping[str, Validation]) -> str:
    """One test window predicted and measured, and the error over the horizon of every model, one row per state.

    Args:
        predicted: states (W, T, n) of the model for all test windows. table: errors by model name.
    """
    n, T = len(test.state_names), test.horizon
    figure = Figure(figsize=(8.4, 2.2 * n))
    axes = figure.subplots(n, 2, squeeze=False)
    moved = np.abs(test.states - test.starts[:, None]).max(1) / np.ptp(test.states, axis=(0, 1))
    row, time = int(np.argmax(moved.sum(1))), test.dt * np.arange(T + 1)
    for i, name in enumerate(test.state_names):
        measured = np.append(test.starts[row, i], test.states[row, :, i])
        axes[i, 0].plot(time, measured, "k-", lw=1, label="measured")
        axes[i, 0].plot(time[1:], predicted[row, :, i], "C0o", ms=3, label=next(iter(table)))
        axes[i, 0].set_ylabel(name, fontsize=8)
        for k, (label, found) in enumerate(table.items()):
            axes[i, 1].semilogy(time[1:], np.maximum(found.rmse[:, i], 1e-12), f"C{k}-o", ms=2, label=label)
        axes[i, 1].set_ylabel("rmse, " + name, fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel(f"time [{test.time_unit}]")
    for axis in axes[0]:
        axis.legend(fontsize=7)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    return svg_of(figure)


def region_figure(
    P: NDArray[np.float64],
    level: float,
    centre: NDArray[np.float64],
    paths: Mapping[str, Sequence[NDArray[np.float64]]],
    names: Sequence[str],
) -> str:
    """Closed-loop states (T+1, 2) of several controllers in the plane, and the stability region (x-c)'P(x-c) <= level.

    Args:
        paths: by controller, one trajectory per start. names: of the two states, with units.
    """
    figure = Figure(figsize=(6.4, 5.0))
    axes = figure.subplots()
    angles = np.linspace(0, 2 * np.pi, 400)
    border = np.sqrt(level) * np.linalg.inv(np.linalg.cholesky(P).T) @ [np.cos(angles), np.sin(angles)]
    axes.plot(*(centre[:, None] + border), "k-", lw=1, label=f"V = {level:g}")
    for k, (label, own) in enumerate(paths.items()):
        for i, path in enumerate(own):
            axes.plot(*path.T, "-o", ms=2, lw=1, color=f"C{k}", label=label if i == 0 else None)
    axes.plot(*centre, "k+", ms=9)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return svg_of(figure)


MECHANISM = {
    "evaluation/mean_return": "return",
    "model/holdout_mse": "model: holdout MSE",
    "rollout/spread": "spread of predictions [deviations]",
    "critic/slope_mean": "slope of Q, mean at real states [per deviation]",
    "value/model_error_relative": "value-aware model error [spread of V]",
}


IMITATION = {
    "evaluation/mean_return": "return (dashed: the expert's)",
    "reward/slope_95": "slope of the logit, 95 % of sampled pairs [per deviation] (dashed: k)",
    "reward/accuracy_held": "discriminator: accuracy, demonstrations held out",
    "reward/c_validity": "C-validity: mean of exp(-max(0, slope - k)²)",
}
Trainings = Mapping[str, Sequence[Sequence[Mapping[str, float]]]]
"""By name of the run, of every seed the rows of metrics and diagnostics, each with its "timesteps"."""


def mechanism_figure(runs: Trainings) -> str:
    """Return and the four curves of Zheng et al. 2023 over the real steps: median over seeds, range as a band."""
    figure = Figure(figsize=(9.6, 5.6))
    grid = figure.subplots(2, 3).ravel()
    for axes, (key, title) in zip(grid, MECHANISM.items(), strict=False):
        _over_steps(axes, runs, key, title)
    for axes in (grid[1], grid[4]):  # errors: a few seeds are ten times worse for a while
        _logarithmic(axes)
    for axes in grid[2:5]:
        axes.set_xlabel("real steps", fontsize=8)
    grid[5].axis("off")
    grid[5].legend(*grid[0].get_legend_handles_labels(), loc="center", fontsize=8)
    figure.tight_layout()
    return svg_of(figure)


def imitation_figure(runs: Trainings, levels: Mapping[str, tuple[float | None, float]]) -> str:
    """Return, slope, accuracy and C-validity of trainings by imitation: median over seeds, range as a band.

    Args:
        levels: by name of the run, the expert's mean return (None: not known) and the slope k that was asked for.
    """
    figure = Figure(figsize=(9.6, 6.0))
    grid = figure.subplots(2, 2).ravel()
    for axes, (key, title) in zip(grid, IMITATION.items(), strict=True):
        _over_steps(axes, runs, key, title)
    for k, name in enumerate(runs):
        for axes, level in zip(grid, levels[name], strict=False):
            if level is not None:
                axes.axhline(level, color=f"C{k}", ls="--", lw=1)
    _logarithmic(grid[1])
    for axes in grid[2:]:
        axes.set(ylim=(0, 1.05))
        axes.set_xlabel("environment steps", fontsize=8)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="lower center", ncols=3, fontsize=8)
    figure.tight_layout(rect=(0, 0.03 + 0.03 * -(-len(runs) // 3), 1, 1))
    return svg_of(figure)


def _over_steps(axes: Axes, runs: Trainings, key: str, title: str) -> None:
    """A curve per run of what all its seeds measured at the same steps."""
    for k, (name, seeds) in enumerate(runs.items()):
        known = [[row for row in rows if np.isfinite(row.get(key, np.nan))] for rows in seeds]
        curves = [{row["timesteps"]: row[key] for row in rows} for rows in known]
        steps = sorted(set.intersection(*[set(curve) for curve in curves]))
        values = np.array([[curve[step] for step in steps] for curve in curves])
        label = f"{name} ({len(seeds)} seed{'s' if len(seeds) > 1 else ''})"
        axes.plot(steps, np.median(values, 0), color=f"C{k}", label=label)
        axes.fill_between(steps, values.min(0), values.max(0), color=f"C{k}", alpha=0.15)
    axes.set_title(title, fontsize=8)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def reward_grid(
    reward: LearnedReward, axes: tuple[int, int], at: NDArray[np.float64], low: Sequence[float], high: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(x (160,), y (160,), rewards (160, 160), one row per y) over two of the network's inputs, the others fixed.

    Args:
        axes: numbers of the two inputs, across and up. at: (n,), the values of the others, raw units.
        low, high: range of the two.

    Raises:
        UserError: inputs that do not exist or are the same, an empty range, or numbers that are not finite.
    """
    n, (i, j) = reward.logit.input_size, axes
    if i == j or not (0 <= i < n and 0 <= j < n):
        raise UserError(f"a map of the reward needs two different inputs among 0..{n - 1}, found {i} and {j}")
    if at.shape != (n,) or not np.isfinite([*at, *low, *high]).all() or not np.less(low, high).all():
        raise UserError(f"a map of the reward needs {n} finite values and ranges low < high; found {at}, {low}, {high}")
    x, y = (np.linspace(a, b, 160) for a, b in zip(low, high, strict=True))
    grid = np.tile(at, (len(y), len(x), 1))
    grid[..., i], grid[..., j] = np.meshgrid(x, y)
    return x, y, reward.of_inputs(grid)


def reward_map(
    reward: LearnedReward,
    axes: tuple[int, int],
    at: NDArray[np.float64],
    low: Sequence[float],
    high: Sequence[float],
    points: NDArray[np.float64] | None = None,
) -> str:
    """A learned reward over two of its network's inputs, with level lines; arguments and errors as `reward_grid`.

    Args:
        points: (N, n), inputs to draw as dots, for example of the demonstrations.
    """
    x, y, values = reward_grid(reward, axes, at, low, high)
    figure = Figure(figsize=(6.4, 5.0))
    plot = figure.subplots()
    picture = plot.pcolormesh(x, y, values, cmap="viridis", rasterized=True)
    if np.ptp(values) > 0:
        plot.contour(x, y, values, colors="white", linewidths=0.6, alpha=0.7)
    if points is not None:
        plot.plot(points[:, axes[0]], points[:, axes[1]], ".", ms=2, color="red", alpha=0.6)
    figure.colorbar(picture, ax=plot, label=f"reward {REWARD_FORMS[reward.form].formula}")
    names = reward.logit.input_names or tuple(f"input {k}" for k in range(reward.logit.input_size))
    plot.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=names[axes[0]], ylabel=names[axes[1]])
    return svg_of(figure)
