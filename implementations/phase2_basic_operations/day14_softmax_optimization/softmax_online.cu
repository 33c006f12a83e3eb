// A row belongs to CLUSTER blocks of THREADS threads each, to which its packs of VEC elements are
// dealt in turn; up to 32 threads a row, a block has ROWS rows. A thread knows m and l of its own
// elements and no others; merged over lanes, warps and blocks, the pairs meet once.
#include <math_constants.h>

#include "access.cuh"
#include "cluster.cuh"

// Below every element but -inf, whose exp(x - m) is 0 then: no -inf - -inf where all are.
constexpr float LOWEST = -3.402823466e38f;

// Of some elements of a row the maximum m, and l, the sum of exp(x - m).
struct MaxSum {
    float m, l;
};

__device__ MaxSum merge(MaxSum a, MaxSum b) {
    const float m = fmaxf(a.m, b.m), scale = __expf(fminf(a.m, b.m) - m);
    return {m, a.m >= b.m ? a.l + b.l * scale : b.l + a.l * scale};
}

template <int LANES>
__device__ MaxSum merge_lanes(MaxSum mine) {
#pragma unroll
    for (int delta = LANES / 2; delta > 0; delta /= 2) {
        const float m = __shfl_xor_sync(0xffffffff, mine.m, delta);
        const float l = __shfl_xor_sync(0xffffffff, mine.l, delta);
        mine = merge(mine, {m, l});
    }
    return mine;
}

// The whole row's m and l, in every one of its threads. `rank`: of this block in the cluster.
template <int THREADS, int CLUSTER>
__device__ MaxSum merge_row(MaxSum mine, int rank) {
    mine = merge_lanes<(THREADS < 32 ? THREADS : 32)>(mine);
    if constexpr (THREADS > 32) {
        constexpr int WARPS = CLUSTER * THREADS / 32;
        __shared__ float m_of_warp[WARPS], l_of_warp[WARPS];
        const int lane = threadIdx.x % 32, warp = rank * (THREADS / 32) + threadIdx.x / 32;
        if constexpr (CLUSTER > 1) {
            cluster_barrier_wait();  // the other blocks have begun
            if (lane < CLUSTER) {
                store_remote(&m_of_warp[warp], lane, mine.m);
                store_remote(&l_of_warp[warp], lane, mine.l);
            }
            cluster_barrier();  // all is there; a block that ends now is not written to any more
        } else {
            if (lane == 0) {
                m_of_warp[warp] = mine.m;
                l_of_warp[warp] = mine.l;
            }
            __syncthreads();
        }
        mine = {LOWEST, 0.f};
#pragma unroll
        for (int w = lane; w < WARPS; w += 32) mine = merge(mine, {m_of_warp[w], l_of_warp[w]});
        mine = merge_lanes<32>(mine);
    }
    return mine;
}

// Thread t's packs of the `count` elements from `x` on, -inf beyond.
template <int STEP, typename T, int VEC, int PACKS>
__device__ void load_packs(Pack<T, VEC> (&pack)[PACKS], const T* x, int t, int count) {
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {        // all loads are under way before the first is used
        const int n = (p * STEP + t) * VEC;  // neighbours read neighbouring packs
        if (n < count) {
            pack[p] = load_pack<VEC>(x + n);
        } else {
#pragma unroll
            for (int k = 0; k < VEC; ++k) pack[p].v[k] = T(-CUDART_INF_F);
        }
    }
}

template <int STEP, typename T, int VEC, int PACKS>
__device__ void store_packs(const Pack<T, VEC> (&pack)[PACKS], T* __restrict__ out, int t,
                            int count) {
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const int n = (p * STEP + t) * VEC;
        if (n < count) store_pack(out + n, pack[p]);
    }
}

// v = exp(x - m) for a thread's elements x and their own maximum; m and l.
template <typename T, int VEC, int PACKS>
__device__ MaxSum exponentials(float (&v)[PACKS][VEC], const Pack<T, VEC> (&pack)[PACKS]) {
    MaxSum mine = {LOWEST, 0.f};
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            v[p][k] = float(pack[p].v[k]);
            mine.m = fmaxf(mine.m, v[p][k]);
        }
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            v[p][k] = __expf(v[p][k] - mine.m);
            mine.l += v[p][k];
        }
    return mine;
}

// What the registers hold is read once. Of a LONG row that is the last part; the others are read
// for m and l, and again, backwards, as the L2 keeps what was read last. x is not __restrict__: a
// load that may pass a barrier is put behind it, and these are to be under way while a cluster
// begins.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS, int CLUSTER, bool LONG>
__device__ __forceinline__ void softmax(const T* x, T* __restrict__ out, int M, long long N) {
    constexpr int STEP = CLUSTER * THREADS;
    constexpr int PART = STEP * PACKS * VEC;
    const int row = blockIdx.x / CLUSTER * ROWS + threadIdx.y, rank = blockIdx.x % CLUSTER;
    const int t = rank * THREADS + threadIdx.x;               // of the row's threads
    const long long last = LONG ? (N - 1) / PART * PART : 0;  // where the last part starts
    const int count = row < M ? N - last : 0;  // threads beyond the last row still take part
    x += row * N;
    out += row * N;
    if constexpr (CLUSTER > 1) cluster_barrier_arrive();

    Pack<T, VEC> pack[PACKS];
    float v[PACKS][VEC];
    MaxSum mine = {LOWEST, 0.f};
    for (long long start = 0; start < last; start += PART) {
        load_packs<STEP>(pack, x + start, t, PART);
        mine = merge(mine, exponentials(v, pack));
    }
    load_packs<STEP>(pack, x + last, t, count);

    const MaxSum held = exponentials(v, pack);
    const MaxSum all = merge_row<THREADS, CLUSTER>(LONG ? merge(mine, held) : held, rank);

    const float scale = __expf(held.m - all.m) / all.l;
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) pack[p].v[k] = T(v[p][k] * scale);
    store_packs<STEP>(pack, out + last, t, count);

    for (long long start = last - PART; start >= 0; start -= PART) {
        load_packs<STEP>(pack, x + start, t, PART);
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k)
                pack[p].v[k] = T(__expf(float(pack[p].v[k]) - all.m) / all.l);
        store_packs<STEP>(pack, out + start, t, PART);
    }
}

template <typename T, int VEC, int PACKS, int THREADS, int ROWS, int CLUSTER, bool LONG>
__global__ void __launch_bounds__(THREADS* ROWS)
    softmax_online_kernel(const T* x, T* __restrict__ out, int M, long long N) {
    softmax<T, VEC, PACKS, THREADS, ROWS, CLUSTER, LONG>(x, out, M, N);
}

// Apart, as clusters start slower than blocks, even clusters of one.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS, int CLUSTER, bool LONG>
__global__ void __launch_bounds__(THREADS* ROWS) __attribute__((cluster_dims(CLUSTER, 1, 1)))
softmax_online_cluster_kernel(const T* x, T* __restrict__ out, int M, long long N) {
    softmax<T, VEC, PACKS, THREADS, ROWS, CLUSTER, LONG>(x, out, M, N);
}
