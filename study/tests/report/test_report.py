"""The report that is built: complete, the same each time, and never silently out of date."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import typst

from implementations.common import registry
from study.bench import store
from study.bench.cells import size_text
from study.report import build, compare, figures, page, pdf
from study.report.data import PUBLISHED, Data, rungs
from study.report.document import BEGIN, END, document
from study.report.estimates import State
from study.report.prose import REPORT, TEXT, Prose
from study.report.sources import HOME
from study.tests import chosen, made_up_data

README = made_up_data.README
COMMITTED = REPORT / "report.md"
CLAIM = re.compile(r"^\| [\w ]+ \| ([\w ]+) \| `(.+)` \|$", re.MULTILINE)  # a row of the claims
STREAM = made_up_data.stream()
# What the report is built by may be read without a GPU, a compiler, or what times and runs kernels.
HEAVY = ("study.speed.measure", "study.speed.timing", "numba", "cupy", "triton")


@pytest.fixture(scope="module")
def folder(made_up, tmp_path_factory):
    """A data folder that lacks nothing."""
    path = tmp_path_factory.mktemp("data")
    shutil.copytree(made_up, path, dirs_exist_ok=True)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return made_up_data.text(tmp_path_factory.mktemp("texts") / "text")


@pytest.fixture
def text_only(monkeypatch):
    """Of the report no figure, no page and no PDF is built."""
    monkeypatch.setattr(figures, "every", lambda data: {})
    monkeypatch.setattr(page, "page", lambda data, markdown, folder: "")
    monkeypatch.setattr(pdf, "write", lambda markdown, out: None)


# What is built -----------------------------------------------------------------------------------


def test_built_again_it_is_the_same_to_the_byte(folder, text, built, tmp_path):
    out = tmp_path / "report"
    paths = ", ".join(f"Path({str(path)!r})" for path in (folder, out, text))
    code = "from pathlib import Path; from study.report import build; "
    subprocess.run(
        [sys.executable, "-c", f"{code}assert build.run({paths})"], check=True, capture_output=True
    )
    files = [p.relative_to(built) for p in built.rglob("*") if p.is_file()]
    assert {"report.md", "index.html", "report.pdf"} < {str(f) for f in files}
    warm = sum(registry.spec(kernel).warm for kernel in registry.kernels())
    ladders = {registry.spec(kernel).ladder for kernel in registry.kernels()} - {""}
    tuned = sum(registry.spec(kernel).tuning is not None for kernel in registry.kernels())
    counted = sum(
        all(registry.spec(kernel).counted for kernel in rungs(ladder)[0]) for ladder in ladders
    )
    trained = len(chosen.differentiable())
    others = 5 + len(ladders) + counted + trained + warm + 2 * tuned
    assert len(list(built.glob("figures/*.svg"))) == others + len(registry.kernels())
    for file in files:
        assert (out / file).read_bytes() == (built / file).read_bytes(), file


def test_shuffled_rows_change_nothing(folder, text, built, tmp_path):
    data = shutil.copytree(folder, tmp_path / "data")
    for path in (data / PUBLISHED / "agreement.csv", data / PUBLISHED / "timings.csv"):
        store.write(path, store.read(path).sample(frac=1, random_state=0))
    found = Data.load(data)
    assert document(found, Prose(found), text) == (built / "report.md").read_text()
    for name, figure in (
        ("error_over_bound", figures.error_over_bound(found)),
        (f"time_by_size_{STREAM}", figures.time_by_size(found, STREAM)),
    ):
        figures.save(figure, tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").read_bytes() == (
            built / "figures" / f"{name}.svg"
        ).read_bytes()


def test_document_without_data_says_so(tmp_path):
    data = Data.load(tmp_path)
    prose = Prose(data)
    text = document(data, prose)
    assert "not measured" in text and not re.search(r"\bnan\b", text)
    assert {state for state, _ in CLAIM.findall(text)} == {State.NO_DATA.value}


@pytest.mark.parametrize("content", ["missing", "empty", "not timed", "another machine"])
def test_folder_without_data_is_refused_and_nothing_is_overwritten(folder, tmp_path, content):
    data, out = tmp_path / "data", tmp_path / "report"
    out.mkdir()
    (out / "report.md").write_text("as it was")
    if content == "empty":
        data.mkdir()
    elif content == "not timed":
        (data / PUBLISHED).mkdir(parents=True)
        shutil.copy(folder / PUBLISHED / "agreement.csv", data / PUBLISHED)
    elif content == "another machine":
        shutil.copytree(folder / PUBLISHED, data / "some-gpu")
    with pytest.raises(RuntimeError, match=rf"{PUBLISHED}/timings\.csv must hold timings, it has"):
        build.run(data, out)
    assert [path.name for path in out.iterdir()] == ["report.md"]
    assert (out / "report.md").read_text() == "as it was"


def test_wrong_text_leaves_the_report_as_it_was(folder, text, tmp_path):
    out = tmp_path / "report"
    shutil.copytree(text, tmp_path / "text")
    (tmp_path / "text" / "answer.md").write_text("{{ spead }}")
    with pytest.raises(RuntimeError, match=r"answer\.md: 'spead' is undefined"):
        build.run(folder, out, tmp_path / "text")
    assert not out.exists()


def test_the_report_is_built_without_what_measures():
    code = "import sys, study.report.build, study.report.page, study.report.pdf; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = set(done.stdout.split())
    assert "study.report.figures" in loaded and "study.speed.ratios" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_claims_are_listed_in_the_order_of_the_text(built):
    text = (built / "report.md").read_text()
    tests = re.findall(r'\(#claims "[^:"]+: ([^"]+)"\)', text)
    listed = [test.replace('"', "'") for _, test in CLAIM.findall(text)]
    assert tests == listed and len(listed) > 3


def test_paragraphs_and_sections_stay_apart(built):
    text = (built / "report.md").read_text()
    assert not re.search(r"[^\n]\n#", text) and not re.search(r"\bnan\b", text)
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
    made_up_data.write(tmp_path, {(STREAM, "numba"): error})
    data = Data.load(tmp_path)
    text = document(data, Prose(data))
    assert not re.search(r"\bnan\b", text)
    assert "RuntimeError: \\<urlopen>\\| # not" in text
    day = registry.spec(STREAM).day
    row = rf"^\| {day} \| `{STREAM}` \| \S+ % .* \| \S+ % .* \| failed \|"
    assert re.search(row, text, re.MULTILINE)
    typst.compile((pdf.PREAMBLE.read_text() + _without_figures(text)).encode())


def _without_figures(markdown):
    return pdf.typst_markup(re.sub(r"!\[.*", "", markdown))


def test_another_machine_has_a_section(folder, text, tmp_path):
    data = Data.load(folder)
    text = shutil.copytree(text, tmp_path / "text")
    (text / "machines" / "some-gpu.md").write_text(
        made_up_data.claim("here_too", f"tokens('{STREAM}', 'cupy') >= 1", "On {{ machine }}.")
    )
    other = replace(data, machine="some-gpu", environment={"gpu": {"name": "Some GPU"}})
    assert "On other GPUs" not in document(data, Prose(data), text)
    prose = Prose(data)
    said = document(data, prose, text, [other])
    section = said.partition("## On other GPUs")[2].partition("## Threats")[0]
    assert "### Some GPU\n\nOn some-gpu." in section and "reversed" not in section.split("###")[1]
    assert prose.claims["here_too"].state is State.HOLDS and "| here too |" in said


def test_new_kernel_and_backend_need_no_edit(new_kernel, text, tmp_path):
    (new_kernel / "double_it_eager.py").write_text("def double_it(x):\n    return x + x\n")
    spec = (new_kernel / "double_it.py").read_text()
    (new_kernel / "double_it.py").write_text(
        spec.replace("    baselines={},", '    baselines={},\n    ladder="doublings",')
    )
    data = Data.load(tmp_path)
    text = document(data, Prose(data), text)
    assert "## Day 99: Doubling" in text and "PyTorch" in text
    for name, figure in figures.every(data).items():
        figures.save(figure, tmp_path / f"{name}.svg")
    assert "double_it" in (tmp_path / "ladder_doublings.svg").read_text()
    built = page.page(data, text, tmp_path)
    assert 'id="sources-double_it"' in built and "<option>double_it</option>" in built
    assert "--eager: #" in built


def test_what_was_not_timed_is_named_and_left_out_of_what_is_said_of_many(folder, text):
    data = Data.load(folder)
    assert STREAM in Prose(data).environment.globals["memory_bound"] and not data.unmeasured
    gone = (data.timings.kernel == STREAM) & (data.timings.backend == "numba")
    less = replace(data, timings=data.timings[~gone])
    prose = Prose(less)
    assert less.unmeasured == prose.environment.globals["unmeasured"] == (STREAM,)
    assert STREAM not in prose.environment.globals["memory_bound"]
    assert STREAM in prose.environment.globals["kernels"]
    said = f"not yet timed on this one: `{STREAM}`."
    assert said in document(less, prose, text) and said not in document(data, Prose(data), text)


# What it must not hide ---------------------------------------------------------------------------


def test_false_claim_fails_the_build(folder, text, tmp_path, text_only, capsys):
    shutil.copytree(text, tmp_path / "text")
    test = f"tokens('{STREAM}', 'triton') >= 1e6"
    with (tmp_path / "text" / "answer.md").open("a") as file:
        file.write("\n\n" + made_up_data.claim("too_much", test, "Triton is long."))
    assert not build.run(folder, tmp_path, tmp_path / "text")
    assert re.search("too_much.*does not hold.*answer.md", capsys.readouterr().out)
    said = "Triton is long.\N{NO-BREAK SPACE}[✗ does not hold](#claims"
    assert said in (tmp_path / "report.md").read_text()


def test_stale_rows_fail_the_build_and_are_named(folder, text, tmp_path, text_only, capsys):
    data = shutil.copytree(folder, tmp_path / "data")
    made_up_data.age(data / PUBLISHED, STREAM, "cupy")
    assert not build.run(data, tmp_path, text)
    assert f"stale: timings.csv: {STREAM}-cupy" in capsys.readouterr().out
    first_screen = (tmp_path / "report.md").read_text().partition(END)[0]
    assert re.search(rf"\*\*Stale:\*\* .*: timings\.csv: {STREAM}-cupy\.\n", first_screen)


@pytest.mark.skipif(not COMMITTED.exists(), reason="no report/report.md is committed yet")
def test_committed_report_is_that_of_the_committed_data():
    folder = HOME / "data"
    data = Data.load(folder)
    assert data.stale == []
    others = [Data.load(folder, machine) for machine in compare.others(folder)]
    prose = Prose(data, compare.opposed(others, TEXT))
    assert COMMITTED.read_text() == document(data, prose, others=others)


def test_readme_is_replaced_between_its_markers_only(built, tmp_path):
    text = (built.parent / "README.md").read_text()
    first, second = README.split("old")
    assert text.startswith(first) and text.endswith(second)
    assert "](report/figures/speed_against_complexity.svg)" in text
    assert "](report/report.md#claims " in text and f"| `{STREAM}` |" in text
    again = tmp_path / "README.md"
    again.write_text(text)
    build.readme(again, (built / "report.md").read_text())
    assert again.read_text() == text


def test_readme_of_another_folder_is_left_alone(folder, text, tmp_path, text_only):
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "report").mkdir()
    assert build.run(folder, tmp_path / "report", text)
    assert (tmp_path / "README.md").read_text() == README


@pytest.mark.parametrize("text", ["# No marker\n", f"{END}\n"])
def test_readme_without_markers_is_left_alone(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    build.readme(tmp_path / "README.md", f"{BEGIN}new{END}")
    assert (tmp_path / "README.md").read_text() == text


def test_readme_with_half_a_marker_is_refused(tmp_path):
    (tmp_path / "README.md").write_text(f"{END}\n{BEGIN}\nall that is below\n")
    with pytest.raises(RuntimeError, match=r"README\.md must have .* below"):
        build.readme(tmp_path / "README.md", f"{BEGIN}new{END}")


# Figures -----------------------------------------------------------------------------------------


def test_a_backend_looks_the_same_in_every_figure(folder):
    ours = {registry.BACKENDS[b].title: look for b, look in figures.looks().items()}
    assert len({look.color for look in ours.values()}) == len(ours)
    for name, figure in figures.every(Data.load(folder)).items():
        (legend,) = figure.legends
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
            if look := ours.get(text.get_text()):
                assert (handle.get_color(), handle.get_marker()) == (look.color, look.marker), name
        named = {text.get_text() for text in legend.get_texts()} & set(ours)
        drawn = {line.get_color() for ax in figure.axes for line in ax.lines}
        drawn &= {look.color for look in ours.values()}
        of_all = name != "workspace"  # in which they do not differ
        assert len(named) == len(drawn) == of_all * len(ours), name


@pytest.mark.parametrize("kernel", chosen.differentiable())
def test_a_size_whose_speed_has_another_unit_is_not_drawn(folder, kernel):
    data = Data.load(folder)
    assert set(data.timings[data.timings.kernel == kernel].unit) == {"GB/s", "TFLOP/s"}
    (ax,) = figures.time_by_size(data, kernel).axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("M = N", "TFLOP/s")


def test_sizes_that_share_a_place_are_drawn_by_the_largest_of_them(folder):
    kernel = next(k for k in registry.kernels() if "causal" in registry.spec(k).headline)
    data, spec = Data.load(folder), registry.spec(kernel)
    (ax,) = figures.time_by_size(data, kernel).axes
    largest = [
        max(
            (size for size in spec.bench_sizes if size["N"] == N),
            key=lambda size: (
                spec.work(spec.dtypes[0], **size).bytes,
                spec.work(spec.dtypes[0], **size).flops,
            ),
        )
        for N in sorted({size["N"] for size in spec.bench_sizes})
    ]
    cells = [data.cell(kernel, "triton", size=size_text(size)) for size in largest]
    drawn = {line.get_color(): list(line.get_ydata()) for line in ax.lines}
    assert drawn[figures.looks()["triton"].color] == [cell.speed for cell in cells]
    dashed = next(line for line in ax.lines if line.get_linestyle() == "--")
    allowed = [  # by the memory, which takes as long for the model's bytes as for a copy of them
        cell.flops / spec.traffic(spec.dtypes[0], **size) * data.roof("copy") / 1e3
        for cell, size in zip(cells, largest, strict=True)
    ]
    assert all(dashed.get_ydata() <= np.array(allowed) * (1 + 1e-9))
    assert dashed.get_ydata()[-1] == pytest.approx(allowed[-1])


def test_figures_take_the_colours_of_the_page(built):
    for path in built.glob("figures/*.svg"):
        drawing = figures.themed(path.read_text(), "label")
        colours = [f"var(--{backend})" in drawing for backend in registry.BACKENDS]
        assert all(colours) or path.stem == "workspace" and not any(colours)
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
    files = {}
    for kernel in registry.kernels():
        for backend in registry.BACKENDS:
            own = [
                path
                for path in registry.files(kernel, backend)
                if path.parent == registry.folders()[kernel]
            ]
            assert own, f"{kernel} in {backend} has no file of its own"
            files |= {path.name: path.read_text() for path in own}
    assert Page(built / "index.html").sources == files


def test_links_of_the_page_lead_to_its_anchors(built):
    page = Page(built / "index.html")
    inner = {link[1:] for link in page.links if link.startswith("#")}
    kernels = {f"compare={kernel}" for kernel in registry.kernels()}
    assert kernels < inner and inner - kernels <= set(page.ids)
    named = [name for name in page.ids if not re.fullmatch(r"[mp]\w{10}", name)]  # not of a figure
    assert len(named) == len(set(named))
