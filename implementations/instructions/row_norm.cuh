// What the layer norms need alike: the sums of a row over the threads of lanes, a block or a
// cluster, its packs in registers, and the step from these to y. The twin of row_norm.py.
//
// T: the element type. VEC: elements of a pack. PACKS: packs that a thread holds. THREADS: threads
// of a row in one block, a power of two. CLUSTER: the blocks of a row. STEP: the threads of a row
// in all blocks.
#pragma once
#include "access.cuh"
#include "cluster.cuh"
#include "reduce.cuh"

// Adds up each of COUNT values over the threads of a row, in every one of them. `sSums` holds them
// a warp of the row, and is used once: one barrier suffices. `rank`: this block's place in the
// cluster, whose blocks have begun.
template <int THREADS, int CLUSTER, int COUNT>
__device__ void sum_row(float (&value)[COUNT], float (&sSums)[COUNT][32 * CLUSTER], int rank) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) value[i] = sum_lanes<(THREADS < 32 ? THREADS : 32)>(value[i]);
    if constexpr (THREADS > 32) {
        constexpr int WARPS = CLUSTER * THREADS / 32;
        const int lane = threadIdx.x % 32, warp = rank * (THREADS / 32) + threadIdx.x / 32;
        if constexpr (CLUSTER > 1) {
            // Each lane takes one block, so that every block has the sums of all warps.
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                if (lane < CLUSTER) store_remote(&sSums[i][warp], lane, value[i]);
            cluster_barrier();  // all is there; a block that ends now is not written to any more
        } else {
#pragma unroll
            for (int i = 0; i < COUNT; ++i)
                if (lane == 0) sSums[i][warp] = value[i];
            __syncthreads();
        }
        // Every warp adds up all. Neighbours read neighbouring words, so banks do not conflict.
        constexpr int LANES = WARPS < 32 ? WARPS : 32;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            value[i] = 0.f;
#pragma unroll
            for (int w = lane % LANES; w < WARPS; w += 32) value[i] += sSums[i][w];
            value[i] = sum_lanes<LANES>(value[i]);
        }
    }
}

// Loads the packs of the row's thread `row_tid`, of the `count` elements from `x` on, as fp32.
// Beyond these they are 0.
template <int STEP, typename T, int VEC, int PACKS>
__device__ void load_row(float (&v)[PACKS][VEC], const T* x, int row_tid, int count) {
    Pack<T, VEC> pack[PACKS] = {};
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {  // all loads are under way before the first is used
        const int n = (p * STEP + row_tid) * VEC;  // neighbours read neighbouring packs
        if (n < count) pack[p] = load_pack<VEC>(x + n);
    }
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) v[p][k] = float(pack[p].v[k]);
}

// Adds the deviations of a thread's elements from `shift` to sums[0], their squares to sums[1];
// pack by pack, as a long sum would round off more of what it is given.
template <int STEP, int VEC, int PACKS>
__device__ void add_deviations(float (&sums)[2], const float (&v)[PACKS][VEC], float shift,
                               int row_tid, int count) {
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
        if ((p * STEP + row_tid) * VEC < count) {
            float s1 = 0.f, s2 = 0.f;
#pragma unroll
            for (int k = 0; k < VEC; ++k) {
                const float d = v[p][k] - shift;
                s1 += d;
                s2 += d * d;
            }
            sums[0] += s1;
            sums[1] += s2;
        }
}

// Stores y of a thread's elements v, of the `count` elements from `y` on; w and b, which all rows
// share, come from the L1 or the L2. The mean is shift + left.
template <int STEP, typename T, int VEC, int PACKS>
__device__ void store_normalized(const float (&v)[PACKS][VEC], const T* __restrict__ w,
                                 const T* __restrict__ b, T* __restrict__ y, float shift,
                                 float left, float rstd, int row_tid, int count) {
    const float offset = -left * rstd;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const int n = (p * STEP + row_tid) * VEC;
        if (n < count) {
            const auto w_pack = load_pack<VEC>(w + n), b_pack = load_pack<VEC>(b + n);
            Pack<T, VEC> pack;
#pragma unroll
            for (int k = 0; k < VEC; ++k) {
                const float normal = (v[p][k] - shift) * rstd + offset;
                pack.v[k] = T(normal * float(w_pack.v[k]) + float(b_pack.v[k]));
            }
            store_pack(y + n, pack);
        }
    }
}
