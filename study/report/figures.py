"""The report's figures: a function each. A file has the function's name, then that of the kernel
or the ladder that it shows.

All are SVG with text as text, the same bytes for the same data. `themed` adapts them to the page.
"""

import re
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import seaborn as sns  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402

from implementations.common import registry  # noqa: E402
from implementations.common.check import dtype_name  # noqa: E402
from implementations.common.spec import Size  # noqa: E402
from study.bench.cells import WARM, parse_size, size_text  # noqa: E402
from study.bench.entries import reference  # noqa: E402
from study.report.data import Data, headline, rungs  # noqa: E402

INK, MUTED, GRID, PAPER = "#1b1f24", "#5d6570", "#dfe2e6", "#ffffff"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "study",
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "figure.max_open_warning": 0,  # a figure a kernel, and all are made before they are saved
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
}


@dataclass(frozen=True)
class Look:
    """How a backend is drawn everywhere; `dark`: its colour on a dark page."""

    color: str
    dark: str
    marker: str
    dashes: tuple


# Okabe and Ito's colours, which the colour-blind tell apart; on a dark page their lighter kin.
PALETTE = (
    Look("#0072b2", "#56b4e9", "o", ()),
    Look("#d55e00", "#f28e42", "s", (5, 1.5)),
    Look("#009e73", "#2fc89b", "^", (1.5, 1.2)),
    Look("#cc79a7", "#dd9cc2", "D", (5, 1.5, 1.5, 1.5)),
    Look("#7a5c00", "#f0e442", "v", (3, 1)),
)
NAMED_BELOW = 0.85  # of the limit: above, where most points lie, names would cover each other
LABELS = 15  # along a figure's width, without overlap
# all in grey
BASELINE = (("X", (1, 1.5)), ("P", (4, 2)), ("d", (6, 2, 1, 2)), ("v", (2, 1, 1, 1)))
LEGEND = 5  # entries that stand beside each other above a figure, and one more if it is the last


def looks() -> dict[str, Look]:
    """Backend → its look, in the registry's order."""
    return dict(zip(registry.BACKENDS, cycle(PALETTE), strict=False))


def save(figure: Figure, path: Path) -> None:
    """Write the figure as SVG without date or version, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        metadata = {"Date": None, "Creator": None}
        figure.savefig(path, format="svg", metadata=metadata, bbox_inches="tight", pad_inches=0.06)
    plt.close(figure)
    text = path.read_text()
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", text)
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def themed(svg: str, label: str) -> str:
    """An SVG file's text as an element of the page, in the page's colours, described by `label`."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*pt"', r"\1", svg, count=2)
    colors = {
        INK: "currentColor",
        MUTED: "var(--muted)",
        GRID: "var(--grid)",
        PAPER: "var(--paper)",
    }
    colors |= {look.color: f"var(--{backend})" for backend, look in looks().items()}
    for color, variable in colors.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r"font: ([^;]*px)[^;]*|font-family: [^;]*", _font, svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _font(style: re.Match) -> str:
    """The page's typeface in place of the figure's; matplotlib writes either property."""
    return f"font: {style[1]} var(--sans)" if style[1] else "font-family: var(--sans)"


def _empty(ax) -> None:
    ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color=MUTED)


def _legend(figure: Figure, entries: dict[str, Line2D]) -> None:
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=LEGEND if len(entries) > LEGEND + 1 else len(entries),
        handlelength=2.6,
        columnspacing=1.3,
        borderaxespad=0,
    )


def _points(ms: float) -> dict[str, Line2D]:
    """The backends' entries in the legend of a figure of points."""
    return {
        registry.BACKENDS[backend].title: Line2D(
            [], [], color=look.color, marker=look.marker, ls="", mec=PAPER, ms=ms
        )
        for backend, look in looks().items()
    }


def _curves(ms: float) -> dict[str, Line2D]:
    """The backends' entries in the legend of a figure of lines."""
    return {
        registry.BACKENDS[backend].title: Line2D(
            *([], []),
            color=look.color,
            marker=look.marker,
            ls=(0, look.dashes) if look.dashes else "-",
            ms=ms,
        )
        for backend, look in looks().items()
    }


