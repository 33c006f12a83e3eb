"""What the machine code of every kernel must be; and that code which is not so is found."""

import resource
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pandas as pd
import pytest
import torch

import implementations
from implementations.common import device, registry
from implementations.common.check import dtype_name
from implementations.common.cuda_cpp import STATIC_SHARED_BYTES
from implementations.tiers import compile as offline
from study.bench import store
from study.bench.cells import Cell, parse_size, select, size_text
from study.bench.fingerprint import fingerprint
from study.bench.worker import Worker
from study.code import codegen
from study.tests import chosen

KERNEL = chosen.small()

SASS = """
        Function : scale_kernel
        /*0000*/                   LDC R1, c[0x0][0x28] ;          /* 0x00000a00ff017b82 */
                                                                   /* 0x000fe20000000800 */
        /*0010*/                   S2R R44, SR_TID.X ;             /* 0x00000000002c7919 */
        /*0020*/                   IMAD.MOV.U32 R5, RZ, RZ, R4 ;   /* 0x0000000000057919 */
        /*0030*/                   IMAD.WIDE R2, R5, UR7, R44 ;    /* 0x0000000705027c25 */
        /*0040*/                   UIADD3.X UR4, UR4, UR5, URZ ;   /* 0x0000000504047290 */
        /*0050*/                   ISETP.GE.AND P4, PT, R5.reuse, UR6, PT ;
        /*0060*/              @!P1 LDG.E.LTC128B.128.CONSTANT R4, desc[UR4][R38.64] ;
        /*0070*/               @P0 LDG.E.64 R4, desc[UR4][R38.64+0x1000] ;
        /*0080*/             @!UP0 LDG.E R4, desc[UR4][R38.64] ;
        /*0090*/                   LD.E R6, desc[UR4][R6.64] ;
        /*00a0*/                   LDG.E.U16.CONSTANT R4, desc[UR4][R38.64] ;
        /*00b0*/                   LDGSTS.E.BYPASS.LTC128B.128.ZFILL [R3], desc[UR4][R8.64] ;
        /*00c0*/                   LDL.LU.64 R12, [R1+0x50] ;
        /*00d0*/                   LDSM.16.MT88.4 R4, [R3] ;
        /*00e0*/                   LDS R4, [R3] ;
        /*00f0*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0100*/                   HGMMA.64x256x16.F32 R24, gdesc[UR8], R24, !UPT ;
        /*0110*/                   FFMA.FTZ R4, R4, R5, R6 ;
        /*0120*/                   FADD R4, R4, R5 ;
        /*0130*/                   F2F.F64.F32 R6, R4 ;
        /*0140*/                   DFMA R6, R6, UR6, R4 ;
        /*0150*/                   MUFU.RCP64H R7, R7 ;
        /*0160*/                   MUFU.EX2 R7, R7 ;
        /*0170*/                   SHFL.BFLY PT, R5, R4, 0x10, 0x1f ;
        /*0180*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0190*/                   STL.128 [R1+0x68], R4 ;
        /*01a0*/                   STG.E.U8 desc[UR4][R2.64], R4 ;
        /*01b0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*01c0*/                   UTMALDG.2D [UR8], [UR4] ;
        /*01d0*/                   EXIT ;
.L_x_22:
        /*01e0*/                   BRA 0x1e0;
        /*01f0*/                   NOP;
        /*0200*/                   NOP;
"""
COUNTS = {
    **{"total": 31, "hmma": 1, "hgmma": 1, "ffma": 1, "fp32": 2, "fp64": 3, "integer": 3},
    **{"loads_128": 2, "loads_64": 1, "loads_32": 2, "loads_16": 1, "stores_128": 1, "stores_8": 1},
    **{"ldgsts": 1, "utmaldg": 1, "ldsm": 1, "bar": 1, "shfl": 1, "mufu": 2},
    **{"local_loads": 1, "local_stores": 1},
}


