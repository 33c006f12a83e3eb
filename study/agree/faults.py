"""Faults planted in the sources of a kernel: each operator finds all places where it applies.

An operator reads the syntax tree, never a kernel's name, so that it works for kernels to come. It
yields (node, text), once a place: that node replaced by that text is a mutant. What decides are the
project's names: sizes are in capitals, or are called strides, rows or cols.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count

from tree_sitter import Node

from implementations.common import registry
from study.bench.source import GUARDS, LOOPS, RELATIONS, Source, kinds, read

Fault = tuple[Node, str]

# Where no fault is planted: sizes that the compiler or the launch is told, not what is computed.
SKIPPED = {"decorator", "assert_statement", "static_assert_declaration", "template_parameter_list"}
SKIPPED |= {"array_declarator"}
TOLD = re.compile(r"constexpr\b|cuda\.(local|shared)\.array\(")
ATOMS = {"identifier", "number_literal", "integer", "float", "call", "call_expression", "attribute"}
ATOMS |= {"subscript", "subscript_expression", "field_expression", "parenthesized_expression"}
BINARY = {"binary_expression", "binary_operator"}
COMPARISONS = {"binary_expression", "comparison_operator"}
NEGATIONS = {"unary_operator", "unary_expression"}
CALLS = {"call", "call_expression"}
BOTH, EITHER = {"and", "&&", "&"}, {"or", "||", "|"}
WRAPPING = {"parenthesized_expression", "assignment", "argument_list"}
ASSIGNMENTS = {"assignment_expression", "assignment", "augmented_assignment"}

MASKS = {"mask", "boundary_check"}
BARRIER = re.compile(r"sync(threads|warp)|barrier|fence")  # of the languages and libraries
SIZE = re.compile(r"[A-Z][A-Z0-9_]*|\w*stride\w*|rows|cols")
EXPONENTIAL = re.compile(r"(.*[._])?(fast_|h)?exp(2|10)?f?")
PRODUCT = re.compile(r"(.*\.)?dot")
QUOTIENT = re.compile(r"(.*[._])?f?div(idef|_rn)?")
ZERO = re.compile(r"((\w+\()?)0((\.0*)?f?\)?)")  # 0.f, float32(0), T(0.f)
INFINITY = re.compile(r"-?(\w*INF(_F)?|(\w+\.)?inf|float\(.-?inf.\))")
FLOAT_ZERO = re.compile(r"(\w+\()?0\.0*f?\)?|float32\(0\)")
TO_FLOAT = re.compile(r"float32|float|static_cast<float>")
DOWNCAST = re.compile(r"\((tl\.b?float16|.*\bdtype\.element_ty)\)")
ALLOCATION = re.compile(r"torch\.(empty|zeros|ones|full)(_like)?|.*\.new_(empty|zeros|ones|full)")
ARRAY = re.compile(r"cuda\.(local|shared)\.array\(.*\bfloat32\)", re.DOTALL)


def _text(node: Node) -> str:
    return node.text.decode()


def _grouped(node: Node) -> str:
    """An expression that stands as an operand anywhere."""
    return _text(node) if node.type in ATOMS else f"({_text(node)})"


def _children(source: Source, node: Node) -> list[Node]:
    """The named children less comments: of a list of arguments, the arguments."""
    return [child for child in source.children(node) if child.is_named]


def _function(call: Node) -> str:
    return _text(call.child_by_field_name("function")) if call.type in CALLS else ""


def _is_kind(source: Source, kind: str, call: Node) -> bool:
    """Whether what is called is a wrapper of a kind, or in Python what such a wrapper has made."""
    name = re.split(r"[<.]", _function(call))[0]
    return kinds().get(_made(source).get(name, name)) == kind


def _is_product(source: Source, call: Node) -> bool:
    """Whether a wrapper is called that multiplies, and not one that makes such a wrapper."""
    return _is_kind(source, "product", call) and _function(call) not in _made(source).values()


@cache
def _made(source: Source) -> dict[str, str]:
    """Variable that is called → the wrapper that made it: `wait = cp_async_wait(0)`."""
    found, called = {}, {_function(node) for node in source.walk(source.root)}
    for node in source.walk(source.root):
        if node.type == "assignment" and all(_sides(node)):
            targets, values = (
                _children(source, s) if "list" in s.type else [s] for s in _sides(node)
            )
            found |= {_text(t): _function(v) for t, v in zip(targets, values, strict=False)}
    return {n: wrapper for n, wrapper in found.items() if wrapper in kinds() and n in called}


def _sides(node: Node) -> tuple[Node | None, Node | None]:
    return node.child_by_field_name("left"), node.child_by_field_name("right")


def _walk(source: Source, node: Node) -> Iterator[Node]:
    """A node and what stands below it, without the headers of loops."""
    yield node
    body = node.child_by_field_name("body") if node.type in LOOPS else None
    for child in source.children(node):
        told = child.type in SKIPPED or TOLD.match(_text(child))
        if not told and body in (None, child):
            yield from _walk(source, child)


@cache  # every operator asks
def device(source: Source) -> tuple[Node, ...]:
    """The nodes of device code: bodies of CUDA functions, top-level functions that hold a jit."""
    return tuple(_device(source))


def _device(source: Source) -> Iterator[Node]:
    if source.is_python:
        for _, statement in source.statements():
            if {"triton.jit", "numba.cuda.jit"} & {name for name, _ in source.uses(statement)}:
                yield from _walk(source, statement)
    else:
        for node in source.walk(source.root):
            if node.type == "function_definition":
                yield from _walk(source, node.child_by_field_name("body"))


def host(source: Source) -> Iterator[Node]:
    """The nodes of a Python file's functions that run on the host."""
    on_device = {node.id for node in device(source)}
    for _, statement in source.statements() if source.is_python else ():
        if statement.type == "function_definition" and statement.id not in on_device:
            yield from _walk(source, statement)


