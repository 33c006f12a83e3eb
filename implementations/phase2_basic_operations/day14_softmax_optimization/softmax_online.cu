// Each row belongs to CLUSTER blocks of THREADS threads, to which its packs of VEC elements are
// dealt in turn; where THREADS fit a warp, a block has ROWS rows. A thread computes m and l of its
// own elements alone. The pairs are then merged over lanes, warps and blocks, which meet once.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. PACKS:
// packs that a thread holds. THREADS: threads of a row in one block, a power of two. ROWS: the rows
// of a block, 1 where THREADS exceed a warp. CLUSTER: the blocks of a row. LONG: whether a row is
// longer than the registers hold. STEP: the threads of a row in all blocks.
#include <math_constants.h>

#include "access.cuh"
#include "cluster.cuh"

// No element but -inf is below it. Where it is the maximum, all elements are -inf and exp(x - m) is
// 0; with -inf as the maximum, -inf - -inf would be NaN.
constexpr float LOWEST = -3.402823466e38f;

// The maximum m of some elements of a row, and l, their sum of exp(x - m), in fp32.
struct MaxSum {
    float m, l;
};

// The pair of two parts of a row together. The part with the larger maximum keeps its l as it is:
// one exponential is enough, and {LOWEST, 0} is neutral.
__device__ MaxSum merge(MaxSum a, MaxSum b) {
    const float m = fmaxf(a.m, b.m), scale = __expf(fminf(a.m, b.m) - m);
    return {m, a.m >= b.m ? a.l + b.l * scale : b.l + a.l * scale};
}

// The pair of LANES neighbouring lanes together, in each of them: they exchange their pairs.
template <int LANES>
__device__ MaxSum merge_lanes(MaxSum pair) {
#pragma unroll
    for (int delta = LANES / 2; delta > 0; delta /= 2) {
        const float m_b = __shfl_xor_sync(0xffffffff, pair.m, delta);
        const float l_b = __shfl_xor_sync(0xffffffff, pair.l, delta);
        pair = merge(pair, {m_b, l_b});
    }
    return pair;
}

// The pair of the whole row, in each of its threads. `rank`: this block's place in the cluster.
template <int THREADS, int CLUSTER>
__device__ MaxSum merge_row(MaxSum pair, int rank) {
    pair = merge_lanes<(THREADS < 32 ? THREADS : 32)>(pair);
    if constexpr (THREADS > 32) {
        constexpr int WARPS = CLUSTER * THREADS / 32;
        __shared__ float sM[WARPS], sL[WARPS];
        const int lane = threadIdx.x % 32, warp = rank * (THREADS / 32) + threadIdx.x / 32;
        if constexpr (CLUSTER > 1) {
            // Shared memory of a block that has not begun may not be written, and that of a block
            // that has ended is gone: one barrier before the stores, and one after them.
            cluster_barrier_wait();  // the other blocks have begun
            // Each lane takes one block, so that every block has the pairs of all warps.
            if (lane < CLUSTER) {
                store_remote(&sM[warp], lane, pair.m);
                store_remote(&sL[warp], lane, pair.l);
            }
            cluster_barrier();  // all is there; a block that ends now is not written to any more
        } else {
            if (lane == 0) {
                sM[warp] = pair.m;
                sL[warp] = pair.l;
            }
            __syncthreads();
        }
        // Every warp's pair is there, and every warp merges them all. Neighbours read neighbouring
        // words, so banks do not conflict.
        pair = {LOWEST, 0.f};
#pragma unroll
        for (int w = lane; w < WARPS; w += 32) pair = merge(pair, {sM[w], sL[w]});
        pair = merge_lanes<32>(pair);
    }
    return pair;
}

// Loads the packs of the row's thread `row_tid`, of the `count` elements from `x` on. Beyond these
// they are -inf, which changes no maximum, and whose exponential adds nothing to a sum.
template <int STEP, typename T, int VEC, int PACKS>
__device__ void load_packs(Pack<T, VEC> (&pack)[PACKS], const T* x, int row_tid, int count) {
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {  // all loads are under way before the first is used
        const int n = (p * STEP + row_tid) * VEC;  // neighbours read neighbouring packs
        if (n < count) {
            pack[p] = load_pack<VEC>(x + n);
        } else {
#pragma unroll
            for (int k = 0; k < VEC; ++k) pack[p].v[k] = T(-CUDART_INF_F);
        }
    }
}