def test_instructions_are_counted_by_class():
    instructions = codegen.INSTRUCTION.findall(SASS)
    counts = codegen.count(opcode for _, _, opcode in instructions)
    assert {name: number for name, number in counts.items() if number} == COUNTS
    assert instructions[7] == ("0070", "LDG.E.64 R4, desc[UR4][R38.64+0x1000] ", "LDG.E.64")


@pytest.mark.parametrize(
    ("registers", "threads", "shared_bytes", "blocks"),
    [  # as cudaOccMaxActiveBlocksPerMultiprocessor of cuda_occupancy.h has them for 9.0
        (16, 32, 0, 32),  # blocks
        (32, 1024, 0, 2),  # warps
        (33, 1024, 0, 1),  # registers, given in units of 8 a thread
        (40, 32, 0, 32),
        (40, 64, 0, 24),  # a quarter of the multiprocessor holds 12 such warps, not 12.8
        (168, 384, 0, 1),
        (255, 160, 0, 1),
        (255, 256, 0, 1),
        (255, 512, 0, 0),
        (24, 128, 16 * 1024, 13),  # shared memory, 1 KB of it for the system
        (24, 128, 227 * 1024, 1),
        (24, 128, 227 * 1024 + 1, 0),
    ],
)
def test_blocks_per_sm(registers, threads, shared_bytes, blocks):
    assert codegen.blocks_per_sm(registers, threads, shared_bytes) == blocks


def test_inputs_have_the_shapes_and_cost_nothing(new_kernel):
    path = new_kernel / "double_it.py"
    of_one = "(torch.randn(N, dtype=dtype, device=device, generator=generator(device, seed)),)"
    text = path.read_text()
    assert of_one in text
    two = "tuple(torch.randn(N, n, dtype=dtype, device=device) for n in (N, 8))"
    path.write_text(text.replace(of_one, two))
    before = peak_memory()
    a, b = codegen.inputs(Cell("double_it", "triton", "bfloat16", "N=40960"))
    assert (a.shape, a.stride(), a.dtype) == ((40960, 40960), (40960, 1), torch.bfloat16)
    assert b.shape == (40960, 8) and a.data_ptr() % 16 == b.data_ptr() % 16 == 0
    assert peak_memory() - before < 500e6  # a alone is 3.3 GB


def peak_memory():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_inputs_that_are_views_stay_so(new_kernel):
    path = new_kernel / "double_it.py"
    path.write_text(path.read_text().replace("torch.randn(N,", "torch.randn(2 * N,", 1))
    path.write_text(path.read_text().replace("seed)),)", "seed))[1::2],)"))
    (x,) = codegen.inputs(Cell("double_it", "triton", "float32", "N=5"))
    assert (x.shape, x.stride(), x.storage_offset()) == ((5,), (2,), 1)
    assert x.data_ptr() % 16 == 4


# --- the rules ------------------------------------------------------------------------------------


def headline(spec, found):
    """The rows of what the headline size launches, by dtype: (torch dtype, rows)."""
    wanted = size_text(spec.headline)
    here = found[[wanted in sizes.split() for sizes in found["sizes"]]]
    return [(getattr(torch, dtype), launched) for dtype, launched in here.groupby("dtype")]


def compiles(spec, found):
    dtypes = {dtype for dtype, _ in headline(spec, found)}
    return dtypes == set(spec.dtypes) and found["error"].isna().all()


def no_spills(spec, found):
    """Nothing that is launched by a timed size."""
    return not any(found.loc[timed(spec, found), "spill_bytes"] > 0)


def timed(spec, found):
    """Which rows are launched by a size that is timed in their dtype."""
    sizes = {
        dtype_name(dtype): {size_text(size) for size in spec.timed_sizes(dtype)}
        for dtype in spec.dtypes
    }
    return [
        not sizes[dtype].isdisjoint(launching.split())
        for dtype, launching in zip(found["dtype"], found["sizes"], strict=True)
    ]


def no_fp64(spec, found):
    return not any(found["fp64"] > 0)


