"""From raw samples to medians, ratios with intervals and verdicts. Equal samples, equal tables."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd

from implementations.common.spec import Work
from study.bench.cells import AGAIN, KEY, SLOWER, TIMED, WARM

ROUND = ["cell", "process", "round"]
CHECKED = ["graph_us", "cupti_us", "event_us"]
COLUMNS = [
    *TIMED,
    *("device_us_p20", "device_us_p50", "device_us_p80", "samples", "processes"),
    *("bytes", "flops", "unit", "speed", "floor_us", *CHECKED),
    *("reference", "ratio", "ratio_low", "ratio_high"),
    *("ceiling", "of_ceiling", "of_ceiling_low", "of_ceiling_high"),
    *("verdict", "error", "source_hash"),
]

RESAMPLES, SEED = 2000, 20240
EQUAL = 1.05  # within this factor two speeds are called equal
IMPOSSIBLE = 1.05  # beyond this multiple of the ceiling a speed is an error
LAUNCH_BOUND = 3  # times the floor
AGREE_SHARE, AGREE_US = 0.10, 1.5  # how far the graph may be from another instrument


def intervals(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Their time over ours, paired within rounds: its ratio, low and high of the 95 % interval.

    A row for each cell of ours (TIMED). theirs: at most one row a cell, process and round. The
    interval is that of a hierarchical bootstrap of the median log-ratio: processes are drawn, then
    rounds of each, with replacement.
    """
    pairs = ours.merge(theirs[[*ROUND, "device_us"]], on=ROUND, suffixes=("", "_theirs"))
    pairs = pairs.sort_values([*TIMED, *ROUND], ignore_index=True)
    logs = np.log(pairs["device_us_theirs"] / pairs["device_us"]).to_numpy()
    found = {}
    for key, at in pairs.groupby(TIMED, sort=False).indices.items():
        _, sizes = np.unique(pairs["process"].to_numpy()[at], return_counts=True)
        found[key] = _bootstrap(logs[at].tobytes(), tuple(sizes))
    index = pd.MultiIndex.from_tuples(list(found), names=TIMED)
    return pd.DataFrame(
        list(found.values()), index=index, columns=["ratio", "low", "high"], dtype=float
    )


@cache  # the same samples are asked for again: by the summary, by the claims
def _bootstrap(logs: bytes, sizes: tuple[int, ...]) -> tuple[float, float, float]:
    """Ratio, low and high; `logs` are float64, the processes one after another."""
    values = np.frombuffer(logs)
    medians = np.median(values[_draws(sizes)], axis=1)
    return tuple(map(float, np.exp([np.median(values), *np.quantile(medians, (0.025, 0.975))])))


@cache
def _draws(sizes: tuple[int, ...]) -> np.ndarray:
    """Indices of the resamples, one a row."""
    rng = np.random.default_rng(SEED)
    counts = np.array(sizes)
    starts = np.cumsum(counts) - counts
    process = rng.integers(len(counts), size=(RESAMPLES, len(counts), 1))
    position = rng.random((RESAMPLES, len(counts), counts.max())) * counts[process]
    return (starts[process] + position.astype(int)).reshape(RESAMPLES, -1)


def verdict(low: float, high: float) -> str:
    """What the 95 % interval of a ratio of speeds says.

    "equal" if all of it is within ±5 %; else "faster" or "slower" if it excludes 1, or "undecided".
    """
    if np.isnan(low):
        return "no verdict"
    if 1 / EQUAL <= low and high <= EQUAL:
        return "equal"
    return "faster" if low > 1 else "slower" if high < 1 else "undecided"


