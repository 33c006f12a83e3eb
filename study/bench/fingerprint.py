"""The fingerprint that ties a row of data to the code that it measured.

That of an implementation is made of the tokens that it reaches: its own files whole, and of what
they import or include from the project exactly the definitions used, and those that these use. Left
out are comments, docstrings, import statements, what a wrapper means on the CPU tier, and the
tiers themselves. A name from another file of the project stands for its definition, wherever that
is; a `.cu` or a table that a definition names is used whole. So a comment, a moved file or one more
wrapper changes nothing; another constant does.

What is refused, and in which words, is the spec's `check`. It is part of the spec's fingerprint,
with the reference, the inputs and the rules of agreement, and of no implementation's.
"""

import ast
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, wraps
from itertools import accumulate, chain
from pathlib import Path
from threading import Lock

import implementations
from implementations.common import registry

HOME = Path(__file__).parents[1]  # of the package study
# Modules that are not followed: how kernels run without a GPU.
TIERS = re.compile(r"implementations(\.tiers\b.*)?")
MEANING = {"ptx", "on_gpu"}  # decorators of functions whose body is a meaning on the CPU tier
REFUSAL = re.compile(r"check(_\w+)?")  # definitions that are not followed from an implementation
BESIDE = re.compile(r"\w+\.(cu|csv)")  # files that definitions may name
SPEC_PARTS = ("reference", "make_inputs", "agreement")  # of SPEC, in the spec's fingerprint

STRING = (
    r'(?:\b[a-zA-Z]{1,2})?(?:"{3}[\s\S]*?"{3}|' + r"'{3}[\s\S]*?'{3}|"
    r'"(?:\\.|[^"\\\n])*"|' + r"'(?:\\.|[^'\\\n])*')"
)
TOKEN = {  # comments match without a group
    ".py": re.compile(rf"#.*|({STRING}|\w+|[^\w\s])"),
    ".cu": re.compile(rf"//.*|/\*[\s\S]*?\*/|({STRING}|#(?:\\\n|.)*|\w+|[^\w\s])"),
}

PARSING = Lock()  # before Python 3.12 two threads that parse at once disturb each other

OPENING, CLOSING = set("([{"), set(")]}")


@dataclass(frozen=True)
class Definition:
    """A top-level statement: its file, where it begins there (in bytes), and what it binds.

    text: its tokens, and the origins of the names that it has from other packages.
    uses: what of the project it uses, as (file, name); the name "" is the whole file.
    """

    path: Path
    start: int
    names: frozenset[str]
    text: str
    uses: frozenset[tuple[Path, str]]


@dataclass(frozen=True)
class File:
    """A source: its definitions in order, and the names that it has from other files."""

    definitions: tuple[Definition, ...]
    imported: dict[str, tuple[Path, str]]


def _until_changed(make: Callable) -> Callable:
    """`make`, which is asked again once a file has changed that was parsed for its answer."""
    known = {}

    @wraps(make)
    def remembered(*names: str) -> str:
        key = (*names, *implementations.__path__)
        answer, files = known.get(key, (None, {}))
        if not files or any(_changed(path) != then for path, then in files.items()):
            _parsed.files = files = {}
            try:
                answer = make(*names)
            finally:
                _parsed.files = {}  # what is parsed from now on is for another
            known[key] = answer, files
        return answer

    return remembered


@_until_changed
def fingerprint(kernel: str, backend: str) -> str:
    """Twelve hex digits over all tokens that an implementation, or a baseline, reaches."""
    if backend in registry.BACKENDS:
        own = definitions(kernel, backend)
    else:
        own = [_baseline(kernel, backend)]
    return digest(own)


@_until_changed
def code_fingerprint(kernel: str, backend: str) -> str:
    """The same without tables: what was found by measuring the code is no part of it."""
    return digest(
        definitions(kernel, backend),
        follow=lambda d: _is_no_refusal(d) and d.path.suffix != ".csv",
    )


