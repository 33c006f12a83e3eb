"""The choice of check sizes that is verified where there are only minutes."""

import pandas as pd
import pytest

from implementations.common import registry
from study.agree.covering import ELEMENT, covering
from study.bench.cells import select
from study.bench.fingerprint import fingerprint
from study.tests import chosen as kernels

KERNEL, BACKEND = kernels.small(), "cupy"
TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}


def checked():
    return list(select(KERNEL, BACKEND).cells("check"))


def listed(variant, cells=None, **changed):
    """codegen.csv where each cell that is not empty launches `variant(cell)`."""
    stamp = fingerprint(KERNEL, BACKEND)
    rows = [
        {**cell.key, "sizes": f"N=99 {cell.size}", "variant": variant(cell), "error": None}
        | {"arch": "sm_90a", "source_hash": stamp}
        | changed
        for cell in cells or checked()
        if not is_empty(cell)
    ]
    return pd.DataFrame(rows)


def is_empty(cell):
    return 0 in cell.sizes.values()


def chosen(codegen):
    return covering(select(KERNEL, BACKEND), codegen)


def cost(cell):
    return registry.spec(KERNEL).work(registry.spec(KERNEL).dtypes[0], **cell.sizes).bytes


def test_one_variant_takes_a_small_size_in_each_dtype_and_the_empty_ones():
    found = chosen(listed(lambda cell: f"kernel<{TYPES[cell.dtype]}, 4>"))
    launching = [cell for cell in found if not is_empty(cell)]
    least = min(cost(cell) for cell in checked() if not is_empty(cell))
    assert sorted(cell.dtype for cell in launching) == sorted(TYPES)
    assert {cost(cell) for cell in launching} == {least}
    empty = [cell.size for cell in found if is_empty(cell)]
    assert sorted(empty) == sorted({cell.size for cell in checked() if is_empty(cell)})


def test_every_variant_is_launched_by_as_few_and_as_small_cells_as_can_be():
    """A variant each size, and one that all sizes launch."""
    each = listed(lambda cell: f"kernel<{TYPES[cell.dtype]}, {cell.size}>")
    codegen = pd.concat([each, listed(lambda cell: "second_kernel")])
    found = [cell for cell in chosen(codegen) if not is_empty(cell)]
    sizes = [cell.size for cell in found]
    assert sorted(sizes) == sorted({cell.size for cell in checked() if not is_empty(cell)})
    dtypes = [cell.dtype for cell in found]
    counts = [dtypes.count(dtype) for dtype in TYPES]
    assert max(counts) - min(counts) <= 1  # by turns


def test_a_variant_of_large_sizes_is_not_missed():
    large = max(checked(), key=cost).size
    codegen = listed(lambda cell: "kernel<LONG>" if cell.size == large else "kernel")
    found = [cell for cell in chosen(codegen) if not is_empty(cell)]
    assert sum(cell.size == large for cell in found) == 1
    assert len(found) == len(TYPES)  # it also launches what the others do not launch alone


def test_a_variant_of_one_dtype_is_not_missed():
    codegen = listed(lambda cell: "kernel<8>" if cell.dtype == "bfloat16" else "kernel<4>")
    only = listed(lambda cell: "sum<8>", [c for c in checked() if c.dtype == "float16"][-1:])
    assert only["size"][0] in {
        cell.size for cell in chosen(pd.concat([codegen, only])) if cell.dtype == "float16"
    }


@pytest.mark.parametrize(
    "codegen",
    [
        pd.DataFrame(),
        listed(lambda cell: "kernel", source_hash="0" * 12),
        listed(lambda cell: "kernel", arch="sm_80"),
        listed(lambda cell: "kernel", kernel="another"),
        listed(lambda cell: "kernel", error="does not compile"),
    ],
    ids=["no table", "stale", "another architecture", "another kernel", "failed"],
)
def test_all_cells_of_what_is_not_listed(codegen):
    assert sorted(map(str, chosen(codegen))) == sorted(map(str, checked()))


def test_a_size_that_is_not_listed_is_chosen():
    new = max(checked(), key=cost).size
    of_before = [cell for cell in checked() if cell.size != new]
    assert new in {cell.size for cell in chosen(listed(lambda cell: "kernel", of_before))}


def test_element_types_of_variants():
    assert ELEMENT.sub("T", "sum_kernel<__nv_bfloat16, 4>") == "sum_kernel<T, 4>"
    assert ELEMENT.sub("T", "sum_kernel<float, 4>") == "sum_kernel<T, 4>"
    assert ELEMENT.sub("T", "float_kernel<BLOCK=4>") == "float_kernel<BLOCK=4>"
