"""The commands. Each does its work in the module of its name; this file holds options, help and exit codes."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Triton, CUDA C++ or Numba? Verify, measure and compare the same kernels in all three.",
)

Kernels = Annotated[
    str | None, typer.Option(help="Only these kernels, comma-separated. `study list` names them.")
]
Backends = Annotated[str | None, typer.Option(help="Only these backends: triton, cupy, numba.")]
Phase = Annotated[int | None, typer.Option(help="Only the kernels of this phase, 1 to 5.")]
Data = Annotated[Path, typer.Option(help="Where data is kept; one folder a machine is made in it.")]
DATA = Path("data")


@app.command("list")
def list_(kernels: Kernels = None, backends: Backends = None, phase: Phase = None):
    """Show every kernel: its day, formula, dtypes, and which backends can run it here (and why not)."""
    from study import listing
    from study.cells import select

    listing.show(select(kernels, backends, phase))


@app.command()
def verify(
    kernels: Kernels = None,
    backends: Backends = None,
    phase: Phase = None,
    large: Annotated[
        bool, typer.Option(help="On a GPU: also check each headline size, which fills the chip.")
    ] = True,
    data: Data = DATA,
):
    """Prove that the backends agree with a float64 oracle, under derived error bounds.

    Without a GPU the kernels run on the CPU tier and nothing is saved; with one, the result is
    kept in data/<machine>/agreement.csv. Exit code 1 if any cell disagrees or fails.
    """
    from study import verify as module
    from study.cells import select

    if not module.run(select(kernels, backends, phase), large=large, data=data):
        raise typer.Exit(1)


@app.command()
def measure(
    kernels: Kernels = None,
    backends: Backends = None,
    phase: Phase = None,
    processes: Annotated[int, typer.Option(help="Fresh processes each cell is timed in.")] = 3,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds in each process.")] = 20,
    fresh: Annotated[bool, typer.Option(help="Time again what is already measured.")] = False,
    data: Data = DATA,
):
    """Time the kernels on the GPU, interleaved with their baselines and ceilings.

    Raw samples go to data/<machine>/samples.parquet as each cell ends; timings.csv is derived from
    them. An interrupted run resumes where it was: run the command again.
    """
    from study import measure as module
    from study.cells import select

    selection = select(kernels, backends, phase)
    if not module.run(selection, processes=processes, rounds=rounds, fresh=fresh, data=data):
        raise typer.Exit(1)


@app.command()
def complexity(
    kernels: Kernels = None, backends: Backends = None, phase: Phase = None, data: Data = DATA
):
    """Count the size and structure of each implementation into data/complexity.csv. Needs no GPU."""
    from study import complexity as module
    from study.cells import select

    module.run(select(kernels, backends, phase), data=data)


@app.command()
def report(
    data: Data = DATA,
    out: Annotated[
        Path, typer.Option(help="Where report.md, index.html and report.pdf go.")
    ] = Path("report"),
):
    """Build the report from data/ and report/text/, testing every claim it makes on the way."""
    from study import report as module

    if not module.run(data=data, out=out):
        raise typer.Exit(1)


@app.command()
def status(
    kernels: Kernels = None, backends: Backends = None, phase: Phase = None, data: Data = DATA
):
    """List the cells that are missing, or stale because their source changed. Exit code 1 if any is."""
    from study import status as module
    from study.cells import select

    if not module.run(select(kernels, backends, phase), data=data):
        raise typer.Exit(1)


@app.command()
def run(kernels: Kernels = None, backends: Backends = None, phase: Phase = None, data: Data = DATA):
    """Do the whole study: verify, measure (with a GPU), count complexity, build the report."""
    from implementations import DEVICE

    verify(kernels, backends, phase, large=True, data=data)
    if DEVICE == "cuda":
        measure(kernels, backends, phase, data=data)
    complexity(kernels, backends, phase, data=data)
    report(data=data)


def main():
    """Run the command line; what is wrong with the request or the machine is one clear line."""
    from study.cells import UnknownName
    from study.store import DamagedData

    try:
        app(standalone_mode=True)
    except UnknownName as error:
        sys.exit(_say(error, 2))
    except (DamagedData, RuntimeError, OSError) as error:
        sys.exit(_say(error, 1))


def _say(error: Exception, code: int) -> int:
    print(f"study: {error}", file=sys.stderr)
    return code
