// Each row belongs to CLUSTER blocks of THREADS threads, to which its packs of VEC elements are
// dealt in turn; where THREADS fit a warp, a block has ROWS rows. The threads of a row meet twice:
// for a shift, the mean as it is rounded, and for the sums of what differs from it.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. PACKS:
// packs that a thread holds. THREADS: threads of a row in one block, a power of two. ROWS: the rows
// of a block, 1 where THREADS exceed a warp. CLUSTER: the blocks of a row. LONG: whether a row is
// longer than the registers hold. STEP: the threads of a row in all blocks.
#include "access.cuh"
#include "cluster.cuh"

template <int LANES>
__device__ float sum_lanes(float value) {
#pragma unroll
    for (int delta = LANES / 2; delta > 0; delta /= 2)
        value += __shfl_xor_sync(0xffffffff, value, delta);
    return value;
}

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
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            value[i] = 0.f;
#pragma unroll
            for (int w = lane; w < WARPS; w += 32) value[i] += sSums[i][w];
            value[i] = sum_lanes<32>(value[i]);
        }
    }
}

// Stores s, the sum of x and the residual, of the packs of the row's thread `row_tid` among `count`
// elements, and sets v to it as it is rounded. Beyond these it is 0.
template <int STEP, typename T, int VEC, int PACKS>
__device__ void add_row(float (&v)[PACKS][VEC], const T* x, const T* residual, T* s, int row_tid,
                        int count) {
    Pack<T, VEC> pack[PACKS] = {}, r_pack[PACKS] = {};
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {              // loads are under way before the first is used
        const int n = (p * STEP + row_tid) * VEC;  // neighbours read neighbouring packs
        if (n < count) {
            pack[p] = load_pack<VEC>(x + n);
            r_pack[p] = load_pack<VEC>(residual + n);
        }
    }
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const int n = (p * STEP + row_tid) * VEC;
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            pack[p].v[k] = T(float(pack[p].v[k]) + float(r_pack[p].v[k]));
            v[p][k] = float(pack[p].v[k]);
        }
        if (n < count) store_pack(s + n, pack[p]);
    }
}

// Loads the packs of the row's thread `row_tid`, of the `count` elements from `s` on, as fp32:
// of s, which this thread has stored.
template <int STEP, typename T, int VEC, int PACKS>
__device__ void load_row(float (&v)[PACKS][VEC], const T* s, int row_tid, int count) {
    Pack<T, VEC> pack[PACKS] = {};
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {  // all loads are under way before the first is used
        const int n = (p * STEP + row_tid) * VEC;  // neighbours read neighbouring packs
        if (n < count) pack[p] = load_pack<VEC>(s + n);
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
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const int n = (p * STEP + row_tid) * VEC;
        if (n < count) {
            const auto w_pack = load_pack<VEC>(w + n), b_pack = load_pack<VEC>(b + n);
            Pack<T, VEC> pack;
#pragma unroll
            for (int k = 0; k < VEC; ++k) {
                const float normal = (v[p][k] - shift - left) * rstd;
                pack.v[k] = T(normal * float(w_pack.v[k]) + float(b_pack.v[k]));
            }
            store_pack(y + n, pack);
        }
    }
}