def _varies(node: Node) -> bool:
    """Whether an expression has a name in small letters: what has none is known to the compiler."""
    return bool(re.search(r"(?<![\w.])[a-z_]\w*\b(?!\()", _text(node)))


# --- operators ------------------------------------------------------------------------------------


def mask_dropped(source: Source) -> Iterator[Fault]:
    """`mask=` and its `other=` removed from a call; a test against a bound replaced by true."""
    for node in device(source):
        if node.type == "argument_list":
            arguments = _children(source, node)
            if MASKS & set(map(_label, arguments)):
                kept = (_text(a) for a in arguments if _label(a) not in GUARDS)
                yield node, f"({', '.join(kept)})"
        elif (
            node.type in COMPARISONS
            and node.parent.type != "keyword_argument"  # the whole of a mask is removed above
            and _varies(node)
        ):
            yield from ((node, text) for text in _loosened(source, node))


def _label(argument: Node) -> str:
    return _text(argument.children[0]) if argument.type == "keyword_argument" else ""


def _loosened(source: Source, comparison: Node) -> Iterator[str]:
    """A comparison, which in Python may be a chain, less one of its tests."""
    parts = [_text(child) for child in source.children(comparison)]
    for i in range(1, len(parts), 2):
        if parts[i] not in RELATIONS:
            continue
        if len(parts) > 3:
            yield " ".join(parts[2:] if i == 1 else parts[:i])
        elif "triton.language" in source.imports.values():  # true, but in the tensor's shape
            left, _, right = parts
            true = f"({left} < {right}) | ({left} >= {right})"
            yield true if comparison.parent.type in WRAPPING else f"({true})"
        else:
            yield "True" if source.is_python else "true"


def condition_dropped(source: Source) -> Iterator[Fault]:
    """Of two conditions joined by "or" one goes; of two joined by "and", one that has no comparison
    in it, as a comparison is dropped above. On the host, where it is not, any of two."""
    is_triton = "triton.language" in source.imports.values()
    for node in device(source):
        operator = node.children[1].type if len(node.children) == 3 else ""
        if operator not in BOTH | EITHER or operator in ("&", "|") and not is_triton:
            continue
        left, _, right = node.children
        for dropped, kept in ((left, right), (right, left)):
            inside = {n.children[1].type for n in source.walk(dropped) if len(n.children) > 2}
            several = inside & {*BOTH, *EITHER}  # each of them is dropped by itself
            if _varies(dropped) and not several and (operator in EITHER or not inside & RELATIONS):
                yield node, _grouped(kept)
    for node in host(source):
        if node.type == "boolean_operator":
            left, _, right = node.children
            yield from ((node, _grouped(kept)) for kept in (left, right))