def speed_against_complexity(data: Data) -> Figure:
    """Each implementation: its tokens, and its speed as a fraction of the measured limit; hollow,
    its tokens with the shared helpers, where it has any.

    Kernels that stay below the limit in one backend are named.
    """
    rows = []
    for kernel in registry.kernels():
        for backend in registry.BACKENDS:
            speed, tokens = data.of_limit(kernel, backend), data.tokens(kernel, backend)
            helped = data.tokens(kernel, backend, helpers="with")
            estimates = tokens.value, helped.value, speed.value, speed.low, speed.high
            rows.append((kernel, backend, *estimates))
    columns = ["kernel", "backend", "tokens", "helped", "speed", "low", "high"]
    table = pd.DataFrame(rows, columns=columns)
    table = table.dropna()
    with matplotlib.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7.0, 3.7), layout="constrained")
        if table.empty:
            _empty(ax)
        for kernel, group in table.groupby("kernel", sort=False):
            ax.plot(group.tokens, 100 * group.speed, color=MUTED, lw=0.8, alpha=0.6, zorder=1)
            below = group[group.speed < NAMED_BELOW]
            if len(below):
                last = below.loc[below.tokens.idxmax()]
                offset = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
                ax.annotate(kernel, (last.tokens, 100 * last.speed), **offset, color=MUTED)
        for backend, group in table.groupby("backend", sort=False):
            look = looks()[backend]
            error = 100 * abs(group[["low", "high"]].sub(group.speed, axis=0)).T.to_numpy()
            style = {"marker": look.marker, "color": look.color, "mec": PAPER, "ms": 8, "zorder": 3}
            ax.errorbar(
                group.tokens, 100 * group.speed, error, ls="", elinewidth=1, capsize=2, **style
            )
            helped = group[group.helped > group.tokens]
            style |= {"mfc": "none", "mec": look.color, "ms": 5, "alpha": 0.6, "zorder": 2}
            ax.plot(helped.helped, 100 * helped.speed, ls="", **style)
        ax.axhline(100, color=INK, lw=1)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.xaxis.set_minor_formatter("")
        ax.set_ylim(0, 109)
        ax.set_xlabel("tokens (device, host and tuning code)")
        ax.set_title("% of the measured limit")
        entries = _points(ms=8)
        hollow = {"color": MUTED, "marker": "o", "mfc": "none", "ms": 5, "ls": ""}
        entries["with helpers"] = Line2D([], [], **hollow)
        _legend(figure, entries | {"the limit": Line2D([], [], color=INK, lw=1)})
        sns.despine(figure)
    return figure


def _axis(sizes: list[str]) -> tuple[str, dict[str, int]]:
    """The label of the dimensions that vary together, and each size's value on that axis."""
    parsed = {size: parse_size(size) for size in sizes}
    names = [n for n, value in next(iter(parsed.values())).items() if not isinstance(value, bool)]
    distinct = {name: {p[name] for p in parsed.values()} for name in names}
    equal = {n: [m for m in names if all(p[m] == p[n] for p in parsed.values())] for n in names}

    def preference(name):
        # the last, unless another has more values, and not only one more; or more dimensions as it
        return len(distinct[name]) + (name == names[-1]), len(equal[name])

    along = max(reversed(names), key=preference)
    return " = ".join(equal[along]), {size: p[along] for size, p in parsed.items()}


def _flags(size: Size) -> dict[str, bool]:
    return {name: value for name, value in size.items() if type(value) is bool}


def _tick(n: int) -> str:
    power = n.bit_length() - 1
    if n == 2**power and n >= 2**17:
        return "2" + str(power).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{n:,}"


