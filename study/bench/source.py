"""Source files as tokens (Pygments), trees (tree-sitter) and names, Python and CUDA C++ alike.

A token is what Pygments tells apart, in one form for both languages: white space, comments and
docstrings are none; a string literal is one; an operator of several characters is one (`+=`, `->`);
a preprocessor line is split at white space (`#pragma unroll` is two). The fields of an f-string
are code: f"a{b}c" is the three tokens f"a{ and b and }c".
"""

import ast
import re
import sys
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple

import tree_sitter_cuda
import tree_sitter_python
from pygments.lexers import CudaLexer, PythonLexer
from pygments.token import Comment, Operator, String, Text
from tree_sitter import Language, Node, Parser

from implementations.common import registry

PYTHON, CUDA = Language(tree_sitter_python.language()), Language(tree_sitter_cuda.language())

SPLIT = {
    String: re.compile(r"(?s).+"),
    Comment.Preproc: re.compile(r"\S+"),
    Operator: re.compile(
        r"\*\*=|//=|<<=|>>=|\.\.\.|->|\*\*|//|<<|>>|&&|\|\||\+\+|--|::|[-+*/%&|^@<>=!:]=|."
    ),
}
WORD = re.compile(r"@|[^@]+")  # Pygments joins a decorator's @ and its name

# What tree-sitter-cuda 0.21 cannot parse everywhere, and what no structure hangs on.
UNPARSED = re.compile(r"^[ \t]*#pragma.*|__align__\(\w+\)", re.MULTILINE)

IMPORTS = ("import_statement", "import_from_statement")
LOOPS = {"for_statement", "for_range_loop", "while_statement", "do_statement"}
RELATIONS = {"<", "<=", ">", ">="}
GUARDS = {"mask", "other", "boundary_check", "padding_option"}


class Token(NamedTuple):
    """text, its offset in bytes, and the line it starts in."""

    text: str
    start: int
    line: int


def _kind(pygments_type):
    """The key of SPLIT, Text for what is no token, None for a token that stands by itself."""
    if pygments_type in Comment.Preproc or pygments_type is Comment.PreprocFile:
        return Comment.Preproc
    if pygments_type in Text or pygments_type in Comment:
        return Text
    if pygments_type in Operator and pygments_type is not Operator.Word:
        return Operator
    return String if pygments_type in String else None


def lex(text: str, language: Language) -> Iterator[Token]:
    """The tokens of a text in PYTHON or CUDA; docstrings are among them."""
    lexer = PythonLexer() if language is PYTHON else CudaLexer()
    pieces = [
        (_kind(kind), start, piece) for start, kind, piece in lexer.get_tokens_unprocessed(text)
    ]
    offsets = [0, *accumulate(len(character.encode()) for character in text)]
    for kind, run in groupby(pieces, key=lambda piece: piece[0] or piece[1]):
        if kind is Text:
            continue
        _, starts, texts = zip(*run, strict=True)
        for match in SPLIT.get(kind, WORD).finditer("".join(texts)):
            start = starts[0] + match.start()
            yield Token(match[0], offsets[start], text.count("\n", 0, start) + 1)