PROMISED = {  # what a spec's `machine_code` names → the columns of which one must count some
    "wide loads": ["loads_128", "utmaldg"],
    "wide stores": ["stores_128", "utmastg"],
    "tensor cores": ["hmma", "hgmma"],
}


def fits(spec, found):
    """A multiprocessor holds a block of what the headline launches."""
    return all(launched["blocks_per_sm"].min() > 0 for _, launched in headline(spec, found))


def asks_for_memory(spec, found):
    """The driver counts static and dynamic shared memory together, and beyond 48 KB must be asked
    first, which the launchers do for dynamic memory of more than that."""
    dynamic = found["dynamic_shared_bytes"]
    together = found["static_shared_bytes"] + dynamic
    return not any((together > STATIC_SHARED_BYTES) & (dynamic <= STATIC_SHARED_BYTES))


def keeps_promises(spec, found):
    return all(
        launched[PROMISED[promise]].to_numpy().any()
        for _, launched in headline(spec, found)
        for promise in spec.machine_code
    )


SHOWN = ["dtype", "size", "registers", "spill_bytes", "fp64", "hmma", "hgmma", "loads_128"]
SHOWN += ["stores_128", "error"]
RULES = (compiles, no_spills, no_fp64, fits, asks_for_memory, keeps_promises)


DATA = Path(__file__).parents[3] / "data" / "codegen.csv"


@pytest.fixture(scope="module")
def published():
    """data/codegen.csv: all check sizes and what is timed."""
    return store.read(DATA)


# A backend of each kernel: all would take minutes. `study inspect --fresh` compiles all.
BY_TURNS = list(zip(registry.kernels(), cycle(registry.BACKENDS), strict=False))


@pytest.fixture(scope="session")
def anew(once):
    """The headlines BY_TURNS in the first dtype, compiled once for all xdist processes."""

    def write(path):
        cells = [
            cell
            for kernel, backend in BY_TURNS
            for cell in select(kernel, backend).cells("bench")
            if is_first_headline(cell)
        ]
        store.write(path, pd.DataFrame(sum(codegen.rows(cells, codegen.ARCHS[:1]), [])))

    return store.read(once("codegen.csv", write))


def is_first_headline(cell):
    spec = registry.spec(cell.kernel)
    return cell.sizes == spec.headline and cell.torch_dtype == spec.dtypes[0]


def of(found, kernel, backend):
    """The rows of one implementation; skips where its backend is not here."""
    found = found[(found["kernel"] == kernel) & (found["backend"] == backend)]
    for error in found["error"].dropna():
        if error.startswith("Unavailable: "):
            pytest.skip(error)
    return found


# What spills is known and not mended yet: why, in which backend. At timed sizes only by TIMED.
UNALIGNED = (
    "on tensor cores at sizes that are no multiples of 16, an address for each element takes 192 "
    "registers beside the 128 of acc"
)
FEW = "ptxas keeps a few registers more for sm_90a: up to 72 bytes"
WALK = (
    "what a block keeps from one problem's tile to the next waits in memory for the end of the "
    "loop over K, in which none of it is touched"
)
OLDER = "an fp32 product compiled by Triton for sm_80 holds more of its tiles than registers take"
UNTUNED = (
    "of what is compiled for sm_80, where nothing is tuned or timed, up to 192 bytes do not fit"
)
GRADIENTS = (
    "two gradients of 128 columns are held beside scores and what they become: Triton 3.9 spills "
    "152 bytes of them at timed sizes, up to 292 at others"
)
TIMED = (WALK, OLDER, UNTUNED, GRADIENTS)
KNOWN = {
    "sm_90a": [
        ("numba", UNALIGNED),
        *[("triton", FEW)] * 3,
        *[("triton", UNALIGNED)] * 5,
        *[("triton", GRADIENTS)] * 2,
    ],
    "sm_80": [
        *[("numba", WALK), ("triton", OLDER)],
        *[("cupy", UNTUNED)] * 8,
        *[("numba", UNTUNED)] * 2,
        *[("triton", UNTUNED)] * 8,
        *[("triton", UNALIGNED)] * 5,
    ],
}


