"""The size and structure of each implementation, counted from its formatted source.

Scopes, of a Python file by what a top-level statement is:
    device   functions that hold a @triton.jit or @cuda.jit; in CUDA the .cu
    host     the function with the kernel's name
    tuning   assignments that call nothing but Python's own functions and triton.Config,
             @triton.autotune(...); in CUDA the constants at the top of the .cu
    all      the three together
    What is none of these (imports, small helpers, SOURCE of a .cu) stands with the host if the
    host uses it, else with the device if that does, else with the host.
Helpers: "with" adds to the device those definitions of `instructions/` that it reaches, the same
closure as the fingerprint's. The argument checks stand in the spec, are the same for all backends,
and are not counted.

Metrics (what a token is: `study.tokens`)
    tokens, distinct_tokens
    tokens_without_punctuation   tokens less ( ) [ ] { } , : ; .
    source_lines       lines that hold a token
    halstead_volume    N log2 n: N tokens, n of them distinct, where ) ] } count with their opening
    decisions          if, elif, for, while, do, case, except, conditional expressions, the for and
                       if of a comprehension, and, or: McCabe's number less one
    guards             mask=, other=, boundary_check=, padding_option=, calls of where, and bounds
                       tests: < <= > >= outside a loop's condition between two sides of which one
                       mentions an index (below) and none is a number
    nesting            the most loops and conditional statements (elif is its if) inside each other
    api_names          distinct names that a library or CUDA defines: tl.load, cuda.jit,
                       float32 of Numba, threadIdx, __half. Not Python's library, not methods.
Explicit parallelism
    barriers             names that hold syncthreads, syncwarp or barrier, wrappers of that kind
    shared_declarations  __shared__ variables, cuda.shared.array
    atomics              names with a part that begins with atomic
    shuffles             exchanges and votes in a warp: shfl, ballot, {any,all,match,reduce}_sync
    inline_ptx           uses of a shared wrapper that holds PTX, tl.inline_asm_elementwise
    index_arithmetic     reads of an index: of threadIdx, blockIdx, blockDim, gridDim, cuda.grid,
                         gridsize, laneid, tl.program_id, num_programs, arange, or of a variable
                         that is somewhere in the same top-level function assigned an expression
                         that mentions an index. A mention inside a comparison, a subscript's
                         brackets, a dereference, a lambda, or the arguments of a call (range and
                         conversions to an integer aside) is none: what is loaded from an address
                         is no index. Addresses are, parameters are not.
"""

import builtins
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from math import log2
from pathlib import Path

import pandas as pd
from radon.complexity import add_inner_blocks, cc_visit
from radon.metrics import h_visit, mi_visit
from rich.table import Column, Table
from tree_sitter import Node

import implementations
from implementations.common import registry
from study.bench import store
from study.bench.cells import Selection
from study.bench.fingerprint import Definition, definitions, fingerprint, reached
from study.bench.progress import console, progress
from study.bench.source import GUARDS, LOOPS, RELATIONS, Source, Token, first_name, kinds, read

Part = tuple[Source, Node]  # a piece of a file, counted as a whole

SCOPES = ("device", "host", "tuning", "all")
RULES = ("tokens", "source_lines", "tokens_without_punctuation", "halstead_volume")
PRINTED = ("tokens", "decisions", "guards", "index_arithmetic")

NESTS = LOOPS | {"if_statement", "match_statement", "switch_statement"}
DECIDES = LOOPS | {"if_statement", "elif_clause", "case_clause", "case_statement", "if_clause"}
DECIDES |= {"except_clause", "catch_clause", "conditional_expression", "for_in_clause"}
NUMBER = re.compile(r"-?\.?\d[\w.]*")
INTEGER = re.compile(r"range|u?int\d*(_t)?")  # functions of an index that are one

INDEX = re.compile(
    r"triton\.language\.(program_id|num_programs|arange)"
    r"|(numba\.cuda\.)?(threadIdx|blockIdx|blockDim|gridDim)|numba\.cuda\.(grid|gridsize|laneid)"
)
CENSUS = {
    "barriers": re.compile(r"syncthreads|syncwarp|barrier"),
    "shared_declarations": re.compile(r"^numba\.cuda\.shared\.array$"),
    "atomics": re.compile(r"(^|\.)atomic"),
    "shuffles": re.compile(r"shfl|ballot|(any|all|match_\w+|reduce_\w+)_sync"),
    "inline_ptx": re.compile(r"^triton\.language\.inline_asm_elementwise$"),
}