def time_by_size(data: Data, kernel: str) -> Figure:
    """The speed at each size, a panel a dtype, beside baselines and under the measured ceiling.

    A dtype of one size only has no panel, and a size whose speed has another unit than the
    headline's no place; of sizes that differ in another dimension only, that of the most bytes is
    drawn, of these that of the most operations, and of these the one with the headline's flags.
    Where the spec has a model of the traffic, also the speed that it allows.
    """
    rows = data.timings[(data.timings.kernel == kernel) & data.timings.speed.notna()]
    spec = registry.spec(kernel)
    unit, flags = spec.work(spec.dtypes[0], **spec.headline).unit, _flags(spec.headline)
    rows = rows[(rows.variant == "") & (rows.unit == unit)]
    several = rows.groupby("dtype")["size"].transform("nunique") > 1
    rows = rows[several] if several.any() else rows
    model = spec.traffic
    dtypes = list(dict.fromkeys(rows.dtype)) or [headline(kernel)[0]]
    drawn = {backend: (look.color, look.marker, look.dashes) for backend, look in looks().items()}
    others = dict.fromkeys(b for b in rows.backend if b not in drawn)
    drawn |= {b: (MUTED, *style) for b, style in zip(others, cycle(BASELINE), strict=False)}
    titles = {b: registry.BACKENDS[b].title if b in registry.BACKENDS else b for b in drawn}
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(
            *(1, len(dtypes)),
            figsize=(7.0, 2.9),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for ax, dtype in zip(axes[0], dtypes, strict=True):
            panel = rows[rows.dtype == dtype]
            if panel.empty:
                _empty(ax)
                continue
            label, at = _axis(list(panel["size"].unique()))
            ticks = sorted(set(at.values()))
            panel = panel.assign(
                x=panel["size"].map(at).map(ticks.index),
                like=[_flags(parse_size(size)) == flags for size in panel["size"]],
            )
            panel = panel.sort_values(["bytes", "flops", "like"])
            panel = panel.drop_duplicates(["x", "backend"], keep="last").sort_values("x")
            limit = (panel.speed / panel.of_ceiling).groupby(panel.x).median()
            ax.plot(limit.index, limit, color=INK, lw=1, zorder=1.9)  # above the grid
            if model:
                moved = panel.groupby("x")[["size", "bytes", "flops", "unit"]].first()
                moved["model"] = [
                    model(getattr(torch, dtype), **parse_size(size)) for size in moved["size"]
                ]
                allowed = limit * moved.bytes / moved.model
                if moved.unit.iloc[0] == "TFLOP/s":  # the limit is none of the memory
                    allowed = moved.flops / moved.model * data.roof("copy") / 1e3
                    allowed = allowed.clip(upper=limit)
                ax.plot(allowed.index, allowed, color=INK, lw=1, ls=(0, (2, 2)), zorder=1.9)
            sns.lineplot(
                panel,
                x="x",
                y="speed",
                hue="backend",
                style="backend",
                hue_order=drawn,
                style_order=drawn,
                palette={b: color for b, (color, _, _) in drawn.items()},
                markers={b: marker for b, (_, marker, _) in drawn.items()},
                dashes={b: dashes for b, (_, _, dashes) in drawn.items()},
                legend=False,
                ax=ax,
            )
            short = panel[panel.verdict == "launch-bound"].x
            if len(short):
                ax.axvspan(-0.3, short.max() + 0.5, color=GRID, alpha=0.6, lw=0, zorder=0)
                ax.text(-0.25, 0, "launch-bound", color=MUTED, fontsize=8, va="bottom")
            ax.set(xlabel=label, ylabel="", xlim=(-0.3, len(ticks) - 0.7))
            step = -(-len(ticks) // (LABELS // len(dtypes)))
            ax.set_xticks(range(len(ticks)), [_tick(n) for n in ticks])
            for tick in set(ax.get_xticklabels()) - set(ax.get_xticklabels()[::step]):
                tick.set_visible(False)
            ax.set_title(dtype)
            ax.yaxis.set_major_formatter("{x:,.0f}")
        axes[0][0].set_ylim(0, 1.05 * axes[0][0].get_ylim()[1])
        if len(rows):
            axes[0][0].set_ylabel(rows.unit.iloc[0])
        entries = {
            titles[b]: Line2D(
                *([], []),
                color=color,
                marker=marker,
                ls=(0, dashes) if dashes else "-",
                mec=PAPER,
            )
            for b, (color, marker, dashes) in drawn.items()
        }
        if len(rows):
            names = ", ".join(dict.fromkeys(rows.ceiling.dropna()))
            entries[f"ceiling ({names})"] = Line2D([], [], color=INK, lw=1)
            if model:
                entries["model"] = Line2D([], [], color=INK, lw=1, ls=(0, (2, 2)))
        _legend(figure, entries)
        sns.despine(figure)
    return figure


def memory_levels(data: Data, kernel: str) -> Figure:
    """The speed from the smallest size to the largest, its data in the L2 (filled) and in DRAM.

    Drawn are what bounds it: the time of an empty kernel, and the copy's speed at the largest size.
    The level that the filled points reach between the two is that of the L2.
    """
    dtype = headline(kernel)[0]
    rows = data.timings[(data.timings.kernel == kernel) & (data.timings.dtype == dtype)]
    rows = rows[rows.speed.notna()].sort_values("bytes")
    with matplotlib.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7.0, 3.6), layout="constrained")
        if rows.empty:
            _empty(ax)
        for backend, look in looks().items():
            for variant, fill, dashes in (("", PAPER, ""), (WARM, look.color, (4, 1))):
                line = rows[(rows.backend == backend) & (rows.variant == variant)]
                style = {
                    "marker": look.marker,
                    "color": look.color,
                    "mfc": fill,
                    "ms": 5,
                    "lw": 1.2,
                }
                ax.plot(line.bytes, line.speed, ls=(0, dashes) if dashes else "-", **style)
        if len(rows):
            ends = np.array([rows.bytes.min(), rows.bytes.max()])
            top = 3 * rows.speed.max()
            floor = rows.floor_us.median()
            dram = (rows.speed / rows.of_ceiling)[rows.bytes == ends[1]].median()
            ax.plot(ends, ends / floor / 1e3, color=INK, lw=1, ls=(0, (2, 2)), zorder=1)
            ax.axhline(dram, color=INK, lw=1, zorder=1)
            ax.set(xscale="log", yscale="log", ylim=(rows.speed.min() / 2, top))
            names = [("launch floor", 8 * ends[0], 8 * ends[0] / floor / 1e3, "right")]
            names += [("DRAM: copy of the largest size", ends[0], dram, "left")]
            warm = rows[rows.variant == WARM]
            if len(warm):
                best = warm.loc[warm.speed.idxmax()]
                names += [("L2", best.bytes, best.speed, "center")]
            for name, x, y, side in names:
                offset = {"xytext": (0, 6), "textcoords": "offset points"}
                ax.annotate(name, (x, y), **offset, ha=side, color=MUTED)
            sizes = [2**n for n in range(10, 40, 4) if ends[0] / 2 <= 2**n <= ends[1] * 2]
            ax.set_xticks(sizes, [_bytes(n) for n in sizes])
            ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("bytes read and written by a call")
        ax.set_title(f"GB/s, {dtype}")
        ax.yaxis.set_major_formatter("{x:,.0f}")
        entries = {
            registry.BACKENDS[backend].title: Line2D(
                [], [], color=look.color, marker=look.marker, mfc=PAPER, ms=5, lw=1.2
            )
            for backend, look in looks().items()
        }
        filled = Line2D([], [], color=MUTED, marker="o", ms=5, lw=1.2, ls=(0, (4, 1)))
        _legend(figure, entries | {"filled: left in the L2 by the call before": filled})
        sns.despine(figure)
    return figure


