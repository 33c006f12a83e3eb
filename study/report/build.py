"""Builds report.md from data and prose; from it index.html, report.pdf and the README's answer.

report.md is the one document. The page adds the highlighted sources and the comparison; the PDF is
the same text set by typst. Neither repeats a source in full elsewhere, so report.md and the PDF
name the files instead.
"""

import html
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from rich.table import Table

from implementations.common import registry
from implementations.common.check import dtype_name
from study.agree.stability import SIZE
from study.bench.progress import console, progress
from study.report.build import compare
from study.report.claims import TEXT, Claim, Data, Estimate, Prose, State, headline, number
from study.report.markdown import markdown_table

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("page")
WHY = "### Why they differ"  # where a day's text goes on below its figures
BEGIN, END = "<!-- built by `study report` -->", "<!-- end of what `study report` built -->"
ALT = {
    "speed_against_complexity": "Speed, as a fraction of the measured limit, against tokens",
    "time_by_size": "Speed by size, with the measured ceiling",
    "memory_levels": "Speed from the smallest size to the largest, in the L2 and in DRAM",
    "error_over_bound": "Largest error over its bound",
    "ladder": "Passes over memory, time and tokens of each softmax and of the libraries' own",
    "stability": "Error by the scale of the inputs, with the unit roundoff",
}
NEEDED = {"jinja2": "jinja2", "matplotlib": "matplotlib", "seaborn": "seaborn"} | {
    "markdown_it": "markdown-it-py",
    "pygments": "pygments",
}


def run(data: Path, out: Path, text: Path = TEXT) -> bool:
    """Build report.md, index.html, report.pdf and figures/ in `out`, and the README beside it.

    Prints what became of each claim. Returns whether none is false, no number is stale and all was
    built. Raises DamagedData for a data file, RuntimeError for a text, that cannot be used, or
    where a package is missing.
    """
    if absent := [name for module, name in NEEDED.items() if not find_spec(module)]:
        raise RuntimeError(f"the report needs {', '.join(absent)}: pip install {' '.join(absent)}")
    from study.report.build import figures

    with progress("report", 5) as step:
        step("data")
        found = Data.load(data)
        others = [Data.load(data, name) for name in compare.others(data)]
        prose = Prose(found)
        step("figures")
        for name, figure in figures.every(found).items():
            figures.save(figure, out / "figures" / f"{name}.svg")
        step("report.md")
        markdown = document(found, prose, text, others)
        (out / "report.md").write_text(markdown)
        _readme(out, markdown)
        step("index.html")
        (out / "index.html").write_text(page(found, markdown, out / "figures"))
        step("report.pdf")
        has_pdf = find_spec("typst") is not None
        if has_pdf:
            pdf(markdown, out)
    _print_claims(list(prose.claims.values()))
    for name in found.stale:
        console.print(f"stale: {name} was taken from another source than the present one")
    if not has_pdf:
        console.print("report.pdf was not built: it needs typst (pip install typst)")
    false = any(claim.state is State.FALSE for claim in prose.claims.values())
    return has_pdf and not false and not found.stale


def _print_claims(claims: list[Claim]) -> None:
    table = Table("claim", "says the data", "where")
    for claim in claims:
        table.add_row(claim.name, claim.state.value, claim.where)
    console.print(table)


# The document ------------------------------------------------------------------------------------


