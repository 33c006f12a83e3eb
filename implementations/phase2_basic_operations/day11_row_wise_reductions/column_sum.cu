// Each block of TX x TY threads owns a strip of columns. Each thread adds up VEC of them over every
// TY-th row, in registers: it needs the sums of no other thread before the end. Where rows are
// many, a block has a part of them, of PART rows. Unless told that 5 resident blocks are enough,
// the compiler saves registers and loads later.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. PACKS:
// packs that a thread has under way at once. TX, TY: threads of a block along a row and down it.
#include "access.cuh"

template <typename T, int VEC, int PACKS, int TX, int TY>
__global__ void __launch_bounds__(TX* TY, 5)
    column_sum_kernel(const T* __restrict__ x, float* __restrict__ out, long long M, long long N,
                      int PART) {
    constexpr int STRIP = TX * VEC;
    __shared__ float sSums[TY][STRIP];
    const int tx = threadIdx.x, ty = threadIdx.y, tid = ty * TX + tx, part = blockIdx.y;
    const long long n0 = (long long)blockIdx.x * STRIP, start = (long long)part * PART;
    // Rows of this thread's part. Threads beyond the last column have none, but meet the barrier.
    const int count = n0 + tx * VEC < N ? min(M - start, (long long)PART) : 0;
    x += start * N + n0 + tx * VEC;  // neighbours along a row read neighbouring packs

    // fp32: a sum in 16 bits would stop growing, or overflow.
    float acc[VEC] = {};
    int m = ty;
    for (; m + (PACKS - 1) * TY < count; m += PACKS * TY) {
        Pack<T, VEC> pack[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; ++p)  // all loads are under way before the first is used
            pack[p] = load_pack<VEC>(x + (m + p * TY) * N);
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k) acc[k] += float(pack[p].v[k]);
    }
#pragma unroll
    for (int p = 0; p < PACKS - 1; ++p)  // what is left, fewer than PACKS rows
        if (m + p * TY < count) {
            const auto pack = load_pack<VEC>(x + (m + p * TY) * N);
#pragma unroll
            for (int k = 0; k < VEC; ++k) acc[k] += float(pack.v[k]);
        }

#pragma unroll
    for (int k = 0; k < VEC; ++k) sSums[ty][tx * VEC + k] = acc[k];
    __syncthreads();                    // the sums of all TY rows of threads are there
    if (tid < STRIP && n0 + tid < N) {  // from here on a thread has one column
        float total = 0.f;
        // Neighbours read neighbouring words, so banks do not conflict.
#pragma unroll
        for (int t = 0; t < TY; ++t) total += sSums[t][tid];
        out[part * N + n0 + tid] = total;
    }
}
