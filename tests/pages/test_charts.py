"""Axes have round numbers, drawings keep to their frame, names cannot break out."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svit_deploy.pages.charts import HEIGHT, WIDTH, Chart, ticks
from svit_deploy.pages.page import flat


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 11
    step = found[1] - found[0]
    digits = f"{step:.6e}".partition("e")[0]
    assert float(digits) == pytest.approx(round(float(digits)), abs=1e-3)
    slack = 1e-6 * span + 1e-9 * abs(low)
    assert low - slack <= found[0] and found[-1] <= low + span + slack


def test_ticks_of_no_span() -> None:
    assert ticks(3.0, 3.0) == [3.0]
    assert ticks(0.0, 0.0) == [0.0]


def test_a_drawing_is_well_formed_and_inside_its_frame() -> None:
    chart = Chart("a < b & c", (0, 10), (0, 4), "ms", "runs", names=("x", "<y>"))
    chart.bars([0, 5, 10], [1, 3], [0, 1], "<y>")
    chart.line([(0, 0, "first"), (10, 4, "last")], "x")
    chart.mark(5, "half")
    chart.mark(11, "outside")
    drawing = ElementTree.fromstring(str(chart.svg()))
    texts = [element.text for element in drawing.iter()]
    assert {"a < b & c", "<y>", "half", "x: last", "<y>: 3 from 5 to 10"} <= set(texts)
    assert "outside" not in texts
    bars = [element for element in drawing.iter("rect") if "bar" in element.get("class", "")]
    assert {bar.get("class") for bar in bars} == {"s1 bar"}
    low, high = bars
    assert float(high.get("height", 0)) == pytest.approx(3 * float(low.get("height", 0)), abs=0.2)
    for dot in drawing.iter("circle"):
        assert 0 <= float(dot.get("cx", -1)) <= WIDTH and 0 <= float(dot.get("cy", -1)) <= HEIGHT
    assert not re.search("nan|inf", str(chart.svg()))


def test_a_chart_of_one_value() -> None:
    chart = Chart("one", (2, 2), (0, 0), "ms", "runs")
    chart.dots([(2, 0, "it")], "x")
    assert "nan" not in str(chart.svg())


def test_flat_records() -> None:
    record = {"a_b": {"c": 1, "d": None, "e": []}, "f": ["x", "y"]}
    assert flat(record) == [("a b c", "1"), ("f", "x, y")]