def why_it_spills(spec, rows):
    """The reason that fits all rows of an implementation that spill, else which these are."""
    sizes = [parse_size(size) for launching in rows["sizes"] for size in launching.split()]
    counts = [[n for n in size.values() if not isinstance(n, bool)] for size in sizes]
    unaligned = all(any(n % 16 for n in count) for count in counts)
    if set(rows["arch"]) == {"sm_80"} and rows["spill_bytes"].max() <= 192:
        return UNTUNED
    outputs = len(spec.agreement) if isinstance(spec.agreement, tuple) else 1
    if "tensor cores" in spec.machine_code and outputs >= 3 and rows["spill_bytes"].max() <= 292:
        return GRADIENTS
    if "tensor cores" in spec.machine_code and unaligned:
        return UNALIGNED
    lists = isinstance(spec.make_inputs(spec.dtypes[0], "cpu", 0, **spec.check_sizes[0])[0], list)
    if lists and rows["spill_bytes"].max() <= 608:
        return WALK
    product = spec.work(spec.dtypes[0], **spec.headline).limit == "matmul"
    if product and not lists and set(rows["arch"]) == {"sm_80"}:
        return OLDER
    return FEW if rows["spill_bytes"].max() <= 72 else f"\n{rows[SHOWN].to_string()}"


each_implementation = pytest.mark.parametrize(
    ("kernel", "backend"), [(k, b) for k in registry.kernels() for b in registry.BACKENDS]
)
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


@each_implementation
def test_published_is_of_the_present_source(published, kernel, backend):
    """Else: `study inspect --kernels ...`"""
    found = of(published, kernel, backend)
    assert set(found["source_hash"]) == {fingerprint(kernel, backend)}
    launched = set(" ".join(found["sizes"]).split())
    assert launched >= {cell.size for cell in select(kernel, backend).cells("bench")}


def expect_known_spills(rule, spec, found):
    """A timed size may spill for a reason of TIMED: KNOWN says how many implementations do."""
    if rule is no_spills and not rule(spec, found):
        why = why_it_spills(spec, found[found["spill_bytes"] > 0])
        if why in TIMED:
            pytest.xfail(why)


@each_rule
@each_implementation
@pytest.mark.parametrize("arch", codegen.ARCHS)
def test_rule(published, kernel, backend, rule, arch):
    found = of(published[published["arch"] == arch], kernel, backend)
    expect_known_spills(rule, registry.spec(kernel), found)
    assert rule(registry.spec(kernel), found), "\n" + found[SHOWN].to_string()


@pytest.mark.parametrize("arch", codegen.ARCHS)
def test_what_spills_at_other_sizes_is_known(published, arch):
    """As many implementations as KNOWN says: one more must be mended, one less leaves the list."""
    spilling = published[(published["arch"] == arch) & (published["spill_bytes"] > 0)]
    found = [
        (backend, why_it_spills(registry.spec(kernel), rows))
        for (kernel, backend), rows in spilling.groupby(["kernel", "backend"])
    ]
    assert sorted(found) == sorted(KNOWN[arch]), "\n" + spilling[["kernel", *SHOWN]].to_string()


@each_rule
@pytest.mark.parametrize(("kernel", "backend"), BY_TURNS)
def test_rule_when_compiled_anew(anew, kernel, backend, rule):
    found = of(anew, kernel, backend)
    first = replace(registry.spec(kernel), dtypes=registry.spec(kernel).dtypes[:1])
    expect_known_spills(rule, first, found)
    assert rule(first, found), "\n" + found[SHOWN].to_string()


