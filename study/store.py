"""The files of data/: one folder a machine, written atomically, refused where damaged, never overwritten blindly."""

import os
import re
from pathlib import Path

import pandas as pd


class DamagedData(RuntimeError):
    """A data file that cannot be read; it is left as it is."""


def machine_name(device_name: str) -> str:
    """ "NVIDIA H100 80GB HBM3" → "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")


def read(path: Path) -> pd.DataFrame:
    """A CSV or Parquet table; an empty frame where there is no file. Raises DamagedData."""
    if not path.exists():
        return pd.DataFrame()
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, keep_default_na=True)
    except Exception as error:
        raise DamagedData(f"{path} is damaged and was left untouched: {error}") from error


def write(path: Path, table: pd.DataFrame) -> None:
    """Replace a CSV or Parquet table in one step: an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    if path.suffix == ".parquet":
        table.to_parquet(part, index=False)
    else:
        table.to_csv(part, index=False, lineterminator="\n", float_format="%.6g")
    os.replace(part, path)
