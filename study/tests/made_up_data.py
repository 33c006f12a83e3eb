"""Data that nobody measured, in the shape of data/, to try the report on; and texts to go with it.

All numbers follow from the specs. Tests take the kernels they need by what these are.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from implementations.common import registry
from implementations.common.check import dtype_name
from implementations.tiers.compile import TARGETS
from study.agree.agreement import rule_name
from study.agree.stability import cells
from study.agree.training import cells as training_cells
from study.bench import store
from study.bench.cells import SLOWER, TIMED, WARM, Cell, select, size_text
from study.bench.entries import FLOOR, groups, reference, work
from study.bench.fingerprint import code_fingerprint, fingerprint, spec_fingerprint
from study.code.codegen import CLASSES
from study.report.data import PUBLISHED, bound_by, headline
from study.report.document import BEGIN, END
from study.report.prose import TEXT
from study.speed import dispatch as host_time
from study.speed.cost_model import clocks
from study.speed.ratios import derive, protocol

REACHED = {  # of the limit, by the unit of the work
    "GB/s": {"triton": 0.995, "cupy": 0.985, "numba": 0.975, "torch": 0.61},
    "TFLOP/s": {"triton": 0.95, "cupy": 0.62, "numba": 0.6, "cublas": 1.0},
}
LIMIT = {"GB/s": 3000, "TFLOP/s": 690}
GPU = TARGETS["sm_90a"].properties
HIGHEST_CLOCK = 1980  # MHz
FLOOR_US = 1.2
PROCESSES, ROUNDS = 3, 8  # a cell is timed in
README = f"# Title\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n"
TOKENS = {"triton": 220, "cupy": 560, "numba": 610}


def stream() -> str:
    """A kernel that memory bounds."""
    return bound_by("GB/s")[0]


def product() -> str:
    """A kernel that the tensor cores bound."""
    return bound_by("TFLOP/s")[0]


def scaled() -> list[str]:
    """The kernels of the stability study. In the made-up data the first of them overflows."""
    return [kernel for kernel in registry.kernels() if registry.spec(kernel).scales]


def exact() -> str:
    """A kernel whose results agree to the bit."""
    return next(k for k in registry.kernels() if rule_name(registry.spec(k)) == "exact")


def samples(failed: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """samples.parquet of every kernel, backend, baseline, ceiling, dtype and bench size.

    failed: (kernel, backend) → the error of its every cell.
    """
    rows = []
    for group in groups(select()):
        # the GPU's power, of which a large product takes all
        clock = HIGHEST_CLOCK * (0.75 if group.work.flops > 1e11 else 1)
        for entry in group.entries:
            limit = entry.kernel.startswith("_")
            source = "limits" if limit else fingerprint(entry.kernel, entry.backend)
            rows.append(
                asdict(entry)
                | dict(process=0, round=0, device_us=_us(entry))
                | dict(cell=str(group), sm_clock_mhz=clock, error="", source_hash=source)
            )
    table = pd.DataFrame(rows)
    table = table.loc[table.index.repeat(PROCESSES * ROUNDS)].reset_index(drop=True)
    table["process"] = np.tile(np.repeat(range(PROCESSES), ROUNDS), len(rows))
    table["round"] = np.tile(range(ROUNDS), PROCESSES * len(rows))
    table["device_us"] *= np.exp(0.01 * np.random.default_rng(0).standard_normal(len(table)))
    for (kernel, backend), error in failed.items():
        at = (table.kernel == kernel) & (table.backend == backend)
        table.loc[at, ["device_us", "error"]] = math.nan, error
    return table


def _us(entry: Cell) -> float:
    """The time of a call of an entry."""
    if entry == FLOOR:
        return FLOOR_US
    done = work(entry.kernel, entry.backend, entry.dtype, entry.size)
    best = done.speed(1) / LIMIT[done.unit]
    if entry.kernel.startswith("_"):
        return best
    model = registry.spec(entry.kernel).traffic
    moved = model(entry.torch_dtype, **entry.sizes) if model else done.bytes
    slower = max(1, moved / done.bytes) * {SLOWER: 1.05, WARM: 0.5}.get(entry.variant, 1)
    return slower * best / REACHED[done.unit].get(entry.backend, 0.95) + FLOOR_US


def timings(table: pd.DataFrame) -> pd.DataFrame:
    """timings.csv of the samples, each time confirmed by the profiler."""

    checks = table.groupby([*TIMED, "source_hash"], as_index=False).device_us.median()
    checks = checks.assign(
        graph_us=checks.device_us, cupti_us=checks.device_us - FLOOR_US, event_us=checks.device_us
    )
    return derive(table, checks, work, reference)


def agreement() -> pd.DataFrame:
    """agreement.csv of every kernel and backend at its check sizes."""
    rng = np.random.default_rng(1)
    rows = [
        dict(
            kernel=kernel,
            backend=backend,
            dtype=dtype_name(dtype),
            size=size_text(size),
            rule=rule_name(registry.spec(kernel)),
            margin=0.0 if rule_name(registry.spec(kernel)) == "exact" else rng.uniform(0.02, 0.4),
            rms=1e-4,
            deterministic=True,
            status="agrees",
            error="",
            source_hash=fingerprint(kernel, backend),
            spec_hash=spec_fingerprint(kernel),
        )
        for kernel in registry.kernels()
        for backend in registry.BACKENDS
        for dtype in registry.spec(kernel).dtypes
        for size in registry.spec(kernel).check_sizes
    ]
    return pd.DataFrame(rows)


def complexity() -> pd.DataFrame:
    """complexity.csv in two scopes, with and without helpers."""
    rows = [
        dict(
            kernel=kernel,
            backend=backend,
            scope=scope,
            helpers=helpers,
            tokens=TOKENS.get(backend, 300) * (i + 1) // (1 if scope == "all" else 3)
            + 70 * (helpers == "with" and scope in ("device", "all") and backend != "triton"),
            distinct_tokens=90,
            source_lines=40 * (i + 1),
            halstead_volume=1306.4,
            decisions=3,
            guards=2,
            source_hash=fingerprint(kernel, backend),
        )
        for i, kernel in enumerate(registry.kernels())
        for backend in registry.BACKENDS
        for scope in ("device", "host", "tuning", "all")
        for helpers in ("without", "with")
    ]
    return pd.DataFrame(rows)


def radon() -> pd.DataFrame:
    """radon.csv, which finds nothing in CUDA C++."""
    return pd.DataFrame(
        dict(
            kernel=kernel,
            backend=backend,
            radon_cc=0 if backend == "cupy" else 2,
            radon_mi=100.0 if backend == "cupy" else 71.25,
            tokens=TOKENS.get(backend, 300),
            source_hash=fingerprint(kernel, backend),
        )
        for kernel in registry.kernels()
        for backend in registry.BACKENDS
    )


def codegen() -> pd.DataFrame:
    """codegen.csv of the headlines, a variant each."""
    return pd.DataFrame(
        dict(
            kernel=kernel,
            backend=backend,
            dtype=headline(kernel)[0],
            size=headline(kernel)[1],
            sizes=f"N=1 {headline(kernel)[1]}",
            arch="sm_90a",
            variant=f"{kernel}_kernel<N=1>",
            registers=32,
            occupancy=0.75,
            error="",
            source_hash=fingerprint(kernel, backend),
        )
        | dict.fromkeys(CLASSES, 3)
        for kernel in registry.kernels()
        for backend in registry.BACKENDS
    )


def stability() -> pd.DataFrame:
    """stability.csv: the first of the `scaled` overflows from 88.5 on, the others stay right."""
    rows = []
    for kernel in scaled():
        for cell in cells(kernel, registry.BACKENDS):
            for scale in registry.spec(kernel).scales:
                info, naive = torch.finfo(cell.torch_dtype), kernel == scaled()[0]
                finite = float(scale < 100) if naive else 1.0
                rows.append(
                    cell.key
                    | dict(scale=scale, finite=finite)
                    | dict(relative_error=info.eps / 2 if finite else math.nan)
                    | dict(largest=88.5 if naive else info.max, error="")
                    | dict(source_hash=fingerprint(kernel, cell.backend))
                )
    return pd.DataFrame(rows)


def training() -> pd.DataFrame:
    """training.csv: all curves are those of the seeds, which lie a tenth apart."""
    rows = []
    for kernel in registry.kernels():
        for cell in training_cells(kernel, registry.BACKENDS):
            for seed in range(3):
                rows += [
                    cell.key
                    | dict(seed=seed, step=step, loss=100 / step + seed / 10, error="")
                    | dict(source_hash=fingerprint(kernel, cell.backend))
                    for step in (10, 20, 30)
                ]
    return pd.DataFrame(rows)


def dispatch() -> pd.DataFrame:
    """dispatch.csv: a launch takes 5 µs, a call 10."""
    calls = {kernel: host_time.cells(kernel, registry.BACKENDS) for kernel in registry.kernels()}
    calls[host_time.LAUNCH] = host_time.launches(registry.BACKENDS)
    return pd.DataFrame(
        cell.key
        | dict.fromkeys(("host_us_p20", "host_us_p50", "host_us_p80"), us)
        | dict(calls=1000, error="", source_hash=host_time.source_hash(cell))
        for kernel, cells in calls.items()
        for us in [5 if kernel == host_time.LAUNCH else 10]
        for cell in cells
    )


def tuning() -> pd.DataFrame:
    """tuning.csv: each configuration takes as long as is predicted, give or take, but for the last
    of the space, which fails."""
    rng = np.random.default_rng(0)
    rows = []
    for kernel in registry.kernels():
        spec = registry.spec(kernel)
        for backend in registry.BACKENDS if spec.tuning else ():
            for size in spec.bench_sizes:
                for configuration in spec.tuning.space:
                    predicted = clocks(configuration, **size, multiprocessors=GPU.multiprocessors)
                    failed = configuration == spec.tuning.space[-1]
                    rows.append(
                        Cell(kernel, backend, headline(kernel)[0], size_text(size)).key
                        | configuration._asdict()
                        | dict(default=configuration == spec.tuning.default(GPU))
                        | dict(predicted_clocks=predicted, error="no memory" if failed else "")
                        | dict(device_us_p50=math.nan if failed else predicted * rng.uniform(1, 2))
                        | dict(source_hash=code_fingerprint(kernel, backend))
                    )
    return pd.DataFrame(rows)


def mutants() -> pd.DataFrame:
    """mutants.csv of two faults in each: the addresses show one, the values the other."""
    return pd.DataFrame(
        dict(
            kernel=kernel,
            backend=backend,
            operator=f"{by} wrong",
            file=registry.files(kernel, backend)[0].name,
            before="x = 1",
            after="x = 2\ny = x" if by == "values" else "x = 3",
            status="killed",
            by=by,
            dtype=headline(kernel)[0],
            size=headline(kernel)[1],
            conditions="",
            source_hash=fingerprint(kernel, backend),
        )
        for kernel in registry.kernels()
        for backend in registry.BACKENDS
        for by in ("addresses", "values")
    )


def write(data: Path, failed: Mapping[tuple[str, str], str] = {}) -> Path:  # noqa: B006
    """All of it into `data`; returns the machine's folder."""
    home = data / PUBLISHED
    store.write(home / "samples.parquet", table := samples(failed))
    store.write(home / "timings.csv", timings(table))
    store.write(home / "protocol.csv", protocol(table))
    store.write(home / "agreement.csv", agreement())
    store.write(home / "stability.csv", stability())
    store.write(home / "training.csv", training())
    store.write(home / "dispatch.csv", dispatch())
    store.write(home / "tuning.csv", tuning())
    store.write(data / "complexity.csv", complexity())
    store.write(data / "radon.csv", radon())
    store.write(data / "codegen.csv", codegen())
    store.write(data / "mutants.csv", mutants())
    environment = {
        "date": "2025-01-01",
        "gpu": {"name": "NVIDIA H200", "sm_clock_max_mhz": HIGHEST_CLOCK}
        | {"compute_capability": "9.0", "multiprocessors": GPU.multiprocessors}
        | {"l2_bytes": 60 * 2**20},
        "packages": {"torch": "2.8.0"},
        "flags": {"fast_math": False},
    }
    (home / "environment.json").write_text(json.dumps(environment))
    return home


