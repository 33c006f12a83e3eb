"""The machine code of each kernel: compiled for an H100 and an A100 as at a launch, and read.

No GPU is needed. A variant is one machine code that a host function launches; a row of codegen.csv
is a variant:
    arch                sm_90a or sm_80
    size, sizes         the first size that launches it, and all that do
    variant, code       the kernel with what is compiled into it; a hash of its instructions
    package, assembler  what compiled it; the ptxas that made the cubin (from release 13 on it says)
    registers, local_bytes   of a thread; local_bytes is its stack, for what is spilled and for
                        arrays that are indexed at run time, as registers cannot be
    spill_bytes         stored and loaded by the instructions that ptxas marks as spills
    static_shared_bytes, dynamic_shared_bytes, threads   of a block
    blocks_per_sm, occupancy   blocks a multiprocessor holds at once; their part of its 64 warps
    error               why there is no code; nothing else of the variant is known then. On a GPU of
                        this architecture also where the driver, which then loads the code, has
                        other registers, bytes or blocks than were read from it
The rest counts instructions as they stand in the code, not as often as they run:
    total               all but the NOPs that fill up its end
    hmma, hgmma         tensor cores: by a warp, by a warpgroup
    fp32, fp64          arithmetic and comparisons (ffma: those of fp32 that are fused); fp64 also
                        conversions
    integer             arithmetic and logic, much of it addresses; no moves
    loads_*, stores_*   of global memory, by the bits a thread moves at once: LDG, LDGSTS and STG;
                        LD and ST too, for ptxas could not tell global from shared memory there
    ldgsts, utmaldg, utmastg   copies between global and shared memory: cp.async (among the loads as
                        well), and the tensor memory accelerator's
    ldsm, bar, shfl, mufu   ldmatrix, barriers of the block, shuffles, the special-function unit
    local_loads, local_stores   of the stack
"""

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Event

import pandas as pd
import torch
from rich.table import Column, Table
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map_only

from implementations.common import registry
from implementations.tiers import compile as offline
from study.bench import store
from study.bench.cells import Cell, Selection, size_text
from study.bench.fingerprint import fingerprint
from study.bench.progress import console, progress
from study.bench.worker import Worker, WorkerFailed, workers

# of a worker: the device is decided at import, and the CPU tier's settings would be inherited
ENVIRONMENT = {"STUDY_DEVICE": "compile", "TRITON_INTERPRET": "0", "NUMBA_ENABLE_CUDASIM": "0"}
ARCHS = tuple(offline.TARGETS)
TIMEOUT = 600  # seconds for a cell: autotune compiles all its configurations

# a multiprocessor of compute capability 8.0 and 9.0, as cuda_occupancy.h has it
WARP, MAX_WARPS, MAX_BLOCKS = 32, 64, 32
PARTITIONS, REGISTERS, REGISTER_UNIT = 4, 16384, 256  # of a partition, which a warp never leaves
SHARED_RESERVED, SHARED_UNIT = 1024, 128  # bytes; reserved: of each block

INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(([A-Z][\w.]*).*?);", re.M)
WIDTHS = {"128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}
CLASSES = {  # of an opcode with its width in bits: "LDG.E.CONSTANT 32"
    "total": r"(?!NOP\b)",
    "hmma": r"HMMA\b",
    "hgmma": r"HGMMA\b",
    "ffma": r"FFMA\b",
    "fp32": r"F(ADD|MUL|FMA|MNMX|SETP?|SEL|CHK)\b",
    "fp64": r"D(ADD|MUL|FMA|MNMX|SETP|MMA)\b|.*\.F64\b|MUFU\.\w+64H\b",
    "integer": r"(?!IMAD\.MOV)U?(IADD3?|IMAD|IABS|IMNMX|ISETP|IDP|LEA|LOP3|SHF|SHL|SHR|POPC|FLO"
    r"|BREV|BMSK|SGXT|VIADD\w*|VIMNMX\w*)\b",
    **{f"loads_{bits}": rf"(LDG|LDGSTS|LD)\b.* {bits}$" for bits in (128, 64, 32, 16, 8)},
    **{f"stores_{bits}": rf"(STG|ST)\b.* {bits}$" for bits in (128, 64, 32, 16, 8)},
    **{opcode.lower(): rf"{opcode}\b" for opcode in ("LDGSTS", "UTMALDG", "UTMASTG", "LDSM")},
    **{opcode.lower(): rf"{opcode}\b" for opcode in ("BAR", "SHFL", "MUFU")},
    "local_loads": r"LDL\b",
    "local_stores": r"STL\b",
}
PRINTED = {  # column → title
    "registers": "registers",
    "spill_bytes": "spills",
    "occupancy": "occupancy",
    "total": "instructions",
}


def width(opcode: str) -> int:
    """The bits that a load or store moves in each thread: "LDG.E.128.CONSTANT" → 128."""
    return next((WIDTHS[part] for part in opcode.split(".") if part in WIDTHS), 32)


def count(opcodes: Iterable[str]) -> dict[str, int]:
    """How many of the opcodes are of each of CLASSES."""
    named = [f"{opcode} {width(opcode)}" for opcode in opcodes]
    return {
        name: sum(re.match(pattern, opcode) is not None for opcode in named)
        for name, pattern in CLASSES.items()
    }


def blocks_per_sm(registers: int, threads: int, shared_bytes: int) -> int:
    """The blocks that a multiprocessor holds at once, 0 if it cannot hold one.

    registers: of a thread. threads, shared_bytes: of a block.
    """
    warps = -(-threads // WARP)
    registers = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT  # of a warp
    shared = -(-(shared_bytes + SHARED_RESERVED) // SHARED_UNIT) * SHARED_UNIT
    if -(-warps // PARTITIONS) * registers > REGISTERS:
        return 0
    by_registers = REGISTERS // registers * PARTITIONS // warps
    return min(MAX_BLOCKS, MAX_WARPS // warps, by_registers, offline.TARGET.shared_bytes // shared)


def _cuobjdump(cubin: bytes) -> str:
    tool = Path(find_spec("triton").origin).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-res-usage", "-elf", "-sass", file.name]  # 0.4 s, most of it to start
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def read(launch: offline.Launch) -> dict:
    """What the cubin and the launch tell: the columns of codegen.csv from `code` on."""
    listing = _cuobjdump(launch.cubin)
    usage = re.search(rf"Function {re.escape(launch.symbol)}:\n(.*)", listing)[1]
    usage = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}
    notes = listing.split(f"\n.nv.info.{launch.symbol}\n")[1].split("\n.")[0]
    spills = {int(at, 16) for at in re.findall(r"SpillRefill\s*:\s*Offset\s*: (\w+)", notes)}
    instructions = INSTRUCTION.findall(
        listing.split(f"Function : {launch.symbol}\n")[1].split("Function :")[0]
    )
    spilled = (width(opcode) // 8 for at, _, opcode in instructions if int(at, 16) in spills)
    static = max(usage["SHARED"] - SHARED_RESERVED, 0)  # without any, it reports 0
    blocks = blocks_per_sm(usage["REG"], launch.threads, static + launch.shared_bytes)
    return {
        "code": hashlib.sha256(repr(instructions).encode()).hexdigest()[:12],
        "assembler": b"".join(re.findall(rb"release [\d.]+, V([\d.]+)", launch.cubin)).decode(),
        "registers": usage["REG"],
        "local_bytes": usage["STACK"] + usage["LOCAL"],
        "spill_bytes": sum(spilled),
        "static_shared_bytes": static,
        "dynamic_shared_bytes": launch.shared_bytes,
        "threads": launch.threads,
        "blocks_per_sm": blocks,
        "occupancy": blocks * -(-launch.threads // WARP) / MAX_WARPS,
        **count(opcode for _, _, opcode in instructions),
    }


LOADED = {  # column of codegen.csv → the driver's attribute of a function
    "registers": "NUM_REGS",
    "local_bytes": "LOCAL_SIZE_BYTES",
    "static_shared_bytes": "SHARED_SIZE_BYTES",
}


def loaded(launch: offline.Launch) -> dict[str, int]:
    """What the driver says of the function once it is loaded; nothing without a GPU to load it."""
    if (
        not torch.cuda.is_available()
        or torch.cuda.get_device_capability() != offline.TARGET.capability
    ):
        return {}
    from cuda.bindings import driver

    def ask(function, *args):
        error, *answer = function(*args)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{function.__name__} must succeed, got {error.name}")
        return answer[0] if answer else None

    torch.zeros(1, device="cuda")  # a context
    module = ask(driver.cuModuleLoadData, launch.cubin)
    function = ask(driver.cuModuleGetFunction, module, launch.symbol.encode())
    kinds = {
        name: getattr(driver.CUfunction_attribute, f"CU_FUNC_ATTRIBUTE_{kind}")
        for name, kind in (LOADED | {"dynamic": "MAX_DYNAMIC_SHARED_SIZE_BYTES"}).items()
    }
    ask(driver.cuFuncSetAttribute, function, kinds["dynamic"], launch.shared_bytes)
    occupancy = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor
    found = {name: ask(driver.cuFuncGetAttribute, kinds[name], function) for name in LOADED}
    found["blocks_per_sm"] = ask(occupancy, function, launch.threads, launch.shared_bytes)
    ask(driver.cuModuleUnload, module)
    return found


def _compared(launch: offline.Launch) -> dict:
    """What was read of a launch; with an error where its loaded function has other figures."""
    figures = read(launch)
    others = [
        f"{name} {figures[name]} in the code, {value} when loaded"
        for name, value in loaded(launch).items()
        if value != figures[name]
    ]
    return {"error": "; ".join(others)} | figures


def inputs(cell: Cell) -> tuple:
    """The cell's arguments by shape, strides and dtype, in memory that nobody touches, so that the
    largest cost nothing."""
    with FakeTensorMode():
        fakes = registry.spec(cell.kernel).arguments(cell.torch_dtype, "cpu", 0, **cell.sizes)

    def untouched(fake):
        storage = torch.empty(fake.untyped_storage().nbytes(), dtype=torch.uint8).view(fake.dtype)
        return storage.as_strided(fake.shape, fake.stride(), fake.storage_offset())

    return tree_map_only(torch.Tensor, untouched, fakes)


def variants(cell: Cell) -> list[dict]:
    """What the cell launches, as columns of codegen.csv. In a worker with ENVIRONMENT."""
    spec = registry.spec(cell.kernel)
    host = spec.called(registry.load(cell.kernel, cell.backend))
    package = import_module(registry.BACKENDS[spec.backend_of(cell.backend)].packages[0])
    offline.launches.clear()
    host(*inputs(cell))
    compiled_by = {"package": f"{package.__name__} {package.__version__}"}
    # of a loop of launches those that are alike in what is read of them count once
    alike = {(x.name, x.cubin, x.symbol, x.threads, x.shared_bytes): x for x in offline.launches}
    return [{"variant": launch.name} | compiled_by | _compared(launch) for launch in alike.values()]


def rows(cells: Iterable[Cell], archs: tuple[str, ...] = ARCHS) -> Iterator[list[dict]]:
    """The rows of codegen.csv of one implementation after the other; a worker a core compiles."""
    implementations, left = {}, Event()
    for cell in cells:
        implementations.setdefault((cell.kernel, cell.backend), []).append(cell)
    count = min(len(implementations), os.cpu_count() // len(archs)) or 1

    with ExitStack() as stack:
        total = len(archs) * sum(map(len, implementations.values()))
        if not total:
            return
        step = stack.enter_context(progress("compiling", total))

        def begin(cell):
            if left.is_set():
                raise CancelledError
            step(str(cell))

        def compiled(arch):
            each = stack.enter_context(workers(count, ENVIRONMENT | {"STUDY_ARCH": arch}))
            return each(partial(_rows, arch=arch, begin=begin), implementations.values())

        try:
            for found in zip(*map(compiled, archs), strict=True):
                yield sum(found, [])
        finally:
            left.set()  # an interruption gives up the cells in hand, and begins none


def _rows(
    worker: Worker, cells: list[Cell], arch: str, begin: Callable[[Cell], None]
) -> list[dict]:
    stamp = {"source_hash": fingerprint(cells[0].kernel, cells[0].backend)}
    found, sizes = {}, {}
    for cell in cells:
        begin(cell)
        try:
            launched = worker.call(variants, cell, timeout=TIMEOUT)
        except WorkerFailed as failure:
            launched = [{"error": failure.reason}]
        for variant in launched:
            key = (cell.dtype, *variant.values())
            found.setdefault(key, (cell, variant))
            sizes.setdefault(key, {})[cell.size] = None  # as an ordered set
    return [
        cell.key | {"sizes": " ".join(sizes[key]), "arch": arch} | variant | stamp
        for key, (cell, variant) in found.items()
    ]


def current(published: pd.DataFrame, cells: Iterable[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """By kernel and backend, the implementations whose rows in `published` are of the present
    source, without an error and for both architectures; and of each those of `cells` that are in no
    row: they launch nothing, or are new. A cell without elements is none of these.
    """
    if published.empty:
        return {}
    listed = {key: of_one for key, of_one in published.groupby(["kernel", "backend"])}
    wanted = {}
    for cell in cells:
        wanted.setdefault((cell.kernel, cell.backend), []).append(cell)
    found = {}
    for key in wanted.keys() & listed.keys():
        of_one = listed[key]
        same = set(of_one["source_hash"]) == {fingerprint(*key)}
        if same and of_one["error"].isna().all() and set(of_one["arch"]) == set(ARCHS):
            columns = of_one[["arch", "dtype", "sizes"]].itertuples(index=False)
            rows = {(arch, dtype, size) for arch, dtype, sizes in columns for size in sizes.split()}
            found[key] = [
                cell
                for cell in wanted[key]
                if not _is_empty(cell) and not rows >= {(a, cell.dtype, cell.size) for a in ARCHS}
            ]
    return found


def _is_empty(cell: Cell) -> bool:
    """Whether a dimension is 0: then there may be nothing to launch."""
    return any(value == 0 and type(value) is int for value in cell.sizes.values())


def run(selection: Selection, *, fresh: bool, data: Path) -> bool:
    """Compile the selected kernels at all their sizes; print what the headline size launches.

    fresh: compile again what data/codegen.csv has of the present source too. The rows of each
    implementation replace those in it as it ends, others stay. Returns whether all compiled; a
    backend that cannot compile here is named and left out.
    """
    path = data / "codegen.csv"
    published = store.read(path)  # a damaged file is refused before any work
    absent = {backend: registry.absent(backend) for backend in selection.backends}
    for backend, reason in absent.items():
        if reason:
            console.print(f"{backend} cannot compile here: {reason}")

    printed = Table(Column("kernel", no_wrap=True), "backend", *PRINTED.values())
    failed = []
    cells = [*selection.cells("check"), *selection.cells("bench")]
    cells = [cell for cell in cells if _file(cell).exists()]
    cells = [cell for cell in cells if not absent[cell.backend]]
    kept = {} if fresh else current(published, cells)
    if in_no_row := [cell for missing in kept.values() for cell in missing]:
        new = {(row["kernel"], row["backend"]) for found in rows(in_no_row) for row in found}
        kept = kept.keys() - new
    if kept:
        count = len({(cell.kernel, cell.backend) for cell in cells})
        console.print(f"{len(kept)} of {count} implementations are compiled already, and left")
    for found in rows(cell for cell in cells if (cell.kernel, cell.backend) not in kept):
        if not found:
            continue
        kernel, backend = found[0]["kernel"], found[0]["backend"]
        store.replace(path, Selection((kernel,), (backend,)), found)
        failed += [row for row in found if row["error"]]
        headline = size_text(registry.spec(kernel).headline)
        row = next((r for r in found if headline in r["sizes"].split() and not r["error"]), {})
        printed.add_row(kernel, backend, *(f"{row[n]:g}" if row else "" for n in PRINTED))
    if printed.row_count:
        console.print(printed)
    console.print(f"More columns, and all variants: {path}")
    for row in failed:
        cell = Cell(*(row[name] for name in ("kernel", "backend", "dtype", "size")))
        console.print(f"{cell} failed: {row['error']}", markup=False, soft_wrap=True)
    return bool(cells) and not failed


def _file(cell: Cell) -> Path:
    return registry.folders()[cell.kernel] / f"{cell.kernel}_{cell.backend}.py"