def iteration_missing(source: Source) -> Iterator[Fault]:
    """A loop ends one step early."""
    for loop in device(source):
        if loop.type not in LOOPS:
            continue
        over = loop.child_by_field_name("right")
        if over and re.fullmatch(r"(tl\.)?(static_)?range", _function(over)):
            arguments = _children(source, over.child_by_field_name("arguments"))
            plain = [a for a in arguments if a.type != "keyword_argument"]
            step = _grouped(plain[2]) if len(plain) > 2 else "1"
            yield plain[:2][-1], f"{_grouped(plain[:2][-1])} - {step}"
        elif condition := loop.child_by_field_name("condition"):
            tests = (n for n in source.walk(condition) if n.type in COMPARISONS)
            test = next((n for n in tests if n.children[1].type in RELATIONS), None)
            if test:
                bound = test.children[2]
                yield bound, f"{_grouped(bound)} {_shortening(source, loop, test)}"


def _shortening(source: Source, loop: Node, test: Node) -> str:
    """What makes a loop's bound one step nearer, by how the loop goes on: "- STEP", "/ 2"."""
    variable, relation = _text(test.children[0]), test.children[1].type
    sign = "-" if "<" in relation else "+"
    steps = [
        n
        for n in source.walk(loop.child_by_field_name("update") or loop)
        if n.type in ASSIGNMENTS and _text(_sides(n)[0]) == variable
    ]
    operator = steps[-1].children[1].type if steps else ""
    if operator in ("+=", "-="):
        return f"{sign} {_grouped(steps[-1].children[2])}"
    if operator in ("*=", "<<="):
        return "// 2" if source.is_python else "/ 2"
    return f"{sign} 1"


def barrier_missing(source: Source) -> Iterator[Fault]:
    """A barrier, a fence, a wait or a commit removed; one group of copies less waited for."""
    for node in device(source):
        if node.type == "expression_statement" and _is_barrier(source, node.children[0]):
            yield node, "pass" if source.is_python else ";"
        if _is_kind(source, "barrier", node):
            function = node.child_by_field_name("function")
            listed = function.child_by_field_name("arguments")  # of the template
            groups = _children(source, listed or node.child_by_field_name("arguments"))
            yield from ((group, f"{_text(group)} + 1") for group in groups)


def _is_barrier(source: Source, call: Node) -> bool:
    return bool(BARRIER.search(_function(call))) or _is_kind(source, "barrier", call)


def stride_wrong(source: Source) -> Iterator[Fault]:
    """A size that something is multiplied by, or moved by, is one larger."""
    for node in device(source):
        left, right = _sides(node)
        factors = ()
        if node.type in BINARY and node.children[1].type == "*":
            factors = left, right
        elif node.type in ASSIGNMENTS and node.children[1].type == "+=":
            factors = (right,)
        for factor in factors:
            if factor.type == "identifier" and SIZE.fullmatch(_text(factor)):
                yield factor, f"({_text(factor)} + 1)"


def maximum_kept(source: Source) -> Iterator[Fault]:
    """`x - m` inside an exponential becomes `x`."""
    for call in device(source):
        if EXPONENTIAL.fullmatch(_function(call)):
            for node in _walk(source, call.child_by_field_name("arguments")):
                if node.type in BINARY and node.children[1].type == "-":
                    yield node, _grouped(node.children[0])


def accumulator_stale(source: Source) -> Iterator[Fault]:
    """What starts as zero starts as one; infinities, which are neutral, change their sign."""
    for node in device(source):
        if node.type == "init_declarator":
            yield from _spoiled(source, node.child_by_field_name("value"))
        elif node.type in ASSIGNMENTS and node.children[1].type == "=":
            yield from _spoiled(source, node.child_by_field_name("right"))
        elif INFINITY.fullmatch(_text(node)) and node.type in (*ATOMS, *NEGATIONS):
            if node.parent.type not in (*NEGATIONS, *COMPARISONS):
                text = _text(node)
                yield node, text.replace("-", "") if "-" in text else f"-{text}"


