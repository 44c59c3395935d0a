"""The report: one HTML file that opens without a network, and the same content as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from lipctrl.evaluation.summary import Row, as_json
from lipctrl.files import write_text


@dataclass(frozen=True)
class Figure:
    """A figure with a sentence that says how to read it; `svg` or a GIF as base64."""

    caption: str
    svg: str = ""
    gif: str = ""


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
        fresh: the nominal loop and the worst attack of each policy again, on seeds that had no part in choosing it.
        partial: how much was run and why not all of it, empty where all was.
    """

    title: str
    verdicts: Sequence[str]
    sensitivity: Sequence[Mapping[str, Any]]
    threat: str
    units: Sequence[Mapping[str, Any]]
    unit_radius: float
    table: Sequence[Row]
    figures: Sequence[Figure]
    exact: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    fresh: Sequence[Row] = ()
    partial: str = ""


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
    steps = sum(round(row.length * row.episodes) for row in own) + sum(row.loop_steps for row in searched)
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
    """Write report.html and report.json into a folder and return the path of the page."""
    template = (resources.files("lipctrl.evaluation") / "report.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.6g}"
    page = environment.from_string(template).render(title=title, sections=sections, provenance=provenance)
    write_text(folder / "report.html", page)
    data = {
        "title": title,
        "provenance": dict(provenance),
        "sections": [
            {
                "title": s.title,
                "partial": s.partial,
                "verdicts": list(s.verdicts),
                "sensitivity": [dict(x) for x in s.sensitivity],
                "threat": s.threat,
                "units": [dict(x) for x in s.units],
                "exact": [dict(x) for x in s.exact],
                "facts": dict(s.facts),
                "table": as_json(s.table),
                "fresh": as_json(s.fresh),
            }
            for s in sections
        ],
    }
    write_text(folder / "report.json", json.dumps(data, indent=1) + "\n")
    return folder / "report.html"
