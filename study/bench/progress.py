"""Progress of long work: a bar with the item in hand and the time left; plain lines in a pipe.

And at its end, what failed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from study.bench.cells import KEY, Cell
from study.bench.entries import UNAVAILABLE

console = Console(highlight=False)
PLAIN_EVERY = 5.0  # seconds between plain lines


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Yields `step(item)`: call it as each item begins; the bar counts those before as done."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[item]}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task, begun = bar.add_task(title, total=total, item=""), 0

            def step(item: str) -> None:
                nonlocal begun
                bar.update(task, completed=begun, item=item)
                begun += 1

            yield step
        return

    start, said, begun = time.monotonic(), 0.0, 0

    def step(item: str) -> None:
        nonlocal said, begun
        now = time.monotonic()
        if begun == 0 or now - said >= PLAIN_EVERY:
            left = f", {(now - start) / begun * (total - begun):.0f} s left" if begun else ""
            print(f"{title} {begun + 1}/{total}{left}: {item}", flush=True)
            said = now
        begun += 1

    yield step
    print(f"{title}: {begun} of {total} in {time.monotonic() - start:.0f} s", flush=True)


def say_failed(rows: list[dict], said: str) -> bool:
    """Print the cell and the error of each row that has one; whether there are none that count.

    said: what became of the cell, e.g. "was not timed".
    """
    failed = [row for row in rows if row["error"]]
    for row in failed:
        cell = Cell(*(row[name] for name in KEY))
        console.print(f"{cell} {said}: {row['error']}", markup=False, soft_wrap=True)
    return all(row["error"].startswith(UNAVAILABLE) for row in failed)