def document(data: Data, prose: Prose, text: Path = TEXT, others: Iterable[Data] = ()) -> str:
    """The report as Markdown; the claims of all texts are gathered in `prose`.

    others: other machines, beside which the conclusions are put.
    """

    def day(kernel: str) -> tuple[str, str]:
        path = text / f"day{registry.spec(kernel).day:02}_{kernel}.md"
        before, _, why = (prose.render(path) if path.exists() else "").partition(WHY)
        return before.strip(), why.strip()

    def summary(kernel: str) -> str:
        path = text / f"phase{registry.phase(kernel)}.md"
        return prose.render(path) if path.exists() else ""

    def beside(other: Data) -> dict:
        path = text / "machines" / f"{other.machine}.md"
        own = Prose(other)
        said = own.render(path) if path.exists() else ""
        prose.claims.update(own.claims)
        name = other.environment.get("gpu", {}).get("name", other.machine)
        return {"name": name, "text": said} | compare.differences(data, other, text)

    tables = {
        "headlines": _headlines,
        "sizes": _sizes,
        "implementations": _implementations,
        "machine code": _machine_code,
        "largest inputs": _largest_inputs,
        "agreement": _agreement,
        "metrics": _metrics,
        "timings": _timings,
    }
    environment = prose.environment.overlay(trim_blocks=True)
    template = environment.from_string((PAGE / "report.md.j2").read_text())
    rendered = template.render(
        text=lambda name: prose.render(text / f"{name}.md"),
        day=day,
        phase=registry.phase,
        topic=lambda kernel: (
            registry.folders()[kernel].parent.name.partition("_")[2].replace("_", " ")
        ),
        summary=summary,
        spec=registry.spec,
        first_scaled=next((k for k in registry.kernels() if registry.spec(k).scales), ""),
        studied=SIZE,
        links=_links,
        alt=ALT,
        claims=prose.claims,
        stale=data.stale,
        others=[beside(other) for other in others],
        environment=list(_flat(data.environment)),
        frame=lambda name: _plain(getattr(data, name)),
        table=lambda name, *args: markdown_table(tables[name](data, *args)),
        markdown_table=markdown_table,
        begin=BEGIN,
        end=END,
    )
    return re.sub(r"\n{3,}", "\n\n", rendered).strip() + "\n"


def _title(backend: str) -> str:
    return registry.BACKENDS[backend].title if backend in registry.BACKENDS else backend


def _baseline(kernel: str) -> str:
    """The main baseline, "" where there is none."""
    return next(iter(registry.spec(kernel).baselines), "")


def _headlines(data: Data) -> list[dict]:
    return [
        {
            "day": registry.spec(kernel).day,
            "kernel": f"`{kernel}`",
            **{_title(b): data.of_limit(kernel, b) for b in registry.BACKENDS},
            **{f"tokens: {_title(b)}": data.tokens(kernel, b) for b in registry.BACKENDS},
        }
        for kernel in registry.kernels()
    ]


def _sizes(data: Data) -> list[dict]:
    return [
        {
            "kernel": f"`{kernel}`",
            "dtype": headline(kernel)[0],
            "size": headline(kernel)[1],
            "limit": data.ceiling(kernel),
            "main baseline": _baseline(kernel),
            **{_title(b): data.ratio(kernel, b) for b in registry.BACKENDS},
        }
        for kernel in registry.kernels()
    ]


def _implementations(data: Data, kernel: str) -> list[dict]:
    return [
        {
            "backend": _title(backend),
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
        {"backend": _title(backend)}
        | {"occupancy": f"{100 * row.occupancy:.0f} %"}
        | {title: f"{row[columns].sum():,.0f}" for title, columns in CODE.items()}
        for backend in registry.BACKENDS
        for _, row in data.launched(kernel, backend).iterrows()
    ]


def _largest_inputs(data: Data) -> list[dict]:
    return [
        {"kernel": f"`{kernel}`", "dtype": name}
        | {_title(b): data.largest(kernel, b, name) for b in (*registry.BACKENDS, baseline)}
        for kernel in registry.kernels()
        for spec, baseline in [(registry.spec(kernel), _baseline(kernel))]
        if spec.scales
        for name in map(dtype_name, spec.dtypes)
    ]


def _agreement(data: Data, kernel: str) -> list[dict]:
    found = data.agreement[data.agreement.kernel == kernel]
    rows = []
    for (backend, dtype), group in found.groupby(["backend", "dtype"], sort=False):
        same = group.deterministic.dropna().astype(str) == "True"
        rows.append(
            {
                "backend": _title(backend),
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
            _title(b) + " with helpers" * (h == "with"): f"{found.loc[(b, h), name]:,.0f}"
            for b, h in keys
        }
        for name in (names if keys else ())
    ]


def _timings(data: Data, kernel: str) -> list[dict]:
    spec, rows = registry.spec(kernel), []
    unit = spec.work(spec.dtypes[0], **spec.headline).unit
    for row in data.timings[data.timings.kernel == kernel].itertuples():
        share = Estimate(row.of_ceiling, row.of_ceiling_low, row.of_ceiling_high, "%")
        failed = isinstance(row.error, str) and row.error
        rows.append(
            {
                "dtype": row.dtype,
                "size": row.size,
                "implementation": _title(row.backend),
                "µs": _us(row.device_us_p50),
                "20–80 %": "–".join(filter(None, map(_us, (row.device_us_p20, row.device_us_p80)))),
                unit: number(row.speed),
                "to the baseline": Estimate(row.ratio, row.ratio_low, row.ratio_high),
                "of the limit": share,
                "verdict": row.error if failed else row.verdict,
            }
        )
    return rows


def _us(x: float) -> str:
    """Four significant digits or all before the point. Empty for NaN."""
    if math.isnan(x):
        return ""
    return f"{x:,.0f}" if x >= 999.5 else f"{x:#.4g}"


def _plain(frame: pd.DataFrame) -> list[dict]:
    frame = frame.drop(columns="source_hash", errors="ignore")
    if "backend" in frame:
        frame = frame.assign(kernel="`" + frame.kernel + "`", backend=frame.backend.map(_title))
    frame.columns = [name.replace("_", " ") for name in frame.columns]
    shown = frame.map(lambda x: number(x) if isinstance(x, float) else x)
    return shown.to_dict("records")


def _flat(tree: dict, above: str = "") -> Iterator[dict]:
    for key, value in tree.items():
        name = f"{above}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}: ")
        else:
            yield {"what": name, "value": value}


