"""Data that nobody measured, in the shape of data/, to try the report on."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from implementations.common import registry
from implementations.common.check import dtype_name
from study.agree.stability import cells
from study.bench import store
from study.bench.cells import size_text
from study.bench.fingerprint import fingerprint
from study.code.codegen import CLASSES
from study.report.claims import PUBLISHED, headline
from study.speed.measure import reference, work
from study.speed.ratios import KEY, SLOWER, TWICE, derive, protocol

REACHED = {"triton": 0.995, "cupy": 0.985, "numba": 0.975, "torch": 0.61}  # of the limit
MATMUL = {"triton": 0.95, "cupy": 0.62, "numba": 0.6, "cublas": 1.0}
HIGHEST_CLOCK = 1980  # MHz
FLOOR_US = 1.2
TOKENS = {"triton": 220, "cupy": 560, "numba": 610}
LONGER = {"softmax_safe": 3, "softmax_online": 3}  # kernels, in tokens
# elements of a row, which Triton reads twice and others hold in 32 bits each
LONG_ROW = 100_000


def samples(failed: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """samples.parquet of every kernel, backend, baseline, ceiling, dtype and bench size.

    failed: (kernel, backend) → the error of its every cell.
    """
    rng = np.random.default_rng(0)
    tables = []

    def entry(cell, key, us, source="", clock=HIGHEST_CLOCK):
        tables.append(
            pd.DataFrame(
                dict(zip(KEY, key, strict=True))
                | dict(cell=cell)
                | dict(process=np.repeat(range(3), 20), round=np.tile(range(20), 3))
                | dict(device_us=us * np.exp(0.01 * rng.standard_normal(60)), sm_clock_mhz=clock)
                | dict(error="", source_hash=source)
            )
        )

    for kernel in registry.kernels():
        spec = registry.spec(kernel)
        for dtype in spec.dtypes:
            for size in spec.timed_sizes(dtype):
                work, name = spec.work(dtype, **size), dtype_name(dtype)
                memory = work.unit == "GB/s"
                best = work.bytes / 3e6 if memory else work.flops / 690e6  # µs at the limit
                moved = spec.traffic(dtype, **size) if spec.traffic else work.bytes
                slow = max(moved / work.bytes if memory else 1, 256 / size.get("block_size", 256))
                cell = f"{kernel}-{name}-{size_text(size)}"
                capped = work.flops > 1e11  # the GPU's power
                clock = 0.75 * HIGHEST_CLOCK if capped else HIGHEST_CLOCK
                for backend in (*registry.BACKENDS, *spec.baselines):
                    reached = (REACHED if memory else MATMUL).get(backend, 0.95)
                    if kernel == "softmax_online" and size["N"] > LONG_ROW:
                        reached /= 1.5 if backend == "triton" or dtype.itemsize == 2 else 1
                    if kernel == "broadcast_fma" and size["N"] > LONG_ROW:
                        reached /= 1.03
                    if backend in ("cupy", "numba") and not memory and not capped:
                        reached *= 1.1
                    us = slow * best / reached + FLOOR_US
                    source = fingerprint(kernel, backend)
                    entry(cell, (kernel, backend, name, size_text(size)), us, source, clock)
                    if backend == "triton" and size == spec.headline:
                        for end, factor in ((TWICE, 1), (SLOWER, 1.05)):
                            planted = (kernel, backend + end, name, size_text(size))
                            entry(cell, planted, factor * us, source)
                ceiling = (work.limit, "uint8", f"bytes={work.bytes}")
                if not memory:
                    ceiling = (work.limit, name, size_text(size))
                entry(cell, ("_ceiling", *ceiling), best)
                entry(cell, ("_floor", "empty", "uint8", "blocks=1"), FLOOR_US)
    table = pd.concat(tables, ignore_index=True)
    for (kernel, backend), error in failed.items():
        at = (table.kernel == kernel) & (table.backend == backend)
        table.loc[at, ["device_us", "error"]] = math.nan, error
    return table


def timings(table: pd.DataFrame) -> pd.DataFrame:
    """timings.csv of the samples, each time confirmed by the profiler."""

    checks = table.groupby([*KEY, "source_hash"], as_index=False).device_us.median()
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
            rule=registry.spec(kernel).agreement.name,
            margin=0.0
            if registry.spec(kernel).agreement.name == "exact"
            else rng.uniform(0.02, 0.4),
            rms=1e-4,
            deterministic=True,
            status="agrees",
            error="",
            source_hash=fingerprint(kernel, backend),
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
            tokens=LONGER.get(kernel, 1)
            * TOKENS.get(backend, 300)
            * (i + 1)
            // (1 if scope == "all" else 3)
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
    """stability.csv: `softmax_naive` overflows from 88.5 on, the others stay right."""
    rows = []
    for kernel in registry.kernels():
        for cell in cells(kernel, registry.BACKENDS):
            for scale in registry.spec(kernel).scales:
                info, naive = torch.finfo(cell.torch_dtype), kernel == "softmax_naive"
                finite = float(scale < 100) if naive else 1.0
                rows.append(
                    asdict(cell)
                    | dict(scale=scale, finite=finite)
                    | dict(relative_error=info.eps / 2 if finite else math.nan)
                    | dict(largest=88.5 if naive else info.max, error="")
                    | dict(source_hash=fingerprint(kernel, cell.backend))
                )
    return pd.DataFrame(rows)


def write(data: Path, failed: Mapping[tuple[str, str], str] = {}) -> Path:  # noqa: B006
    """All of it into `data`; returns the machine's folder."""
    home = data / PUBLISHED
    store.write(home / "samples.parquet", table := samples(failed))
    store.write(home / "timings.csv", timings(table))
    store.write(home / "protocol.csv", protocol(table))
    store.write(home / "agreement.csv", agreement())
    store.write(home / "stability.csv", stability())
    store.write(data / "complexity.csv", complexity())
    store.write(data / "radon.csv", radon())
    store.write(data / "codegen.csv", codegen())
    environment = {
        "date": "2025-01-01",
        "gpu": {"name": "NVIDIA H100 80GB HBM3", "sm_clock_max_mhz": HIGHEST_CLOCK},
        "packages": {"torch": "2.8.0"},
        "flags": {"fast_math": False},
    }
    (home / "environment.json").write_text(json.dumps(environment))
    return home
