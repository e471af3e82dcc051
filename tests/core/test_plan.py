import json

import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.core.plan import CONV, LINEAR, POINT, PlanEntry, PlanRules, matches

KINDS = {"a.q": LINEAR, "a.conv": CONV, "a.points.map": POINT, "a.act": "GELU"}


@pytest.mark.parametrize("name, pattern, expected", [
    ("a.b", "**", True), ("a.b", "*", False), ("a.b", "a.**", True), ("a", "a.**", False), ("a.b.a.c", "**.a.c", True),
    ("a.x.b.y.b", "a.**.b", True), ("aXbXc", "a*b*c", True), ("aXbX", "a*b*c", False), ("ab", "a*b", True),
    ("a.b.c", "a.**.**.c", False), ("a.b.b.c", "a.**.**.c", True),
])
def test_wildcards(name, pattern, expected):
    assert matches(name, pattern) is expected


def test_hostile_patterns_end():
    assert not matches("a" * 60, "*a" * 40 + "b*")
    assert not matches(".".join("a" * 60), "**.a." * 30 + "b.**")


def test_rules_resolve_in_the_order_of_the_network():
    tensors = PlanRules([PlanEntry("**.map"), PlanEntry("a.q", rectifier=True)], 2, {"a.q.input": None}).resolve_kinds(KINDS, "x")
    assert [(t.name, t.role, t.bits) for t in tensors] == [
        ("a.q.weight", "weight", 2), ("a.q.input", "input", None), ("a.points.map", "point", 2)]


def test_what_cannot_be_quantized_is_named():
    with pytest.raises(UserError, match="a.act, a GELU"):
        PlanRules([PlanEntry("a.act")]).resolve_kinds(KINDS, "x")


def test_a_description_survives_json():
    rules = PlanRules([PlanEntry("a.q", fixed=(0.0, 1.0)), PlanEntry("a.points.map", parameter="w")], 3, {"a.**": None})
    assert PlanRules.from_description(json.loads(json.dumps(rules.describe())), "f") == rules


@pytest.mark.parametrize("key, value", [
    ("bits", None), ("bits", True), ("overrides", []), ("entries", [{}]), ("options", {}), ("overrides", {201 * "*": 4}),
    ("overrides", {f"a{i}": 4 for i in range(1001)}),
])
def test_other_descriptions_are_refused(key, value):
    with pytest.raises(UserError, match="^f: its quantization plan"):
        PlanRules.from_description({**PlanRules([]).describe(), key: value}, "f")