def parts(sources: list[Source], kernel: str) -> dict[str, list[Part]]:
    """What each of the scopes device, host and tuning holds of one implementation's files."""
    placed = {"device": [], "host": [], "tuning": []}
    for source in sources:
        waiting = []
        for names, node in source.statements():
            jit = {"triton.jit", "numba.cuda.jit"} & {name for name, _ in source.uses(node)}
            if _is_tuning(source, node):
                placed["tuning"].append((source, node))
            elif jit or not source.is_python:
                for child in node.children if node.type == "decorated_definition" else [node]:
                    tunes = child.text.startswith(b"@triton.autotune")
                    placed["tuning" if tunes else "device"].append((source, child))
            elif kernel in names:
                placed["host"].append((source, node))
            else:
                waiting.append((names, node))
        for scope in ("host", "device"):
            taken = _reached(placed[scope], source, waiting)
            placed[scope] += taken
            waiting = [(names, node) for names, node in waiting if (source, node) not in taken]
        placed["host"] += [(source, node) for _, node in waiting]
    return placed


def _is_tuning(source: Source, node: Node) -> bool:
    if not source.is_python:
        constant = node.type == "declaration" and re.match(rb"(static )?const", node.text)
        return bool(constant) or node.type == "preproc_def"
    calls = (n for n in source.walk(node) if n.type == "call")
    functions = {call.child_by_field_name("function").text.decode() for call in calls}
    return (
        node.type == "expression_statement"
        and node.children[0].type == "assignment"
        and functions <= {*dir(builtins), "triton.Config"}
    )


def _reached(users: list[Part], source: Source, statements) -> list[Part]:
    """Those of a source's statements that its users name, or that others of these name."""
    found, new = [], [part for part in users if part[0] is source]
    while new:
        named = {first_name(node) for _, part in new for _, node in source.uses(part)}
        new = [(source, n) for names, n in statements if names & named and (source, n) not in found]
        found += new
    return found


def wrappers(kernel: str, backend: str) -> tuple[list[Part], dict[str, str]]:
    """The definitions of `instructions/`, and of another day's kernel, that an implementation
    reaches; their names, as `Source.uses` gives them, and of which kind each is: "ptx" if it holds
    PTX and says no other, "" if it does not."""
    own = definitions(kernel, backend)
    found = reached(own, follow=_is_shared)
    sources = {path: read(path) for path in {d.path for d in found}}
    nodes = {
        (path, node.start_byte): node
        for path, source in sources.items()
        for _, node in source.statements()
    }
    needed, names = [], {}
    for definition in found:
        path = definition.path
        prefix = f"{_module(path)}." if path.suffix == ".py" else ""
        needed.append((sources[path], nodes[path, definition.start]))
        holds = "ptx" if re.search(r"\basm\b|@ ptx \(", definition.text) else ""
        names |= {prefix + name: kinds().get(name, holds) for name in definition.names}
    return needed, names


def _is_shared(definition: Definition) -> bool:
    """Whether what holds it is read by several kernels, or is another kernel's own."""
    path = definition.path
    written = path.suffix == ".cu" or path.stem.endswith(tuple(f"_{b}" for b in registry.BACKENDS))
    return path.parent == registry.HEADERS or written


def _module(path: Path) -> str:
    """The dotted name of a file of `implementations`."""
    root = next(r for r in map(Path, implementations.__path__) if path.is_relative_to(r))
    return ".".join(("implementations", *path.relative_to(root).with_suffix("").parts))


def _assignments(source: Source, node: Node) -> Iterator[tuple[Node, Node]]:
    """Target and value of each assignment, initialised declaration and Python loop."""
    for n in source.walk(node):
        if not re.search("assignment|init_declarator|for_|named_expr", n.type):
            continue
        for target, value in (("left", "right"), ("declarator", "value"), ("name", "value")):
            ends = n.child_by_field_name(target), n.child_by_field_name(value)
            if all(ends):
                yield ends


def _written(target: Node) -> Iterator[Node]:
    """The variables that a target sets: none in a subscript or an attribute."""
    if target.type == "identifier":
        yield target
    elif re.search("pattern|declarator|tuple", target.type):
        for child in target.named_children:
            yield from _written(child)