def _files(kernel: str, backend: str) -> list[Path]:
    """An implementation's own files, the kernel before the host."""
    return sorted(registry.files(kernel, backend), key=lambda path: path.suffix != ".cu")


def _links(kernel: str) -> str:
    links = [
        f"[{path.name}]({'../' / path.relative_to(ROOT) if ROOT in path.parents else path})"
        for backend in registry.BACKENDS
        for path in _files(kernel, backend)
    ]
    return ", ".join(links)


def _readme(out: Path, markdown: str) -> None:
    """Put the report's first screen between the markers of the README beside `out`."""
    path = out.parent / "README.md"
    if not path.exists() or BEGIN not in (text := path.read_text()):
        return
    if END not in text[text.index(BEGIN) :]:
        raise RuntimeError(f"{path} must have {END!r} below {BEGIN!r}")
    first = markdown[markdown.index(BEGIN) : markdown.index(END)]
    for target in ("figures/", "#claims"):
        first = first.replace(
            f"]({target}", f"]({out.name}/{'report.md' * (target[0] == '#')}{target}"
        )
    path.write_text(text[: text.index(BEGIN)] + first + text[text.index(END) :])


# The page ----------------------------------------------------------------------------------------


def page(data: Data, markdown: str, figures_: Path) -> str:
    """The report as one self-contained HTML file, with the comparison of sources."""
    import jinja2
    from markdown_it import MarkdownIt
    from pygments.formatters import HtmlFormatter

    from study.report.build import figures

    source = re.sub(r"<!-- sources (\w+) -->\n\n.*?\n\n", r"<!-- sources \1 -->\n\n", markdown)
    md = MarkdownIt("commonmark").enable("table")
    tokens = md.parse(source)
    contents, seen = [], Counter()
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            title = tokens[i + 1].content
            anchor = slug(title)
            token.attrSet("id", f"{anchor}-{times}" if (times := seen[anchor]) else anchor)
            seen[anchor] += 1
            if token.tag == "h2":
                contents.append((anchor, title))

    def image(of, i, options, env):
        path = figures_ / Path(of[i].attrs["src"]).name
        drawing = figures.themed(path.read_text(), html.escape(of[i].content))
        return f'<span class="figure">{drawing}</span>'

    md.renderer.rules["image"] = image
    body = md.renderer.render(tokens, md.options, {})
    body = body.replace("<table>", '<div class="wide" tabindex="0"><table>')
    body = body.replace("</table>", "</table></div>")
    env = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    env.globals = {"title": {b: _title(b) for b in registry.BACKENDS}, "data": data}
    template = env.from_string((PAGE / "sources.html.j2").read_text())
    for kernel in registry.kernels():
        files = {b: [(p.name, highlight(p)) for p in _files(kernel, b)] for b in registry.BACKENDS}
        panes = template.render(kernel=kernel, baseline=_baseline(kernel), files=files)
        body = body.replace(f"<!-- sources {kernel} -->", panes)
    return env.from_string((PAGE / "index.html.j2").read_text()).render(
        body=body,
        contents=contents,
        kernels=registry.kernels(),
        looks=figures.looks(),
        css=(PAGE / "page.css").read_text(),
        js=(PAGE / "page.js").read_text(),
        light=HtmlFormatter(style="xcode").get_style_defs("pre.code"),
        dark=HtmlFormatter(style="github-dark").get_style_defs("pre.code"),
    )


