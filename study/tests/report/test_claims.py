"""What may be said: estimates against bounds, claims on data, numbers typed into prose."""

import pandas as pd
import pytest

from implementations.common import registry
from implementations.common.check import dtype_name
from study.bench import store
from study.report.claims import TEXT, Data, Estimate, Prose, State, all_of, headline, typed_numbers
from study.tests import made_up_data

HOLDS, FALSE, UNDECIDED, NO_DATA = State.HOLDS, State.FALSE, State.UNDECIDED, State.NO_DATA


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder that lacks nothing."""
    path = tmp_path_factory.mktemp("data")
    made_up_data.write(path)
    return path


@pytest.fixture(scope="module", params=["made-up data", "no data"])
def data(request, folder, tmp_path_factory):
    there = request.param == "made-up data"
    return Data.load(folder if there else tmp_path_factory.mktemp("empty"))


@pytest.fixture
def render(data, tmp_path):
    """Renders a text; gives it and its claims' states, in order."""

    def render(text):
        prose = Prose(data)
        (tmp_path / "some_text.md").write_text(text)
        rendered = prose.render(tmp_path / "some_text.md")
        return rendered, [claim.state for claim in prose.claims.values()]

    return render


def claim(test, name="some_claim", sentence="So it is."):
    return f'{{% call claim("{name}", "{test}") %}}\n{sentence}\n{{% endcall %}}\n'


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


def test_made_up_data_is_found_again(folder):
    data = Data.load(folder)
    assert data.stale == []
    assert all_of(*(data.of_limit("softmax_fused", b) >= 0.9 for b in registry.BACKENDS)) == HOLDS
    ratio = data.ratio("matmul_tensor_core", "numba", to="cupy")
    assert ratio.low < 0.6 / 0.62 < ratio.high < ratio.low + 0.03
    assert data.tokens("vector_add", "cupy", to="triton").value == 560 / 220
    assert data.margin("vector_add", "numba").value == 0
    assert data.ceiling("matmul_tensor_core") == "matmul"
    assert data.clock("matmul_tensor_core", "triton").value == 0.75
    assert data.speed("matmul_tensor_core", "triton").endswith(" TFLOP/s")


def test_launch_bound_cell_and_failed_cell_allow_no_conclusion(tmp_path):
    made_up_data.write(tmp_path, {("vector_add", "numba"): "killed by SIGSEGV"})
    data = Data.load(tmp_path)
    short = (data.timings.verdict == "launch-bound") & (data.timings.backend == "triton")
    row = data.timings[short].iloc[0]
    ratio = data.ratio(row.kernel, "triton", dtype=row["dtype"], size=row["size"])
    assert ratio.note == "launch-bound" and (ratio >= 0.1) == UNDECIDED
    assert str(data.of_limit("vector_add", "numba")) == "failed"
    assert data.speed("vector_add", "numba") == "failed"
    assert (data.ratio("vector_add", "triton", to="numba") >= 0.1) == NO_DATA
    assert (data.ratio("vector_add", "triton") >= 1) == HOLDS


def test_summary_is_of_the_worst_cell_and_keeps_its_interval(render):
    text = "{{ least(of_limit, 'vector_add') }}; {{ of_limit('vector_add', 'numba') }}"
    least, _, numba = render(text)[0].partition("; ")
    assert least == numba
    nothing = claim("least(of_limit, ()) >= 0.1")
    assert render(nothing)[1] == [NO_DATA]  # of no kernel, not of all


def test_claims_are_judged_marked_and_kept_apart(render, data):
    text, states = render(
        claim("ratio('vector_add', 'triton') >= 1", "a", "First.")
        + "Then *this*.\n\n"
        + claim("ratio('vector_add', 'triton') >= 100", "b", "Second.")
    )
    marks = ["✓", "✗ does not hold"] if len(data.timings) else ["– no data"] * 2
    assert states == ([HOLDS, FALSE] if len(data.timings) else [NO_DATA] * 2)
    links = [f'[{mark}](#claims "{state.value}' for mark, state in zip(marks, states, strict=True)]
    first, second = text.split("\n\n")
    assert first.startswith(f"First.\N{NO-BREAK SPACE}{links[0]}")
    assert first.endswith(")\nThen *this*.")
    assert second.startswith(f"Second.\N{NO-BREAK SPACE}{links[1]}")