@_until_changed
def spec_fingerprint(kernel: str) -> str:
    """The same over a spec's reference, inputs, rules of agreement and refusals."""
    path = registry.folders()[kernel] / f"{kernel}.py"
    own = [_part(path, name) for name in SPEC_PARTS]
    refusals = [d for d in parse(path).definitions if "check" in d.names]
    return digest([*own, *refusals], follow=lambda definition: True)


def _is_no_refusal(definition: Definition) -> bool:
    return not any(map(REFUSAL.fullmatch, definition.names))


def digest(own: Iterable[Definition], follow: Callable[[Definition], bool] = _is_no_refusal) -> str:
    """Twelve hex digits over definitions, in their order, and those that they reach."""
    own = list(own)
    texts = [d.text for d in own] + sorted(d.text for d in reached(own, follow))
    return hashlib.sha256("\n\n".join(texts).encode()).hexdigest()[:12]


def definitions(kernel: str, backend: str) -> list[Definition]:
    """Those of an implementation's own files, in order."""
    return [d for path in registry.files(kernel, backend) for d in parse(path).definitions]


def reached(own: Iterable[Definition], follow: Callable[[Definition], bool]) -> list[Definition]:
    """The definitions that others use, directly or through each other, without these themselves.

    follow: whether a definition counts, and what it uses in turn.
    """
    own = list(own)
    known, waiting = dict.fromkeys(own), list(own)
    while waiting:
        for path, name in sorted(waiting.pop().uses):
            for definition in _found(path, name):
                if definition not in known and follow(definition):
                    known[definition] = None
                    waiting.append(definition)
    return [definition for definition in known if definition not in own]


def _found(path: Path, name: str) -> Iterator[Definition]:
    """The definitions of a name of a file, which may have it from another file."""
    file = parse(path)
    if name in file.imported:
        yield from _found(*file.imported[name])
        return
    found = [d for d in file.definitions if not name or name in d.names]
    if name and not found:
        raise RuntimeError(f"{path} must define {name}, which others of the project use")
    yield from found


class _Parsed(threading.local):
    """The files that this thread parsed since it began an answer, and when they had changed."""

    def __init__(self):
        self.files: dict[Path, int] = {}


_parsed = _Parsed()


def parse(path: Path) -> File:
    """A source taken apart. It is read once, until it changes."""
    return _read(path, _noted(path), tuple(implementations.__path__))


def _noted(path: Path) -> int:
    _parsed.files[path] = changed = path.stat().st_mtime_ns
    return changed