def slug(title: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def highlight(path: Path) -> str:
    """A source file as highlighted HTML, without a wrapper."""
    import pygments
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import CudaLexer, PythonLexer

    lexer = (CudaLexer if path.suffix == ".cu" else PythonLexer)(stripnl=False)
    return pygments.highlight(path.read_text(), lexer, HtmlFormatter(nowrap=True))


# The PDF -----------------------------------------------------------------------------------------


def pdf(markdown: str, out: Path) -> None:
    """Set the report by typst into `out`/report.pdf; its figures are those in `out`/figures."""
    import matplotlib
    import typst

    source = (PAGE / "report.typ").read_text() + typst_markup(markdown)
    (out / "report.pdf").write_bytes(
        typst.compile(
            source.encode(),
            root=out,
            font_paths=[Path(matplotlib.get_data_path()) / "fonts" / "ttf"],  # of the figures
            ignore_system_fonts=True,
        )
    )


def typst_markup(markdown: str) -> str:
    """Markdown (CommonMark with tables) as typst markup. Comments vanish, other HTML is refused."""
    from markdown_it import MarkdownIt

    return _typst(MarkdownIt("commonmark").enable("table").parse(markdown))


TYPST = {
    "paragraph_open": "\n\n",
    "em_open": "#emph[",
    "strong_open": "#strong[",
    "bullet_list_open": "\n\n#list(",
    "ordered_list_open": "\n\n#enum(",
    "list_item_open": "[",
    "list_item_close": "],",
    "blockquote_open": "\n\n#quote(block: true)[",
    "thead_open": "table.header(",
    "th_open": "[",
    "td_open": "[",
    "softbreak": "\n",
    "hardbreak": " \\\n",
    "hr": "\n\n#line(length: 100%)\n",
    **dict.fromkeys(("em_close", "strong_close", "blockquote_close"), "]"),
    **dict.fromkeys(("bullet_list_close", "ordered_list_close"), ")\n"),
    **dict.fromkeys(("th_close", "td_close"), "], "),
    "thead_close": "),\n",
    "table_close": "))\n",
    "heading_close": "\n",
}
SILENT = {"paragraph_close", "tbody_open", "tbody_close", "tr_open", "tr_close"}


def _typst(tokens) -> str:
    written, links = [], []
    for i, token in enumerate(tokens):
        match token.type:
            case "heading_open":
                written.append(f"\n\n{'=' * int(token.tag[1])} ")
            case "inline":
                written.append(_typst(token.children))
            case "text":
                # punctuation is markup in typst, and after #raw(...) even a bracket or a dot
                written.append(re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", token.content))
            case "code_inline":
                written.append(f"#raw({_string(token.content)})")
            case "fence" | "code_block":
                written.append(f"\n\n#raw(block: true, {_string(token.content)})\n")
            case "link_open":
                links.append(token.attrs["href"])
                away = links[-1].startswith("http")
                written.append(f"#link({_string(links[-1])})[" if away else "#[")
            case "link_close":
                written.append("]")
            case "image":
                written.append(f"#image({_string('/' + token.attrs['src'])}, width: 100%)")
            case "table_open":
                head = tokens[i : _end(tokens, i, "thead_close")]
                cells = [t for t in head if t.type == "th_open"]
                align = ["right" if "right" in t.attrs.get("style", "") else "left" for t in cells]
                written.append(
                    f"\n\n#grid-of({len(cells)}, table(columns: {len(cells)}, "
                    f"align: ({', '.join(align)},),\n"
                )
            case "html_block" | "html_inline":
                if not token.content.strip().startswith("<!--"):
                    raise RuntimeError(f"report.md holds HTML: {token.content.strip()!r}")
            case kind if kind not in SILENT:
                written.append(TYPST[kind])
    return "".join(written)


def _end(tokens, start: int, kind: str) -> int:
    return next(i for i in range(start, len(tokens)) if tokens[i].type == kind)


def _string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