// A row that the registers hold is read once. The first part of a LONG one gives the shift; all
// parts give the sums, and are then read again, backwards from the last, which is held, as the L2
// keeps what was read last. x is not __restrict__: the compiler would put a load that may pass a
// barrier behind it, and these loads are to be under way while the cluster begins.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS, int CLUSTER, bool LONG>
__device__ __forceinline__ void normalize(const T* x, const T* residual, const T* __restrict__ w,
                                          const T* __restrict__ b, T* __restrict__ y, T* s,
                                          float* __restrict__ mean, float* __restrict__ rstd,
                                          long long M, long long N, float eps) {
    constexpr int STEP = CLUSTER * THREADS;
    constexpr int PART = STEP * PACKS * VEC;
    __shared__ float sSum[1][32 * CLUSTER], sSums[2][32 * CLUSTER];
    const long long row = (long long)(blockIdx.x / CLUSTER) * ROWS + threadIdx.y;
    const int rank = blockIdx.x % CLUSTER;
    const int row_tid = rank * THREADS + threadIdx.x;         // this thread's place in the row
    const long long last = LONG ? (N - 1) / PART * PART : 0;  // where the last part starts
    const int count = row < M ? N - last : 0;  // threads beyond the last row still take part
    const int first = LONG ? PART : count;     // elements of the first part
    x += row * N;
    residual += row * N;
    y += row * N;
    s += row * N;
    if constexpr (CLUSTER > 1) cluster_barrier_arrive();

    float v[PACKS][VEC];
    add_row<STEP>(v, x, residual, s, row_tid, first);
    float sum[1] = {};
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) sum[0] += v[p][k];
    // Shared memory of a block that has not begun may not be written, and that of one that has
    // ended is gone: the others have begun from here on, and sum_row ends with a barrier.
    if constexpr (CLUSTER > 1) cluster_barrier_wait();
    sum_row<THREADS, CLUSTER>(sum, sSum, rank);

    // Of rows far from zero s * s would keep no digit of the variance; s - shift loses none.
    const float shift = sum[0] / (LONG ? PART : N);
    float sums[2] = {};
    add_deviations<STEP>(sums, v, shift, row_tid, first);
    if constexpr (LONG) {
        for (long long n = PART; n < last; n += PART) {
            add_row<STEP>(v, x + n, residual + n, s + n, row_tid, PART);
            add_deviations<STEP>(sums, v, shift, row_tid, PART);
        }
        add_row<STEP>(v, x + last, residual + last, s + last, row_tid, count);
        add_deviations<STEP>(sums, v, shift, row_tid, count);
    }
    sum_row<THREADS, CLUSTER>(sums, sSums, rank);
    const float left = sums[0] / N;  // of the mean, which was rounded, or of a part
    const float variance = sums[1] / N - left * left;
    const float rstd_of_row = 1.f / sqrtf(variance + eps);
    if (row_tid == 0 && row < M) {
        // An infinity in a later part is not in the shift, and makes the variance NaN.
        mean[row] = isnan(variance) ? variance : shift + left;
        rstd[row] = rstd_of_row;
    }

    store_normalized<STEP>(v, w + last, b + last, y + last, shift, left, rstd_of_row, row_tid,
                           count);
    for (long long n = last - PART; n >= 0; n -= PART) {
        load_row<STEP>(v, s + n, row_tid, PART);
        store_normalized<STEP>(v, w + n, b + n, y + n, shift, left, rstd_of_row, row_tid, PART);
    }
}

// Unless told that 768 resident threads are enough, the compiler saves registers and spills.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS, int CLUSTER, bool LONG>
__global__ void __launch_bounds__(THREADS* ROWS, VEC > 1 ? 768 / (THREADS * ROWS) : 1)
    add_layer_norm_kernel(const T* x, const T* residual, const T* __restrict__ w,
                          const T* __restrict__ b, T* __restrict__ y, T* s,
                          float* __restrict__ mean, float* __restrict__ rstd, long long M,
                          long long N, float eps) {
    normalize<T, VEC, PACKS, THREADS, ROWS, CLUSTER, LONG>(x, residual, w, b, y, s, mean, rstd, M,
                                                           N, eps);
}

// A kernel of its own, as clusters start slower than blocks, even clusters of one.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS, int CLUSTER, bool LONG>
__global__ void __launch_bounds__(THREADS* ROWS) __attribute__((cluster_dims(CLUSTER, 1, 1)))
add_layer_norm_cluster_kernel(const T* x, const T* residual, const T* __restrict__ w,
                              const T* __restrict__ b, T* __restrict__ y, T* s,
                              float* __restrict__ mean, float* __restrict__ rstd, long long M,
                              long long N, float eps) {
    normalize<T, VEC, PACKS, THREADS, ROWS, CLUSTER, LONG>(x, residual, w, b, y, s, mean, rstd, M,
                                                           N, eps);
}