def _changed(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return -1


@cache
def _read(path: Path, changed: int, roots: tuple[str, ...]) -> File:
    if path.suffix == ".csv":
        return File((Definition(path, 0, frozenset(), path.read_text(), frozenset()),), {})
    return (_python(path, changed, roots) if path.suffix == ".py" else _Cuda(path)).file()


@cache
def _python(path: Path, changed: int, roots: tuple[str, ...]) -> "_Python":
    return _Python(path)


def _words(text: str, suffix: str) -> str:
    """The tokens of a text, with a space between."""
    tokens = (match[1] for match in TOKEN[suffix].finditer(text) if match[1])
    return " ".join(" ".join(token.split()) if token[0] == "#" else token for token in tokens)


# --- Python ---------------------------------------------------------------------------------------


class _Python:
    def __init__(self, path: Path):
        self.path, self.data = path, path.read_bytes()
        self.lines = [0, *accumulate(len(line) for line in self.data.splitlines(keepends=True))]
        with PARSING:
            self.tree = ast.parse(self.data)
        imports = (n for n in ast.walk(self.tree) if isinstance(n, ast.Import | ast.ImportFrom))
        self.origins = dict(chain(*map(self._bindings, imports)))
        self.own = {name for statement in self.tree.body for name in _bound(statement)}

    def file(self) -> File:
        definitions = tuple(
            self.definition(statement, _bound(statement))
            for statement in self.tree.body
            if not _imports_only(statement) and not _is_text(statement)
        )
        imported = {name: use for name in self.origins if (use := self._use(name))}
        return File(definitions, imported)

    def definition(self, node: ast.AST, names: frozenset[str] = frozenset()) -> Definition:
        """A statement, or an expression that stands for one."""
        holes, uses, origins = [], set(), set()
        for below, in_string in _walk(node, holes, self._span):
            dotted = _dotted(below)
            if not dotted:
                uses |= self._beside(below)
                continue
            first, _, rest = dotted.partition(".")
            if use := self._use(dotted):
                uses.add(use)
                if not in_string and use[1] and dotted != use[1]:
                    holes.append((*self._span(below), use[1].encode()))
            elif first in self.origins and not TIERS.fullmatch(self.origins[first]):
                origins.add(f"{first} = {self.origins[first]}")
            elif first in self.own:
                uses.add((self.path, first))
        begin, end = self._span(node)
        text = _words(self._without(holes, begin, end), ".py")
        lines = "\n".join((text, *sorted(origins)))
        return Definition(self.path, begin, names, lines, frozenset(uses))

    def _beside(self, node: ast.AST) -> set[tuple[Path, str]]:
        """The whole of the file beside this one that a string names."""
        name = getattr(node, "value", None)
        if isinstance(name, str) and BESIDE.fullmatch(name):
            path = self.path.with_name(name)
            return {(path, "")} if path.is_file() else set()
        return set()

    def _span(self, node: ast.AST) -> tuple[int, int]:
        """Where a node begins and ends, in bytes, its decorators included."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        begin = self.lines[node.lineno - 1] + node.col_offset
        if first < node.lineno:
            begin = self.data.index(b"@", self.lines[first - 1])
        return begin, self.lines[node.end_lineno - 1] + node.end_col_offset

    def _without(self, holes: list[tuple[int, int, bytes]], begin: int, end: int) -> str:
        pieces = []
        for first, last, instead in sorted(holes):
            if first >= begin:  # else it lies in a hole
                pieces += self.data[begin:first], b" ", instead, b" "
                begin = last
        return b"".join([*pieces, self.data[begin:end]]).decode()

    def _bindings(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
        """The names that an import binds, and their origins."""
        for alias in node.names:
            if alias.name == "*" or isinstance(node, ast.ImportFrom) and node.level:
                raise RuntimeError(
                    f"{self.path}:{node.lineno}: imports must be absolute and name what they import"
                )
            if isinstance(node, ast.ImportFrom):
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"
            elif alias.asname:
                yield alias.asname, alias.name
            else:
                first = alias.name.partition(".")[0]
                yield first, first

    def _use(self, dotted: str) -> tuple[Path, str] | None:
        """File and name of what a dotted name stands for, if the project defines it."""
        first, dot, rest = dotted.partition(".")
        whole = self.origins.get(first, "") + dot + rest
        if whole.partition(".")[0] not in ("implementations", "study"):
            return None
        parts = whole.split(".")
        for count in range(len(parts), 0, -1):
            if path := _module(".".join(parts[:count])):
                if TIERS.fullmatch(".".join(parts[:count])):
                    return None
                return path, "".join(parts[count : count + 1])
        raise RuntimeError(f"{self.path}: no module of the project has {whole}")


def _module(name: str) -> Path | None:
    """The file of a module of the project."""
    package, *rest = name.split(".")
    roots = map(Path, implementations.__path__) if package == "implementations" else (HOME,)
    for root in roots:
        for path in (root.joinpath(*rest).with_suffix(".py"), root.joinpath(*rest, "__init__.py")):
            if path.is_file():
                return path
    return None


def _bound(statement: ast.stmt) -> frozenset[str]:
    """The names that a top-level statement binds."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return frozenset({statement.name})
    return frozenset(_stored(statement))


def _stored(node: ast.AST) -> Iterator[str]:
    """The variables set in a statement, and not in a scope of their own within it."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    for part in ast.iter_child_nodes(node):
        if not isinstance(part, ast.comprehension | ast.FunctionDef | ast.ClassDef | ast.Lambda):
            yield from _stored(part)


def _imports_only(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.If):
        return all(map(_imports_only, statement.body + statement.orelse))
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _is_text(statement: ast.AST) -> bool:
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(getattr(value, "value", None), str)


def _dotted(node: ast.AST) -> str:
    """ "a.b.c" of a name or an attribute, "" of anything else."""
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


def _walk(
    node: ast.AST, holes: list, span: Callable, in_string: bool = False
) -> Iterator[tuple[ast.AST, bool]]:
    """The nodes that count, each with whether it stands in an f-string; the others become holes."""
    if _is_text(node) or isinstance(node, ast.Import | ast.ImportFrom):
        holes.append((*span(node), b""))
        return
    yield node, in_string
    if _dotted(node):
        return
    in_string = in_string or isinstance(node, ast.JoinedStr)
    parts = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.FunctionDef) and any(map(_has_meaning, node.decorator_list)):
        holes.append((span(node.body[0])[0], span(node.body[-1])[1], b""))
        parts = [*node.decorator_list, node.args]
    for part in parts:
        yield from _walk(part, holes, span, in_string)


def _has_meaning(decorator: ast.expr) -> bool:
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return _dotted(function).rpartition(".")[2] in MEANING


def _part(path: Path, name: str) -> Definition:
    """An argument of SPEC, as if it were a definition."""
    source = _taken_apart(path)
    return source.definition(_argument(source, name))


def _taken_apart(path: Path) -> _Python:
    return _python(path, _noted(path), tuple(implementations.__path__))


def _argument(source: _Python, name: str) -> ast.expr:
    calls = (n.value for n in source.tree.body if "SPEC" in _bound(n))
    call = next((c for c in calls if isinstance(c, ast.Call)), None)
    value = next((k.value for k in call.keywords if k.arg == name), None) if call else None
    if value is None:
        raise RuntimeError(f"{source.path} must define SPEC, a call with the argument {name}")
    return value


def _baseline(kernel: str, name: str) -> Definition:
    """What a spec calls by this name, as if it were a definition."""
    source = _taken_apart(registry.folders()[kernel] / f"{kernel}.py")
    listed = _argument(source, "baselines")
    names = [getattr(key, "value", None) for key in getattr(listed, "keys", ())]
    if name not in names:
        raise RuntimeError(f"{source.path} must list {name!r} in `baselines`, a literal dict")
    return source.definition(listed.values[names.index(name)])


# --- CUDA C++ -------------------------------------------------------------------------------------


class _Cuda:
    def __init__(self, path: Path):
        self.path, self.text = path, path.read_text()
        self.included: list[Path] = []

    def file(self) -> File:
        statements = [(at, words, _declared(words)) for at, words in self._statements()]
        shared = {}  # what is included, also by what is included
        for path in self.included:
            file = parse(path)
            shared |= file.imported | {n: (path, n) for d in file.definitions for n in d.names}
        where = shared | {name: (self.path, name) for *_, names in statements for name in names}
        definitions = []
        for at, words, names in statements:
            used = set(re.findall(r"\w+", " ".join(words))) - names
            uses = frozenset(where[name] for name in used & set(where))
            start = len(self.text[:at].encode())
            definitions.append(Definition(self.path, start, names, " ".join(words), uses))
        return File(tuple(definitions), shared)

    def _statements(self) -> Iterator[tuple[int, list[str]]]:
        """The top-level statements: where each begins, and its tokens, before them the conditions
        that it stands under."""
        conditions, words, start, depth = [], [], 0, 0
        tokens = list(self._on_gpu())
        for i, (at, token) in enumerate(tokens):
            if token[0] == "#" and not words:
                kind, _, rest = token[1:].strip().partition(" ")
                if kind == "include" and rest[0] == '"':
                    self.included.append(self._header(rest.strip('"')))
                elif kind.startswith("if"):
                    conditions.append(token)
                elif kind in ("else", "elif"):
                    conditions[-1] += f" {token}"
                elif kind == "endif":
                    conditions.pop()
                elif kind == "define":
                    yield at, [*conditions, token]
                continue
            start = start if words else at
            words.append(token)
            depth += (token in OPENING) - (token in CLOSING)
            following = tokens[i + 1][1] if i + 1 < len(tokens) else ""
            if depth == 0 and (token == ";" or token == "}" and following != ";"):
                yield start, [*conditions, *words]
                words = []

    def _on_gpu(self) -> Iterator[tuple[int, str]]:
        """The tokens with their places, less comments and the branches of the CPU tier."""
        taken = []  # of the conditionals under way: whether, None where they are about other things
        for match in TOKEN[".cu"].finditer(self.text):
            token = match[1]
            if token and token[0] == "#":
                token = " ".join(re.sub(r"//.*|/\*.*?\*/|\\\n", " ", token).split())
                if token.startswith("#if"):
                    taken.append({"#ifdef STUDY_CPU": False, "#ifndef STUDY_CPU": True}.get(token))
                    token = "" if taken[-1] is not None else token
                elif token in ("#else", "#endif") and taken[-1] is not None:
                    taken[-1] = not taken[-1]
                    token = ""
                if match[1].startswith("#endif"):
                    taken.pop()
            if token and False not in taken:
                yield match.start(), token

    def _header(self, name: str) -> Path:
        for folder in (self.path.parent, registry.HEADERS):
            if (folder / name).is_file():
                return folder / name
        raise RuntimeError(f"{self.path} includes {name}, which is not in {registry.HEADERS}")


def _declared(words: list[str]) -> frozenset[str]:
    """The names that a top-level statement of CUDA C++ binds."""
    if words[-1].startswith("#define"):
        return frozenset(re.findall(r"#define (\w+)", words[-1]))
    words = [word for word in words if word[0] != "#"]
    if words[0] == "template":
        words = words[_closing(words, 1) + 1 :]
    if words[0] in ("using", "static_assert", "namespace"):
        return frozenset(words[1:2] if words[0] == "using" else ())
    is_type = words[0] in ("struct", "class", "union", "enum")
    found, i = [], 0
    while i < len(words) and words[i] not in ("{", ":"):
        before = words[i - 1] if i else ""
        if words[i] in ("(", "<", "["):
            end = _closing(words, i)
            named = words[i] == "[" and not is_type
            if words[i] == "(":  # of a function, or of an attribute before its name
                named = words[end + 1] in ("{", ";", "const", "noexcept") and not is_type
            if words[i] == "<" and words[end + 1] == "(":  # a specialisation
                named = words[_closing(words, end + 1) + 1] in ("{", ";")
            if named:
                found.append(before)
            i = end
        elif words[i] in ("=", ",", ";") and not is_type:
            found.append(before)
            if words[i] == "=":
                while words[i] not in (",", ";"):  # over the value
                    i = _closing(words, i) + 1 if words[i] in OPENING else i + 1
                continue
        i += 1
    if is_type:
        found = [words[i - 1]]
    return frozenset(name for name in found if re.fullmatch(r"[A-Za-z_]\w*", name))


def _closing(words: list[str], at: int) -> int:
    """The place of the bracket that closes the one at `at`."""
    close, depth = dict(zip("([{<", ")]}>", strict=True))[words[at]], 0
    for i in range(at, len(words)):
        depth += (words[i] == words[at]) - (words[i] == close)
        if depth == 0:
            return i
    raise RuntimeError(f"{words[at]} must be closed: {' '.join(words)}")
