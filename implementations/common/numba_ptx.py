"""Wide accesses, and PTX instructions as Numba device functions: the twin of ptx.cuh.

Each wrapper is written once: the decorator holds the PTX that runs on a GPU, the function below it
is its meaning on the CPU tier. A fragment is the tuple of one thread's registers. Layouts of the
fragments over a warp's lanes: PTX ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix".
"""

import inspect
from functools import cache

import numpy as np
from numba.cuda import types

from implementations import DEVICE
from implementations.common import numba_cuda  # noqa: F401  (configures Numba first)

if DEVICE == "cpu":
    from implementations.common.cpu import bfloat16
    from implementations.common.cpu.numba_fibers import exchange, lane, thread_state
else:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

PACK = "cvt.rn.{}x2.f32 $0, $2, $1;"  # the first float goes into the lower half

i32, i64, f32 = types.int32, types.int64, types.float32
i2, i4, f4 = types.UniTuple(i32, 2), types.UniTuple(i32, 4), types.UniTuple(f32, 4)


def on_gpu(codegen):
    """Replace the decorated CPU meaning by an intrinsic of the same parameters.

    codegen: argument types → (signature, code(context, builder, signature, args)).
    """

    def replace(meaning):
        if DEVICE == "cpu":
            return meaning

        def typing(typingctx, *argtypes):
            return codegen(*argtypes)

        context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(meaning).parameters.values()
        typing.__signature__ = inspect.Signature([context, *parameters])
        typing.__name__ = meaning.__name__
        return intrinsic(typing)

    return replace


def ptx(text, signature, memory=False):
    """The PTX `text` of one instruction as `on_gpu`: $0, $1, ... are the result's registers, then
    the arguments'. memory: whether it touches memory, so that the compiler leaves it in its place.
    """

    def registers(kind):
        return [kind.dtype] * kind.count if isinstance(kind, types.UniTuple) else [kind]

    def code(context, builder, signature, args):
        results = [] if signature.return_type == types.void else registers(signature.return_type)
        constraints = ["=" + letter[kind] for kind in results]
        operands = []
        for kind, arg in zip(signature.args, args, strict=True):
            constraints += [letter[k] for k in registers(kind)]
            if isinstance(kind, types.UniTuple):
                operands += [builder.extract_value(arg, j) for j in range(kind.count)]
            else:
                operands.append(arg)
        if memory:
            constraints.append("~{memory}")
        values = [context.get_value_type(kind) for kind in results]
        if len(values) > 1:
            out = ir.LiteralStructType(values)
        else:
            out = values[0] if values else ir.VoidType()
        function = ir.FunctionType(out, [o.type for o in operands])
        called = builder.call(
            ir.InlineAsm(function, text, ",".join(constraints), side_effect=memory), operands
        )
        if len(values) < 2:
            return called if values else context.get_dummy_value()
        fragment = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        for j in range(len(values)):
            fragment = builder.insert_value(fragment, builder.extract_value(called, j), j)
        return fragment

    letter = {f32: "f", i32: "r", i64: "l"}
    return on_gpu(lambda *argtypes: (signature, code))


# Addresses