def _spoiled(source: Source, value: Node) -> Iterator[Fault]:
    text = _text(value)
    if found := ZERO.fullmatch(text):
        yield value, f"{found[1]}1{found[3]}"
    elif text == "{}":
        yield value, "{1}"
    elif re.fullmatch(r"(.*\.)?zeros(_like)?", _function(value)):
        yield value, f"({text} + 1)"
    elif re.fullmatch(r"(.*\.)?full", _function(value)):
        arguments = _children(source, value.child_by_field_name("arguments"))
        yield from _spoiled(source, arguments[1])


def neutral_changed(source: Source) -> Iterator[Fault]:
    """What takes part in place of an element that is not there: 1 for a floating zero, 0 for an
    infinity. What starts so is spoiled above, but for an infinity, which was given another sign."""
    zero = "0.f" if not source.is_python else "0.0"
    if "numba" in {origin.partition(".")[0] for origin in source.imports.values()}:
        zero = "float32(0)"
    for node in device(source):
        text, parent = _text(node), node.parent
        if node.type not in (*ATOMS, *NEGATIONS) or parent.type in (*NEGATIONS, *COMPARISONS):
            continue
        if INFINITY.fullmatch(text):
            yield node, zero
        elif FLOAT_ZERO.fullmatch(text) or text == "0" and _label(parent) == "other":
            cast = parent.type == "argument_list" and ZERO.fullmatch(_text(parent.parent))
            if not cast and not _starts(node):
                yield from _spoiled(source, node)


def _starts(node: Node) -> bool:
    """Whether a variable or a tensor starts as this node's value."""
    parent = node.parent
    filled = parent.parent if parent.type == "argument_list" else parent
    return (
        parent.type == "init_declarator"
        or parent.type in ASSIGNMENTS
        or bool(re.fullmatch(r"(.*\.)?full", _function(filled)))
    )


def operands_swapped(source: Source) -> Iterator[Fault]:
    """Of a subtraction, a division or a matrix product. Not where one side is an integer."""
    for node in device(source):
        if node.type in BINARY and node.children[1].type in ("-", "/", "//"):
            left, operator, right = node.children
            integer = any(re.fullmatch(r"\d+", _text(side)) for side in (left, right))
            if not integer and (_varies(left) or _varies(right)):
                yield node, f"{_grouped(right)} {operator.type} {_grouped(left)}"
        elif (
            PRODUCT.fullmatch(_function(node))
            or QUOTIENT.fullmatch(_function(node))
            or _is_product(source, node)
        ):
            listed = node.child_by_field_name("arguments")
            parts = _children(source, listed)
            first = 0 if source.is_python or len(parts) == 2 else 1  # in CUDA after D
            parts[first : first + 2] = reversed(parts[first : first + 2])
            yield listed, f"({', '.join(map(_text, parts))})"


def grid_too_small(source: Source) -> Iterator[Fault]:
    """A division that rounds up rounds down."""
    for node in source.walk(source.root):
        if found := _ceiling(source, node):
            yield node, f"({found[0]} {'//' if source.is_python else '/'} {found[1]})"


def _ceiling(source: Source, node: Node) -> tuple[str, str] | None:
    """a and b of -(-a // b), (a + b - 1) // b or cdiv(a, b)."""
    if node.type == "unary_operator":
        found = re.fullmatch(r"-\(-(.+) // (.+)\)", _text(node), re.DOTALL)
        return found and (found[1], found[2])
    if node.type in BINARY and node.children[1].type in ("/", "//"):
        left, b = _text(node.children[0]), _text(node.children[2])
        found = re.fullmatch(rf"\((.+) \+ {re.escape(b)} - 1\)", left, re.DOTALL)
        return found and (found[1], b)
    if re.fullmatch(r"(.*\.)?(cdiv|ceil_?div|div_?up)", _function(node)):
        a, b = _children(source, node.child_by_field_name("arguments"))
        return _grouped(a), _grouped(b)
    return None