// Stores the packs of the row's thread `row_tid`, of the `count` elements from `out` on.
template <int STEP, typename T, int VEC, int PACKS>
__device__ void store_packs(const Pack<T, VEC> (&pack)[PACKS], T* __restrict__ out, int row_tid,
                            int count) {
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const int n = (p * STEP + row_tid) * VEC;
        if (n < count) store_pack(out + n, pack[p]);
    }
}

// Sets v to exp(x - m) of a thread's elements x, less their own maximum; returns their m and l.
template <typename T, int VEC, int PACKS>
__device__ MaxSum exponentials(float (&v)[PACKS][VEC], const Pack<T, VEC> (&pack)[PACKS]) {
    MaxSum pair = {LOWEST, 0.f};
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            v[p][k] = float(pack[p].v[k]);
            // fmaxf drops a NaN, whose exponential then makes the sum NaN.
            pair.m = fmaxf(pair.m, v[p][k]);
        }
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            v[p][k] = __expf(v[p][k] - pair.m);
            pair.l += v[p][k];
        }
    return pair;
}

// Reads once what the registers hold. Of a LONG row that is the last part; the other parts are read
// for m and l, and then again, backwards, as the L2 keeps what was read last. x is not
// __restrict__: the compiler would put a load that may pass a barrier behind it, and these loads
// are to be under way while the cluster begins.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS, int CLUSTER, bool LONG>
__device__ __forceinline__ void softmax(const T* x, T* __restrict__ out, int M, long long N) {
    constexpr int STEP = CLUSTER * THREADS;
    constexpr int PART = STEP * PACKS * VEC;
    const int row = blockIdx.x / CLUSTER * ROWS + threadIdx.y, rank = blockIdx.x % CLUSTER;
    const int row_tid = rank * THREADS + threadIdx.x;         // this thread's place in the row
    const long long last = LONG ? (N - 1) / PART * PART : 0;  // where the last part starts
    const int count = row < M ? N - last : 0;  // threads beyond the last row still take part
    x += row * N;
    out += row * N;
    // The loads below need no other block, so the wait for this comes after them.
    if constexpr (CLUSTER > 1) cluster_barrier_arrive();

    Pack<T, VEC> pack[PACKS];
    float v[PACKS][VEC];
    MaxSum of_thread = {LOWEST, 0.f};
    for (long long n = 0; n < last; n += PART) {
        load_packs<STEP>(pack, x + n, row_tid, PART);
        of_thread = merge(of_thread, exponentials(v, pack));
    }
    load_packs<STEP>(pack, x + last, row_tid, count);

    const MaxSum held = exponentials(v, pack);
    const MaxSum of_row = merge_row<THREADS, CLUSTER>(LONG ? merge(of_thread, held) : held, rank);

    // v has this thread's maximum subtracted: the factor makes that the row's.
    const float scale = __expf(held.m - of_row.m) / of_row.l;
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) pack[p].v[k] = T(v[p][k] * scale);
    store_packs<STEP>(pack, out + last, row_tid, count);

    for (long long n = last - PART; n >= 0; n -= PART) {
        load_packs<STEP>(pack, x + n, row_tid, PART);
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k)
                pack[p].v[k] = T(__expf(float(pack[p].v[k]) - of_row.m) / of_row.l);
        store_packs<STEP>(pack, out + n, row_tid, PART);
    }
}

template <typename T, int VEC, int PACKS, int THREADS, int ROWS, int CLUSTER, bool LONG>
__global__ void __launch_bounds__(THREADS* ROWS)
    softmax_online_kernel(const T* x, T* __restrict__ out, int M, long long N) {
    softmax<T, VEC, PACKS, THREADS, ROWS, CLUSTER, LONG>(x, out, M, N);
}

// A kernel of its own, as clusters start slower than blocks, even clusters of one.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS, int CLUSTER, bool LONG>
__global__ void __launch_bounds__(THREADS* ROWS) __attribute__((cluster_dims(CLUSTER, 1, 1)))
softmax_online_cluster_kernel(const T* x, T* __restrict__ out, int M, long long N) {
    softmax<T, VEC, PACKS, THREADS, ROWS, CLUSTER, LONG>(x, out, M, N);
}
