"""Elements and packs of 16 bytes, calculated with in fp32, and addresses for the other wrappers.

Numba never joins scalar accesses: a thread moves 16 bytes at once only by a wrapper. Elements are
float32, float16 or bfloat16, which arrives as int16 words. The twin of access.cuh, where types are
converted by the language.
"""

import numpy as np
from llvmlite import ir
from numba.cuda import types

from implementations.instructions.ptx import f4, f32, i4, i32, i64, on_gpu, ptx
from implementations.tiers.cpu import bfloat16, demand_other_bits

ADD = "red.global.add.v4.f32 [$0], {$1, $2, $3, $4};"  # from compute capability 9.0 on
ADD_EACH = " ".join(f"red.global.add.f32 [$0+{4 * e}], ${e + 1};" for e in range(4))
PACK = "cvt.rn.{}x2.f32 $0, $2, $1;"  # the first float goes into the lower half


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


def _round(array, value):
    def code(context, builder, signature, args):
        kind = signature.args[0]
        return _widened(builder, kind, _rounded(builder, kind, args[1]))

    return f32(array, f32), code


@on_gpu(_round)
def rounded(array, value):
    """value rounded to an element of the array, which is not touched, as fp32."""
    return _floats(_elements(array, [value]))[0]


def aligned(view):
    """The view, on the CPU; refused where a GPU could not access 16 bytes."""
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
    values[first : first + size] = _floats(aligned(array[index : index + size]))


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
    aligned(array[index : index + size])[:] = _elements(array, values[first : first + size])


def _add_pack(dst, values):
    def code(context, builder, signature, args):
        from numba.cuda.core.targetconfig import ConfigStack  # the simulator has none

        add = ADD if ConfigStack().top().compute_capability >= (9, 0) else ADD_EACH
        floats = [builder.extract_value(args[1], e) for e in range(4)]
        function = ir.FunctionType(ir.VoidType(), [ir.IntType(64), *[ir.FloatType()] * 4])
        asm = ir.InlineAsm(function, add, "l,f,f,f,f,~{memory}", side_effect=True)
        builder.call(asm, [args[0], *floats])
        return context.get_dummy_value()

    return types.void(i64, f4), code


@on_gpu(_add_pack)
def add_pack(dst, values):
    """dst[0] += values[0] and so on, 16 bytes of global memory: four additions that nobody waits
    for, in no order with those of other threads."""
    demand_other_bits()
    aligned(dst)[:4] += np.array(values, np.float32)


@ptx("ld.global.v4.b32 {$0,$1,$2,$3}, [$4];", i4(i64), memory=True)
def load_global_16(src):
    """16 bytes of global memory as four registers, whatever they hold."""
    return tuple(aligned(src)[: 16 // src.itemsize].view(np.int32))


@ptx("st.global.v4.b32 [$0], {$1,$2,$3,$4};", types.void(i64, i4), memory=True)
def store_global_16(dst, words):
    """Four registers as 16 bytes of global memory."""
    aligned(dst)[: 16 // dst.itemsize] = np.array(words, np.int32).view(dst.dtype)


@ptx("ld.shared.v4.b32 {$0,$1,$2,$3}, [$4];", i4(i32), memory=True)
def load_shared_16(src):
    """16 bytes of shared memory as four registers."""
    return tuple(aligned(src)[: 16 // src.itemsize].view(np.int32))


@ptx(PACK.format("f16"), i32(f32, f32))
def pack_f16(low, high):
    """Two floats rounded to float16, in one register."""
    return np.array([low, high], np.float16).view(np.int32)[0]


@ptx(PACK.format("bf16"), i32(f32, f32))
def pack_bf16(low, high):
    """Two floats rounded to bfloat16, in one register."""
    return bfloat16.encode([low, high]).view(np.int32)[0]