def _global_address(array, index):
    def code(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        return builder.ptrtoint(builder.gep(data, [args[1]]), ir.IntType(64))

    return i64(array, i64), code


@on_gpu(_global_address)
def global_address(array, index):
    """&array[index] of a one-dimensional array in global memory, for the wrappers below."""
    return array[index:]


def _shared_address(array, index):
    def code(context, builder, signature, args):
        kind = signature.args[0]
        data = context.make_array(kind)(context, builder, value=args[0]).data
        function = ir.FunctionType(ir.IntType(32), [ir.IntType(64)])
        convert = "{ .reg .u64 s; cvta.to.shared.u64 s, $1; cvt.u32.u64 $0, s; }"
        base = builder.call(
            ir.InlineAsm(function, convert, "=r,l"), [builder.ptrtoint(data, ir.IntType(64))]
        )
        size = ir.Constant(ir.IntType(32), kind.dtype.bitwidth // 8)
        return builder.add(base, builder.mul(builder.trunc(args[1], ir.IntType(32)), size))

    return i32(array, i64), code


@on_gpu(_shared_address)
def shared_address(array, index):
    """&array[index] of a one-dimensional array in shared memory, for the wrappers below."""
    return array[index:]


# Elements of float32, float16 or bfloat16 (which arrives as int16 words), calculated with in fp32;
# and accesses of 16 bytes, since Numba never joins scalar ones


def _word(array):
    """The LLVM type of an array's elements as they lie in memory."""
    kinds = {types.float32: ir.FloatType(), types.float16: ir.HalfType()}
    return kinds.get(array.dtype, ir.IntType(16))


def _pack(array):
    """The LLVM type of 16 bytes of an array. Eight int16 would move one by one: four int32."""
    kind = ir.IntType(32) if array.dtype == types.int16 else _word(array)
    return ir.VectorType(kind, 8 if array.dtype == types.float16 else 4)


def _constant(number):
    return ir.Constant(ir.IntType(32), number)


def _asm(builder, text, result, *floats):
    """One PTX instruction that makes an integer of floats."""
    letter = {16: "h", 32: "r"}[result.width]
    function = ir.FunctionType(result, [ir.FloatType()] * len(floats))
    constraints = f"={letter}{',f' * len(floats)}"
    return builder.call(ir.InlineAsm(function, text, constraints), floats)


def _widened(builder, array, word):
    """An element, as it lies in memory, as float."""
    if array.dtype == types.int16:
        bits = builder.shl(builder.zext(word, ir.IntType(32)), _constant(16))
        return builder.bitcast(bits, ir.FloatType())
    return word if array.dtype == types.float32 else builder.fpext(word, ir.FloatType())


def _rounded(builder, array, value):
    """A float, rounded to an element as it lies in memory."""
    if array.dtype == types.int16:
        return _asm(builder, "cvt.rn.bf16.f32 $0, $1;", ir.IntType(16), value)
    return value if array.dtype == types.float32 else builder.fptrunc(value, ir.HalfType())


def _place(context, builder, array, value, index, kind):
    """&array[index] as a pointer to the LLVM type `kind`."""
    data = context.make_array(array)(context, builder, value=value).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _floats(array):
    """The elements of an array, on the CPU, as float32."""
    return bfloat16.decode(array) if array.dtype == np.int16 else np.float32(array)


def _elements(array, values):
    """Floats, on the CPU, as elements of an array."""
    if array.dtype == np.int16:
        return bfloat16.encode(values).view(np.int16)
    return np.asarray(values, array.dtype)


def _load(array, index):
    def code(context, builder, signature, args):
        kind = signature.args[0]
        place = _place(context, builder, kind, *args, _word(kind))
        return _widened(builder, kind, builder.load(place))

    return f32(array, i64), code


@on_gpu(_load)
def load(array, index):
    """array[index] as fp32."""
    return _floats(array[index : index + 1])[0]


def _store(array, index, value):
    def code(context, builder, signature, args):
        kind = signature.args[0]
        place = _place(context, builder, kind, args[0], args[1], _word(kind))
        builder.store(_rounded(builder, kind, args[2]), place)
        return context.get_dummy_value()

    return types.void(array, i64, f32), code


@on_gpu(_store)
def store(array, index, value):
    """array[index] = value, rounded from fp32."""
    array[index : index + 1] = _elements(array, [value])


def _aligned(view):
    """A view, on the CPU; refused where a GPU could not access 16 bytes."""
    if beyond := view.__array_interface__["data"][0] % 16:
        raise ValueError(
            f"16 bytes must start at a multiple of 16, got an address {beyond} beyond one"
        )
    return view


def _load_pack(array, index, values, first):
    def code(context, builder, signature, args):
        kind = signature.args[0]
        place = _place(context, builder, kind, args[0], args[1], _pack(kind))
        local = context.make_array(signature.args[2])(context, builder, value=args[2]).data
        pack = builder.load(place, align=16)
        words = [builder.extract_element(pack, _constant(j)) for j in range(pack.type.count)]
        if kind.dtype == types.int16:  # a register holds two
            halves = (
                (builder.shl(w, _constant(16)), builder.and_(w, _constant(-65536))) for w in words
            )
            floats = [builder.bitcast(half, ir.FloatType()) for pair in halves for half in pair]
        else:
            floats = [_widened(builder, kind, w) for w in words]
        for j, value in enumerate(floats):
            at = builder.add(args[3], ir.Constant(ir.IntType(64), j))
            builder.store(value, builder.gep(local, [at]))
        return context.get_dummy_value()

    return types.void(array, i64, values, i64), code


@on_gpu(_load_pack)
def load_pack(array, index, values, first):
    """The 16 bytes from array[index] as fp32 into values[first:]: LDG.128."""
    size = 16 // array.itemsize
    values[first : first + size] = _floats(_aligned(array[index : index + size]))


def _store_pack(array, index, values, first):
    def code(context, builder, signature, args):
        kind = signature.args[0]
        place = _place(context, builder, kind, args[0], args[1], _pack(kind))
        local = context.make_array(signature.args[2])(context, builder, value=args[2]).data

        def value(j):
            at = builder.add(args[3], ir.Constant(ir.IntType(64), j))
            return builder.load(builder.gep(local, [at]))

        pack = ir.Constant(_pack(kind), ir.Undefined)
        for j in range(pack.type.count):
            if kind.dtype == types.int16:  # a register holds two
                word = _asm(
                    builder, PACK.format("bf16"), ir.IntType(32), value(2 * j), value(2 * j + 1)
                )
            else:
                word = _rounded(builder, kind, value(j))
            pack = builder.insert_element(pack, word, _constant(j))
        builder.store(pack, place, align=16)
        return context.get_dummy_value()

    return types.void(array, i64, values, i64), code


@on_gpu(_store_pack)
def store_pack(array, index, values, first):
    """values[first:], rounded from fp32, into the 16 bytes from array[index]: STG.128."""
    size = 16 // array.itemsize
    _aligned(array[index : index + size])[:] = _elements(array, values[first : first + size])


@ptx("ld.global.v4.b32 {$0,$1,$2,$3}, [$4];", i4(i64), memory=True)
def load_global_16(src):
    """16 bytes of global memory as four registers, whatever they hold."""
    return tuple(_aligned(src)[: 16 // src.itemsize].view(np.int32))


@ptx("st.global.v4.b32 [$0], {$1,$2,$3,$4};", types.void(i64, i4), memory=True)
def store_global_16(dst, words):
    """Four registers as 16 bytes of global memory."""
    _aligned(dst)[: 16 // dst.itemsize] = np.array(words, np.int32).view(dst.dtype)


# Tensor cores: D = A·B + C for 16x16 A (row-major), 16x8 B (column-major), 16x8 fp32 C and D

MMA = (
    "mma.sync.aligned.m16n8k16.row.col.f32.{0}.{0}.f32 "
    "{{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};"
)


# Row and column of the elements in each lane's registers: of A (32, 8), B (32, 4) and D (32, 4).
G, T = (axis[:, None] for axis in (np.arange(32) // 4, np.arange(32) % 4 * 2))
A_ROW, A_COL = G + np.array([0, 0, 8, 8] * 2), T + np.array([0, 1, 0, 1, 8, 9, 8, 9])
B_ROW, B_COL = T + np.array([0, 1, 8, 9]), G + np.zeros(4, int)
D_ROW, D_COL = G + np.array([0, 0, 8, 8]), T + np.array([0, 1, 0, 1])


def _mma(a, b, c, decode):
    """This lane's registers of D; the product is formed once, from the registers of all lanes."""

    def product(table):
        ra, rb, rc = zip(*(table[l] for l in range(32)), strict=True)
        A, B = np.empty((16, 16), np.float32), np.empty((16, 8), np.float32)
        A[A_ROW, A_COL] = decode(np.array(ra, np.int32))
        B[B_ROW, B_COL] = decode(np.array(rb, np.int32))
        return (A @ B)[D_ROW, D_COL] + np.array(rc, np.float32)

    return tuple(exchange((a, b, c), product, "mma")[lane()])


@ptx(MMA.format("f16"), f4(i4, i2, f4))
def mma_f16(a, b, c):
    """mma.m16n8k16 of float16 operands, two to a register."""
    return _mma(a, b, c, lambda words: words.view(np.float16))


@ptx(MMA.format("bf16"), f4(i4, i2, f4))
def mma_bf16(a, b, c):
    """mma.m16n8k16 of bfloat16 operands, two to a register."""
    return _mma(a, b, c, lambda words: bfloat16.decode(words.view(np.uint16)))


@ptx(PACK.format("f16"), i32(f32, f32))
def pack_f16(low, high):
    """Two floats rounded to float16, in one register."""
    return np.array([low, high], np.float16).view(np.int32)[0]


@ptx(PACK.format("bf16"), i32(f32, f32))
def pack_bf16(low, high):
    """Two floats rounded to bfloat16, in one register."""
    return bfloat16.encode([low, high]).view(np.int32)[0]


# Shared memory


LDMATRIX = "ldmatrix.sync.aligned.m8n8.x4{}.shared.b16 {{$0,$1,$2,$3}}, [$4];"


def _ldmatrix(row, transposed):
    """Registers of this lane from the row addresses that all lanes hand in."""
    table = exchange(_aligned(row), None, "ldmatrix")
    g, t = lane() // 4, lane() % 4 * 2
    words = []
    for j in range(4):
        tile = np.array([table[8 * j + r][:8] for r in range(8)])
        pair = tile[t : t + 2, g] if transposed else tile[g, t : t + 2]
        words.append(np.ascontiguousarray(pair).view(np.int32)[0])
    return tuple(words)


@ptx(LDMATRIX.format(""), i4(i32), memory=True)
def ldmatrix_x4(row):
    """Four 8x8 matrices of 16-bit elements; lane l gives where row l % 8 of matrix l // 8 is."""
    return _ldmatrix(row, transposed=False)


@ptx(LDMATRIX.format(".trans"), i4(i32), memory=True)
def ldmatrix_x4_trans(row):
    """The same, each matrix transposed on its way into the registers."""
    return _ldmatrix(row, transposed=True)


@ptx("ld.shared.v4.b32 {$0,$1,$2,$3}, [$4];", i4(i32), memory=True)
def load_shared_16(src):
    """16 bytes of shared memory as four registers."""
    return tuple(_aligned(src)[: 16 // src.itemsize].view(np.int32))


@ptx("cp.async.cg.shared.global [$0], [$1], 16, $2;", types.void(i32, i64, i32), memory=True)
def cp_async_16(dst, src, bytes):
    """Copy 16 bytes from global to shared memory without waiting: the first `bytes` of them from
    `src`, zeros for the rest."""
    size, taken = 16 // dst.itemsize, bytes // dst.itemsize
    values = np.zeros(size, dst.dtype)
    values[:taken] = _aligned(src)[:taken]
    thread_state().setdefault("copies", [[]])[-1].append((_aligned(dst), values))


@ptx("cp.async.commit_group;", types.void(), memory=True)
def cp_async_commit():
    """Close this thread's current group of copies."""
    thread_state().setdefault("copies", [[]]).append([])


@cache
def cp_async_wait(newest):
    """`wait()`: until at most `newest` of this thread's latest groups are still under way."""

    @ptx(f"cp.async.wait_group {newest};", types.void(), memory=True)
    def wait():
        groups = thread_state().setdefault("copies", [[]])
        while len(groups) > newest + 1:
            for dst, values in groups.pop(0):
                dst[: len(values)] = values  # here and no earlier: a missing wait shows

    return wait
