"""The report that is built: complete, the same each time, and never silently out of date."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import typst
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from implementations.common import registry
from study.bench import store
from study.report.build import build as report
from study.report.build import compare, figures
from study.report.claims import TEXT, Data, Prose, State
from study.report.markdown import markdown_table
from study.tests import made_up_data

README = f"# Title\n\nBefore.\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter.\n"
COMMITTED = report.ROOT / "report" / "report.md"
CLAIM = re.compile(r"^\| [\w ]+ \| ([\w ]+) \| `(.+)` \|$", re.MULTILINE)  # a row of the claims
MD = MarkdownIt("commonmark").enable("table")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder that lacks nothing."""
    path = tmp_path_factory.mktemp("data")
    made_up_data.write(path)
    return path


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    """The folder of the report on made-up data, a README beside it."""
    out = tmp_path_factory.mktemp("built") / "report"
    out.mkdir()
    (out.parent / "README.md").write_text(README)
    assert report.run(folder, out)
    return out


@pytest.fixture
def no_pdf(monkeypatch):
    monkeypatch.setattr(report, "pdf", lambda markdown, out: None)


def document(data):
    return report.document(data, Prose(data))


# What is built -----------------------------------------------------------------------------------


def test_built_again_it_is_the_same_to_the_byte(folder, built, tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    command = [sys.executable, "-m", "study", "report", "--data", folder, "--out", out]
    subprocess.run(command, cwd=report.ROOT, check=True, capture_output=True)
    files = [p.relative_to(built) for p in built.rglob("*") if p.is_file()]
    assert {"report.md", "index.html", "report.pdf"} < {str(f) for f in files}
    warm = sum(registry.spec(kernel).warm for kernel in registry.kernels())
    assert len(list(built.glob("figures/*.svg"))) == 4 + len(registry.kernels()) + warm
    for file in files:
        assert (out / file).read_bytes() == (built / file).read_bytes(), file


def test_without_data_it_is_built_and_says_so(tmp_path, capsys):
    assert report.run(tmp_path / "data", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "not measured" in text and not re.search(r"\bnan\b", text)
    assert "no data" in capsys.readouterr().out
    assert {state for state, _ in CLAIM.findall(text)} == {State.NO_DATA.value}


def test_claims_are_listed_in_the_order_of_the_text(built):
    text = (built / "report.md").read_text()
    tests = re.findall(r'\(#claims "[^:"]+: ([^"]+)"\)', text)
    listed = [test.replace('"', "'") for _, test in CLAIM.findall(text)]
    assert tests == listed and len(listed) > 3


def test_paragraphs_and_sections_stay_apart(built):
    text = (built / "report.md").read_text()
    assert not re.search(r"[^\n]\n#", text)
    assert not re.search(r'"\)\w', text)  # a claim's mark, and the next sentence


def test_links_lead_somewhere(built):
    text = (built / "report.md").read_text()
    targets = set(re.findall(r"\]\((?!https:|#claims)([^)\s]+)", text))
    assert len(targets) > len(registry.kernels()) * len(registry.BACKENDS)
    for target in targets:
        folder = built if target.startswith("figures/") else COMMITTED.parent
        assert (folder / target).exists(), target


def test_failed_cells_show_their_error(tmp_path):
    error = "RuntimeError: <urlopen>|\n# not `a` heading"
    made_up_data.write(tmp_path, {("vector_add", "numba"): error})
    text = document(Data.load(tmp_path))
    assert not re.search(r"\bnan\b", text)
    assert "RuntimeError: \\<urlopen>\\| # not" in text
    assert re.search(
        r"^\| 8 \| `vector_add` \| \S+ % .* \| \S+ % .* \| failed \|", text, re.MULTILINE
    )
    typst.compile((report.PAGE / "report.typ").read_bytes() + _without_figures(text).encode())


def _without_figures(markdown):
    return report.typst_markup(re.sub(r"!\[.*", "", markdown))


def test_another_machine_has_a_section(folder, tmp_path):
    data = Data.load(folder)
    text = shutil.copytree(TEXT, tmp_path / "text")
    (text / "machines" / "some-gpu.md").write_text(
        "{% call claim('here_too', \"tokens('vector_add', 'cupy') >= 1\") %}"
        "On {{ machine }}.{% endcall %}"
    )
    other = replace(data, machine="some-gpu", environment={"gpu": {"name": "Some GPU"}})
    assert "On other GPUs" not in report.document(data, Prose(data), text)
    prose = Prose(data)
    said = report.document(data, prose, text, [other])
    section = said.partition("## On other GPUs")[2].partition("## Threats")[0]
    assert "### Some GPU\n\nOn some-gpu." in section and "reversed" not in section.split("###")[1]
    assert prose.claims["here_too"].state is State.HOLDS and "| here too |" in said


def test_new_kernel_and_backend_need_no_edit(new_kernel, tmp_path):
    (new_kernel / "double_it_eager.py").write_text("def double_it(x):\n    return x + x\n")
    data = Data.load(tmp_path)
    text = document(data)
    assert "## Day 99: Doubling" in text and "PyTorch" in text
    for name, figure in figures.every(data).items():
        figures.save(figure, tmp_path / f"{name}.svg")
    page = report.page(data, text, tmp_path)
    assert 'id="sources-double_it"' in page and "<option>double_it</option>" in page
    assert "--eager: #" in page


# What it must not hide ---------------------------------------------------------------------------


def test_false_claim_fails_the_build(folder, tmp_path, no_pdf, capsys):
    shutil.copytree(TEXT, tmp_path / "text")
    with (tmp_path / "text" / "answer.md").open("a") as file:
        file.write(
            "\n\n{% call claim('too_much', \"tokens('vector_add', 'triton') >= 1e6\") %}\n"
            "Triton is long.\n{% endcall %}\n"
        )
    assert not report.run(folder, tmp_path, tmp_path / "text")
    assert re.search("too_much.*does not hold.*answer.md", capsys.readouterr().out)
    said = "Triton is long.\N{NO-BREAK SPACE}[✗ does not hold](#claims"
    assert said in (tmp_path / "report.md").read_text()


def test_stale_rows_fail_the_build_and_are_named(tmp_path, no_pdf, capsys):
    home = made_up_data.write(tmp_path)
    timings = store.read(home / "timings.csv")
    old = (timings.kernel == "softmax_fused") & (timings.backend == "cupy")
    timings.loc[old, "source_hash"] = "123456789012"
    store.write(home / "timings.csv", timings)
    assert not report.run(tmp_path, tmp_path)
    assert "stale: timings.csv: softmax_fused-cupy" in capsys.readouterr().out
    first_screen = (tmp_path / "report.md").read_text().partition(report.END)[0]
    assert re.search(r"\*\*Stale:\*\* .*: timings\.csv: softmax_fused-cupy\.\n", first_screen)


@pytest.mark.skipif(not COMMITTED.exists(), reason="no report/report.md is committed yet")
def test_committed_report_is_that_of_the_committed_data():
    folder = report.ROOT / "data"
    data = Data.load(folder)
    assert data.stale == []
    others = [Data.load(folder, machine) for machine in compare.others(folder)]
    assert COMMITTED.read_text() == report.document(data, Prose(data), others=others)


def test_readme_is_replaced_between_its_markers_only(built):
    text = (built.parent / "README.md").read_text()
    first, second = README.split("old")
    assert text.startswith(first) and text.endswith(second)
    assert "](report/figures/speed_against_complexity.svg)" in text
    assert "](report/report.md#claims " in text and "| `vector_add` |" in text
    markdown = (built / "report.md").read_text()
    report._readme(built, markdown)
    assert (built.parent / "README.md").read_text() == text


@pytest.mark.parametrize("text", ["# No marker\n", f"{report.END}\n"])
def test_readme_without_markers_is_left_alone(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    report._readme(tmp_path / "report", f"{report.BEGIN}new{report.END}")
    assert (tmp_path / "README.md").read_text() == text


def test_readme_with_half_a_marker_is_refused(tmp_path):
    (tmp_path / "README.md").write_text(f"{report.END}\n{report.BEGIN}\nall that is below\n")
    with pytest.raises(RuntimeError, match=r"README\.md must have .* below"):
        report._readme(tmp_path / "report", f"{report.BEGIN}new{report.END}")


# Tables and typst --------------------------------------------------------------------------------


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


def _content(node):
    """The text of typst's content tree."""
    if isinstance(node, list):
        return "".join(map(_content, node))
    if not isinstance(node, dict):
        return ""
    return node.get("text") or _content([node.get(at) for at in ("children", "body", "child")])


def _same_words(markdown):
    if re.search(r"!\[|^\s*<!--", markdown):  # images are files, comments vanish
        return
    try:
        markup = report.typst_markup(markdown)
    except RuntimeError as error:
        assert "holds HTML" in str(error)
        return
    source = (report.PAGE / "report.typ").read_text() + f"#metadata[{markup}\n]<all>\n"
    found = json.loads(typst.query(source.encode(), "<all>", field="value", one=True))
    assert "".join(_content(found).split()) == "".join(_words(markdown).split())


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


# Figures -----------------------------------------------------------------------------------------


def test_a_backend_looks_the_same_in_every_figure(folder):
    ours = {registry.BACKENDS[b].title: look for b, look in figures.looks().items()}
    assert len({look.color for look in ours.values()}) == len(ours)
    for name, figure in figures.every(Data.load(folder)).items():
        (legend,) = figure.legends
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
            if look := ours.get(text.get_text()):
                assert (handle.get_color(), handle.get_marker()) == (look.color, look.marker), name
        assert {text.get_text() for text in legend.get_texts()} >= set(ours), name
        drawn = {line.get_color() for ax in figure.axes for line in ax.lines}
        assert drawn >= {look.color for look in ours.values()}, name


def test_figures_take_the_colours_of_the_page(built):
    for path in built.glob("figures/*.svg"):
        drawing = figures.themed(path.read_text(), "label")
        assert all(f"var(--{backend})" in drawing for backend in registry.BACKENDS)
        assert re.findall(r"#[0-9a-f]{6}\b", drawing) == []
        assert "DejaVu" not in drawing


# The page ----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What the page loads, its anchors and links, and the sources on it."""

    LOADING = {"src", "srcset", "poster", "data", "action", "formaction", "background"}

    def __init__(self, path):
        super().__init__()
        self.loads, self.links, self.ids, self.sources = [], [], [], {}
        self._into = None
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.loads += [value for name, value in attrs.items() if name in self.LOADING]
        href = attrs.get("href", attrs.get("xlink:href"))
        if href is not None:
            (self.links if tag == "a" else self.loads).append(href)
        self.loads += re.findall(r"url\(([^)]*)\)", attrs.get("style", ""))
        self.ids += [attrs["id"]] if "id" in attrs else []
        if attrs.get("class") in ("file", "code"):
            self._into = attrs["class"]

    def handle_endtag(self, tag):
        if tag in ("div", "pre"):
            self._into = None

    def handle_data(self, data):
        if self._into == "file":
            self._file = data
        elif self._into == "code":
            self.sources[self._file] = self.sources.get(self._file, "") + data
        if self.lasttag in ("style", "script"):
            self.loads += re.findall(r"@import[^;]*|url\(([^)]*)\)|fetch\(|import\(", data)


def test_page_loads_nothing(built):
    page = Page(built / "index.html")
    assert [what for what in page.loads if not what.startswith(("#", "data:"))] == []


def test_page_holds_all_sources_in_full(built):
    files = {
        path.name: path.read_text()
        for kernel in registry.kernels()
        for backend in registry.BACKENDS
        for path in registry.files(kernel, backend)
        if path.parent == registry.folders()[kernel]
    }
    assert len(files) == 4 * len(registry.kernels())
    assert Page(built / "index.html").sources == files


def test_links_of_the_page_lead_to_its_anchors(built):
    page = Page(built / "index.html")
    inner = {link[1:] for link in page.links if link.startswith("#")}
    kernels = {f"compare={kernel}" for kernel in registry.kernels()}
    assert kernels < inner and inner - kernels <= set(page.ids)
    named = [name for name in page.ids if not re.fullmatch(r"[mp]\w{10}", name)]  # not of a figure
    assert len(named) == len(set(named))