def derive(
    samples: pd.DataFrame,
    checks: pd.DataFrame,
    work: Callable[[str, str, str, str], Work],
    reference: Callable[[str], str],
) -> pd.DataFrame:
    """The table of timings.csv, one row a cell.

    samples: rows of samples.parquet; `cell` names the rounds that a row belongs to, `error` why
    there is no time. checks: CHECKED by TIMED and source_hash.
    work: `(kernel, backend, dtype, size)` → Work. reference: a kernel → the name of its main
    baseline, "" where it has none.
    Of a cell measured from two states of its source only the rows of the later one count.
    """
    samples = _current(samples)
    if samples.empty:
        return pd.DataFrame(columns=COLUMNS)
    by_key = samples[~samples["variant"].isin((AGAIN, SLOWER))].groupby(TIMED, sort=False)
    table = by_key.agg(cell=("cell", "first"), error=("error", "max"), hash=("source_hash", "last"))
    done = [work(*key) for key in table.index.droplevel("variant")]
    table["bytes"] = [d.bytes for d in done]
    table["flops"] = [d.flops for d in done]
    table["unit"] = [d.unit for d in done]

    timed = _timed(samples)
    of_key = timed.groupby(TIMED, sort=False)
    for p in (20, 50, 80):
        table[f"device_us_p{p}"] = of_key["device_us"].quantile(p / 100)
    table["samples"], table["processes"] = of_key.size(), of_key["process"].nunique()
    table = table.fillna({"samples": 0, "processes": 0}).astype({"samples": int, "processes": int})
    kernels = table.index.get_level_values("kernel")
    ceilings = kernels.str.startswith("_")
    # a ceiling that does not fit beside one kernel may beside another
    table.loc[ceilings & (table["samples"] > 0), "error"] = ""
    table["speed"] = [d.speed(us) for d, us in zip(done, table["device_us_p50"], strict=True)]
    table["floor_us"] = _floor(timed, table["cell"])

    ranked = ~ceilings & (table.index.get_level_values("variant") != WARM)
    table["reference"] = [reference(k) if r else "" for k, r in zip(kernels, ranked, strict=True)]
    ours = timed[~timed["kernel"].str.startswith("_") & (timed["variant"] == "")]
    main = ours["backend"] == ours["kernel"].map(table["reference"].groupby("kernel").max())
    for name, column in _named(intervals(ours, ours[main]), "ratio"):
        table[name] = column

    limits = pd.Series([d.limit for d in done], table.index)
    table["ceiling"] = limits.where(ranked, "")
    of_cell = table[table["ceiling"] != ""].groupby("cell")["ceiling"].first()
    limit = timed[
        (timed["kernel"] == "_ceiling") & (timed["backend"] == timed["cell"].map(of_cell))
    ]
    ceiling_work = limit.drop_duplicates("cell").set_index("cell")[KEY]
    ceiling_work = {cell: work(*key) for cell, *key in ceiling_work.itertuples()}
    share = [
        _share(d, ceiling_work[cell]) if cell in ceiling_work else np.nan
        for d, cell in zip(done, table["cell"], strict=True)
    ]
    for name, column in _named(intervals(ours, limit), "of_ceiling"):
        table[name] = column * pd.Series(share, table.index)

    checks = checks.reindex(columns=[*TIMED, "source_hash", *CHECKED])
    checks = checks.astype(dict.fromkeys(CHECKED, float))
    table = table.rename(columns={"hash": "source_hash"}).reset_index()
    table = table.merge(checks, how="left", on=[*TIMED, "source_hash"])
    _gate(table)
    _judge(table)
    return table[COLUMNS]


