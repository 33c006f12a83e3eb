"""The tables of the report: each a function from the data, and mostly a kernel, to rows."""

import math
from collections.abc import Iterator

import pandas as pd

from implementations.common import registry
from implementations.common.check import dtype_name
from study.bench.entries import reference
from study.report.data import Data, headline, rungs
from study.report.estimates import Estimate, microseconds, number, quantity


def title(backend: str, variant: str = "") -> str:
    """A backend or baseline as the report calls it."""
    name = registry.BACKENDS[backend].title if backend in registry.BACKENDS else backend
    return f"{name}, {variant}" if variant else name


def _headlines(data: Data) -> list[dict]:
    return [
        {
            "day": registry.spec(kernel).day,
            "kernel": f"`{kernel}`",
            **{title(b): data.of_limit(kernel, b) for b in registry.BACKENDS},
            **{
                f"tokens / with helpers: {title(b)}": _both_tokens(data, kernel, b)
                for b in registry.BACKENDS
            },
        }
        for kernel in registry.kernels()
    ]


def _both_tokens(data: Data, kernel: str, backend: str) -> str:
    """Without and with the shared helpers, "664 / 784", or one number where it uses none."""
    both = [data.tokens(kernel, backend, helpers=helpers) for helpers in ("without", "with")]
    return " / ".join(dict.fromkeys(map(str, both)))


def _sizes(data: Data) -> list[dict]:
    return [
        {
            "kernel": f"`{kernel}`",
            "dtype": headline(kernel)[0],
            "size": headline(kernel)[1],
            "limit": data.ceiling(kernel),
            "main baseline": reference(kernel),
            **{title(b): data.ratio(kernel, b) for b in registry.BACKENDS},
        }
        for kernel in registry.kernels()
    ]


def _implementations(data: Data, kernel: str) -> list[dict]:
    return [
        {
            "backend": title(backend),
            "µs": data.time(kernel, backend),
            "of the limit": data.of_limit(kernel, backend),
            **{
                f"tokens: {scope}": data.count(kernel, backend, scope=scope)
                for scope in ("device", "host", "tuning", "all")
            },
            "with helpers": data.count(kernel, backend, helpers="with"),
            "error / bound": data.margin(kernel, backend),
        }
        for backend in registry.BACKENDS
    ]


CODE = {  # title → columns of codegen.csv, added up
    "registers": ["registers"],
    "instructions": ["total"],
    "integer": ["integer"],
    "loads of 128 bits": ["loads_128"],
    "narrower": [f"loads_{bits}" for bits in (64, 32, 16, 8)],
    "stores of 128 bits": ["stores_128"],
    "narrower stores": [f"stores_{bits}" for bits in (64, 32, 16, 8)],
    "barriers": ["bar"],
    "shuffles": ["shfl"],
    "tensor cores": ["hmma", "hgmma"],
}


def _machine_code(data: Data, kernel: str) -> list[dict]:
    return [
        {"backend": title(backend)}
        | {"occupancy": f"{100 * row.occupancy:.0f} %"}
        | {name: f"{row[columns].sum():,.0f}" for name, columns in CODE.items()}
        for backend in registry.BACKENDS
        for _, row in data.launched(kernel, backend).iterrows()
    ]


def _largest_inputs(data: Data) -> list[dict]:
    return [
        {"kernel": f"`{kernel}`", "dtype": name}
        | {title(b): data.largest(kernel, b, name) for b in (*registry.BACKENDS, baseline)}
        for kernel in registry.kernels()
        for spec, baseline in [(registry.spec(kernel), reference(kernel))]
        if spec.scales
        for name in map(dtype_name, spec.dtypes)
    ]


def _prediction(data: Data, kernel: str) -> list[dict]:
    """What the spec and the measured ceiling say of the headline before any kernel runs."""
    spec, (dtype, size) = registry.spec(kernel), headline(kernel)
    work = spec.work(spec.dtypes[0], **spec.headline)
    moved = spec.traffic(spec.dtypes[0], **spec.headline) if spec.traffic else work.bytes
    ceiling = data.ceiling_speed(kernel)
    least = microseconds(work.speed(1) / ceiling)
    reached = f", {number(ceiling)} {work.unit}" if least else ""
    said = {
        "bytes read and written, at least": quantity(work.bytes, "B"),
        "by the day's model": quantity(moved, "B") if moved != work.bytes else "",
        "operations": quantity(work.flops),
        "bytes to an operation": number(work.bytes / work.flops) if work.flops else "",
        "the limit": f"{work.limit}{reached}",
        "a call takes, at least": f"{least} µs" if least else "not measured",
    }
    return [{f"{dtype}, {size}": what, "": value} for what, value in said.items() if value]


