"""Which conclusions of the report hold on another machine, are reversed there, or are undecided.

A conclusion is a claim of report/text/; its test is put to the published data and to the other
machine's, and the estimates that it compares are shown of both.
"""

import ast
import math
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from implementations import DEVICE
from implementations.common import registry
from study.bench import store
from study.bench.cells import Selection, UnknownName, must_be_known, select
from study.bench.progress import console
from study.report.data import PUBLISHED, Data
from study.report.estimates import Estimate, State
from study.report.markdown import markdown_table
from study.report.prose import TEXT, Claim, Prose
from study.speed.ratios import verdict

OPEN = ("reversed", "changed", "undecided")
BELOW = "· "  # what a row begins with that belongs to the one above
FROM_SOURCES = {"tokens", "count", "machine_code"}  # what a claim may use that no machine measures


def run(
    selection: Selection,
    machine: str | None,
    *,
    data: Path,
    out: Path | None = None,
    text: Path = TEXT,
) -> None:
    """Print every conclusion, then the selection's orderings at the headline sizes, of both
    machines; the same as Markdown into `out`.

    machine: a folder of `data`; None: see `choose`. Rows of another source than the present one
    are named and not counted. Raises UnknownName, DamagedData, or RuntimeError where a machine
    was not timed.
    """
    both = [Data.timed(data, name) for name in (PUBLISHED, choose(machine, data))]
    published, here = (found.current() for found in both)
    rows, on_sources = conclusions(published, here, text)
    orders = orderings(selection, published, here)
    notes = [f"conclusions: {_tally(rows)}"]
    if names := [row["conclusion"] for row in rows if row["verdict"] == "reversed"]:
        notes.append(f"reversed: {', '.join(names)}")
    notes.append(f"orderings: {_tally(orders)} (changed: equal on one machine only)")
    if on_sources:
        notes.append(f"the same on any machine, from the sources alone: {', '.join(on_sources)}")
    for name in dict.fromkeys(name for found in both for name in found.stale):
        whose = ", ".join(dict.fromkeys(found.machine for found in both if name in found.stale))
        notes.append(f"stale, not counted: {name} ({whose})")

    tables = [table for table in (rows, orders) if table]
    for table in tables:
        what, ours, theirs, said = table[0]
        numbers = (Column(title, min_width=len("0.123 (0.122–0.124)")) for title in (ours, theirs))
        shown = Table(Column(what, overflow="fold"), *numbers, said, box=SIMPLE_HEAD)
        for row in table:
            shown.add_row(*(escape(str(value)) for value in row.values()))
        console.print(shown)
    console.print(*notes, sep="\n", markup=False)
    if out:
        title = f"# {here.machine} beside {PUBLISHED}"
        listed = "\n".join(f"- {note}" for note in notes)
        out.write_text("\n\n".join((title, *map(markdown_table, tables), listed)) + "\n")


def choose(machine: str | None, data: Path) -> str:
    """`machine`, if it has a folder in `data`. None: this machine, where it has a GPU and is not
    the published one; else the only one beside the published. Raises UnknownName."""
    known = sorted(path.name for path in data.glob("*") if path.is_dir())
    beside = [name for name in known if name != PUBLISHED]
    if machine is not None and known:
        must_be_known("machine", machine, known)
        return machine
    if machine is None and DEVICE == "cuda":
        own = store.machine_name(torch.cuda.get_device_name())
        if own != PUBLISHED:
            return own
    if machine is None and len(beside) == 1:
        return beside[0]
    raise UnknownName(
        f"compare needs one machine beside {PUBLISHED}; in {data} there are: "
        f"{', '.join(beside) or 'none (`study measure` on a machine with a GPU adds it)'}"
    )


def others(data: Path) -> list[str]:
    """The machines in `data` that were timed, beside the published one."""
    names = sorted(path.parent.name for path in data.glob("*/timings.csv"))
    return [name for name in names if name != PUBLISHED]


def differences(published: Data, here: Data, text: Path) -> dict:
    """What another machine decides otherwise.

    conclusions, orderings: how many there are of each verdict. reversed, reordered: the rows of
    those that are reversed, changed or undecided.
    """
    published, here = published.current(), here.current()
    rows, _ = conclusions(published, here, text)
    orders = orderings(select(), published, here)
    return {
        "conclusions": _tally(rows),
        "reversed": _open(rows),
        "orderings": _tally(orders),
        "reordered": _open(orders),
    }


