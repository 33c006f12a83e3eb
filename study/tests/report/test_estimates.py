"""Estimates against bounds, and numbers as text."""

import math

import pytest

from study.report.estimates import (
    Estimate,
    State,
    all_of,
    gigabytes,
    microseconds,
    number,
    quantity,
)

HOLDS, FALSE, UNDECIDED, NO_DATA = State.HOLDS, State.FALSE, State.UNDECIDED, State.NO_DATA


@pytest.mark.parametrize(
    ("estimate", "at_least", "at_most"),
    [
        (Estimate(0.95, 0.92, 0.97), HOLDS, FALSE),
        (Estimate(0.85, 0.82, 0.88), FALSE, HOLDS),
        (Estimate(0.90, 0.88, 0.92), UNDECIDED, UNDECIDED),
        (Estimate(0.95, 0.90, 0.97), HOLDS, UNDECIDED),  # from the bound upwards
        (Estimate(0.85, 0.82, 0.90), UNDECIDED, HOLDS),
        (Estimate(0.90, 0.90, 0.90), HOLDS, HOLDS),
        (Estimate(0.95), UNDECIDED, UNDECIDED),  # a number of unknown precision
        (Estimate(0.95, 0.92, 0.97, note="launch-bound"), UNDECIDED, UNDECIDED),
        (Estimate(0.85, 0.82, 0.88, note="no verdict"), UNDECIDED, UNDECIDED),
        (Estimate(), NO_DATA, NO_DATA),
        (Estimate(note="failed"), NO_DATA, NO_DATA),
    ],
)
def test_estimate_against_a_bound_of_nine_tenths(estimate, at_least, at_most):
    assert (estimate >= 0.9, estimate <= 0.9) == (at_least, at_most)
    assert (0.9 <= estimate, 0.9 >= estimate) == (at_least, at_most)


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, UNDECIDED], UNDECIDED),
        ([UNDECIDED, NO_DATA, HOLDS], NO_DATA),
        ([NO_DATA, UNDECIDED, FALSE, HOLDS], FALSE),
    ],
)
def test_all_of(states, said):
    assert all_of(*states) == all_of(*reversed(states)) == said


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.9751, 0.97, 0.98, "%"), "97.5 % (97.0–98.0)"),
        (Estimate(1.5, 1.5, 1.5), "1.500"),
        (Estimate(1234, 1234, 1234, ",.0f"), "1,234"),
        (Estimate(1.5, 1.4, 1.6, ".1f", "launch-bound"), "1.5 (1.4–1.6) [launch-bound]"),
        (Estimate(), "not measured"),
        (Estimate(note="failed"), "failed"),
    ],
)
def test_estimate_as_text(estimate, text):
    assert str(estimate) == text


def test_quotient_spans_all_that_both_intervals_allow():
    found = Estimate(3, 2, 4) / Estimate(2, 1, 4, note="no verdict")
    assert (found.value, found.low, found.high, found.note) == (1.5, 0.5, 4, "no verdict")


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (4_294_990_000, "4.29 GB"),
        (1_073_741_824, "1.07 GB"),
        (999_600, "1 MB"),
        (999.4, "999 B"),
        (12, "12 B"),
        (0, "0 B"),
        (5.2e15, "5,200 TB"),
    ],
)
def test_quantity_has_three_digits(x, text):
    assert quantity(x, "B") == text


def test_numbers_as_text():
    assert [number(x) for x in (2936.4, 88.44, 0.01234, math.nan)] == [
        "2,936",
        "88.4",
        "0.0123",
        "",
    ]
    assert [microseconds(x) for x in (1486.2, 999.6, 25.5, math.nan)] == [
        "1,486",
        "1,000",
        "25.50",
        "",
    ]
    assert (quantity(137_438_953_472), quantity(0)) == ("137 G", "0")


def test_bytes_as_a_text_has_them():
    assert gigabytes(Estimate(4_294_967_296)) == "4.29 GB"
    assert gigabytes(Estimate(note="failed")) == "failed"