def test_modes_spill_nothing_but_one():
    cells = [
        Cell(kernel, mode, dtype_name(registry.spec(kernel).dtypes[0]), size_text(size))
        for kernel in registry.kernels()
        for mode in registry.spec(kernel).modes
        for size in registry.spec(kernel).bench_sizes
    ]
    found = pd.DataFrame(sum(codegen.rows(cells, codegen.ARCHS[:1]), []))
    assert set(found["error"]) == {""}
    spilling = found[found["spill_bytes"] > 0]
    # at D = 64, where it keeps two registers in local memory for some steps
    assert [*zip(spilling["backend"], spilling["spill_bytes"], strict=True)] == [
        ("arrival_numba", 12)
    ]


# --- kernels that break them ----------------------------------------------------------------------

CUPY = """
from pathlib import Path

import torch

from implementations.common.cuda_cpp import CudaSource

SOURCE = CudaSource(Path(__file__).with_name("double_it.cu"))


def double_it(x):
    y = torch.empty_like(x)
    for name in NAMES:
        shared_bytes = 48 * 1024 if name == "unasked" else 0
        SOURCE.launch(name, (x.numel() // 256,), (64,), x, y, shared_bytes=shared_bytes)
    return y
"""
CUDA = """
__global__ void __launch_bounds__(1024, 2) NAME(const float4* x, float4* y) {
    const int tid = blockIdx.x * blockDim.x + threadIdx.x;
    float4 a = x[tid];
    BODY
    y[tid] = a;
}
"""
SPILL = """
    float4 more[16];  // 64 values, in the 32 registers that two blocks of 1024 threads leave
#pragma unroll
    for (int k = 0; k < 16; ++k) more[k] = x[tid + 1024 * k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 16; ++k) y[tid + 1024 * k] = more[15 - k];
"""
STACK = """
    float values[64];
    for (int k = 0; k < 64; ++k) values[k] = k * a.x;
    a.z = values[int(a.y)] + values[int(a.z)];
"""
UNASKED = """
    __shared__ float4 other[64];  // beside 48 KB of dynamic memory
    other[threadIdx.x] = a;
    __syncthreads();
    a = other[63 - threadIdx.x];
"""
KERNELS = {  # name → body, the rules it breaks
    "clean": ("a.x = 2.f * a.x;", set()),
    "fp64": ("a.x = 2.1 * a.x;", {"no_fp64"}),
    "spill": (SPILL, {"no_spills"}),
    "stack": (STACK, set()),  # local memory, yet no spill
    "narrow_store": ("((float*)y)[tid] = a.x + a.y + a.z + a.w; return;", {"keeps_promises"}),
    "unasked": (UNASKED, {"asks_for_memory"}),
    "narrow_load": ("a.y = a.z = a.w = a.x;", {"keeps_promises"}),
}
BROKEN = CUDA.replace("NAME", "a").replace("BODY", "twice(2);")
NUMBA = """
import torch
from numba import cuda

from implementations.common.numba_cuda import launch


@cuda.jit
def double_it_kernel(x, y):
    i = cuda.grid(1)
    y[i] = 2.1 * x[i]


def double_it(x):
    y = torch.empty_like(x)
    launch(double_it_kernel, (x.numel() // 256,), (256,), x, y)
    return y
"""
TRITON = """
import torch
import triton
import triton.language as tl


@triton.autotune([triton.Config({}, num_warps=n) for n in (1, 2)], key=[])
@triton.jit
def double_it_kernel(x_ptr, y_ptr, step, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK) * step
    tl.store(y_ptr + offs, 2 * tl.load(x_ptr + offs))


def double_it(x):
    y = torch.empty_like(x)
    double_it_kernel[(x.numel() // 256,)](x, y, 3, BLOCK=256)
    return y
"""


def add_root(folder):
    implementations.__path__.append(folder)


class Elsewhere(Worker):
    """Its child finds the kernels of a folder outside the tree as well."""

    folder = None

    def __enter__(self):
        self.call(add_root, self.folder, timeout=60)
        return self