@pytest.mark.parametrize(
    "test",
    [
        "ratio('vector_add', 'triton')",  # compares nothing
        "ratio('vector_add', 'triton') > 1",
        "ratio('vector_add', 'triton') == 1",
        "ratio('vector_add', 'triton') >= 0.9 and ratio('vector_add', 'triton') <= 1.1",
        "tokens('vector_add', 'cupy') >= tokens('vector_add', 'triton')",
        "0.9 <= ratio('vector_add', 'triton') <= 1.1",
        "not ratio('vector_add', 'triton') >= 1",
        "ratio('vector_addition', 'triton') >= 1",  # there is no such kernel
        "rate('vector_add', 'triton') >= 1",
        "count('vector_add', 'triton', colour='red') >= 1",
        "least(speed, 'vector_add') >= 1",
        "all_of() ",
        "all_of(true)",
        "true",
        "",
        "ratio('vector_add' >= 1",
    ],
)
def test_wrong_test_is_refused_naming_the_file(render, test):
    with pytest.raises(RuntimeError, match=r"some_text\.md: "):
        render(claim(test))


@pytest.mark.parametrize("text", ["{{ speeed('vector_add') }}", "{% call claim('a') %}", "{{ 1 /"])
def test_wrong_text_is_refused_naming_the_file(render, text):
    with pytest.raises(RuntimeError, match=r"some_text\.md: "):
        render(text)


def test_doubled_name_is_refused_naming_the_later_file(data, tmp_path):
    prose = Prose(data)
    for name in ("one.md", "two.md"):
        (tmp_path / name).write_text(claim("tokens('vector_add', 'cupy') >= 1", "twice"))
    prose.render(tmp_path / "one.md")
    with pytest.raises(RuntimeError, match=r"two\.md: the claim 'twice' stands twice"):
        prose.render(tmp_path / "two.md")


@pytest.mark.parametrize("name", ["timings.csv", "agreement.csv", "samples.parquet"])
def test_table_without_a_column_is_named(tmp_path, name):
    path = made_up_data.write(tmp_path) / name
    store.write(path, store.read(path).drop(columns="source_hash"))
    with pytest.raises(store.DamagedData, match=rf"{name} must have the column\(s\) source_hash"):
        Data.load(tmp_path)


@pytest.mark.parametrize("table", ["agreement", "timings", "complexity", "radon"])
def test_changed_source_is_stale(folder, table):
    data = Data.load(folder)
    rows = getattr(data, table)
    one = (rows.kernel == "vector_add") & (rows.backend == "numba")
    rows.loc[one, "source_hash"] = "123456789012"
    assert data.stale == [f"{table}.csv: vector_add-numba"]


def test_vanished_kernel_is_stale(folder):
    data = Data.load(folder)
    gone = data.agreement.head(1).assign(kernel="vector_sub")
    object.__setattr__(data, "agreement", pd.concat([data.agreement, gone]))
    assert data.stale == ["agreement.csv: vector_sub-triton"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It reaches 95 % of 2,936.5 GB/s.", ["95", "2,936.5"]),
        ("Ratios of .5, -5 and (1–2).", ["5", "5", "1", "2"]),
        ("{{ 0.95 }}, {{ '95' }}, {{ 1 + 2 }}", ["0.95", "'95'", "1 + 2"]),
        ("## The 3 backends", ["3"]),
        ("1. First, 2 of them\n2. Second", ["2"]),
        ("fp16, H100, L2, sm_80, v1.2, GPT-4, Day 13, days 8", []),
        ("`N ≤ 32768` {{ tokens('vector_add2', 'cupy') }} [a](b/3.md)", []),
        ("```\n42\n```\n{# 42 #}" + claim("tokens('a', 'b') >= 2"), []),
    ],
)
def test_typed_numbers(text, found):
    assert typed_numbers(text) == found


@pytest.mark.parametrize("path", sorted(TEXT.rglob("*.md")), ids=lambda path: path.stem)
def test_report_holds_no_typed_number(path):
    assert typed_numbers(path.read_text()) == []


@pytest.mark.parametrize("path", sorted(TEXT.rglob("*.md")), ids=lambda path: path.stem)
def test_report_text_renders(path, data):
    prose = Prose(data)
    assert prose.render(path)
    if data.timings.empty:
        assert {claim.state for claim in prose.claims.values()} <= {NO_DATA}


@pytest.mark.parametrize("kernel", registry.kernels())
def test_headline_is_timed(kernel):
    spec = registry.spec(kernel)
    assert spec.headline in spec.bench_sizes
    assert headline(kernel)[0] == dtype_name(spec.dtypes[0])
