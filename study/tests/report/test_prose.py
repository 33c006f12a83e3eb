"""What may be said: claims on data, lines of sources, numbers typed into prose."""

import shutil

import pytest

from implementations.common import registry
from study.report import pdf
from study.report.data import Data
from study.report.estimates import State
from study.report.prose import TEXT, Prose, typed_numbers
from study.tests import made_up_data

HOLDS, FALSE, NO_DATA = State.HOLDS, State.FALSE, State.NO_DATA
STREAM = made_up_data.stream()


@pytest.fixture(scope="module")
def folder(made_up, tmp_path_factory):
    """A data folder that lacks nothing."""
    path = tmp_path_factory.mktemp("data")
    shutil.copytree(made_up, path, dirs_exist_ok=True)
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
    return made_up_data.claim(name, test, sentence)


def test_summary_is_of_the_worst_cell_and_keeps_its_interval(render):
    text = f"{{{{ least(of_limit, '{STREAM}') }}}}; {{{{ of_limit('{STREAM}', 'numba') }}}}"
    least, _, numba = render(text)[0].partition("; ")
    assert least == numba
    nothing = claim("least(of_limit, ()) >= 0.1")
    assert render(nothing)[1] == [NO_DATA]  # of no kernel, not of all


def test_claims_are_judged_marked_and_kept_apart(render, data):
    text, states = render(
        claim(f"ratio('{STREAM}', 'triton') >= 1", "a", "First.")
        + "Then *this*.\n\n"
        + claim(f"ratio('{STREAM}', 'triton') >= 100", "b", "Second.")
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
        f"ratio('{STREAM}', 'triton')",  # compares nothing
        f"ratio('{STREAM}', 'triton') > 1",
        f"ratio('{STREAM}', 'triton') == 1",
        f"ratio('{STREAM}', 'triton') >= 0.9 and ratio('{STREAM}', 'triton') <= 1.1",
        f"tokens('{STREAM}', 'cupy') >= tokens('{STREAM}', 'triton')",
        f"0.9 <= ratio('{STREAM}', 'triton') <= 1.1",
        f"not ratio('{STREAM}', 'triton') >= 1",
        "ratio('no_such_kernel', 'triton') >= 1",  # there is no such kernel
        f"rate('{STREAM}', 'triton') >= 1",
        f"count('{STREAM}', 'triton', colour='red') >= 1",
        f"least(speed, '{STREAM}') >= 1",
        "all_of() ",
        "all_of(true)",
        "true",
        "",
        f"ratio('{STREAM}' >= 1",
    ],
)
def test_wrong_test_is_refused_naming_the_file(render, test):
    with pytest.raises(RuntimeError, match=r"some_text\.md: "):
        render(claim(test))


@pytest.mark.parametrize("text", ["{{ speeed('a') }}", "{% call claim('a') %}", "{{ 1 /"])
def test_wrong_text_is_refused_naming_the_file(render, text):
    with pytest.raises(RuntimeError, match=r"some_text\.md: "):
        render(text)


def test_lines_of_a_source_stand_as_they_are(render):
    name = f"{STREAM}_kernel"
    said, _ = render(f"{{{{ lines('{STREAM}', 'triton', 'def {name}', 'tl.store') }}}}")
    opening, *code, closing = said.splitlines()
    (path,) = registry.files(STREAM, "triton")
    assert "\n".join(code) in path.read_text()
    assert code[0].startswith(f"def {name}") and "tl.store" in code[-1]
    assert not any("tl.store" in line for line in code[:-1])
    assert (opening, closing) == ("```python", "```")
    said, _ = render(f"{{{{ lines('{STREAM}', 'cupy', '__global__', '{{') }}}}")
    assert said.startswith("```cuda\n")


def test_lines_that_no_source_has_are_refused(render):
    with pytest.raises(RuntimeError, match=r"some_text\.md: .* in triton must have a line with"):
        render(f"{{{{ lines('{STREAM}', 'triton', 'tl.store', 'no such line') }}}}")


def test_doubled_name_is_refused_naming_the_later_file(data, tmp_path):
    prose = Prose(data)
    for name in ("one.md", "two.md"):
        (tmp_path / name).write_text(claim(f"tokens('{STREAM}', 'cupy') >= 1", "twice"))
    prose.render(tmp_path / "one.md")
    with pytest.raises(RuntimeError, match=r"two\.md: the claim 'twice' stands twice"):
        prose.render(tmp_path / "two.md")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It reaches 95 % of 2,936.5 GB/s.", ["95", "2,936.5"]),
        ("Ratios of .5, -5 and (1–2).", ["5", "5", "1", "2"]),
        ("{{ 0.95 }}, {{ '95' }}, {{ 1 + 2 }}", ["0.95", "'95'", "1 + 2"]),
        ("## The 3 backends", ["3"]),
        ("1. First, 2 of them\n2. Second", ["2"]),
        ("fp16, H100, L2, sm_80, v1.2, GPT-4, Day 13, days 8", []),
        ("`N ≤ 32768` {{ tokens('kernel2', 'cupy') }} [a](b/3.md)", []),
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
    assert pdf.typst_markup(prose.render(path))
    if data.timings.empty:
        assert {claim.state for claim in prose.claims.values()} <= {NO_DATA}
