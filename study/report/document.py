"""report.md: the one document, from its template, the texts and the tables of one machine's data.

A text of a day has the frame of day.md.j2 where it names parts of it, each below a line like
`## idea`; what a part lacks the frame computes or leaves out. Any other text stands above the day's
figures, and from "### Why they differ" on below them.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import jinja2

from implementations.common import registry
from study.bench.cells import parse_size
from study.report import compare, sources, tables
from study.report.data import Data
from study.report.markdown import markdown_table
from study.report.prose import TEXT, Prose

PAGE = Path(__file__).with_name("page")
BEGIN, END = "<!-- built by `study report` -->", "<!-- end of what `study report` built -->"
WHY = "### Why they differ"
PARTS = ("learn", "idea", "core", "predict", "measured", "differs", "break", "change", "next")
PART = re.compile(r"^## (.+)$", re.MULTILINE)
ALT = {
    "speed_against_complexity": "Speed, as a fraction of the measured limit, against tokens",
    "time_by_size": "Speed by size, with the measured ceiling",
    "memory_levels": "Speed from the smallest size to the largest, in the L2 and in DRAM",
    "error_over_bound": "Largest error over its bound",
    "stability": "Error by the scale of the inputs, with the unit roundoff",
}


def document(data: Data, prose: Prose, text: Path = TEXT, others: Iterable[Data] = ()) -> str:
    """The report as Markdown; the claims of all texts are gathered in `prose`.

    others: other machines, beside which the conclusions are put.
    """

    def rendered(path: Path, prose: Prose = prose) -> str:
        return prose.render(path) if path.exists() else ""

    def day(kernel: str) -> dict[str, str]:
        path = text / f"day{registry.spec(kernel).day:02}_{kernel}.md"
        try:
            return parts(rendered(path))
        except ValueError as error:
            raise RuntimeError(f"{path}: {error}") from error

    def beside(other: Data) -> dict:
        own = Prose(other)
        said = rendered(text / "machines" / f"{other.machine}.md", own)
        prose.claims.update(own.claims)
        name = other.environment.get("gpu", {}).get("name", other.machine)
        return {"name": name, "text": said} | compare.differences(data, other, text)

    environment = prose.environment.overlay(
        trim_blocks=True, keep_trailing_newline=True, loader=jinja2.FileSystemLoader(PAGE)
    )
    studied = data.stability["size"].unique()
    document = environment.get_template("report.md.j2").render(
        text=lambda name: prose.render(text / f"{name}.md"),
        day=day,
        summary=lambda kernel: rendered(text / f"phase{registry.phase(kernel)}.md"),
        phase=registry.phase,
        topic=lambda kernel: (
            registry.folders()[kernel].parent.name.partition("_")[2].replace("_", " ")
        ),
        spec=registry.spec,
        first_scaled=next((k for k in registry.kernels() if registry.spec(k).scales), ""),
        studied=parse_size(studied[0]) if len(studied) else {},
        links=sources.links,
        fault=data.fault,
        alt=ALT,
        claims=prose.claims,
        stale=data.stale,
        others=[beside(other) for other in others],
        environment=list(tables.flat(data.environment)),
        frame=lambda name: tables.plain(getattr(data, name)),
        markdown_table=markdown_table,
        begin=BEGIN,
        end=END,
    )
    return re.sub(r"\n{3,}", "\n\n", document).strip() + "\n"


def parts(text: str) -> dict[str, str]:
    """A day's text by PARTS; one that names none, as `before` and `why`. Raises ValueError for a
    part that the frame has not, or has elsewhere."""
    before, *named = PART.split(text)
    if not named:
        before, _, why = text.partition(WHY)
        return {"before": before.strip(), "why": why.strip()}
    names = named[::2]
    if before.strip() or names != [name for name in PARTS if name in names]:
        raise ValueError(
            f"it must have only the parts {', '.join(PARTS)}, in this order; it has "
            + ", ".join([*([repr(before.strip())] if before.strip() else []), *names])
        )
    return dict.fromkeys(PARTS, "") | dict(zip(names, map(str.strip, named[1::2]), strict=True))
