"""A choice of check sizes that launches every variant of a kernel, for a laptop's minutes."""

import re

import pandas as pd

from implementations.common import registry
from implementations.common.check import dtype_name
from implementations.common.cuda_cpp import C_TYPE
from study.bench.cells import Cell, Selection, size_text
from study.bench.fingerprint import fingerprint

ELEMENT = re.compile(rf"\b({'|'.join(C_TYPE.values())})\b")  # in the name of a variant
ARCH = "sm_90a"  # the CPU tier is told that it is one


def covering(selection: Selection, codegen: pd.DataFrame) -> list[Cell]:
    """Of the cells that are checked, as many as launch every variant that codegen.csv lists.

    Variants that differ in nothing but the element type are one. Of every implementation each
    dtype is among them, and the least size and those that launch nothing, in some dtype. Of one
    that codegen.csv does not list as it stands now, all cells are chosen.
    """
    return [
        cell
        for kernel in selection.kernels
        for backend in selection.backends
        for cell in _covering(kernel, backend, codegen)
    ]


def _covering(kernel: str, backend: str, codegen: pd.DataFrame) -> list[Cell]:
    spec = registry.spec(kernel)
    sizes = sorted(spec.check_sizes, key=lambda size: spec.work(spec.dtypes[0], **size).bytes)
    cells = [
        Cell(kernel, backend, dtype_name(dtype), size_text(size))
        for size in sizes
        for dtype in spec.dtypes
    ]
    launching = _launching(kernel, backend, codegen, cells)
    if not launching:
        return cells
    cost = {cell: at // len(spec.dtypes) for at, cell in enumerate(cells)}
    by_size, by_dtype = {}, {}
    for cell in cells:
        by_size.setdefault(cell.size, []).append(cell)
        by_dtype.setdefault(cell.dtype, []).append(cell)
    launched = {cell for among in launching for cell in among}
    chosen = []

    def choose(among: list[Cell]) -> None:
        """Unless one is chosen, the cheapest, of its dtypes that which was chosen least."""
        if not set(among) & set(chosen):
            dtypes = [cell.dtype for cell in chosen]
            chosen.append(min(among, key=lambda cell: (cost[cell], dtypes.count(cell.dtype))))

    # What only large sizes launch comes first: they launch most of the rest as well.
    for among in sorted(launching, key=lambda among: -min(map(cost.get, among))):
        choose(among)
    for among in by_dtype.values():
        choose([cell for cell in among if cell in launched] or among)
    for among in by_size.values():
        if among[0] is cells[0] or not launched & set(among):
            choose(among)
    return sorted(chosen, key=cells.index)


def _launching(
    kernel: str, backend: str, codegen: pd.DataFrame, cells: list[Cell]
) -> list[list[Cell]]:
    """For each variant that some of the cells launch, these cells."""
    if codegen.empty:
        return []
    own = (codegen["kernel"] == kernel) & (codegen["backend"] == backend)
    own &= (codegen["arch"] == ARCH) & (codegen["source_hash"] == fingerprint(kernel, backend))
    found = {}
    for row in codegen[own & codegen["error"].isna()].itertuples():
        among = found.setdefault(ELEMENT.sub("T", row.variant), [])
        sizes = row.sizes.split()
        among += [cell for cell in cells if cell.dtype == row.dtype and cell.size in sizes]
    return [among for among in found.values() if among]
