"""Tensor cores that read their operands from shared memory: a warpgroup, which is four warps of
which the first is a multiple of four, starts a product and is free until it waits.

The twin of wgmma.cuh; compute capability 9.0 and no other. Layouts: PTX ISA, "Asynchronous
warpgroup-level matrix instructions", with the swizzle of 128 bytes.
"""

from functools import cache

import numpy as np
import torch
from llvmlite import ir
from numba import cuda, int32, int64
from numba.cuda import types

from implementations.common.device import has_wgmma
from implementations.instructions.access import (
    global_address,
    pack_bf16,
    pack_f16,
    store_global_16,
)
from implementations.instructions.mma import D_COL, D_ROW, decoded
from implementations.instructions.ptx import cpu, i32, kind, on_gpu, ptx

REGISTERS = ", ".join(f"${i}" for i in range(128))  # of a thread's part of d
WGMMA = (
    "wgmma.mma_async.sync.aligned.m64n256k16.f32.{0}.{0} "
    f"{{{{{REGISTERS}}}}}, a, b, keep, 1, 1, 0, 1;"
)
# the next 16 columns of A and rows of B lie 32 bytes and 16 rows further
NEXT = "add.s64 a, a, 2; add.s64 b, b, 128;"

ROW, COL = np.indices((64, 64))
PLACE = ROW * 64 + (COL ^ ROW % 8 * 8)  # of each element of a tile, from its beginning on


def _with_registers(text, array, context, builder, value, *operands):
    """PTX that changes the elements of the local array `value`, $0 to $127; from $256 on it has the
    operands, as what it changes counts twice."""
    local = context.make_array(array)(context, builder, value=value).data
    places = [builder.gep(local, [ir.Constant(ir.IntType(64), i)]) for i in range(128)]
    letters = ["r" if operand.type.width == 32 else "l" for operand in operands]
    constraints = ["=f"] * 128 + [str(i) for i in range(128)] + letters + ["~{memory}"]
    values = [*map(builder.load, places), *operands]
    function = ir.FunctionType(
        ir.LiteralStructType([ir.FloatType()] * 128), [value.type for value in values]
    )
    asm = ir.InlineAsm(function, text, ",".join(constraints), side_effect=True)
    results = builder.call(asm, values)
    for i, place in enumerate(places):
        builder.store(builder.extract_value(results, i), place)
    return context.get_dummy_value()


def _descriptor(builder, address, leading):
    """Where a tile lies, in units of 16 bytes, and how: swizzled by 128 bytes, 1,024 bytes from 8
    rows to the next 8; `leading` bytes from 64 columns to the next 64, where rows are of K."""
    # in a cluster the upper bits name the block, and would change `leading`
    at = builder.and_(address, ir.Constant(ir.IntType(32), 0x3FFFF))
    units = builder.zext(builder.lshr(at, ir.Constant(ir.IntType(32), 4)), ir.IntType(64))
    layout = 1 << 62 | 1024 // 16 << 32 | leading // 16 << 16
    return builder.or_(units, ir.Constant(ir.IntType(64), layout))


def _operands(a, b):
    """What a warp multiplies: 16 rows of A, and of B the four times 64 columns."""
    return a[PLACE[cpu.warp() % 4 * 16 :][:16]], b[np.arange(4)[:, None, None] * 64 * 64 + PLACE]


def _multiplied(d, a, b, keep, dtype):
    """This lane's part of the product; it is formed once, for all lanes of the warp."""
    state = cpu.thread_state()
    if not has_wgmma(torch.device("cpu")):  # the GPU that hosts are told of
        raise RuntimeError("wgmma needs compute capability 9.0")
    if not state.get("fenced"):
        raise RuntimeError("fence_async must stand between the wait for operands and their use")

    def product(_):
        words = _operands(a, b)
        of_a, of_b = (decoded(part, dtype).astype(np.float32) for part in words)
        products = (of_a @ of_b).transpose(1, 0, 2).reshape(16, 32, 8)
        return products[D_ROW, :, D_COL].transpose(0, 2, 1), words

    products, words = cpu.exchange((), product, "wgmma")
    before, reads = state.get("product", (d.copy(), []))
    value = products[cpu.lane()] + (before if keep else 0)
    state["product"] = value, [*reads, (a, b, words)]
    d[...] = np.nan  # until the wait