def precision_lowered(source: Source) -> Iterator[Fault]:
    """What is converted to fp32, or summed in it, goes through fp16 on its way."""
    floats = _floats(source)
    for node in device(source):
        called, text = _function(node), _text(node)
        if text == "tl.float32":
            yield node, "tl.float16"
        elif TO_FLOAT.fullmatch(called) or node.type == "cast_expression":
            to_float = bool(called) or text.startswith("(float)")
            if to_float and _varies(node.children[-1]) and "inf" not in text:
                yield node, _rounded(source, text)
        elif node.type in ASSIGNMENTS and _name(node.children[0]) in floats:
            yield from _rounded_sum(source, node)
        elif _is_product(source, node):
            yield node, _rounded_product(source, node)


def _rounded(source: Source, text: str) -> str:
    return f"float32(float16({text}))" if source.is_python else f"float(__half({text}))"


def _name(target: Node) -> str:
    """The variable that an assignment is to, or to an element of."""
    return re.match(r"\w*", _text(target))[0]


def _rounded_sum(source: Source, assignment: Node) -> Iterator[Fault]:
    """Of an assignment of what its target held, together with something else."""
    left, operator, right = (assignment.children[i] for i in (0, 1, -1))
    if operator.type != "=":
        sum_ = f"{_text(left)} {operator.type[:-1]} {_grouped(right)}"
        yield assignment, f"{_text(left)} = {_rounded(source, sum_)}"
    elif re.search(rf"\b{_name(left)}\b", _text(right)):
        yield right, _rounded(source, _text(right))


def _floats(source: Source) -> set[str]:
    """The names of fp32 variables and arrays in device code."""
    found = set()
    for node in source.walk(source.root):
        kind = node.child_by_field_name("type")
        if not source.is_python and kind and _text(kind) == "float":
            for declarator in node.children_by_field_name("declarator"):
                found |= set(re.findall(r"\w+", _text(declarator).partition("=")[0])[:1])
        elif source.is_python and node.type == "assignment":
            left, right = _sides(node)
            text = _text(right) if right else ""
            if text.startswith("float32(") or text == "-INF" or ARRAY.fullmatch(text):
                found.add(_text(left))
    return found


def _rounded_product(source: Source, call: Node) -> str:
    """The fragment that a mma gives, each element through fp16."""
    if source.is_python:
        return f"tuple(float32(float16(d)) for d in {_text(call)})"
    first = _children(source, call.child_by_field_name("arguments"))[0]
    each = "for (auto& d : fragment) d = float(__half(d));"
    return f"({_text(call)}, [](auto& fragment) {{ {each} }}({_text(first)}))"


def rounded_to_zero(source: Source) -> Iterator[Fault]:
    """What is converted to an element's type, or by a function called ..._rn, is cut off instead.

    Not what the wrappers of `instructions/` store, nor PTX, which the CPU does not run.
    """
    for node in device(source):
        called = _function(node)
        if node.type == "identifier" and _text(node).endswith("_rn"):
            yield node, _text(node).removesuffix("_rn") + "_rz"
        elif called.endswith(".to") and DOWNCAST.fullmatch(_text(node.children[-1])):
            yield node, f'{_text(node)[:-1]}, fp_downcast_rounding="rtz")'
        elif called == "T" and not source.is_python and _varies(node.children[-1]):
            bits = "sizeof(T) == 4 ? 0 : std::is_same_v<T, __half> ? 13 : 16"
            cut = f"__float_as_uint(float{_text(node.children[-1])}) & ~0u << ({bits})"
            yield node, f"T(__uint_as_float({cut}))"


