"""The table of kernels, and of what runs on this machine."""

from rich.table import Column, Table

from implementations.common import registry
from implementations.common.check import dtype_name
from study.bench.cells import Selection
from study.bench.progress import console


def show(selection: Selection) -> None:
    """Print day, name, formula and dtypes of each kernel; a tick or the reason for each backend.

    Loads every backend, which imports its packages: a few seconds.
    """
    titles = (registry.BACKENDS[backend].title for backend in selection.backends)
    table = Table("day", Column("kernel", no_wrap=True), "computes", "dtypes", *titles)
    for kernel in selection.kernels:
        spec = registry.spec(kernel)
        table.add_row(
            str(spec.day),
            kernel,
            spec.reference.__doc__.splitlines()[0],
            ", ".join(map(dtype_name, spec.dtypes)),
            *(_state(kernel, backend) for backend in selection.backends),
        )
    console.print(table)


def _state(kernel: str, backend: str) -> str:
    try:
        registry.load(kernel, backend)
    except Exception as error:  # a broken file must not hide the other kernels
        return str(error) if isinstance(error, registry.Unavailable) else repr(error)
    return "✓"
