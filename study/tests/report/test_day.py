"""A day's text in the frame: its parts, and what the frame itself adds, in all three forms."""

import re
import shutil

import pytest
import typst

from implementations.common import registry
from study.report import document, page, pdf
from study.report.data import Data, headline
from study.report.prose import TEXT, Prose
from study.tests import made_up_data
from study.tests.report import typeset

DAY = made_up_data.stream()
PARTS = {
    "learn": "What a program owns.\n\nWhat a mask is.",
    "idea": "One number into every element: {{ of_limit('DAY', 'triton') }}.",
    "core": "The load is missing:\n\n{{ lines('DAY', 'triton', 'tl.store', 'tl.store') }}",
    "predict": "How many bytes move?",
    "measured": "It is as predicted.",
    "differs": made_up_data.claim("the_day_holds", "least(of_limit, 'DAY') >= 0.9"),
    "break": "Leave the mask out.",
    "change": "Turn the block's size.",
    "next": "The next day reads as well.",
}
HEADINGS = (
    *("What you will learn", "The idea", "The core, in Triton", "Predict", "Measured"),
    *("What differs", "Break it", "Change a number", "The next day"),
)
COMPUTED = (  # by the frame, in the order of the sections
    "What the bytes and the ceiling say",
    *("bytes read and written, at least", "the limit", "a call takes, at least"),
    *("error / bound", "The machine code of that size", "A fault to plant in"),
    *("x = 1", "x = 2", "study verify --kernels DAY --backends triton"),
    *("Which check rejects it", "That of values, in"),
)


@pytest.fixture(scope="module")
def data(made_up, tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    shutil.copytree(made_up, path, dirs_exist_ok=True)
    return Data.load(path)


@pytest.fixture
def text(tmp_path):
    """Writes the day's text, in parts; gives the folder."""
    folder = made_up_data.text(tmp_path / "text")
    (path,) = folder.glob(f"day*_{DAY}.md")

    def write(parts):
        path.write_text("\n\n".join(f"## {name}\n\n{said}" for name, said in parts.items()))
        path.write_text(path.read_text().replace("DAY", DAY))
        return folder

    return write


def section(markdown):
    """The day's, without its title."""
    found = markdown.partition(f"\n`{DAY}`: ")[2]
    return re.split(r"^## ", found, flags=re.MULTILINE)[0]


def in_order(said, wanted):
    at = [said.find(text.replace("DAY", DAY)) for text in wanted]
    return -1 not in at and at == sorted(at)


def test_all_parts_stand_in_the_report(data, text):
    prose = Prose(data)
    said = section(document.document(data, prose, text(PARTS)))
    assert re.findall(r"^### (.+)$", said, re.MULTILINE) == list(HEADINGS)
    assert in_order(said, ("What a program owns.", "into every element: 9", *COMPUTED[:4]))
    assert in_order(said, COMPUTED) and "Why they differ" not in said
    words = (*PARTS.values(), "So it is.")
    assert all(word in said for word in words if "{" not in word)
    assert prose.claims["the_day_holds"].where.endswith(f"_{DAY}.md")
    (code,) = re.findall(r"```python\n(.*)\n```", said)
    assert code in registry.files(DAY, "triton")[0].read_text() and "tl.store" in code
    assert "```diff\n- x = 1\n+ x = 2\n+ y = x\n```" in said
    assert not re.search(r"\bnan\b", said)
    assert not re.search(r"[^\n]\n#|\n{3,}|\|\n[^|\n]", said)  # blocks stay apart


def test_prediction_is_that_of_spec_and_ceiling(data, text):
    said = section(document.document(data, Prose(data), text(PARTS)))
    spec = registry.spec(DAY)
    work = spec.work(spec.dtypes[0], **spec.headline)
    assert f"| {', '.join(headline(DAY))} |  |" in said
    assert f"| bytes read and written, at least | {work.bytes / 1e9:.3g} GB |" in said
    us = float(re.search(r"at least \| ([\d.,]+) µs", said)[1].replace(",", ""))
    assert us == pytest.approx(work.bytes / made_up_data.LIMIT["GB/s"] / 1e3, rel=0.01)
    speed = re.search(rf"\| the limit \| {work.limit}, ([\d,]+) GB/s", said)[1]
    assert float(speed.replace(",", "")) == pytest.approx(made_up_data.LIMIT["GB/s"], rel=0.01)


def test_page_folds_what_is_to_be_predicted(data, text, tmp_path):
    markdown = document.document(data, Prose(data), text(PARTS))
    built = page.page(data, re.sub(r"!\[.*", "", markdown), tmp_path)
    folded = re.findall(r"<details><summary>(.+?)</summary>(.*?)</details>", built, re.DOTALL)
    assert [title for title, _ in folded] == [COMPUTED[0], "Which check rejects it"]
    assert "<td>the limit</td>" in folded[0][1] and "That of values" in folded[1][1]
    assert built.count('<pre class="lines">') == 3  # the core, the fault, the command
    assert all(f">{heading}</h3>" in built for heading in HEADINGS)


def test_typst_has_all_of_it(data, text):
    said = section(document.document(data, Prose(data), text(PARTS)))
    markup = pdf.typst_markup(re.sub(r"!\[.*", "", said))
    found = typeset.said(markup)
    words = (*HEADINGS, COMPUTED[0], "How many bytes move?", "Which check rejects it", "+ x = 2")
    assert in_order(found, ["".join(heading.split()) for heading in HEADINGS])
    assert all("".join(word.split()) in found for word in words)
    typst.compile((pdf.PREAMBLE.read_text() + markup).encode())


def test_what_the_writer_leaves_out_has_no_heading(data, text):
    said = section(document.document(data, Prose(data), text({"idea": "One number."})))
    assert re.findall(r"^### (.+)$", said, re.MULTILINE) == [
        *("The idea", "Predict", "Measured", "What differs", "Break it")
    ]


def test_fault_needs_the_data_of_the_mutants(data, text):
    object.__setattr__(data, "mutants", data.mutants.head(0))
    said = section(document.document(data, Prose(data), text({"idea": "One number."})))
    assert "Break it" not in said and "study verify" not in said


@pytest.mark.parametrize(
    "parts",
    [
        {"idea": "One number.", "ideas": "Two."},
        {"idea": "One number.", "learn": "To count."},
    ],
    ids=["unknown", "elsewhere"],
)
def test_wrong_parts_are_refused_naming_the_file(data, text, parts):
    with pytest.raises(RuntimeError, match=rf"_{DAY}\.md: it must have only the parts learn, idea"):
        document.document(data, Prose(data), text(parts))


def test_text_above_the_parts_is_refused(data, text):
    folder = text(PARTS)
    (path,) = folder.glob(f"day*_{DAY}.md")
    path.write_text("A word before.\n\n" + path.read_text())
    with pytest.raises(RuntimeError, match="it has 'A word before.', learn, idea"):
        document.document(data, Prose(data), folder)


@pytest.mark.parametrize("path", sorted(TEXT.glob("day*.md")), ids=lambda path: path.stem)
def test_committed_day_is_read(path):
    parts = document.parts(path.read_text())
    assert parts["before"] if "before" in parts else parts["idea"]