class Source:
    """A file: its `tokens`, its tree from `root`, and its names.

    Left out are comments, docstrings, and what runs on no GPU: in CUDA the STUDY_CPU branches, in
    Python the body of a wrapper around PTX, which is its meaning on the CPU tier.
    imports: bound name → origin ("tl" → "triton.language"). declared: names a CUDA file declares.
    Raises RuntimeError, with file and line, where tree-sitter cannot parse the text.
    """

    def __init__(self, path: Path):
        self.path, text = path, path.read_text()
        self.is_python = path.suffix == ".py"
        self.language = PYTHON if self.is_python else CUDA
        self.parsed = (
            text if self.is_python else UNPARSED.sub(lambda m: " " * len(m[0].encode()), text)
        )
        self.root = Parser(self.language).parse(self.parsed.encode()).root_node
        self._dropped: set[int] = set()
        self.imports: dict[str, str] = {}
        self.declared: set[str] = set()
        if self.root.has_error:
            wrong = next(n for n in self.walk(self.root) if n.is_error or n.is_missing)
            line = wrong.start_point[0]
            raise RuntimeError(
                f"{path}:{line + 1}: tree-sitter must be able to parse every line, and this one it "
                f"cannot: {text.splitlines()[line].strip()}"
            )
        holes = []  # where each begins and ends
        for node in self.walk(self.root):
            for hole in _holes(node):
                self._dropped.add(hole.id)
                holes.append((hole.start_byte, hole.end_byte))
            if node.type in IMPORTS:
                self.imports |= _imports(node)
            elif not self.is_python:
                self.declared |= set(_declares(node))
        begins, ends = zip((-1, -1), *sorted(holes), strict=True)
        ends = list(accumulate(ends, max))  # of the holes that begin before
        self.tokens = [
            token
            for token in lex(text, self.language)
            if token.start >= ends[bisect_right(begins, token.start) - 1]
        ]

    def children(self, node: Node) -> list[Node]:
        """The children of a node, less what is left out."""
        return [child for child in node.children if child.id not in self._dropped]

    def walk(self, node: Node) -> Iterator[Node]:
        """A node and all below it, in the order of the text."""
        yield node
        for child in self.children(node):
            yield from self.walk(child)

    def inside(self, node: Node) -> list[Token]:
        """The tokens of a node."""
        return [token for token in self.tokens if node.start_byte <= token.start < node.end_byte]

    def uses(self, node: Node) -> Iterator[tuple[str, Node]]:
        """The names below a node: as they stand, imported ones by their origin ("tl.load" is
        triton.language.load), without the .x of threadIdx.x. No labels of arguments, no methods.
        """
        if node.type in IMPORTS:
            return
        if node.type in ("identifier", "type_identifier", "attribute"):
            if re.fullmatch(r"\w+(\.\w+)*", text := node.text.decode()):
                root, dot, rest = text.partition(".")
                name = self.imports.get(root, root) + dot + rest
                yield re.sub(r"(Idx|Dim)\.[xyz]$", r"\1", name), node
                return
        children = self.children(node)
        if node.type == "keyword_argument":
            children = children[1:]
        elif node.type == "attribute":
            children = children[:1]
        for child in children:
            yield from self.uses(child)

    def is_api(self, name: str) -> bool:
        """Whether a name of `uses` is a library's: of a package that is neither the project nor
        Python's own, or in CUDA one that the file does not declare."""
        if not self.is_python:
            return name not in self.declared
        packages = {origin.partition(".")[0] for origin in self.imports.values()}
        packages -= {"implementations", *sys.stdlib_module_names}
        return name.partition(".")[0] in packages

    def statements(self, node: Node | None = None) -> Iterator[tuple[set[str], Node]]:
        """The top-level statements, each with the names it binds."""
        for child in self.children(node or self.root):
            if child.type in ("preproc_if", "preproc_ifdef", "preproc_else"):
                yield from self.statements(child)
            elif child.type in IMPORTS:
                yield set(_imports(child)), child
            elif self.is_python:
                inner = child.child_by_field_name("definition") or child
                if inner.type == "expression_statement":
                    inner = inner.children[0]
                bound = inner.child_by_field_name("name") or inner.child_by_field_name("left")
                yield {name for name, _ in self.uses(bound)} if bound else set(), child
            else:
                is_template = child.type == "template_declaration"
                yield set(_declares(child.named_children[-1] if is_template else child)), child


def read(path: Path) -> Source:
    """A source taken apart, once until it changes."""
    return _read(path, path.read_bytes())


@cache
def _read(path: Path, content: bytes) -> Source:
    return Source(path)


@cache
def kinds() -> dict[str, str]:
    """What the wrappers of `instructions/` say they are, "barrier", "product" or "copy": in Python,
    of their twins in CUDA C++ as well."""
    functions = (
        node
        for path in registry.HEADERS.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    )
    return {
        function.name: decorator.args[0].value
        for function in functions
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "kind"
    }


def first_name(node: Node) -> str:
    """A name as it stands, up to its first dot."""
    return node.text.decode().split(".")[0]


def _imports(node: Node) -> dict[str, str]:
    module = node.child_by_field_name("module_name")
    prefix = module.text.decode() + "." if module else ""
    found = {}
    for name in node.children_by_field_name("name"):
        alias = name.child_by_field_name("alias")
        origin = (name.child_by_field_name("name") or name).text.decode()
        if not alias and not module:  # `import a.b` binds a
            origin = origin.split(".")[0]
        found[alias.text.decode() if alias else origin] = prefix + origin
    return found


def _declares(node: Node) -> Iterator[str]:
    """The names that a CUDA node declares itself, not in what stands inside it."""
    found = node.children_by_field_name("declarator")
    if "type_parameter" in node.type:
        found = node.named_children[:1]
    elif re.fullmatch(r"\w+_specifier|alias_declaration|preproc_(function_)?def", node.type):
        found = node.children_by_field_name("name")
    for name in found:
        inner = name
        while inner and not inner.type.endswith("identifier"):
            below = inner.child_by_field_name("declarator") or inner.child_by_field_name("name")
            inner = below or next(reversed(inner.named_children), None)
        if inner:
            yield inner.text.decode()


def _holes(node: Node) -> list[Node]:
    if node.type == "comment":
        return [node]
    if node.type == "expression_statement" and [c.type for c in node.children] == ["string"]:
        return [node]
    if node.type == "preproc_ifdef" and node.child_by_field_name("name").text == b"STUDY_CPU":
        other = node.child_by_field_name("alternative")
        if node.children[0].type == "#ifdef":
            rest = [child for child in node.children if child != other]
            return rest + (other.children[:1] if other else [])
        return [*node.children[:2], *([other] if other else []), node.children[-1]]
    if node.type == "decorated_definition" and any(
        re.match(rb"@(ptx|on_gpu)\b", child.text) for child in node.children
    ):
        return [node.child_by_field_name("definition").child_by_field_name("body")]
    return []