@pytest.fixture
def inspect(new_kernel, tmp_path, monkeypatch):
    """Writes files of double_it; gives what `study inspect` returns for it, and the table of one
    architecture."""
    monkeypatch.setattr("study.bench.worker.Worker", Elsewhere)
    monkeypatch.setattr(Elsewhere, "folder", str(tmp_path))
    data = tmp_path / "data"

    def inspect(backend, arch="sm_90a", **files):
        for suffix, text in files.items():
            (new_kernel / f"double_it{suffix.replace('__', '.')}").write_text(text)
        right = codegen.run(select("double_it", backend), fresh=True, data=data)
        found = store.read(data / "codegen.csv")
        return right, found[found["arch"] == arch]

    return inspect


def broken(found):
    return {rule.__name__ for rule in RULES if not rule(registry.spec("double_it"), found)}


def test_what_cuda_breaks(inspect):
    cuda = "".join(
        CUDA.replace("NAME", name).replace("BODY", body) for name, (body, _) in KERNELS.items()
    )
    right, found = inspect("cupy", _cupy__py=CUPY + f"\n\nNAMES = {list(KERNELS)}\n", __cu=cuda)
    assert right
    rules = {name: broken(launched) for name, launched in found.groupby("variant")}
    assert rules == {name: rules for name, (_, rules) in KERNELS.items()}
    assert found.set_index("variant").loc["stack", ["local_bytes", "local_loads"]].gt(0).all()


def test_what_numba_breaks_beside_a_failure(inspect, capsys):
    right, found = inspect("cupy", _cupy__py=CUPY + "\n\nNAMES = ['a']\n", __cu=BROKEN)
    assert not right and list(found["sizes"]) == ["N=5 N=1024"]
    assert not compiles(registry.spec("double_it"), found)
    assert "twice" in found["error"][0]
    assert "double_it-cupy-float32-N=5 failed" in capsys.readouterr().out
    right, found = inspect("numba", _numba__py=NUMBA)
    assert right and list(found["backend"]) == ["cupy", "numba"]
    assert broken(found[found["backend"] == "numba"]) == {"no_fp64", "keeps_promises"}


def test_autotune_compiles_every_configuration(inspect):
    right, found = inspect("triton", _triton__py=TRITON)
    assert right and list(found["threads"]) == [32, 64]
    assert broken(found) == {"keeps_promises"}


