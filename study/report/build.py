"""Builds the report: report.md from data and prose; from it the page, the PDF, the README's answer.

The page adds the highlighted sources and their comparison. Neither report.md nor the PDF repeats a
source in full, they name its files instead.
"""

from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from study.bench.progress import console, progress
from study.report import compare
from study.report.data import Data
from study.report.document import BEGIN, END, document
from study.report.estimates import State
from study.report.prose import REPORT, TEXT, Claim, Prose

README = REPORT.with_name("README.md")
NEEDED = {"matplotlib": "matplotlib", "seaborn": "seaborn", "markdown_it": "markdown-it-py"} | {
    "pygments": "pygments",
}


def run(data: Path, out: Path, text: Path = TEXT) -> bool:
    """Build report.md, index.html, report.pdf and figures/ in `out`; and in the checkout's own
    folder report/ also the README.

    Prints what became of each claim. Returns whether none is false, no number is stale and all was
    built. Raises, before anything is written, DamagedData for a data file that cannot be used, and
    RuntimeError for a folder without the published machine's data, a text that is wrong, or where a
    package is missing.
    """
    if absent := [name for module, name in NEEDED.items() if not find_spec(module)]:
        raise RuntimeError(f"the report needs {', '.join(absent)}: pip install {' '.join(absent)}")
    from study.report import figures, page, pdf

    with progress("report", 5) as step:
        step("data")
        found = Data.timed(data)
        others = [Data.timed(data, name) for name in compare.others(data)]
        step("report.md")
        prose = Prose(found, compare.opposed(others, text))
        markdown = document(found, prose, text, others)
        step("figures")
        for name, figure in figures.every(found).items():
            figures.save(figure, out / "figures" / f"{name}.svg")
        (out / "report.md").write_text(markdown)
        if out.resolve() == REPORT:
            readme(README, markdown)
        step("index.html")
        (out / "index.html").write_text(page.page(found, markdown, out / "figures"))
        step("report.pdf")
        has_pdf = find_spec("typst") is not None
        if has_pdf:
            pdf.write(markdown, out)
    claims = list(prose.claims.values())
    _print(claims)
    for name in found.stale:
        console.print(f"stale: {name} was taken from another source than the present one")
    if not has_pdf:
        console.print("report.pdf was not built: it needs typst (pip install typst)")
    false = any(claim.state is State.FALSE for claim in claims)
    return has_pdf and not false and not found.stale


def _print(claims: list[Claim]) -> None:
    table = Table("claim", "says the data", "where")
    for claim in claims:
        table.add_row(claim.name, claim.state.value, claim.where)
    console.print(table)


def readme(path: Path, markdown: str) -> None:
    """Put the report's first screen between the markers of the README beside the folder report/."""
    if not path.exists() or BEGIN not in (text := path.read_text()):
        return
    if END not in text[text.index(BEGIN) :]:
        raise RuntimeError(f"{path} must have {END!r} below {BEGIN!r}")
    first = markdown[markdown.index(BEGIN) : markdown.index(END)]
    first = first.replace("](figures/", f"]({REPORT.name}/figures/")
    first = first.replace("](#claims", f"]({REPORT.name}/report.md#claims")
    path.write_text(text[: text.index(BEGIN)] + first + text[text.index(END) :])