@kind("product")
@cache
def wgmma_m64n256k64(dtype):
    """`wgmma(d, a, b, keep)`: start d = A·B + d, or A·B where `keep` is False, of a warpgroup: A is
    64 x 64, B 64 x 256, both torch.float16 or torch.bfloat16 in shared memory from multiples of
    1,024 bytes on. Rows are of 64 elements; B has its columns 64 to 127 below the first 64, and so
    on. Column c of row r stands at column c ^ r % 8 * 8.

    d: a local float32 array (32, 4). Of the 64 x 256 that the warpgroup has in it, warp w of the
    four has rows 16 w to 16 w + 15, and lane l, as d[j], columns 8 j + l % 4 * 2 + {0, 1} of rows
    l // 4 and l // 4 + 8 of those. Until it is waited for, d and the operands must stay as they
    are."""
    one = WGMMA.format("f16" if dtype == torch.float16 else "bf16")
    text = (
        "{ .reg .pred keep; .reg .b64 a, b; "
        "mov.b64 a, $256; mov.b64 b, $257; setp.ne.b32 keep, $258, 0; "
        f"wgmma.fence.sync.aligned; {one} setp.eq.b32 keep, 0, 0; "
        f"{NEXT} {one} {NEXT} {one} {NEXT} {one} wgmma.commit_group.sync.aligned; }}"
    )

    def codegen(d, a, b, keep):
        def code(context, builder, signature, args):
            of_a, of_b = _descriptor(builder, args[1], 16), _descriptor(builder, args[2], 64 * 128)
            kept = builder.zext(args[3], ir.IntType(32))
            return _with_registers(text, d, context, builder, args[0], of_a, of_b, kept)

        return types.void(d, i32, i32, types.boolean), code

    @on_gpu(codegen)
    def wgmma(d, a, b, keep):
        _multiplied(d, a, b, keep, dtype)

    return wgmma


def _waited(d):
    def code(context, builder, signature, args):
        text = "wgmma.wait_group.sync.aligned 0;"
        return _with_registers(text, d, context, builder, args[0])

    return types.void(d), code


@kind("barrier")
@on_gpu(_waited)
def wgmma_wait(d):
    """Wait until the product that this warpgroup has started is in d."""
    value, reads = cpu.thread_state().pop("product")
    for a, b, words in reads if cpu.lane() == 0 else ():
        if not all(map(np.array_equal, words, _operands(a, b))):
            raise RuntimeError("operands must stay as they are until the product is waited for")
    d[...] = value


@kind("barrier")
@ptx("fence.proxy.async.shared::cta;", types.void(), memory=True)
def fence_async():
    """Let what this thread has seen in shared memory be what a product that it starts will read
    there: those read past the path of ordinary loads."""
    cpu.thread_state()["fenced"] = True


@cache
def give_registers(count):
    """`give()`: have `count` registers a thread from here on, a multiple of 8: fewer than the
    kernel began with, which others may take. All warps of a warpgroup must call it."""
    return ptx(f"setmaxnreg.dec.sync.aligned.u32 {count};", types.void(), memory=True)(lambda: None)


@cache
def take_registers(count):
    """`take()`: have `count` registers a thread from here on, a multiple of 8: more than the kernel
    began with, which waits until others have given as many. All warps of a warpgroup must call
    it."""
    return ptx(f"setmaxnreg.inc.sync.aligned.u32 {count};", types.void(), memory=True)(lambda: None)


@cache
def store_accumulators(dtype):
    """`store(d, C, M, N, m0, n0)`: store a warpgroup's d, rounded to dtype, as rows m0 to m0 + 63
    and columns n0 to n0 + 255 of row-major C (M, N), as int16 words, whose rows are whole chunks of
    16 bytes; what lies beyond its edges is not stored.

    Of 32 columns of a row, four neighbouring lanes hold two each of every 8. They exchange them, in
    two rounds, so that each has 8 neighbours, which it stores at once."""
    pack = pack_f16 if dtype == torch.float16 else pack_bf16

    @cuda.jit(device=True)
    def exchanged(low, high, quad, bit):
        has = quad & bit != 0
        got = cuda.shfl_xor_sync(0xFFFFFFFF, low if has else high, bit)
        return (got, high) if has else (low, got)

    @cuda.jit(device=True)
    def store(d, C, M, N, m0, n0):
        lane, warp = cuda.threadIdx.x % 32, cuda.threadIdx.x // 32
        quad = lane % 4
        for i in range(8):
            for h in range(2):
                j, e = 4 * i, 2 * h
                w0, w1 = pack(d[j, e], d[j, e + 1]), pack(d[j + 1, e], d[j + 1, e + 1])
                w2, w3 = pack(d[j + 2, e], d[j + 2, e + 1]), pack(d[j + 3, e], d[j + 3, e + 1])
                w0, w1 = exchanged(w0, w1, quad, 1)
                w2, w3 = exchanged(w2, w3, quad, 1)
                w0, w2 = exchanged(w0, w2, quad, 2)
                w1, w3 = exchanged(w1, w3, quad, 2)
                m = int32(m0 + warp % 4 * 16 + h * 8 + lane // 4)
                n = int32(n0 + (j + quad) * 8)
                if m < M and n < N:
                    store_global_16(global_address(C, int64(m) * N + n), (w0, w1, w2, w3))

    return store