def _bytes(n: int) -> str:
    """1024 → "1 KB"."""
    power = (n.bit_length() - 1) // 10
    return f"{n >> 10 * power} {('B', 'KB', 'MB', 'GB')[power]}"


def error_over_bound(data: Data) -> Figure:
    """The largest error of each implementation over the bound that it must keep, a row a kernel."""
    found = data.agreement.dropna(subset=["margin"])
    found = found[found.backend.isin(list(registry.BACKENDS))]
    worst = found.groupby(["kernel", "dtype", "backend"], sort=False).margin.max().reset_index()
    worst["row"] = worst.kernel.str.cat(worst.dtype, sep=", ")
    names = list(dict.fromkeys(worst.row))
    with matplotlib.rc_context(STYLE):
        height = 0.9 + 0.4 * max(len(names), 2)
        figure, ax = plt.subplots(figsize=(7.0, height), layout="constrained")
        if worst.empty:
            _empty(ax)
        for i, (backend, look) in enumerate(looks().items()):
            group = worst[worst.backend == backend]
            shift = 0.26 * (i - (len(looks()) - 1) / 2)
            y = [names.index(name) + shift for name in group.row]
            style = {"marker": look.marker, "color": look.color, "mec": PAPER, "ms": 7}
            ax.plot(group.margin, y, ls="", clip_on=False, zorder=3, **style)
        ax.axvline(1, color=INK, lw=1)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_xlim(0, max(1.05, 1.05 * worst.margin.max() if len(worst) else 0))
        ax.set_xlabel("largest error / its bound, over all sizes; more than 1 disagrees")
        entries = _points(ms=7)
        _legend(figure, entries)
        sns.despine(figure)
    return figure


