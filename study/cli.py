"""The commands: their options, help and exit codes. Each does its work in a module of study/."""

import signal
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
HOME = Path(__file__).parents[1]  # the checkout, whatever folder a command is called from
DATA, REPORT = HOME / "data", HOME / "report"


@app.command("list")
def list_(kernels: Kernels = None, backends: Backends = None, phase: Phase = None):
    """Show every kernel: day, formula, dtypes, and which backends can run it here (or why not)."""
    from study import listing
    from study.bench.cells import select

    listing.show(select(kernels, backends, phase))


@app.command()
def verify(
    kernels: Kernels = None,
    backends: Backends = None,
    phase: Phase = None,
    large: Annotated[
        bool, typer.Option(help="On a GPU: also check each headline size, which fills the chip.")
    ] = True,
    cover: Annotated[
        bool, typer.Option(help="Only as many sizes as launch every variant of data/codegen.csv.")
    ] = False,
    sanitize: Annotated[
        bool, typer.Option(help="On the CPU: look for wild accesses and races of the CUDA kernels.")
    ] = False,
    data: Data = DATA,
):
    """Prove that the backends agree with a float64 oracle, under derived error bounds.

    Without a GPU the kernels run on the CPU tier and nothing is saved; with one, the result is
    kept in data/<machine>/agreement.csv. Exit code 1 if any cell disagrees or fails.
    """
    from study.agree import verify as module
    from study.bench.cells import select

    selection = select(kernels, backends, phase)
    if sanitize and not module.sanitize(selection):
        raise typer.Exit(1)
    if not sanitize and not module.run(selection, large=large, cover=cover, data=data):
        raise typer.Exit(1)


@app.command()
def mutants(
    kernels: Kernels = None,
    backends: Backends = None,
    phase: Phase = None,
    fresh: Annotated[
        bool, typer.Option(help="Try again what is tried already, in an unchanged source.")
    ] = False,
    data: Data = DATA,
):
    """Check the checks: plant faults in the kernels, and see verify reject each. Needs no GPU.

    A fault is, for example, a dropped mask, a missing barrier, a stale accumulator, at every place
    where there can be one. data/mutants.csv tells which check rejected which, at which size. A
    survivor means that a check or a size is missing: add it, or, if the fault changes no result,
    say why in study/agree/equivalent_mutants.csv. Exit code 1 if a mutant survives.
    """
    from study.agree import mutants as module
    from study.bench.cells import select

    if not module.run(select(kernels, backends, phase), fresh=fresh, data=data):
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
    from study.bench.cells import select
    from study.speed import measure as module

    selection = select(kernels, backends, phase)
    if not module.run(selection, processes=processes, rounds=rounds, fresh=fresh, data=data):
        raise typer.Exit(1)


@app.command()
def tune(
    kernels: Kernels = None, backends: Backends = None, phase: Phase = None, data: Data = DATA
):
    """Search the constants of the kernels that are tuned, on this GPU. Needs a GPU.

    Every configuration gets the same time in every backend. data/<machine>/tuning.csv gets all of
    them, the kernel's own table the fastest, which it takes from then on. Exit code 1 where none
    runs.
    """
    from study.bench.cells import select
    from study.speed import tune as module

    if not module.run(select(kernels, backends, phase), data=data):
        raise typer.Exit(1)


@app.command()
def counters(
    kernels: Kernels = None, backends: Backends = None, phase: Phase = None, data: Data = DATA
):
    """Read what the hardware counts of a call of each kernel. Needs a GPU, and ncu on the PATH.

    data/<machine>/counters.csv gets, a cell a row: bytes of the memory and of the L2, sectors a
    request, hits in the L2, occupancy; of the headline sizes, on cold caches. Exit code 1 if a
    kernel fails.
    """
    from study.bench.cells import select
    from study.speed import counters as module

    if not module.run(select(kernels, backends, phase), data=data):
        raise typer.Exit(1)


@app.command()
def dispatch(
    kernels: Kernels = None, backends: Backends = None, phase: Phase = None, data: Data = DATA
):
    """Time on the host how long a call takes until it returns, and a launch alone. Needs a GPU.

    data/<machine>/dispatch.csv gets, a cell a row: µs by the wall's clock, of each kernel at its
    smallest size. Exit code 1 if a kernel fails.
    """
    from study.bench.cells import select
    from study.speed import dispatch as module

    if not module.run(select(kernels, backends, phase), data=data):
        raise typer.Exit(1)


@app.command()
def stability(
    kernels: Kernels = None, backends: Backends = None, phase: Phase = None, data: Data = DATA
):
    """See how large the inputs of a softmax may grow before its result is not finite, or wrong.

    Without a GPU the kernels run on the CPU tier and nothing is saved; with one, the share of
    finite rows and the error at each scale of the inputs, and the largest input that comes out
    right, go to data/<machine>/stability.csv. Exit code 1 if a kernel fails.
    """
    from study.agree import stability as module
    from study.bench.cells import select

    if not module.run(select(kernels, backends, phase), data=data):
        raise typer.Exit(1)