def index_narrowed(source: Source) -> Iterator[Fault]:
    """A conversion to 64 bits goes. Numba multiplies in 64 bits whatever it is given: there the
    result of what stands around the conversion is narrowed, where that is a product.

    No size that a CPU can take shows it: see `BEYOND`.
    """
    for node in device(source):
        called, text = _function(node), _text(node)
        if text.endswith(".to(tl.int64)") and called.endswith(".to"):
            yield node, called.removesuffix(".to")
        elif called == "tl.cast" and "tl.int64" in text:
            yield node, _grouped(_children(source, node.child_by_field_name("arguments"))[0])
        elif node.type == "typed_parameter" and text.endswith(": tl.int64"):
            yield node, text.removesuffix(": tl.int64")
        elif node.type == "cast_expression" and text.startswith("(long long)"):
            yield node, _grouped(node.child_by_field_name("value"))
        elif called in ("int64", "uint64"):
            around = node
            while around.parent.type in (*BINARY, "parenthesized_expression"):
                around = around.parent
            if any(n.type in BINARY and n.children[1].type == "*" for n in source.walk(around)):
                yield around, f"int32({_text(around)})"


def tensor_kept(source: Source) -> Iterator[Fault]:
    """What a host allocates, a result or a workspace, is kept for its next call."""
    for node in host(source):
        if ALLOCATION.fullmatch(_function(node)):
            made = f'globals().setdefault("kept", [{_text(node)}])'
            yield node, f'(globals().get("kept") or {made})[0]'


OPERATORS: dict[str, Callable[[Source], Iterator[Fault]]] = {
    "mask dropped": mask_dropped,
    "condition dropped": condition_dropped,
    "iteration missing": iteration_missing,
    "barrier missing": barrier_missing,
    "stride wrong": stride_wrong,
    "maximum not subtracted": maximum_kept,
    "accumulator stale": accumulator_stale,
    "neutral element changed": neutral_changed,
    "operands swapped": operands_swapped,
    "grid too small": grid_too_small,
    "precision lowered": precision_lowered,
    "rounded to zero": rounded_to_zero,
    "index narrowed": index_narrowed,
    "tensor kept": tensor_kept,
}

BEYOND = {"index narrowed"}  # operators whose faults need more than 2³¹ elements to show

# What a fault's text may need, at the end of the file, where it moves no line.
FOOTERS = {
    "float16(": "\nfrom numba.types import float16  # noqa\n",
    " int32(": "\nfrom numba.types import int32  # noqa\n",
}


# --- mutants --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One implementation with one fault.

    line, before, after: where it is, and the line (of a longer fault, the lines as one) as it
    stands without and with it. nth: of the mutants with the same texts, which.
    content: the whole file with the fault.
    """

    kernel: str
    backend: str
    operator: str
    file: str
    line: int
    before: str
    after: str
    nth: int
    content: str

    @property
    def key(self) -> tuple:
        """What it is known by while other lines of the file change."""
        return self.kernel, self.backend, self.operator, self.before, self.after, self.nth


def mutants(kernel: str, backend: str) -> list[Mutant]:
    """All mutants of one implementation, in the order of the operators and the text."""
    found, seen = [], {}
    sources = [read(path) for path in registry.files(kernel, backend)]
    for operator, plant in OPERATORS.items():
        for source in sources:
            name, content = source.path.name, source.path.read_text()
            for fault in sorted({(n.start_byte, n.end_byte, text) for n, text in plant(source)}):
                line, before, after, whole = planted(content, *fault)
                nth = next(seen.setdefault((operator, before, after), count(1)))
                place = name, line, before, after, nth
                found.append(Mutant(kernel, backend, operator, *place, whole))
    return found


def planted(content: str, start: int, end: int, text: str) -> tuple[int, str, str, str]:
    """Line, before, after and the whole of a file whose bytes from `start` to `end` are `text`."""
    data = content.encode()
    first = data.rfind(b"\n", 0, start) + 1
    last = data.find(b"\n", end) % (len(data) + 1)  # without one, the end
    mutated = data[:start] + text.encode() + data[end:]
    shown = data[first:last], mutated[first : last + len(mutated) - len(data)]
    before, after = (" ".join(piece.decode().split()) for piece in shown)
    footer = next((FOOTERS[need] for need in FOOTERS if need in f" {text}"), "")
    return data.count(b"\n", 0, start) + 1, before, after, mutated.decode() + footer
