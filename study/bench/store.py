"""The files of data/: one folder a machine; written atomically, refused where damaged."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pandas as pd

from implementations.common import registry
from study.bench.cells import AGAIN, SLOWER, WARM, Selection

RELATED = Path(__file__).with_name("related.csv")  # made by study.code.relate

# columns that may hold digits only, or nothing
TEXTS = ("source_hash", "spec_hash", "code", "variant")
READ_FROM_TEXT = ("complexity.csv", "radon.csv", "codegen.csv", "mutants.csv")  # and not measured
WITH_VARIANTS = ("samples.parquet", "crosschecks.csv", "timings.csv")  # tables of timed cells


class DamagedData(RuntimeError):
    """A data file that cannot be read; it is left as it is."""


def machine_name(device_name: str) -> str:
    """ "NVIDIA H100 80GB HBM3" → "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def read(path: Path) -> pd.DataFrame:
    """A CSV or Parquet table; an empty frame where there is no file. Raises DamagedData.

    Rows of before are given as those of today: timed cells with their `variant`, and what is
    related to the present sources (related.csv) with the present fingerprint.
    """
    if not path.exists():
        return pd.DataFrame()
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str))
        if path.name in WITH_VARIANTS and {"backend", "size"} <= set(table):
            # nothing reads as NaN in a CSV
            table = table.fillna({"variant": ""}) if "variant" in table else _of_before(table)
        if {"kernel", "backend", "source_hash"} <= set(table) and path.name not in READ_FROM_TEXT:
            table = _related(table)
        return table
    except Exception as error:
        raise DamagedData(f"{path} is damaged and was left untouched: {error}") from error


def _related(table: pd.DataFrame) -> pd.DataFrame:
    """A table with the present fingerprints of the rows whose sources are shown to be the same."""
    known = _relations()
    now = table["source_hash"].copy()
    some = table[now.isin({before for _, _, before in known})]  # of many rows few
    keys = zip(some["kernel"], some["backend"], some["source_hash"], strict=True)
    now[some.index] = [known.get(key, key[2]) for key in keys]
    if "rule" in table:  # of agreement.csv: what it was judged by
        specs = table.get("spec_hash", pd.Series(None, table.index, dtype=object))
        sources = zip(table["kernel"], table["backend"], table["source_hash"], strict=True)
        keys = zip(table["kernel"], specs.fillna(""), (s in known for s in sources), strict=True)
        table = table.assign(
            spec_hash=[
                known.get((kernel, "", spec), spec) if spec or same else None
                for kernel, spec, same in keys
            ]
        )
    return table.assign(source_hash=now)


@cache
def _relations() -> dict[tuple[str, str, str], str]:
    """Kernel, backend ("" for the spec) and hash of before → the present fingerprint."""
    table = pd.read_csv(RELATED, dtype=str, keep_default_na=False)
    return {tuple(key): now for *key, now in table.itertuples(index=False)}


def _of_before(table: pd.DataFrame) -> pd.DataFrame:
    """A table of timed cells in the form of before, when a variant was an ending of a backend."""
    variant = pd.Series("", table.index, dtype=str)
    backend = table["backend"]
    for ending, name in (("#2", AGAIN), ("+5%", SLOWER), (", warm", WARM)):
        variant[backend.str.endswith(ending)] = name
        backend = backend.str.removesuffix(ending)
    table = table.assign(backend=backend)
    table.insert(table.columns.get_loc("size") + 1, "variant", variant)
    return table


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write to, which then takes the place of `path` in one step.

    An interruption or a full disk leaves the old file as it was, and nothing beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, table: pd.DataFrame) -> None:
    """Replace a CSV or Parquet table in one step."""
    with replacing(path) as part:
        if path.suffix == ".parquet":
            table.to_parquet(part, index=False)
        else:
            table.to_csv(part, index=False, lineterminator="\n", float_format="%.6g")


def replace(path: Path, selection: Selection, new: list[dict]) -> pd.DataFrame:
    """Replace the selection's rows of a table; returns all of it, in the registry's order."""
    table = read(path)
    if len(table):
        kernels, backends = table["kernel"], table["backend"]
        table = table[~(kernels.isin(selection.kernels) & backends.isin(selection.backends))]
    table = pd.concat([table, pd.DataFrame(new)], ignore_index=True)
    if len(table.columns):
        table = ordered(table, ["kernel", "backend"])
        write(path, table)
    return table


def ordered(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Rows in the registry's order of kernels and backends, and in that of other columns' texts."""
    place = {name: at for at, name in enumerate((*registry.kernels(), *registry.BACKENDS))}

    def key(column: pd.Series) -> pd.Series:
        return column.map(place) if column.name in ("kernel", "backend") else column

    return table.sort_values(by, key=key, kind="stable")