def _mentions(source: Source, node: Node, indices: set[str]) -> bool:
    """Whether an expression mentions an index, as the docstring above has it."""
    children = source.children(node)
    if re.search("comparison_operator|lambda", node.type) or node.text.startswith(b"*"):
        return False
    if node.type == "binary_expression" and children[1].type in RELATIONS | {"==", "!="}:
        return False
    if node.type in ("identifier", "attribute"):
        name, use = next(source.uses(node), (None, None))
        if use == node:
            return bool(INDEX.fullmatch(name)) or first_name(node) in indices
    if node.type in ("call", "call_expression"):
        function = node.child_by_field_name("function")
        children = children if INTEGER.fullmatch(function.text.decode()) else [function]
    elif node.type in ("subscript", "subscript_expression"):
        children = children[:1]
    return any(_mentions(source, child, indices) for child in children)


def _indices(source: Source, node: Node) -> set[str]:
    """The names of the index variables in a top-level definition."""
    assignments = list(_assignments(source, node))
    indices, before = set(), None
    while indices != before:
        before = set(indices)
        for target, value in assignments:
            if _mentions(source, value, indices):
                indices |= {first_name(name) for name in _written(target)}
    return indices


def _structure(source: Source, part: Node, indices: set[str]) -> tuple[Counter, int]:
    """Decisions, guards and __shared__ variables of a part; its nesting."""
    counts, deepest = Counter(), 0

    def is_bounds_test(left, operator, right):
        sides = (left, right)
        return (
            operator.type in RELATIONS
            and not any(NUMBER.fullmatch(side.text.decode()) for side in sides)
            and any(_mentions(source, side, indices) for side in sides)
        )

    def visit(node, depth, in_condition):
        nonlocal deepest
        kind, children = node.type, source.children(node)
        if kind in NESTS and node.parent.type != "else_clause":
            depth += 1
            deepest = max(deepest, depth)
        counts["decisions"] += kind in DECIDES and children[0].type != "default"
        if kind in ("binary_expression", "boolean_operator", "comparison_operator"):
            counts["decisions"] += children[1].type in ("&&", "||", "and", "or")
            if not in_condition:
                tests = zip(children[::2], children[1::2], children[2::2], strict=False)
                counts["guards"] += sum(is_bounds_test(*test) for test in tests)
        elif kind == "keyword_argument":
            counts["guards"] += children[0].text.decode() in GUARDS
        elif kind == "declaration" and any(child.text == b"__shared__" for child in children):
            counts["shared_declarations"] += len(node.children_by_field_name("declarator"))
        condition = node.child_by_field_name("condition") if kind in LOOPS else None
        for child in children:
            visit(child, depth, in_condition or child == condition)

    visit(part, 0, False)
    return counts, deepest


@cache  # many reach the same definitions of `instructions/`
def _taken_apart(
    source: Source, node: Node
) -> tuple[list[Token], Counter, int, list[tuple[str, Node, bool]]]:
    """The tokens of a part; its `_structure`; its names, and whether each reads an index."""
    indices = _indices(source, node)
    written = {n.id for target, _ in _assignments(source, node) for n in _written(target)}
    names = []
    for name, use in source.uses(node):
        is_index = bool(INDEX.fullmatch(name)) or first_name(use) in indices
        names.append((name, use, is_index and use.id not in written))
    return source.inside(node), *_structure(source, node, indices), names


def measure(scope: list[Part], wrapped: Mapping[str, str] = {}) -> dict[str, float]:  # noqa: B006
    """The metrics of a scope; `wrapped`: the kinds of the shared wrappers by name."""
    tokens, lines, api, counts, nesting = [], set(), set(), Counter(), 0
    for source, node in scope:
        inside, structure, depth, names = _taken_apart(source, node)
        for token in inside:
            tokens.append(token.text)
            last = token.line + token.text.count("\n")
            lines |= {(source, line) for line in range(token.line, last + 1)}
            if not source.is_python and token.text.startswith("__"):
                api.add(token.text)
        counts, nesting = counts + structure, max(nesting, depth)
        for name, use, is_index in names:
            counts["index_arithmetic"] += is_index
            if name in wrapped and use.parent.type != "function_declarator":
                counts["inline_ptx"] += (
                    bool(wrapped[name]) and source.path.parent != registry.HEADERS
                )
                counts["barriers"] += wrapped[name] == "barrier"
            elif source.is_api(name):
                api.add(name)
                counts["guards"] += name.endswith(".where")
                for metric, pattern in CENSUS.items():
                    counts[metric] += bool(pattern.search(name))
    terms = [text for text in tokens if text not in (")", "]", "}")]
    return {
        "tokens": len(tokens),
        "distinct_tokens": len(set(tokens)),
        "tokens_without_punctuation": sum(text not in "()[]{},:;." for text in tokens),
        "source_lines": len(lines),
        "halstead_volume": round(len(terms) * log2(max(len(set(terms)), 1)), 1),
        "decisions": counts["decisions"],
        "guards": counts["guards"],
        "nesting": nesting,
        "api_names": len(api),
        **{metric: counts[metric] for metric in (*CENSUS, "index_arithmetic")},
    }