def _agreement(data: Data, kernel: str) -> list[dict]:
    found = data.agreement[data.agreement.kernel == kernel]
    rows = []
    for (backend, dtype), group in found.groupby(["backend", "dtype"], sort=False):
        same = group.deterministic.dropna().astype(str) == "True"
        rows.append(
            {
                "backend": title(backend),
                "dtype": dtype,
                "rule": group.rule.iloc[0],
                "sizes": len(group),
                "agree": int((group.status == "agrees").sum()),
                "error / bound": number(group.margin.max()),
                "relative rms": number(group.rms.max()),
                "bit-identical runs": f"{same.sum()} of {len(same)}",
            }
        )
    return rows


def _metrics(data: Data, kernel: str) -> list[dict]:
    c = data.complexity
    found = c[(c.kernel == kernel) & (c.scope == "all")].set_index(["backend", "helpers"])
    keys = [(b, h) for b in registry.BACKENDS for h in ("without", "with") if (b, h) in found.index]
    names = [n for n in found.columns if n not in ("kernel", "scope", "source_hash")]
    return [
        {"metric": name.replace("_", " ")}
        | {
            title(b) + " with helpers" * (h == "with"): f"{found.loc[(b, h), name]:,.0f}"
            for b, h in keys
        }
        for name in (names if keys else ())
    ]


def _timings(data: Data, kernel: str) -> list[dict]:
    spec, rows = registry.spec(kernel), []
    unit = spec.work(spec.dtypes[0], **spec.headline).unit
    for row in data.timings[data.timings.kernel == kernel].itertuples():
        share = Estimate(row.of_ceiling, row.of_ceiling_low, row.of_ceiling_high, "%")
        rows.append(
            {
                "dtype": row.dtype,
                "size": row.size,
                "implementation": title(row.backend, row.variant),
                "µs": microseconds(row.device_us_p50),
                "20–80 %": "–".join(
                    filter(None, map(microseconds, (row.device_us_p20, row.device_us_p80)))
                ),
                unit: number(row.speed),
                "to the baseline": Estimate(row.ratio, row.ratio_low, row.ratio_high),
                "of the limit": share,
                "verdict": next(
                    (x for x in (row.error, row.verdict) if isinstance(x, str) and x), ""
                ),
            }
        )
    return rows


def _ladder(data: Data, name: str) -> list[dict]:
    """Each rung, and at last the baseline of each dtype, at the headline sizes."""
    kernels, last = rungs(name)
    cells = [(kernel, backend) for kernel in kernels for backend in registry.BACKENDS]
    cells += [(kernel, reference(kernel)) for kernel in last]
    return [
        {
            "rung": f"`{kernel}`" * own,
            "": title(backend),
            "dtype": headline(kernel)[0],
            "speed": data.speed(kernel, backend),
            "of the fastest product": data.of_fastest(kernel, backend),
            "FLOP to a byte of DRAM": data.intensity(kernel, backend),
            "L2 hit rate": data.counter(kernel, backend, "l2_hit_rate"),
            "tokens / with helpers": _both_tokens(data, kernel, backend) * own,
        }
        for kernel, backend in cells
        for own in [backend in registry.BACKENDS]
    ]


def _rungs(data: Data, name: str) -> list[dict]:
    """A row a rung: the speed in each backend and of the main baseline, at the headline."""
    return [
        {
            "rung": f"`{kernel}`",
            "dtype": dtype,
            "size": f"`{size}`",
            **{title(b): _speed_and_ratio(data, kernel, b) for b in registry.BACKENDS},
            "main baseline": f"`{reference(kernel)}`",
            "its speed": data.speed(kernel, reference(kernel)),
        }
        for kernel in rungs(name)[0]
        for dtype, size in [headline(kernel)]
    ]


def _speed_and_ratio(data: Data, kernel: str, backend: str) -> str:
    """The speed and, in parentheses, its ratio to the main baseline's; or why there is none."""
    ratio = data.ratio(kernel, backend).value
    return data.speed(kernel, backend) + ("" if math.isnan(ratio) else f" ({ratio:.2f})")


def plain(frame: pd.DataFrame) -> list[dict]:
    """A file of data/ as it is."""
    frame = frame.drop(columns="source_hash", errors="ignore")
    if "backend" in frame:
        frame = frame.assign(kernel="`" + frame.kernel + "`", backend=frame.backend.map(title))
    frame.columns = [name.replace("_", " ") for name in frame.columns]
    shown = frame.map(lambda x: number(x) if isinstance(x, float) else x)
    return shown.to_dict("records")


def flat(tree: dict, above: str = "") -> Iterator[dict]:
    """A row for each leaf of nested dicts."""
    for key, value in tree.items():
        name = f"{above}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from flat(value, f"{name}: ")
        else:
            yield {"what": name, "value": value}


TABLES = {  # of one machine's data; those of a kernel or a ladder take it as well
    "headlines": _headlines,
    "sizes": _sizes,
    "implementations": _implementations,
    "machine code": _machine_code,
    "largest inputs": _largest_inputs,
    "prediction": _prediction,
    "agreement": _agreement,
    "metrics": _metrics,
    "timings": _timings,
    "ladder": _ladder,
    "rungs": _rungs,
}