def protocol(samples: pd.DataFrame) -> pd.DataFrame:
    """How the protocol fares on what is known: check, cells, found, rate.

    The same kernel entered twice is found where the verdict is "equal"; a planted 5 % slowdown
    where the interval of the ratio excludes 1. Launch-bound cells do not count.
    """
    rows = []
    for title, variant in (("same kernel twice", AGAIN), ("planted 5 % slowdown", SLOWER)):
        hits = []
        if not samples.empty:
            timed = _timed(_current(samples))
            floors = _floor(timed, timed["cell"])
            medians = timed.groupby(["cell", *TIMED])["device_us"].transform("median")
            timed = timed[~(medians < LAUNCH_BOUND * floors)]
            planted = timed[timed["variant"] == variant]
            original = timed[timed["variant"] == ""].merge(planted[[*KEY, *ROUND]])
            found = intervals(planted, original)
            hits = [
                verdict(low, high) == "equal" if variant == AGAIN else high < 1
                for low, high in zip(found["low"], found["high"], strict=True)
            ]
        rate = np.mean(hits) if hits else np.nan
        rows.append({"check": title, "cells": len(hits), "found": sum(hits), "rate": rate})
    return pd.DataFrame(rows)


def _current(samples: pd.DataFrame) -> pd.DataFrame:
    """The rows of each cell's latest source."""
    if samples.empty:
        return samples
    latest = samples.groupby(TIMED, sort=False)["source_hash"].transform("last")
    return samples[samples["source_hash"] == latest]


def _timed(samples: pd.DataFrame) -> pd.DataFrame:
    """The rows of the entries that never failed in their cell."""
    failed = samples.groupby(["cell", *TIMED], sort=False)["error"].transform("max")
    return samples[failed == ""]


def _floor(timed: pd.DataFrame, cells: pd.Series) -> pd.Series:
    """The empty kernel's µs in each of `cells`, NaN where it was not timed."""
    floors = timed[timed["kernel"] == "_floor"].groupby("cell")["device_us"].median()
    return cells.map(floors).astype(float)  # a float column also where nothing was timed


def _named(found: pd.DataFrame, name: str):
    return zip((name, f"{name}_low", f"{name}_high"), (found[c] for c in found), strict=True)


def _share(done: Work, limit: Work) -> float:
    """How much of the ceiling's work the kernel's is."""
    return done.flops / limit.flops if done.limit == "matmul" else done.bytes / limit.bytes


def _gate(table: pd.DataFrame) -> None:
    """Mark what the machine cannot do: more than 105 % of the fastest ceiling of its kind.

    Where a copy is the ceiling, that is the fastest of all bandwidths. A kernel that reads more
    than it writes may be faster than a copy: memory loses time when it turns from one to the other.
    """
    limits = table[table["kernel"] == "_ceiling"]
    for name, ours in table[table["ceiling"] != ""].groupby("ceiling"):
        kind = limits["unit"] == "GB/s" if name == "copy" else limits["backend"] == name
        peak = limits[kind].groupby("dtype")["speed"].max().to_dict()
        dtypes = ours["dtype"] if name == "matmul" else ["uint8"] * len(ours)
        fastest = pd.Series([peak.get(dtype, np.nan) for dtype in dtypes], ours.index)
        for i in ours.index[ours["speed"] > IMPOSSIBLE * fastest]:
            unit, what = ours.loc[i, "unit"], "any bandwidth" if name == "copy" else name
            table.loc[i, "error"] = (
                f"{ours.loc[i, 'speed']:.4g} {unit} is above 105 % "
                f"of the fastest ceiling of {what}, {fastest[i]:.4g} {unit}"
            )


def _judge(table: pd.DataFrame) -> None:
    us, floor, graph = table["device_us_p50"], table["floor_us"], table["graph_us"]
    # One other instrument is enough: the profiler sees kernels apart from each other, the events
    # see them queued. False without a cross-check.
    within = np.maximum(AGREE_SHARE * graph, AGREE_US)
    agree = (graph - floor - table["cupti_us"]).abs() <= within
    agree |= (graph - table["event_us"]).abs() <= within
    said = [verdict(*pair) for pair in zip(table["ratio_low"], table["ratio_high"], strict=True)]
    table["verdict"] = np.select(
        [
            table["ceiling"] == "",
            table["error"] != "",
            us < LAUNCH_BOUND * floor,
            agree,
        ],
        ["", "no verdict", "launch-bound", said],
        "no verdict",
    )