@app.command()
def train(
    kernels: Kernels = None, backends: Backends = None, phase: Phase = None, data: Data = DATA
):
    """Train a small transformer with each kernel that torch differentiates. Needs a GPU.

    data/<machine>/training.csv gets the loss curves of some seeds, with each backend and with the
    main baseline: they must be alike. Exit code 1 if a kernel fails.
    """
    from study.agree import training as module
    from study.bench.cells import select

    if not module.run(select(kernels, backends, phase), data=data):
        raise typer.Exit(1)


@app.command()
def inspect(
    kernels: Kernels = None,
    backends: Backends = None,
    phase: Phase = None,
    fresh: Annotated[
        bool, typer.Option(help="Compile again what is compiled already, and unchanged.")
    ] = False,
    data: Data = DATA,
):
    """Compile every variant of each kernel for an H100 and an A100, and read the machine code.

    Needs no GPU. data/codegen.csv gets, a variant a row: registers, spills, shared memory,
    occupancy, and the instructions by class: tensor cores, double precision, the width of each load
    and store, barriers. They often say why one backend is faster. Exit code 1 if a kernel does not
    compile.
    """
    from study.bench.cells import select
    from study.code import codegen as module

    if not module.run(select(kernels, backends, phase), fresh=fresh, data=data):
        raise typer.Exit(1)


@app.command()
def complexity(
    kernels: Kernels = None, backends: Backends = None, phase: Phase = None, data: Data = DATA
):
    """Count size and structure of each implementation into data/complexity.csv. Needs no GPU."""
    from study.bench.cells import select
    from study.code import complexity as module

    module.run(select(kernels, backends, phase), data=data)


@app.command()
def report(
    data: Data = DATA,
    out: Annotated[
        Path, typer.Option(help="Where report.md, index.html and report.pdf go.")
    ] = REPORT,
):
    """Build the report from data/ and report/text/, testing every claim it makes on the way.

    Into report/ of the checkout, it also renews the answer in the README.
    """
    from study.report import build as module

    if not module.run(data=data, out=out):
        raise typer.Exit(1)


@app.command()
def compare(
    machine: Annotated[
        str | None, typer.Argument(help="Its folder in data/; else this one, or the only other.")
    ] = None,
    kernels: Kernels = None,
    backends: Backends = None,
    phase: Phase = None,
    out: Annotated[Path | None, typer.Option(help="A Markdown file that gets the same.")] = None,
    data: Data = DATA,
):
    """Tell which published conclusions hold on another machine, are reversed, or are undecided.

    Each stands with the numbers that decide it, of both machines. Below stand the speeds of each
    two backends, one over the other, at the headline size of each kernel; --kernels, --backends and
    --phase narrow these down. Nothing is measured: `study measure` does that.
    """
    from study.bench.cells import select
    from study.report import compare as module

    module.run(select(kernels, backends, phase), machine, data=data, out=out)


@app.command()
def status(
    kernels: Kernels = None, backends: Backends = None, phase: Phase = None, data: Data = DATA
):
    """List the cells that are missing, or stale as their source changed. Exit code 1 if any is."""
    from study import status as module
    from study.bench.cells import select

    if not module.run(select(kernels, backends, phase), data=data):
        raise typer.Exit(1)


@app.command()
def run(kernels: Kernels = None, backends: Backends = None, phase: Phase = None, data: Data = DATA):
    """Do the whole study: verify, measure, dispatch, stability and train (with a GPU) or, without
    one, verify a covering choice of sizes and inspect what changed; complexity, report."""
    from implementations import DEVICE

    on_gpu = DEVICE == "cuda"
    verify(kernels, backends, phase, cover=not on_gpu, data=data)
    if on_gpu:
        measure(kernels, backends, phase, data=data)
        dispatch(kernels, backends, phase, data=data)
        stability(kernels, backends, phase, data=data)
        train(kernels, backends, phase, data=data)
    else:
        inspect(kernels, backends, phase, data=data)
    complexity(kernels, backends, phase, data=data)
    report(data=data)


ENDING = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and a scheduler that ends a job


def main():
    """Run the command line; what is wrong with the request or the machine is one clear line."""
    for number in ENDING:
        signal.signal(number, _interrupt)
    try:
        app()
    except SystemExit as end:
        if end.code != 130:
            raise
        _end("interrupted; what was done so far is kept", 130)
    except (RuntimeError, OSError) as error:
        _end(error, getattr(error, "exit_code", 1))


def _interrupt(*_) -> None:
    """End what is running, once: many send the signal to a process and to its group, and the
    second would break off the saving of what was done."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end(said: object, code: int) -> None:
    print(f"study: {said}", file=sys.stderr)
    sys.exit(code)
