// Each row belongs to THREADS threads. While these are a warp or less, a block has ROWS rows and
// shuffles add up; else a block has one row, or one part of a row longer than PART, and its warps
// meet in shared memory. Unless told that 5 resident blocks are enough, the compiler saves
// registers and loads later.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. PACKS:
// packs that a thread has under way at once. THREADS: the threads of a row. ROWS: rows of a block.
#include "access.cuh"

template <typename T, int VEC, int PACKS, int THREADS, int ROWS>
__global__ void __launch_bounds__(THREADS* ROWS, 5)
    row_sum_kernel(const T* __restrict__ x, float* __restrict__ out, long long M, long long N,
                   int PART, int parts) {
    constexpr int STEP = THREADS * VEC, WARPS = THREADS / 32;
    const int tx = threadIdx.x, part = blockIdx.x % parts;
    const long long row = (long long)(blockIdx.x / parts) * ROWS + threadIdx.y;
    const long long start = (long long)part * PART;
    // Threads beyond the last row have nothing to add, but still take part in the shuffles.
    const int count = row < M ? min(N - start, (long long)PART) : 0;
    x += row * N + start;  // 64-bit: M * N may exceed 2^31

    // fp32: a sum in 16 bits would stop growing, or overflow.
    float acc[VEC] = {};
    int n = tx * VEC;  // neighbours read neighbouring packs
    for (; n + (PACKS - 1) * STEP < count; n += PACKS * STEP) {
        Pack<T, VEC> pack[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; ++p)  // all loads are under way before the first is used
            pack[p] = load_pack<VEC>(x + n + p * STEP);
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k) acc[k] += float(pack[p].v[k]);
    }
#pragma unroll
    for (int p = 0; p < PACKS - 1; ++p)  // what is left, fewer than PACKS packs
        if (n + p * STEP < count) {
            const auto pack = load_pack<VEC>(x + n + p * STEP);
#pragma unroll
            for (int k = 0; k < VEC; ++k) acc[k] += float(pack.v[k]);
        }

    float total = 0.f;
#pragma unroll
    for (int k = 0; k < VEC; ++k) total += acc[k];
#pragma unroll
    for (int delta = (THREADS < 32 ? THREADS : 32) / 2; delta > 0; delta /= 2)
        total += __shfl_xor_sync(0xffffffff, total, delta);
    if constexpr (WARPS > 1) {
        // Written once and read after the one barrier, by all threads the same word: a broadcast.
        __shared__ float sPartial[WARPS];
        if (tx % 32 == 0) sPartial[tx / 32] = total;
        __syncthreads();  // every warp's total is there
        total = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) total += sPartial[w];
    }

    if (tx == 0 && row < M) out[row * parts + part] = total;
}
