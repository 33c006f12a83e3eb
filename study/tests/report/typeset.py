"""What typst makes of markup, as text."""

import json

import typst

from study.report import pdf


def said(markup: str) -> str:
    """All that the markup prints, without spaces."""
    source = pdf.PREAMBLE.read_text() + f"#metadata[{markup}\n]<all>\n"
    found = json.loads(typst.query(source.encode(), "<all>", field="value", one=True))
    return "".join(_content(found).split())


def _content(node):
    """The text of typst's content tree."""
    if isinstance(node, list):
        return "".join(map(_content, node))
    if not isinstance(node, dict):
        return ""
    return node.get("text") or _content([node.get(at) for at in ("children", "body", "child")])
