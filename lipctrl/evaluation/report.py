"""The report: one HTML file that opens without a network, and the same content as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from lipctrl.evaluation.figures import Part
from lipctrl.evaluation.headline import Headline, spent_steps
from lipctrl.evaluation.health import Sign
from lipctrl.evaluation.recording import Recording
from lipctrl.evaluation.statistics import Interval
from lipctrl.evaluation.summary import Row, as_json
from lipctrl.files import write_text


@dataclass(frozen=True)
class Figure:
    """A figure with a sentence that says how to read it; `svg` or a GIF as base64."""

    caption: str
    svg: str = ""
    gif: str = ""


@dataclass(frozen=True)
class Trainings:
    """Methods over their trainings; scores are the worst mean returns over attacks.

    Attributes:
        scores: by method and radius, one number per training. middle: interquartile means, intervals over trainings.
        better: by pair of methods and radius, probability that a training of the first beats one of the second.
    """

    scores: Mapping[str, Mapping[float, NDArray[np.float64]]]
    middle: Mapping[str, Mapping[float, Interval]]
    better: Mapping[tuple[str, str], Mapping[float, float]]


@dataclass(frozen=True)
class Section:
    """What is reported of one environment.

    Attributes:
        title: the environment.
        verdicts: plain sentences.
        sensitivity: one mapping per policy: policy, label, lower, upper, method, units, verified.
        threat: the threat in words; units: what one radius means per observation.
        exact: one mapping per radius where the worst case is known in closed form.
        table: all rows.
        figures: by the part of the report they belong to: "curves", "sensitivity", "ladder", "map", "episode ...".
        fresh: the nominal loop and the worst attack of each policy again, on seeds that had no part in choosing it.
        headlines: one per policy. health: signs of a misleading result, by policy.
        ladder: one mapping per policy, attack and share of its effort.
        components, times: damage of the worst attack of the first policy when it is confined.
        transfer: returns of every policy (column) under the recorded worst disturbances of every policy (row).
        episodes: the worst episode of each policy, by its name.
        trainings: statistics over the trainings of methods, None without any.
        partial: how much was run and why not all of it, empty where all was.
    """

    title: str
    verdicts: Sequence[str]
    sensitivity: Sequence[Mapping[str, Any]]
    threat: str
    units: Sequence[Mapping[str, Any]]
    unit_radius: float
    table: Sequence[Row]
    figures: Mapping[str, Sequence[Figure]]
    exact: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    fresh: Sequence[Row] = ()
    headlines: Sequence[Headline] = ()
    health: Mapping[str, Sequence[Sign]] = field(default_factory=dict)
    ladder: Sequence[Mapping[str, Any]] = ()
    components: Sequence[Part] = ()
    times: Sequence[Part] = ()
    transfer: Sequence[Sequence[float]] = ()
    episodes: Sequence[tuple[str, Recording]] = ()
    trainings: Trainings | None = None
    partial: str = ""

    @property
    def warnings(self) -> Mapping[str, int]:
        """Number of bad signs by policy."""
        return {policy: sum(sign.status == "bad" for sign in own) for policy, own in self.health.items()}


def confirmed(fresh: Sequence[Row], policy: str) -> str:
    """What the attack that was chosen as the worst does on new seeds, in a sentence."""
    own = [row for row in fresh if row.policy == policy]
    nominal, worst = own[0], own[-1]
    return (
        f"{policy} under {worst.attack} at radius {worst.radius:g} on {worst.episodes} new seeds, which had no part in "
        f"choosing it: mean return {worst.mean:.4g} (nominal {nominal.mean:.4g}), lowest tenth {worst.cvar:.4g}, "
        f"failures {worst.failures} of {worst.episodes} (95 % interval {worst.failure_low:.2f} to "
        f"{worst.failure_high:.2f})."
    )


def verdict(table: Sequence[Row], policy: str) -> str:
    """What was found about failures of one policy, in words that do not claim more."""
    own = [row for row in table if row.policy == policy]
    searched = {row.attack: row for row in own}.values()  # what a search spent stands in each of its rows
    steps = spent_steps(own)
    worst = min(own, key=lambda row: row.mean)
    weakest = min(own, key=lambda row: row.radius)
    start = "nominal return" if weakest.radius == 0 else f"mean return at radius {weakest.radius:g}"
    text = (
        f"{policy}: {start} {weakest.mean:.4g}; worst mean return found {worst.mean:.4g} "
        f"({worst.attack} at radius {worst.radius:g})."
    )
    failed = [row for row in own if row.failures]
    if not failed and (lost := sum(row.loop_failures for row in searched)):
        return f"{text} {lost} closed loops of the search failed, none of them with the worst return of its episode."
    if not failed:
        return f"{text} No failure found in {steps:,} closed-loop steps of search."
    first = min(failed, key=lambda row: row.radius)
    return f"{text} First failure at radius {first.radius:g} ({first.attack}, {first.failures} of {first.episodes})."


def write(folder: Path, title: str, sections: Sequence[Section], provenance: Mapping[str, Any]) -> Path:
    """Write report.html, report.json and the recorded episodes into a folder and return the path of the page."""
    for k, section in enumerate(sections):
        for i, (_, recording) in enumerate(section.episodes):
            recording.save(folder / f"episode-{k}-{i}.npz")
    template = (resources.files("lipctrl.evaluation") / "report.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"], environment.filters["percent"] = number, percent
    page = environment.from_string(template).render(title=title, sections=sections, provenance=provenance)
    write_text(folder / "report.html", page)
    parts = [section_json(k, section) for k, section in enumerate(sections)]
    data = {"title": title, "provenance": dict(provenance), "sections": parts}
    write_text(folder / "report.json", json.dumps(finite(data), indent=1) + "\n")
    return folder / "report.html"


def number(value: float | None, digits: int = 5) -> str:
    """A number for a table; nothing for None, a word for what is infinite."""
    if value is None:
        return ""
    return "never" if value == np.inf else f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """A share for a table; nothing for None."""
    return "" if share is None else f"{100 * share:.3g} %"


def section_json(k: int, section: Section) -> dict[str, Any]:
    """The k-th section as JSON values."""
    return {
        "title": section.title,
        "partial": section.partial,
        "verdicts": list(section.verdicts),
        "warnings": dict(section.warnings),
        "headlines": [asdict(h) | {"tightness": h.tightness} for h in section.headlines],
        "health": {policy: [asdict(sign) for sign in own] for policy, own in section.health.items()},
        "sensitivity": [dict(x) for x in section.sensitivity],
        "threat": section.threat,
        "units": [dict(x) for x in section.units],
        "exact": [dict(x) for x in section.exact],
        "facts": dict(section.facts),
        "ladder": [dict(x) for x in section.ladder],
        "components": [asdict(part) for part in section.components],
        "times": [asdict(part) for part in section.times],
        "transfer": [list(row) for row in section.transfer],
        "episodes": [
            {"policy": name, **asdict(recording.facts), "replay": f"lipctrl replay episode-{k}-{i}.npz"}
            for i, (name, recording) in enumerate(section.episodes)
        ],
        "trainings": None if section.trainings is None else trainings_json(section.trainings),
        "table": as_json(section.table),
        "fresh": as_json(section.fresh),
    }


def trainings_json(trainings: Trainings) -> dict[str, Any]:
    """Statistics over trainings as JSON values."""
    return {
        "scores": {
            method: [{"radius": r, "returns": own.tolist()} for r, own in by.items()]
            for method, by in trainings.scores.items()
        },
        "interquartile mean": {
            method: [{"radius": r, **asdict(x), "calibrated": x.calibrated} for r, x in by.items()]
            for method, by in trainings.middle.items()
        },
        "probability of improvement": [
            {"method": a, "over": b, "radius": r, "probability": value}
            for (a, b), by in trainings.better.items()
            for r, value in by.items()
        ],
    }


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
