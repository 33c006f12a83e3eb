"""The report as a PDF, set by typst."""

import re
from pathlib import Path

PREAMBLE = Path(__file__).with_name("page") / "report.typ"


def write(markdown: str, out: Path) -> None:
    """Set the report by typst into `out`/report.pdf; its figures are those in `out`/figures."""
    import matplotlib
    import typst

    source = PREAMBLE.read_text() + typst_markup(markdown)
    (out / "report.pdf").write_bytes(
        typst.compile(
            source.encode(),
            root=out,
            font_paths=[Path(matplotlib.get_data_path()) / "fonts" / "ttf"],  # of the figures
            ignore_system_fonts=True,
        )
    )


def typst_markup(markdown: str) -> str:
    """Markdown (CommonMark with tables) as typst markup.

    Comments vanish, and what is folded away stands open below its title; other HTML is refused.
    """
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
                written.append(_escaped(token.content))
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
                written.append(_html(token.content.strip()))
            case kind if kind not in SILENT:
                written.append(TYPST[kind])
    return "".join(written)


def _html(text: str) -> str:
    if title := re.fullmatch(r"<details><summary>([^<]*)</summary>", text):
        return f"\n\n#strong[{_escaped(title[1])}]\n"
    if text == "</details>" or text.startswith("<!--"):
        return ""
    raise RuntimeError(f"report.md holds HTML: {text!r}")


def _escaped(text: str) -> str:
    """Text whose punctuation is no markup, nor goes on with a #raw(...) before it."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def _end(tokens, start: int, kind: str) -> int:
    return next(i for i in range(start, len(tokens)) if tokens[i].type == kind)


def _string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