def rows(kernel: str, backend: str, placed: dict[str, list[Part]]) -> list[dict]:
    """The rows of complexity.csv for one implementation, from `scope` on, of its `parts`."""
    needed, wrapped = wrappers(kernel, backend)
    found = []
    for scope in SCOPES:
        held = sum(placed.values(), []) if scope == "all" else placed[scope]
        added = needed if scope in ("device", "all") else []
        found.append({"scope": scope, "helpers": "without"} | measure(held, wrapped))
        found.append({"scope": scope, "helpers": "with"} | measure(held + added, wrapped))
    return found


def radon_rows(device: list[Part]) -> list[dict]:
    """What radon says of a device scope, beside this module's counts: one row, none if it is empty.

    A .cu is handed to radon as CuPy's users write it, a string in a Python module; Python as it
    stands. radon_cc: cyclomatic complexity summed over the functions, 0 without one; radon_mi:
    maintainability index, 100 at best.
    """
    if not device:
        return []
    code = "\n".join(node.text.decode() for source, node in device if source.is_python)
    for path in {source.path for source, _ in device if not source.is_python}:
        code += f"import cupy\n\nMODULE = cupy.RawModule(code=r'''{path.read_text()}''')\n"
    row = {
        "radon_cc": sum(block.complexity for block in add_inner_blocks(cc_visit(code))),
        "radon_halstead_volume": round(h_visit(code).total.volume, 1),
        "radon_mi": round(mi_visit(code, multi=False), 1),
    }
    ours = measure(device)
    return [
        row | {name: ours[name] for name in ("tokens", "halstead_volume", "decisions", "guards")}
    ]


def ranks(table: pd.DataFrame) -> pd.DataFrame:
    """kernel, rule, order ("triton < numba = cupy"): the backends of each kernel by each of RULES,
    of the rows of complexity.csv with scope "all" and helpers "without"."""
    table = table[(table["scope"] == "all") & (table["helpers"] == "without")]
    found = []
    for kernel, of_kernel in table.groupby("kernel", sort=False):
        for rule in RULES:
            order = " < ".join(" = ".join(tied) for _, tied in of_kernel.groupby(rule)["backend"])
            found.append({"kernel": kernel, "rule": rule, "order": order})
    return pd.DataFrame(found, columns=["kernel", "rule", "order"])


def run(selection: Selection, *, data: Path) -> None:
    """Count the selected implementations; print what they are in all, without helpers.

    Their rows replace those in data/complexity.csv and data/radon.csv, others stay;
    data/complexity_ranks.csv is derived from the whole of the first. Raises RuntimeError where a
    source does not parse, DamagedData where a table cannot be read; no table is changed then.
    """
    counted, judged, without_file = [], [], []
    with progress("counting", len(selection.kernels) * len(selection.backends)) as step:
        for kernel in selection.kernels:
            for backend in selection.backends:
                step(f"{kernel} {backend}")
                own = [read(path) for path in registry.files(kernel, backend)]
                if not own:
                    without_file.append(f"{kernel} has no file for {backend}")
                    continue
                key = {"kernel": kernel, "backend": backend}
                stamp = {"source_hash": fingerprint(kernel, backend)}
                placed = parts(own, kernel)
                counted += [key | row | stamp for row in rows(kernel, backend, placed)]
                judged += [key | row | stamp for row in radon_rows(placed["device"])]
    for line in without_file:
        console.print(line)
    if not counted:
        return
    store.read(data / "radon.csv")  # damaged, it must stop the command before a table is changed
    table = store.replace(data / "complexity.csv", selection, counted)
    store.replace(data / "radon.csv", selection, judged)
    store.write(data / "complexity_ranks.csv", ranks(table))

    metrics = (metric.replace("_", " ") for metric in PRINTED)
    printed = Table(Column("kernel", no_wrap=True), "backend", *metrics)
    for row in counted:
        if row["scope"] == "all" and row["helpers"] == "without":
            printed.add_row(row["kernel"], row["backend"], *(str(row[m]) for m in PRINTED))
    console.print(printed)
    console.print(f"More metrics, by scope and with helpers: {data / 'complexity.csv'}")
