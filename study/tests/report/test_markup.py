"""Tables in Markdown, and Markdown in typst: what any text becomes there."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from study.report import pdf
from study.report.markdown import markdown_table
from study.tests.report import typeset

MD = MarkdownIt("commonmark").enable("table")


def test_markdown_table():
    rows = [
        {"name": "a", "µs": "1.5", "Δ": "-2 %", "of": "not measured", "n": 3, "said": "equal"},
        {"name": "b|c", "µs": "", "Δ": "2 (1–3)", "of": "failed", "n": 4, "said": "2 × torch"},
    ]
    assert markdown_table(rows) == (
        "| name | µs | Δ | of | n | said |\n"
        "| --- | ---: | ---: | ---: | ---: | --- |\n"
        "| a | 1.5 | -2 % | not measured | 3 | equal |\n"
        "| b\\|c |  | 2 (1–3) | failed | 4 | 2 × torch |"
    )
    assert markdown_table([]) == "not measured"


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=3))
def test_no_text_breaks_out_of_its_cell(cells):
    table = markdown_table([{"a": a, "b": b} for a, b in cells])
    tokens = MD.parse(table + "\n\nafter")
    kinds = [token.type for token in tokens]
    assert (kinds.count("table_open"), kinds.count("td_open")) == (1, 2 * len(cells))
    assert tokens[-2].content == "after" and "html_block" not in kinds
    assert not any(t.type == "html_inline" for token in tokens for t in token.children or ())


def _words(markdown):
    """The text of a Markdown document, as markdown-it sees it."""
    leaves = [leaf for token in MD.parse(markdown) for leaf in token.children or (token,)]
    return "".join(leaf.content for leaf in leaves)


def _same_words(markdown):
    if re.search(r"!\[|^\s*<!--", markdown):  # images are files, comments vanish
        return
    try:
        markup = pdf.typst_markup(markdown)
    except RuntimeError as error:
        assert "holds HTML" in str(error)
        return
    assert typeset.said(markup) == "".join(_words(markdown).split())


SPECIAL = st.text("\\#$*_<>@[]`~=+/\"'-.,:;(){}|^& \n1a", min_size=1)


@settings(deadline=None)  # the first one loads typst's fonts
@given(st.text() | SPECIAL)
def test_any_text_becomes_typst_that_says_the_same(text):
    _same_words(text)


@settings(deadline=None)  # the first one loads typst's fonts
@given(SPECIAL, SPECIAL)
def test_any_text_may_follow_code_and_emphasis(before, after):
    for markdown in (f"{before}`a`{after}", f"*a*{after}", f"[a](https://b.org){after}"):
        _same_words(markdown.replace("\n", " "))


def test_what_is_folded_stands_open_in_typst():
    folded = (
        "<details><summary>The *answer*</summary>\n\n| a |\n| --- |\n| 1 |\n\n</details>\n\nafter"
    )
    assert typeset.said(pdf.typst_markup(folded)) == "The*answer*a1after"


@pytest.mark.parametrize("text", ["<b>a</b>", "<details open>", "<details>\n\na\n\n</details>"])
def test_other_html_is_refused(text):
    with pytest.raises(RuntimeError, match="holds HTML"):
        pdf.typst_markup(text)
