"""The report as one HTML page, self-contained, with the sources of each kernel side by side."""

import html
import re
from collections import Counter
from pathlib import Path

import jinja2
import pygments
from markdown_it import MarkdownIt
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from implementations.common import registry
from study.bench.entries import reference
from study.report import figures
from study.report.data import Data
from study.report.sources import LANGUAGE, files
from study.report.tables import title

PAGE = Path(__file__).with_name("page")
CODE = ["pre.code", "pre.lines"]  # files, and lines within the text


def page(data: Data, markdown: str, figures_: Path) -> str:
    """The page of report.md; the figures are those in the folder `figures_`."""
    source = re.sub(r"<!-- sources (\w+) -->\n\n.*?\n\n", r"<!-- sources \1 -->\n\n", markdown)
    md = MarkdownIt("commonmark", {"highlight": _lines}).enable("table")
    tokens = md.parse(source)
    contents, seen = [], Counter()
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            text = tokens[i + 1].content
            anchor = slug(text)
            token.attrSet("id", f"{anchor}-{times}" if (times := seen[anchor]) else anchor)
            seen[anchor] += 1
            if token.tag == "h2":
                contents.append((anchor, text))

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
    env.globals = {"title": {b: title(b) for b in registry.BACKENDS}, "data": data}
    template = env.from_string((PAGE / "sources.html.j2").read_text())
    for kernel in registry.kernels():
        shown = {backend: _shown(kernel, backend) for backend in registry.BACKENDS}
        panes = template.render(kernel=kernel, baseline=reference(kernel), files=shown)
        body = body.replace(f"<!-- sources {kernel} -->", panes)
    return env.from_string((PAGE / "index.html.j2").read_text()).render(
        body=body,
        contents=contents,
        kernels=registry.kernels(),
        looks=figures.looks(),
        css=(PAGE / "page.css").read_text(),
        js=(PAGE / "page.js").read_text(),
        light=HtmlFormatter(style="xcode").get_style_defs(CODE),
        dark=HtmlFormatter(style="github-dark").get_style_defs(CODE),
    )


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _shown(kernel: str, backend: str) -> list[tuple[str, str]]:
    """The names of an implementation's files, and these as HTML."""
    return [
        (path.name, _highlighted(path.read_text(), LANGUAGE[path.suffix]))
        for path in files(kernel, backend)
    ]


def _lines(code: str, language: str, _) -> str:
    """A fenced block of the text."""
    return f'<pre class="lines">{_highlighted(code, language)}</pre>'


def _highlighted(code: str, language: str) -> str:
    """Code as HTML, without a wrapper."""
    lexer = get_lexer_by_name(language or "text", stripnl=False)
    return pygments.highlight(code, lexer, HtmlFormatter(nowrap=True))
