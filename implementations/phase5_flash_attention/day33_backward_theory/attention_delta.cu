// Each row of o and of dO, as `do` is called here, where it is a keyword, belongs to as many
// neighbouring lanes as it has packs of 16 bytes. A block owns PACKS times the rows that its
// threads hold at once. Unless told that 5 resident blocks are enough, the compiler saves registers
// and loads later.
//
// T: the type of o and dO, 16 bits wide. D: elements of a row. PACKS: packs of each that a thread
// has under way at once, all of another row. THREADS: of a block.
#include "access.cuh"
#include "reduce.cuh"

template <typename T, int D, int PACKS, int THREADS>
__global__ void __launch_bounds__(THREADS, 5)
    attention_delta_kernel(const T* __restrict__ o, const T* __restrict__ dO,
                           float* __restrict__ delta, int rows) {
    constexpr int LANES = D / 8, STEP = THREADS / LANES;  // lanes of a row; rows at once
    const int first = blockIdx.x * PACKS * STEP + threadIdx.x / LANES;
    const int col = threadIdx.x % LANES * 8;  // neighbours read neighbouring packs

    Pack<T, 8> o_pack[PACKS], do_pack[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {  // all loads are under way before the first is used
        const int row = min(first + p * STEP, rows - 1);  // beyond the last row, that one again
        const long long at = (long long)row * D + col;    // 64-bit: rows * D may exceed 2^31
        o_pack[p] = load_pack<8>(o + at);
        do_pack[p] = load_pack<8>(dO + at);
    }
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        // fp32: a sum in 16 bits would stop growing.
        float acc = 0.f;
#pragma unroll
        for (int k = 0; k < 8; ++k) acc += float(o_pack[p].v[k]) * float(do_pack[p].v[k]);
        acc = sum_lanes<LANES>(acc);
        const int row = first + p * STEP;
        if (col == 0 && row < rows) delta[row] = acc;
    }
}
