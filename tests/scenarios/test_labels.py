"""Names on marks do not lie upon each other; logarithmic axes have numbers that people read."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.figures.figure import Figure, Point, Series
from scenarios.pages.labels import LETTER, labels, named, ticks

Places = st.lists(
    st.tuples(st.floats(1, 1e4), st.floats(0, 1)), min_size=2, max_size=12, unique=True
)


def figure(places: list[tuple[float, float]], **more: object) -> Figure:
    points = tuple(Point(x, y, f"arm number {i}") for i, (x, y) in enumerate(places))
    return Figure("f", "t", "x", "y", (Series("arms", points),), **more)  # type: ignore[arg-type]


@given(Places, st.booleans())
def test_no_name_lies_upon_another(places: list[tuple[float, float]], log: bool) -> None:
    drawn = figure(places, x_log=log)
    size, font = 800.0, 10.0
    found = labels(drawn, width=size, height=400, font=font)
    assert len({label.point for label in found}) == len(found)
    xs = [math.log10(x) if log else x for x, _ in places]
    ys = [y for _, y in places]

    def at(value: float, values: list[float], long: float) -> float:
        low, high = min(values), max(values)
        return long * (0.05 + 0.9 * (value - low) / ((high - low) or 1.0))

    boxes = []
    for label in found:
        wide = LETTER * font * len(label.point.label)
        x = at(math.log10(label.point.x) if log else label.point.x, xs, size)
        y = at(label.point.y, ys, 400)
        left = x + 8 if label.right else x - 8 - wide
        away = 11 * label.rows
        floor = y + 3 + away if label.up else y - 13 - away
        boxes.append((left, floor, left + wide, floor + font))
    for i, one in enumerate(boxes):
        for two in boxes[:i]:
            apart = one[0] >= two[2] or two[0] >= one[2] or one[1] >= two[3] or two[1] >= one[3]
            assert apart


def test_where_there_is_room_every_mark_has_its_name() -> None:
    places = [(10.0 * 4**i, i / 5) for i in range(5)]
    assert len(labels(figure(places, x_log=True), width=800, height=400, font=10)) == 5


def test_too_many_marks_have_names_in_the_last_series_alone() -> None:
    series = tuple(
        Series(f"link {n}", tuple(Point(float(i), n + i, f"arm {i}") for i in range(8)))
        for n in range(3)
    )
    assert named(Figure("f", "t", "x", "y", series)) == list(series[-1].points)


@pytest.mark.parametrize(
    ("low", "high", "some", "never"),
    [(40.0, 2300.0, {50, 100, 200, 1000}, {1e5}), (0.01, 1e6, {0.1, 1, 1e5}, {2, 5e3})],
)
def test_ticks_are_round_numbers(
    low: float, high: float, some: set[float], never: set[float]
) -> None:
    found = {round(tick, 9) for tick in ticks(low, high)}
    assert some <= found
    assert not never & found
    assert len(found) <= 12


def test_an_axis_without_positive_numbers_has_no_log_ticks() -> None:
    assert ticks(0.0, 5.0) == []