@pytest.mark.parametrize(
    ("backend", "files"),
    [
        ("triton", {"_triton__py": TRITON}),
        ("cupy", {"_cupy__py": CUPY + "\n\nNAMES = ['a']\n"}),
        ("numba", {"_numba__py": NUMBA}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_each_architecture_has_code_of_its_own(inspect, backend, files):
    files |= {"__cu": CUDA.replace("NAME", "a").replace("BODY", "")}
    (right, hopper), (_, ampere) = (inspect(backend, arch, **files) for arch in codegen.ARCHS)
    assert right and len(hopper) == len(ampere) > 0
    assert not set(hopper["code"]) & set(ampere["code"])


@pytest.mark.parametrize(("arch", "blocks"), [("sm_90a", 2), ("sm_80", 1)])
def test_an_older_multiprocessor_has_less_shared_memory(monkeypatch, arch, blocks):
    monkeypatch.setattr(offline, "TARGET", offline.TARGETS[arch])
    assert codegen.blocks_per_sm(24, 128, 100 * 1024) == blocks


def test_clusters_are_of_the_target(monkeypatch):
    monkeypatch.setattr(device, "describe", device.describe)
    offline.install(None)
    for arch, some in (("sm_90a", True), ("sm_80", False)):
        monkeypatch.setattr(offline, "TARGET", offline.TARGETS[arch])
        assert device.properties().clusters() == some


# --- what need not be compiled again --------------------------------------------------------------


def compiled(cells, **changed):
    """Rows of codegen.csv for cells of one implementation, as if each were a variant."""
    stamp = fingerprint(cells[0].kernel, cells[0].backend)
    return pd.DataFrame(
        [
            {"arch": arch, **cell.key, "sizes": cell.size, "error": None, "source_hash": stamp}
            | changed
            for cell in cells
            for arch in codegen.ARCHS
        ]
    )


@pytest.fixture
def cells():
    """What is compiled of a kernel in Numba; among its check sizes some are empty."""
    selection = select(KERNEL, "numba")
    return [*selection.cells("check"), *selection.cells("bench")]


def launching(cells):
    return [cell for cell in cells if 0 not in cell.sizes.values()]


def test_what_is_of_the_present_source_is_left(cells):
    assert len(launching(cells)) < len(cells)
    for published in (compiled(cells), compiled(launching(cells))):
        assert codegen.current(published, cells) == {(KERNEL, "numba"): []}
    assert codegen.current(pd.DataFrame(), cells) == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda of: of.assign(source_hash=["0" * 12, *of["source_hash"][1:]]),
        lambda of: of.assign(error=["does not compile", *of["error"][1:]]),
        lambda of: of[of["arch"] == codegen.ARCHS[0]],
        lambda of: of.assign(backend="cupy"),
    ],
    ids=["stale", "failed", "an architecture", "another backend"],
)
def test_what_is_not_of_the_present_source_is_compiled_again(cells, damage):
    assert codegen.current(damage(compiled(launching(cells))), cells) == {}


def test_what_is_in_no_row_is_named(cells):
    every = launching(cells)
    without_a_row, without_a_dtype = compiled(every).iloc[1:], compiled(every)
    without_a_dtype = without_a_dtype[without_a_dtype["dtype"] != "bfloat16"]
    of_the_dtype = [cell for cell in every if cell.dtype == "bfloat16"]
    assert codegen.current(without_a_row, cells) == {(KERNEL, "numba"): every[:1]}
    assert codegen.current(without_a_dtype, cells) == {(KERNEL, "numba"): of_the_dtype}


def test_inspect_leaves_what_is_compiled_unless_asked(new_kernel, tmp_path, capsys, monkeypatch):
    begun = []

    def rows(cells):
        cells = list(cells)
        begun.append(len(cells))
        if cells:
            yield compiled(cells, error="", **dict.fromkeys(codegen.PRINTED, 0)).to_dict("records")

    def inspect(fresh=False):
        right = codegen.run(select("double_it", "numba"), fresh=fresh, data=tmp_path)
        return right, "1 of 1 implementations" in capsys.readouterr().out

    monkeypatch.setattr(codegen, "rows", rows)
    (new_kernel / "double_it_numba.py").write_text(NUMBA)
    assert inspect() == (True, False)
    assert inspect() == (True, True)
    assert inspect(fresh=True) == (True, False)
    (new_kernel / "double_it_numba.py").write_text(NUMBA.replace("2.1", "2.0"))
    assert inspect() == (True, False)
    assert begun == [2, 0, 2, 2]
    assert len(store.read(tmp_path / "codegen.csv")) == 2 * len(codegen.ARCHS)


@pytest.mark.parametrize("launches", [True, False])
def test_a_size_in_no_row_is_compiled_with_the_others_if_it_launches(
    new_kernel, tmp_path, capsys, monkeypatch, launches
):
    selection, begun = select("double_it", "numba"), []
    checked, timed = *selection.cells("check"), *selection.cells("bench")

    def rows(cells):
        cells = list(cells)
        begun.append(cells)
        if cells := [cell for cell in cells if cell == checked or launches]:
            yield compiled(cells, error="", **dict.fromkeys(codegen.PRINTED, 0)).to_dict("records")

    monkeypatch.setattr(codegen, "rows", rows)
    (new_kernel / "double_it_numba.py").write_text(NUMBA)
    store.write(tmp_path / "codegen.csv", compiled([checked]))
    assert codegen.run(selection, fresh=False, data=tmp_path)
    assert begun == [[timed], [checked, timed] if launches else []]
    assert ("1 of 1 implementations" in capsys.readouterr().out) != launches