def age(home: Path, kernel: str, backend: str) -> None:
    """Let what was timed of an implementation be of another source than the present one."""
    for name in ("samples.parquet", "timings.csv"):
        table = store.read(home / name)
        old = (table.kernel == kernel) & (table.backend == backend)
        hashes = table.source_hash.mask(old, "123456789012")
        store.write(home / name, table.assign(source_hash=hashes))


CLAIMS = {  # all hold on the made-up data
    "at_the_limit": "least(of_limit, memory_bound) >= 0.9",
    "ahead_on_tensor_cores": "least(ratio, compute_bound, 'triton', to='cupy') >= 1.05",
    "shortest": "all_of(median(tokens, kernels, 'cupy', to='triton') >= 1.5, "
    "median(tokens, kernels, 'numba', to='triton') >= 1.5)",
    "never_beyond_the_bound": "most(margin) <= 1",
}


def claim(name: str, test: str, sentence: str = "So it is.") -> str:
    """A claim as it stands in a text."""
    return f'{{% call claim("{name}", "{test}") %}}\n{sentence}\n{{% endcall %}}\n'


def text(folder: Path) -> Path:
    """A folder of texts like report/text/: those of no kernel as they are, and others made up."""
    named = shutil.ignore_patterns("day*", "phase*", "machines", "answer.md")
    shutil.copytree(TEXT, folder, ignore=named)
    (folder / "machines").mkdir()
    first, *others = (claim(name, test) for name, test in CLAIMS.items())
    (folder / "answer.md").write_text("\n".join(others))
    (folder / f"phase{registry.phase(stream())}.md").write_text("An overview.")
    day = registry.spec(stream()).day
    (folder / f"day{day:02}_{stream()}.md").write_text(f"Before.\n\n### Why they differ\n\n{first}")
    return folder