def stability(data: Data) -> Figure:
    """The error in the finite rows over the scale of the inputs, beside the unit roundoff, a row of
    panels a kernel, a panel a dtype. Crosses are where not all rows are finite.
    """
    kernels = [k for k in registry.kernels() if registry.spec(k).scales]
    dtypes = list(dict.fromkeys(d for k in kernels for d in registry.spec(k).dtypes))
    shape = (len(kernels), len(dtypes)) if kernels else (1, 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(
            *shape,
            figsize=(7.0, 1.0 + 1.5 * shape[0]),
            sharex=True,
            sharey="col",
            squeeze=False,
            layout="constrained",
        )
        for i, ax in enumerate(axes.flat if kernels else ()):
            kernel, dtype = kernels[i // len(dtypes)], dtypes[i % len(dtypes)]
            unit = torch.finfo(dtype).eps / 2
            column = data.stability[data.stability.dtype == dtype_name(dtype)]
            panel = column[(column.kernel == kernel) & column.finite.notna()]
            if panel.empty:
                _empty(ax)
            ax.set(xscale="log", yscale="log")
            ax.set_ylim(unit / 10, max(30 * unit, 3 * column.relative_error.max()))
            for backend, look in looks().items():
                line = panel[panel.backend == backend]
                style = {"marker": look.marker, "color": look.color, "ms": 3.5, "lw": 1.2}
                ls = (0, look.dashes) if look.dashes else "-"
                ax.plot(line.scale, line.relative_error, ls=ls, **style)
            broken = panel[panel.finite < 1].scale.unique()
            top, inside = np.full(len(broken), 0.93), ax.get_xaxis_transform()
            ax.plot(broken, top, "x", color=INK, ms=4.5, transform=inside)
            ax.axhline(unit, color=INK, lw=1, ls=(0, (2, 2)), zorder=1)
            ax.xaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_minor_locator(NullLocator())
            ax.set_title(f"{kernel}, {dtype_name(dtype)}", fontsize=8)
        figure.supxlabel("scale of the inputs", fontsize=9)
        figure.supylabel("largest error / largest element of its row", fontsize=9)
        entries = _curves(ms=3.5)
        entries["unit roundoff"] = Line2D([], [], color=INK, lw=1, ls=(0, (2, 2)))
        entries["some rows not finite"] = Line2D([], [], color=INK, marker="x", ls="")
        _legend(figure, entries)
        sns.despine(figure)
    return figure


def training(data: Data, kernel: str) -> Figure:
    """The loss over the steps of training with a kernel, the mean over the seeds, and how far it is
    from the main baseline's; grey: what the baseline's seeds span."""
    theirs = data.curves(kernel, reference(kernel))
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(7.0, 2.9), sharex=True, layout="constrained")
        for ax, zero in zip(axes, (0, theirs.mean(axis=1)), strict=True):
            if theirs.empty:
                _empty(ax)
                continue
            span = (theirs.min(axis=1) - zero, theirs.max(axis=1) - zero)
            ax.fill_between(theirs.index, *span, color=GRID, lw=0)
            for backend, look in looks().items():
                line = data.curves(kernel, backend).mean(axis=1) - zero
                style = {"color": look.color, "marker": look.marker, "ms": 3, "markevery": 5}
                ls = (0, look.dashes) if look.dashes else "-"
                ax.plot(line.index, line, ls=ls, lw=1.2, **style)
            ax.set_xlabel("step")
        axes[0].set_title("loss, nats a character")
        axes[1].set_title(f"loss less that of {reference(kernel)}")
        entries = _curves(ms=3)
        entries[f"seeds of {reference(kernel)}"] = Patch(color=GRID)
        _legend(figure, entries)
        sns.despine(figure)
    return figure


def ladder(data: Data, name: str) -> Figure:
    """From one rung to the next: what each kernel of the ladder asks of the memory, its speed and
    its tokens with helpers; in grey the baselines of the last rung, or of the last of each dtype.
    """
    kernels, last = rungs(name)
    others = [(k, other) for k in last for other in registry.spec(k).baselines]
    names = [*kernels, *(other for _, other in others)]
    if len(last) > 1:
        of = [headline(kernel)[0] for kernel in (*kernels, *(k for k, _ in others))]
        names = [f"{name}, {dtype}" for name, dtype in zip(names, of, strict=True)]
    spec = registry.spec(kernels[-1])
    panels = PANELS[spec.work(spec.dtypes[0], **spec.headline).unit]
    panels = {  # not all machines count
        label: (value, scale)
        for label, (value, scale) in panels.items()
        if any(value(data, *cell) > 0 for cell in product(kernels, registry.BACKENDS))
    } or panels
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(
            *(1, len(panels)),
            figsize=(7.0, 0.9 + 0.36 * max(len(names), 2)),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for ax, (label, (value, scale)) in zip(axes[0], panels.items(), strict=True):
            for i, (backend, look) in enumerate(looks().items()):
                x = [value(data, kernel, backend) for kernel in kernels]
                y = np.arange(len(kernels)) + 0.22 * (i - (len(looks()) - 1) / 2)
                style = {"marker": look.marker, "color": look.color, "mec": PAPER, "ms": 7}
                ax.plot(x, y, ls="", clip_on=False, zorder=3, **style)
            x = [value(data, *other) for other in others]
            y = np.arange(len(kernels), len(names))
            ax.plot(x, y, "X", color=MUTED, mec=PAPER, ms=7, clip_on=False, zorder=3)
            ax.set_xscale(scale)
            if scale == "linear":
                ax.set_xlim(0, 1.08 * max(ax.get_xlim()[1], 1))
            else:
                ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            ax.set_xlabel(label)
            ax.xaxis.set_major_formatter("{x:,.0f}")
            ax.xaxis.set_minor_formatter("")
        axes[0, 0].set_yticks(range(len(names)), names)
        axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
        entries = _points(ms=7)
        entries["baseline"] = Line2D([], [], color=MUTED, marker="X", ls="", mec=PAPER, ms=7)
        _legend(figure, entries)
        sns.despine(figure)
    return figure


def _passes(data: Data, kernel: str, backend: str) -> float:
    """The bytes that a call moved to and from the memory, in units of its input."""
    dtype, size = headline(kernel)
    compulsory = registry.spec(kernel).work(getattr(torch, dtype), **parse_size(size)).bytes
    return 2 * data.moved(kernel, backend).value / compulsory


def _intensity(data: Data, kernel: str, backend: str) -> float:
    return data.intensity(kernel, backend).value


def _timed(column: str):
    """What looks a column of timings.csv up at the headline."""
    return lambda data, *cell: getattr(data.cell(*cell), column, np.nan)


def _tokens(data: Data, kernel: str, backend: str) -> float:
    return data.tokens(kernel, backend, helpers="with").value


def _is_counted(data: Data, kernel: str) -> bool:
    """Whether counters.csv has any of the sizes that are counted."""
    cells = product(looks(), registry.spec(kernel).counted)
    moved = (data.moved(kernel, b, headline(kernel)[0], size_text(size)) for b, size in cells)
    return any(np.isfinite(estimate.value) for estimate in moved)


def moved_by_size(data: Data, name: str) -> Figure:
    """The bytes that a call of each rung moved, counted at the memory (filled) and at the L2, over
    the compulsory ones; beside them those of the day's model, or 1 where it has none. Rungs of
    which nothing is counted are left out, unless that is all."""
    every = [kernel for kernel in rungs(name)[0] if registry.spec(kernel).counted]
    kernels = [kernel for kernel in every if _is_counted(data, kernel)] or every
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(
            *(1, max(len(kernels), 1)),
            figsize=(7.0, 2.9),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for ax, kernel in zip(axes[0], kernels, strict=False):
            spec, dtype = registry.spec(kernel), headline(kernel)[0]
            sizes = [size_text(size) for size in spec.counted]
            label, at = _axis(sizes)
            torch_dtype = getattr(torch, dtype)
            compulsory = [spec.work(torch_dtype, **size).bytes for size in spec.counted]
            model = [
                spec.traffic(torch_dtype, **size) if spec.traffic else least
                for size, least in zip(spec.counted, compulsory, strict=True)
            ]
            x = np.arange(len(sizes))
            ax.plot(x, np.divide(model, compulsory), color=INK, lw=1, ls=(0, (2, 2)), zorder=1)
            for place, (backend, look) in enumerate(looks().items()):
                of = kernel, backend
                moved = [data.moved(*of, dtype, size).value for size in sizes]
                asked = [data.counter(*of, "l2_bytes", dtype, size).value for size in sizes]
                beside = x + (place - 1) * 0.25
                style = {"marker": look.marker, "color": look.color, "ls": "", "ms": 3.5}
                ax.plot(beside, np.divide(moved, compulsory), **style)
                ax.plot(beside, np.divide(asked, compulsory), mfc="none", **style)
            ax.set(xlabel=label, yscale="log")
            ax.set_xticks(x, [_tick(at[size]) for size in sizes], rotation=90)
            ax.set_title(kernel, fontsize=7)
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_locator(NullLocator())
        axes[0][0].set_ylabel("bytes / the compulsory ones")
        entries = _points(ms=5)
        entries["at the L2"] = Line2D([], [], color=MUTED, marker="o", mfc="none", ls="", ms=5)
        entries["model of the memory"] = Line2D([], [], color=INK, lw=1, ls=(0, (2, 2)))
        _legend(figure, entries)
        sns.despine(figure)
    return figure


PANELS = {  # of a ladder, by the unit of its last rung: what is drawn on which scale
    "GB/s": {
        "passes over memory": (_passes, "linear"),
        "time, µs": (_timed("device_us_p50"), "linear"),
        "tokens with helpers": (_tokens, "linear"),
    },
    "TFLOP/s": {
        "FLOP to a byte of DRAM": (_intensity, "log"),
        "TFLOP/s": (_timed("speed"), "log"),
        "tokens with helpers": (_tokens, "linear"),
    },
}


def roofline(data: Data) -> Figure:
    """Each kernel that computes, at its headline: its speed over its operations to a byte of DRAM,
    both measured, under the highest speeds that reading memory and cuBLAS reached at any size."""
    rows = []
    for kernel in registry.kernels():
        spec = registry.spec(kernel)
        flops = spec.work(spec.dtypes[0], **spec.headline).flops
        for backend in registry.BACKENDS:
            time = _timed("device_us_p50")(data, kernel, backend)
            rows.append((kernel, backend, _intensity(data, kernel, backend), flops / time / 1e6))
    table = pd.DataFrame(rows, columns=["kernel", "backend", "x", "speed"])
    table = table[table.speed > 0].dropna()
    with matplotlib.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
        if table.empty:
            _empty(ax)
        else:
            _roofs(data, ax, table)
        for backend, look in looks().items():
            group = table[table.backend == backend]
            style = {"marker": look.marker, "color": look.color, "mec": PAPER, "ms": 6.5}
            ax.plot(group.x, group.speed, ls="", zorder=3, **style)
        points = table.groupby("kernel")[["x", "speed"]].median().sort_values("x")
        for i, (x, y, names) in enumerate(_clusters(points)):
            # where points lie along the slope, every second tag stands above it
            above = i % 2 and y > 0.6 * x * data.roof("read") / 1e3
            aside = "right" if above else "center" if x > table.x.max() / 4 else "left"
            offset = {"xytext": ({"right": -7, "center": 0, "left": 7}[aside], 4 if above else -6)}
            sides = {"ha": aside, "va": "bottom" if above else "top"}
            each = 3 if len(names) > 3 else 1
            lines = "\n".join(", ".join(names[j : j + each]) for j in range(0, len(names), each))
            style = {"textcoords": "offset points", "color": MUTED, "fontsize": 8}
            ax.annotate(lines, (x, y), **offset, **sides, **style)
        ax.set_xlabel("operations to a byte of DRAM, counted")
        ax.set_title("TFLOP/s")
        _legend(figure, _points(ms=6.5) | {"ceilings": Line2D([], [], color=INK, lw=1)})
        sns.despine(figure)
    return figure


def _roofs(data: Data, ax, table: pd.DataFrame) -> None:
    """The measured ceilings: a slope of the memory, a level of cuBLAS in each dtype timed so."""
    of_memory = data.roof("read") / 1e3  # TB/s
    t = data.timings
    dtypes = t[(t.kernel == "_ceiling") & (t.backend == "matmul")].dtype.unique()
    levels = {dtype: data.roof("matmul", dtype) for dtype in dtypes}
    left, right = table.x.min() / 4, 4 * table.x.max()
    top = max(levels.values(), default=table.speed.max())
    ax.plot([left, top / of_memory], [left * of_memory, top], color=INK, lw=1, zorder=1)
    tags = []  # of levels that are nearly one, one for both: its height, its text
    for dtype, level in sorted(levels.items(), key=lambda entry: -entry[1]):
        ax.plot([level / of_memory, right], [level, level], color=INK, lw=1, zorder=1)
        if tags and level > 0.9 * tags[-1][0]:
            tags[-1][1] += f", {dtype}: {level:,.0f}"
        else:
            tags.append([level, f"cuBLAS {dtype}: {level:,.0f}"])
    style = {"textcoords": "offset points", "ha": "right", "color": INK, "fontsize": 8}
    for level, text in tags:
        ax.annotate(text, (right, level), xytext=(0, 3), **style)
    at = min(levels.values(), default=top) / 4
    text = f"read: {1e3 * of_memory:,.0f} GB/s"
    ax.annotate(text, (at / of_memory, at), xytext=(-4, 3), **style)
    ax.set(xscale="log", yscale="log", xlim=(left, right), ylim=(table.speed.min() / 3, 2.5 * top))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def _clusters(points: pd.DataFrame, near: float = 1.35) -> list[tuple[float, float, list[str]]]:
    """Kernels by their points (x, speed); those that lie within a factor share one name tag."""
    found = []
    for kernel, (x, y) in points.iterrows():
        for tag in found:
            if max(x / tag[0], tag[0] / x, y / tag[1], tag[1] / y) < near:
                tag[2].append(kernel)
                break
        else:
            found.append((x, y, [kernel]))
    return found


def workspace(data: Data) -> Figure:
    """The MB that a call allocates beside its outputs, over its size, of the kernels whose day is
    about these; no backend is drawn, as all allocate the same. Beside it the size of the L2."""
    kernels = [kernel for kernel in registry.kernels() if registry.spec(kernel).workspace]
    entries = {}
    with matplotlib.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7.0, 2.9), layout="constrained")
        looks_of_kernels = product((INK, MUTED), BASELINE)
        for kernel, (color, (marker, dashes)) in zip(kernels, looks_of_kernels, strict=False):
            sizes = [size_text(size) for size in registry.spec(kernel).bench_sizes]
            label, at = _axis(sizes)
            mb = pd.Series({at[size]: data.workspace(kernel, size).value for size in sizes})
            style = {"color": color, "marker": marker, "ls": (0, dashes), "mec": PAPER}
            (entries[kernel],) = ax.plot(mb.index, mb, **style)
            ax.set_xlabel(label)
        if any(np.isfinite(line.get_ydata()).any() for line in entries.values()):
            l2 = data.environment["gpu"].get("l2_bytes", np.nan) / 1e6
            entries["the L2"] = ax.axhline(l2, color=MUTED, lw=1, zorder=1)
            ax.set(xscale="log", yscale="log")
            ax.set_xticks(mb.index, map(_tick, mb.index))
            ax.yaxis.set_major_formatter("{x:,.0f}")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_minor_locator(NullLocator())
        else:
            _empty(ax)
        ax.set_title("MB")
        _legend(figure, entries)
        sns.despine(figure)
    return figure


def tuning_landscape(data: Data, kernel: str) -> Figure:
    """Each configuration that was searched, a column a backend at each size: its speed over that of
    the fastest of the column. In ink the default, which a GPU takes that was not searched."""
    sizes = [size_text(size) for size in registry.spec(kernel).bench_sizes]
    with matplotlib.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(7.0, 3.4), layout="constrained")
        found = False
        for i, (backend, look) in enumerate(looks().items()):
            for at, size in enumerate(sizes):
                rows = data.configurations(kernel, backend, size)
                found |= not rows.empty
                share = 100 * rows.device_us_p50.min() / rows.device_us_p50
                x = at + 0.27 * (i - (len(looks()) - 1) / 2)
                spread = x + 0.09 * np.sin(2.4 * np.arange(len(share)))  # fixed, not random
                ax.plot(spread, share, look.marker, color=look.color, ms=2, alpha=0.6, mew=0)
                default = share[rows.default.astype(bool)]
                ax.plot([x] * len(default), default, "_", color=INK, ms=14, mew=1.6)
        if not found:
            _empty(ax)
        ax.set_xticks(range(len(sizes)), [_short(size) for size in sizes])
        ax.set_xlabel(" = ".join(names := [*parse_size(sizes[0])]) + ", or " + ", ".join(names))
        ax.set_ylim(0, 105)
        ax.set_title("% of the fastest configuration's speed")
        entries = _points(ms=5)
        entries["the default"] = Line2D([], [], color=INK, marker="_", ls="", ms=14, mew=1.6)
        _legend(figure, entries)
        sns.despine(figure)
    return figure