def _open(rows: list[dict]) -> list[dict]:
    """The rows that are reversed, changed or undecided: one that others stand below with all of
    them, one that stands below another with that."""
    starts = [i for i, row in enumerate(rows) if not next(iter(row.values())).startswith(BELOW)]
    kept = []
    for begin, end in pairwise([*starts, len(rows)]):
        head, *below = rows[begin:end]
        if head["verdict"] not in OPEN:
            below = [row for row in below if row["verdict"] in OPEN]
        if head["verdict"] in OPEN or below:
            kept += [head, *below]
    return kept


def opposed(others: list[Data], text: Path) -> dict[str, list[str]]:
    """By claim, the GPUs whose present data say the opposite of it."""
    found: dict[str, list[str]] = {}
    for other in others:
        prose = Prose(other.current())
        for path in sorted(text.glob("*.md")):
            prose.render(path)
        name = other.environment.get("gpu", {}).get("name", other.machine)
        for claim in prose.claims.values():
            if claim.state is State.FALSE:
                found.setdefault(claim.name, []).append(f"an {name}")
    return found


def conclusions(published: Data, here: Data, text: Path) -> tuple[list[dict], list[str]]:
    """Of the claims that measurements decide a row each, and below it one for each estimate that
    the test compares; and the names and states of the others."""
    proses = Prose(published), Prose(here)
    for path in sorted(text.glob("*.md")):
        for prose in proses:
            prose.render(path)
    names = ("conclusion", "published", here.machine, "verdict")
    rows, on_sources = [], []
    for claim, other in zip(*(prose.claims.values() for prose in proses), strict=True):
        name = claim.name.replace("_", " ")
        used = {node.id for node in ast.walk(ast.parse(claim.test)) if isinstance(node, ast.Name)}
        if {name for name in used if hasattr(Data, name)} <= FROM_SOURCES:
            on_sources.append(f"{name} ({claim.state.value})")
            continue
        states = claim.state, other.state
        rows.append((name, *(state.value for state in states), judge(*states)))
        compared = _compared(claim)
        for text_, bounds in compared.items():
            found = (prose.environment.compile_expression(text_)() for prose in proses)
            which = f"{text_} ".replace("'", "") if len(compared) > 1 else ""
            rows.append((f"{BELOW}{which}{', '.join(bounds)}", *found, ""))
    return [dict(zip(names, row, strict=True)) for row in rows], on_sources


def _compared(claim: Claim) -> dict[str, list[str]]:
    """What the claim's test compares: the text of each estimate → its bounds."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(claim.test)):
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            text = ast.unparse(next(s for s in sides if not isinstance(s, ast.Constant)))
            found.setdefault(text, []).append(ast.unparse(node).replace(text, "").strip())
    return found


def judge(published: State, here: State) -> str:
    """What becomes of a conclusion: both states alike, or "reversed", if both machines decide."""
    for open_ in (State.NO_DATA, State.UNDECIDED):
        if open_ in (published, here):
            return open_.value
    return here.value if here is published else "reversed"


def orderings(selection: Selection, published: Data, here: Data) -> list[dict]:
    """The ratio of each two backends at each kernel's headline, on both machines: a row each below
    that of the kernel."""
    backends = sorted(selection.backends, reverse=True)  # as in the texts: Triton before the others
    names = ("ratio of speeds", "published", here.machine, "verdict")
    rows = []
    for kernel in selection.kernels:
        rows.append((kernel, "", "", ""))
        for pair in combinations(backends, 2):
            both = [found.ratio(kernel, pair[0], to=pair[1]) for found in (published, here)]
            titles = (registry.BACKENDS[backend].title for backend in pair)
            rows.append((f"{BELOW}{' / '.join(titles)}", *both, order(*both)))
    return [dict(zip(names, row, strict=True)) for row in rows]


def order(published: Estimate, here: Estimate) -> str:
    """Whether a ratio of speeds has the same verdict on both machines.

    "holds", "reversed", "changed" (equal on one only, and the intervals do not meet), "undecided"
    or "no data".
    """
    both = published, here
    if any(math.isnan(ratio.value) for ratio in both):
        return "no data"
    said = {verdict(ratio.low, ratio.high) for ratio in both}
    if any(ratio.note for ratio in both) or "undecided" in said:
        return "undecided"
    if len(said) == 1:
        return "holds"
    if "equal" not in said:
        return "reversed"
    apart = published.high < here.low or here.high < published.low
    return "changed" if apart else "undecided"


def _tally(rows: list[dict]) -> str:
    counts = Counter(row["verdict"] for row in rows if row["verdict"])
    return ", ".join(f"{said} {n}" for said, n in counts.most_common()) or "none"
