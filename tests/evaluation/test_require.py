"""The grammar of requirements, and what they are judged by."""

from dataclasses import fields, replace
from typing import Any

import pytest

from lipctrl.evaluation.require import QUANTITIES, parse_requirement, violated
from lipctrl.evaluation.summary import Row
from lipctrl.files import UserError

NUMBERS: dict[str, Any] = {field.name: 0 for field in fields(Row)}
OWN = {"policy": "p", "attack": "none", "episodes": 20, "mean": 1000.0, "cvar": 920.0, "failure_high": 0.17}
ROW = Row(**(NUMBERS | OWN))
TABLE = [
    ROW,
    replace(ROW, attack="mad", radius=0.1, mean=800.0, cvar=500.0, failures=1, failure_high=0.25, deviation=0.3),
    replace(ROW, attack="mad", radius=0.2, mean=850.0, cvar=600.0, failures=3, failure_high=0.38, deviation=0.2),
]
VALUES = {"nominal": 1000, "worst": 800, "drop": 0.2, "cvar": 500, "failure": 0.15, "failure_high": 0.38}
VALUES |= {"deviation": 0.3}


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_quantity_decides_at_its_value(quantity: str) -> None:
    value = VALUES[quantity]
    for sign, change in ((">=", 1e-9), ("<=", -1e-9)):
        assert not violated(parse_requirement(f"{quantity}{sign}{value * (1 - change)!r}"), TABLE)
        (sentence,) = violated(parse_requirement(f"{quantity} {sign} {value * (1 + change)!r}"), TABLE)
        assert quantity in sentence and f"{value:g}" in sentence


def test_several_conditions_and_numbers() -> None:
    assert not violated(parse_requirement("worst>=-1e3, failure<=.2,drop <= 0.5"), TABLE)
    assert len(violated(parse_requirement("worst>=900, failure<=0.1, drop<=0.5"), TABLE)) == 2


def test_what_is_not_a_number_holds_nothing() -> None:
    table = [replace(ROW, mean=float("nan"))]
    assert violated(parse_requirement("worst>=0"), table) and violated(parse_requirement("worst<=0"), table)


def test_a_drop_from_zero_or_below() -> None:
    below = [replace(ROW, mean=-10.0), replace(ROW, radius=0.1, mean=-15.0)]
    assert not violated(parse_requirement("drop<=0.5"), below) and violated(parse_requirement("drop<=0.49"), below)
    assert violated(parse_requirement("drop<=1e9"), [replace(ROW, mean=0.0), replace(ROW, radius=0.1, mean=-1.0)])
    assert not violated(parse_requirement("drop<=0"), [replace(ROW, mean=0.0)])


@pytest.mark.parametrize("text", ["900", "worst>900", "worst=>900", "worst>=", "worst>=many", "worst>=nan", "", "a,b"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="QUANTITY>=NUMBER"):
        parse_requirement(text)


def test_unknown_quantities_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'failure'"):
        parse_requirement("failur<=0.1")
    with pytest.raises(UserError, match="nominal loop"):
        violated(parse_requirement("drop<=0.1"), TABLE[1:])