def _short(size: str) -> str:
    """A tick: of a square size its side, of another a dimension below the other."""
    sides = list(parse_size(size).values())
    return "\n".join(_tick(n) for n in (sides[:1] if len(set(sides)) == 1 else sides))


def tuning_predicted(data: Data, kernel: str) -> Figure:
    """The time of each configuration at the headline, a panel a backend, over what the cost model
    predicts of it; both as multiples of the least. In the title, how well the order is predicted.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(
            *(1, len(looks())),
            figsize=(7.0, 2.9),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for ax, (backend, look) in zip(axes[0], looks().items(), strict=True):
            rows = data.configurations(kernel, backend)
            if rows.empty:
                _empty(ax)
                continue
            x, y = (rows[name] / rows[name].min() for name in ("predicted_clocks", "device_us_p50"))
            ax.plot(x, y, look.marker, color=look.color, ms=3.5, mec=PAPER, mew=0.3)
            ends = [1, max(x.max(), y.max())]
            ax.plot(ends, ends, color=INK, lw=1, zorder=1)
            ax.set_title(f"ρ = {x.rank().corr(y.rank()):.2f}")
            ax.set(xscale="log", yscale="log")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_locator(NullLocator())
        figure.supxlabel("predicted clocks / the least", fontsize=9)
        axes[0][0].set_ylabel("time / the least")
        _legend(figure, _points(ms=5) | {"as predicted": Line2D([], [], color=INK, lw=1)})
        sns.despine(figure)
    return figure


def every(data: Data) -> dict[str, Figure]:
    """File name → figure, for the whole report."""
    ladders = dict.fromkeys(filter(None, (registry.spec(k).ladder for k in registry.kernels())))
    return {
        "speed_against_complexity": speed_against_complexity(data),
        "error_over_bound": error_over_bound(data),
        "stability": stability(data),
        "roofline": roofline(data),
        "workspace": workspace(data),
        **{f"ladder_{name}": ladder(data, name) for name in ladders},
        **{
            f"moved_by_size_{name}": moved_by_size(data, name)
            for name in ladders
            if all(registry.spec(kernel).counted for kernel in rungs(name)[0])
        },
        **{f"time_by_size_{k}": time_by_size(data, k) for k in registry.kernels()},
        **{
            f"memory_levels_{k}": memory_levels(data, k)
            for k in registry.kernels()
            if registry.spec(k).warm
        },
        **{
            f"training_{k}": training(data, k)
            for k in registry.kernels()
            if registry.spec(k).make_gradient
        },
        **{
            f"{figure.__name__}_{k}": figure(data, k)
            for k in registry.kernels()
            if registry.spec(k).tuning
            for figure in (tuning_landscape, tuning_predicted)
        },
    }
