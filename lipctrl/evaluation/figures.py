"""Figures of a report that show how hard the search was and where a controller is sensitive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lipctrl.evaluation.headline import envelope
from lipctrl.evaluation.health import Rung
from lipctrl.evaluation.plots import svg_of
from lipctrl.evaluation.rollout import Trace
from lipctrl.evaluation.summary import Row

Array = NDArray[np.float64]
COLUMNS = 3  # axes side by side
SIGNALS = 8  # observations of an episode that are drawn: those that differ most


@dataclass(frozen=True)
class Part:
    """Damage of an attack that is confined to one component, or to a part of the episode.

    Attributes:
        damage: nominal mean return less that under the attack. deviation: largest change of the action found.
        certified: proved bound of it, None if nothing is proved.
    """

    name: str
    damage: float
    deviation: float
    certified: float | None


def return_panels(table: Sequence[Row], radius_label: str, floor: float) -> str:
    """Return against radius, one panel per policy, one colour per attack, the worst of them as a band below."""
    policies = list(dict.fromkeys(row.policy for row in table))
    attacks = [a for a in dict.fromkeys(row.attack for row in table) if a != "none"]
    figure, panels = _panels(len(policies), 3.4, share=True)
    for axes, policy in zip(panels, policies, strict=True):
        own = [row for row in table if row.policy == policy]
        for k, attack in enumerate(attacks):
            line = sorted((row.radius, row.mean) for row in own if row.attack == attack)
            axes.plot(*zip(*line, strict=True), "-o", ms=3, lw=1.2, color=f"C{k}", label=attack)
        radii, lowest = envelope(own)
        deep = [min((row.mean, row.std) for row in own if row.radius == r) for r in radii]
        axes.fill_between(radii, [m - s for m, s in deep], [m + s for m, s in deep], color="0.5", alpha=0.15, lw=0)
        axes.plot(radii, lowest, color="black", lw=2.4, alpha=0.35, label="worst found, ± std of episodes")
        if np.isfinite(floor) and floor > lowest.min() - 2 * (np.ptp(lowest) + abs(lowest[0]) / 10):
            axes.axhline(floor, color="0.3", ls=":", lw=1, label="doing nothing")
        axes.set_title(policy, fontsize=9)
        axes.set_xlabel(f"attack radius [{radius_label}]", fontsize=8)
    panels[0].set_ylabel("mean return (higher is better)", fontsize=8)
    _legend(figure, panels[0])
    return svg_of(figure)


def ladder_panels(ladders: Mapping[str, Mapping[str, Sequence[Rung]]], nominal: Mapping[str, float]) -> str:
    """Damage against what an attack spends per episode, one panel per policy: flat at the right means it converged."""
    figure, panels = _panels(len(ladders), 3.2, share=False)
    attacks = list(dict.fromkeys(name for ladder in ladders.values() for name in ladder))
    for axes, (policy, ladder) in zip(panels, ladders.items(), strict=True):
        for name, rungs in ladder.items():
            calls = [rung.calls for rung in rungs]
            damage = [nominal[policy] - float(rung.returns.mean()) for rung in rungs]
            axes.plot(calls, damage, "-o", ms=4, lw=1.2, color=f"C{attacks.index(name)}", label=name)
        axes.axhline(0, color="0.3", lw=0.8, ls=":")
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xlim(left=-2)
        axes.set_title(policy, fontsize=9)
        axes.set_xlabel("policy calls of the search per episode", fontsize=8)
    panels[0].set_ylabel("damage: return lost", fontsize=8)
    _legend(figure, *panels)
    return svg_of(figure)


def map_figure(components: Sequence[Part], times: Sequence[Part]) -> str:
    """Damage by component and by part of the episode, and the change of the action by component, found and proved."""
    proved = any(part.certified is not None for part in components)
    moved = any(part.deviation for part in components)
    columns = 2 + (proved or moved)
    figure = Figure(figsize=(3.6 * columns, max(2.2, 0.28 * len(components) + 1)))
    panels = figure.subplots(1, columns, squeeze=False)[0]
    names = [part.name for part in components]
    _bars(panels[0], names, [part.damage for part in components], "damage: return lost", "this component alone")
    if columns == 3:
        _bars(panels[1], names, [part.deviation for part in components], "change of the action", "found and proved")
        for y, part in enumerate(components):
            if part.certified is not None:
                panels[1].plot([part.certified] * 2, [y - 0.4, y + 0.4], color="C2", lw=2, label="proved")
        panels[1].set_yticks([])
        if proved:
            panels[1].legend(*_unique(panels[1]), fontsize=7)
    _bars(panels[-1], [p.name for p in times], [p.damage for p in times], "damage: return lost", "this time alone")
    figure.tight_layout()
    return svg_of(figure)


def episode_figure(nominal: Trace, worst: Trace, names: Sequence[str], actions: Sequence[str], channel: str) -> str:
    """The worst episode beside the undisturbed one from the same start: states, what the policy saw, actions."""
    length = min(len(nominal.observations), len(worst.observations))
    spread = np.ptp(np.vstack([nominal.observations, worst.observations]), axis=0) + 1e-12
    apart = np.abs(nominal.observations[:length] - worst.observations[:length]).mean(0) / spread
    chosen = sorted(np.argsort(-apart, kind="stable")[:SIGNALS].tolist())
    rows, shown = len(chosen) + len(actions) + 1, min(len(nominal.actions), 2 * len(worst.actions))
    figure = Figure(figsize=(7.2, 1.15 * rows + 0.6))
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axes, i in zip(panels, chosen, strict=False):
        axes.plot(nominal.observations[:, i], color="C0", lw=1.2, label="undisturbed")
        axes.plot(worst.observations[:, i], color="C3", lw=1.2, label="attacked")
        if not np.array_equal(worst.seen, worst.observations):
            axes.plot(worst.seen[:, i], color="C1", lw=0.8, ls="--", label="what the policy saw")
        axes.set_ylabel(names[i], fontsize=7, rotation=0, ha="right", va="center")
    for axes, j in zip(panels[len(chosen) :], range(len(actions)), strict=False):
        axes.plot(nominal.actions[:, j], color="C0", lw=1.2)
        axes.plot(worst.actions[:, j], color="C3", lw=1.2)
        axes.set_ylabel(actions[j], fontsize=7, rotation=0, ha="right", va="center")
    d = worst.disturbances if len(worst.disturbances) > 1 else np.tile(worst.disturbances, (length, 1))
    panels[-1].plot(np.linalg.norm(d, axis=1), color="0.3", lw=1)
    panels[-1].set_ylabel(f"disturbance\n({channel}, l2)", fontsize=7, rotation=0, ha="right", va="center")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7)
    panels[0].legend(fontsize=7, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    panels[-1].set_xlabel("step", fontsize=8)
    # an early end is looked at closely; without it the axis is as long as the episode
    panels[-1].set_xlim(-0.02 * shown, 1.02 * shown)
    return svg_of(figure)


def profile_figure(scores: Mapping[str, Mapping[float, Array]]) -> str:
    """Performance profiles: share of the trainings of a method whose mean return exceeds a value, by radius.

    Args:
        scores: by method and radius, the worst mean return of every training.
    """
    radii = sorted({radius for by_radius in scores.values() for radius in by_radius})
    shown = radii if len(radii) <= COLUMNS else [radii[0], radii[len(radii) // 2], radii[-1]]
    figure, panels = _panels(len(shown), 2.8, share=False)
    for axes, radius in zip(panels, shown, strict=True):
        for k, (method, by_radius) in enumerate(scores.items()):
            values = np.sort(by_radius[radius])
            share = np.arange(len(values), -1, -1) / len(values)
            axes.step([*values, values[-1]], share, where="pre", color=f"C{k}", label=method)
        axes.set_title(f"radius {radius:g}", fontsize=9)
        axes.set_xlabel("mean return", fontsize=8)
    panels[0].set_ylabel("share of trainings above", fontsize=8)
    _legend(figure, panels[0])
    return svg_of(figure)


def _panels(count: int, height: float, *, share: bool) -> tuple[Figure, list[Axes]]:
    columns = min(count, COLUMNS)
    lines = -(-count // columns)
    width = 6.4 if columns == 1 else 3.6 * columns
    figure = Figure(figsize=(width, height * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharey=share, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.axis("off")
    for axes in grid:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    return figure, list(grid[:count])


def _legend(figure: Figure, *panels: Axes) -> None:
    """One legend above all panels, with every label once."""
    handles, labels = _unique(*panels)
    figure.legend(handles, labels, fontsize=8, ncols=min(4, len(labels)), loc="outside upper left", frameon=False)


def _unique(*panels: Axes) -> tuple[list[Any], list[str]]:
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float], label: str, title: str) -> None:
    axes.barh(range(len(names)), values, color="C0", height=0.7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0, color="0.3", lw=0.8)
    axes.set_xlabel(label, fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3, axis="x")
    axes.tick_params(axis="x", labelsize=7)
