// Each row belongs to CLUSTER blocks of THREADS threads, to which its packs of VEC elements are
// dealt in turn; where THREADS fit a warp, a block has ROWS rows. The threads of a row meet twice:
// for a shift, the mean as it is rounded, and for the sums of what differs from it.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. PACKS:
// packs that a thread holds. THREADS: threads of a row in one block, a power of two. ROWS: the rows
// of a block, 1 where THREADS exceed a warp. CLUSTER: the blocks of a row. LONG: whether a row is
// longer than the registers hold. STEP: the threads of a row in all blocks.
#include "cluster.cuh"
#include "row_norm.cuh"

// A row that the registers hold is read once. The first part of a LONG one gives the shift; all
// parts give the sums, and are then read again, backwards from the last, which is held, as the L2
// keeps what was read last. x is not __restrict__: the compiler would put a load that may pass a
// barrier behind it, and these loads are to be under way while the cluster begins.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS, int CLUSTER, bool LONG>
__device__ __forceinline__ void normalize(const T* x, const T* __restrict__ w,
                                          const T* __restrict__ b, T* __restrict__ y,
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
    y += row * N;
    if constexpr (CLUSTER > 1) cluster_barrier_arrive();

    float v[PACKS][VEC];
    load_row<STEP>(v, x, row_tid, first);
    float sum[1] = {};
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int k = 0; k < VEC; ++k) sum[0] += v[p][k];
    // Shared memory of a block that has not begun may not be written, and that of one that has
    // ended is gone: the others have begun from here on, and sum_row ends with a barrier.
    if constexpr (CLUSTER > 1) cluster_barrier_wait();
    sum_row<THREADS, CLUSTER>(sum, sSum, rank);

    // Of rows far from zero x * x would keep no digit of the variance; x - shift loses none.
    const float shift = sum[0] / (LONG ? PART : N);
    float sums[2] = {};
    add_deviations<STEP>(sums, v, shift, row_tid, first);
    if constexpr (LONG) {
        for (long long n = PART; n < last; n += PART) {
            load_row<STEP>(v, x + n, row_tid, PART);
            add_deviations<STEP>(sums, v, shift, row_tid, PART);
        }
        load_row<STEP>(v, x + last, row_tid, count);
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
        load_row<STEP>(v, x + n, row_tid, PART);
        store_normalized<STEP>(v, w + n, b + n, y + n, shift, left, rstd_of_row, row_tid, PART);
    }
}

// Unless told that 1024 resident threads are enough, the compiler saves registers and spills.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS, int CLUSTER, bool LONG>
__global__ void __launch_bounds__(THREADS* ROWS, VEC > 1 ? 1024 / (THREADS * ROWS) : 1)
    layer_norm_kernel(const T* x, const T* __restrict__ w, const T* __restrict__ b,
                      T* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd,
                      long long M, long long N, float eps) {
    normalize<T, VEC, PACKS, THREADS, ROWS, CLUSTER, LONG>(x, w, b, y, mean, rstd, M, N, eps);
}

// A kernel of its own, as clusters start slower than blocks, even clusters of one.
template <typename T, int VEC, int PACKS, int THREADS, int ROWS, int CLUSTER, bool LONG>
__global__ void __launch_bounds__(THREADS* ROWS) __attribute__((cluster_dims(CLUSTER, 1, 1)))
layer_norm_cluster_kernel(const T* x, const T* __restrict__ w, const T* __restrict__ b,
                          T* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd,
                          long long M, long long N, float eps) {
    normalize<T, VEC, PACKS, THREADS, ROWS, CLUSTER, LONG>(x, w, b, y, mean, rstd, M, N, eps);
}
