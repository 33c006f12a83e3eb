// A block, or a cluster of CLUSTER blocks that have a part of the row each, walks over the matrix,
// ROWS rows at a time. The threads hold the row, its packs dealt to them in turn, and over all rows
// the sums of their columns. Two sums of each row are needed before its dx. Of rows that registers
// do not hold, one kernel computes these sums and another, in which a block owns a strip of columns
// and a part of the rows, the rest. A last kernel adds up what the blocks have summed, always in
// the same order.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. PACKS:
// packs that a thread has of a row. BUFFERS: rows on their way. THREADS: threads of a row in one
// block, a power of two. ROWS: the rows that a block has at once, 1 where THREADS exceed a warp.
// CLUSTER: the blocks of a row. TX, TY: threads of a block along a row and down it.
#include "access.cuh"
#include "async_copy.cuh"
#include "cluster.cuh"
#include "mbarrier.cuh"
#include "reduce.cuh"
#include "row_norm.cuh"

// Starts the copies of a row's packs, of which this thread's first is at `src` and `left` elements
// before the row's end, to this thread's places: it alone reads them, so they need no barrier.
template <int THREADS, typename T, int VEC, int PACKS, int BLOCK>
__device__ __forceinline__ void load_row(Pack<T, VEC> (&sRow)[PACKS][BLOCK], const T* src, int tid,
                                         int left) {
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const int n = p * THREADS * VEC;  // neighbours read neighbouring packs
        if (n < left) {
            if constexpr (VEC > 1)
                cp_async_16(&sRow[p][tid], src + n, 16);
            else
                sRow[p][tid] = load_pack<VEC>(src + n);
        }
    }
}

// `parts`: (2, groups, N), of each block or cluster the sums of dy * x_hat and of dy.
template <typename T, int VEC, int PACKS, int BUFFERS, int THREADS, int ROWS, int CLUSTER>
__device__ __forceinline__ void walk(const T* __restrict__ dy, const T* __restrict__ x,
                                     const T* __restrict__ w, const float* __restrict__ mean,
                                     const float* __restrict__ rstd, T* __restrict__ dx,
                                     float* __restrict__ parts, long long M, int N) {
    static_assert(CLUSTER == 1 || VEC > 1, "bulk copies need rows of whole chunks of 16 bytes");
    using PacksOfRow = Pack<T, VEC>[PACKS][ROWS * THREADS];
    extern __shared__ __align__(16) unsigned char bytes[];
    // Of two rows in turn: a warp may be at the next one while another still reads, but not at the
    // one after that, before which lies a barrier.
    auto* sSums = reinterpret_cast<float (*)[2][32]>(bytes);
    PacksOfRow *sDy = reinterpret_cast<PacksOfRow*>(sSums + 2), *sX = sDy + BUFFERS;
    __shared__ float sBlockSums[2][2][CLUSTER];
    __shared__ unsigned long long sFull[BUFFERS], sSummed[2];  // barriers
    const int tx = threadIdx.x, ty = threadIdx.y, tid = ty * THREADS + tx;
    const int rank = blockIdx.x % CLUSTER;
    const long long group = blockIdx.x / CLUSTER, groups = gridDim.x / CLUSTER;
    const long long rows = groups * ROWS;  // that all have at once
    // A block has a part of the row. A thread's packs are counted from its first one: so the others
    // have constant places, for which no registers are needed.
    const int part = (N / VEC + CLUSTER - 1) / CLUSTER * VEC;
    const int count = min(part, N - rank * part), left_of_row = count - tx * VEC;
    const long long first = rank * part + tx * VEC;

    // A row sets out for a buffer: in a block all threads copy their packs, in a cluster the copy
    // engine does the block's part, which thread LOADER tells it.
    constexpr int LOADER = 32;
    auto load = [&](long long row, int buffer) {
        if constexpr (CLUSTER == 1) {
            const int left = row < M ? left_of_row : 0;
            load_row<THREADS>(sDy[buffer], dy + row * N + first, tid, left);
            load_row<THREADS>(sX[buffer], x + row * N + first, tid, left);
            cp_async_commit();
        } else if (tid == LOADER && row < M) {
            const long long start = row * N + rank * part;
            const int size = count * int(sizeof(T));
            mbarrier_expect(&sFull[buffer], 2 * size);
            cp_async_bulk(sDy[buffer], dy + start, size, &sFull[buffer]);
            cp_async_bulk(sX[buffer], x + start, size, &sFull[buffer]);
        }
    };
    if constexpr (CLUSTER > 1) {
        if (tid == LOADER) {
            for (int b = 0; b < BUFFERS; ++b) mbarrier_init(&sFull[b], 1);
            for (int i = 0; i < 2; ++i) mbarrier_init(&sSummed[i], 1);
            fence_mbarrier_init();
        }
        cluster_barrier_arrive();
    }
    long long row = group * ROWS + ty;
#pragma unroll
    for (int b = 0; b < BUFFERS; ++b) load(row + b * rows, b);
    float next_mean = row < M ? mean[row] : 0.f, next_rstd = row < M ? rstd[row] : 0.f;
    float w_held[PACKS][VEC] = {}, dw[PACKS][VEC] = {}, db[PACKS][VEC] = {};
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const int n = p * THREADS * VEC;
        if (n < left_of_row) {
            const auto w_pack = load_pack<VEC>(w + first + n);
#pragma unroll
            for (int k = 0; k < VEC; ++k) w_held[p][k] = w_pack.v[k];
        }
    }
    // All know the barriers from here on, and may write to the shared memory of others, which have
    // begun. None ends before all of it has come, as each waits for the sums of all.
    if constexpr (CLUSTER > 1) cluster_barrier_wait();
    const float of_one = 1.f / N;
    for (int i = 0; row - ty < M; row += rows, ++i) {
        const int left = row < M ? left_of_row : 0;  // threads beyond the last row take part
        const float mean_of_row = next_mean, rstd_of_row = next_rstd;
        float x_hat[PACKS][VEC], g[PACKS][VEC], sums[2] = {};  // of g and g * x_hat, g = dy * w
        const int buffer = i % BUFFERS, turn = i % 2;
        if constexpr (CLUSTER == 1)
            cp_async_wait<BUFFERS - 1>();
        else
            mbarrier_wait(&sFull[buffer], i / BUFFERS % 2);
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            if (p * THREADS * VEC < left) {
                const auto dy_pack = sDy[buffer][p][tid], x_pack = sX[buffer][p][tid];
#pragma unroll
                for (int k = 0; k < VEC; ++k) {
                    const float dy_k = dy_pack.v[k];
                    x_hat[p][k] = (float(x_pack.v[k]) - mean_of_row) * rstd_of_row;
                    g[p][k] = dy_k * w_held[p][k];
                    dw[p][k] += dy_k * x_hat[p][k];
                    db[p][k] += dy_k;
                    sums[0] += g[p][k];
                    sums[1] += g[p][k] * x_hat[p][k];
                }
            }
        }
        if (row + rows < M) next_mean = mean[row + rows], next_rstd = rstd[row + rows];
        // What has been read makes room: BUFFERS rows are on their way while this one is finished.
        const long long coming = row + BUFFERS * rows;
        if constexpr (CLUSTER == 1) load(coming, buffer);
        sum_row<THREADS, 1>(sums, sSums[turn], 0);  // behind its barrier all have read the row
        if constexpr (CLUSTER > 1) {
            load(coming, buffer);
            if (tid == 0) mbarrier_expect(&sSummed[turn], 2 * CLUSTER * int(sizeof(float)));
            if (tid < CLUSTER)  // each takes one block, so that every block has the sums of all
#pragma unroll
                for (int j = 0; j < 2; ++j)
                    store_async(&sBlockSums[turn][j][rank], tid, sums[j], &sSummed[turn]);
            mbarrier_wait(&sSummed[turn], i / 2 % 2);
            sums[0] = sums[1] = 0.f;
#pragma unroll
            for (int r = 0; r < CLUSTER; ++r)
#pragma unroll
                for (int j = 0; j < 2; ++j) sums[j] += sBlockSums[turn][j][r];
        }

        const float mean_g = sums[0] * of_one, mean_gx = sums[1] * of_one;
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            const int n = p * THREADS * VEC;
            Pack<T, VEC> pack;
#pragma unroll
            for (int k = 0; k < VEC; ++k)
                pack.v[k] = T(rstd_of_row * (g[p][k] - mean_g - x_hat[p][k] * mean_gx));
            if (n < left) store_pack(dx + row * N + first + n, pack);
        }
    }

    parts += group * N;
    const long long of_db = groups * N;
    if constexpr (ROWS > 1) {
        constexpr int STRIP = THREADS * VEC;
        static_assert(2 * ROWS * STRIP * sizeof(float) <= 2 * BUFFERS * sizeof(PacksOfRow));
        auto* sDw = reinterpret_cast<float (*)[STRIP]>(sDy);  // in the place of rows
        auto* sDb = sDw + ROWS;
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            __syncthreads();  // what is there has been read
#pragma unroll
            for (int k = 0; k < VEC; ++k) {
                sDw[ty][tx * VEC + k] = dw[p][k];
                sDb[ty][tx * VEC + k] = db[p][k];
            }
            __syncthreads();  // the sums of all rows of threads are there
            for (int i = ty * THREADS + tx; i < STRIP; i += ROWS * THREADS) {
                float of_w = 0.f, of_b = 0.f;
                for (int r = 0; r < ROWS; ++r) {
                    of_w += sDw[r][i];
                    of_b += sDb[r][i];
                }
                if (p * STRIP + i < N) {
                    parts[p * STRIP + i] = of_w;
                    parts[of_db + p * STRIP + i] = of_b;
                }
            }
        }
    } else {
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int k = 0; k < VEC; ++k) {
                const int n = p * THREADS * VEC + k;
                if (n < left_of_row) {
                    parts[first + n] = dw[p][k];
                    parts[of_db + first + n] = db[p][k];
                }
            }
    }
}

// Unless told that 512 resident threads are meant, the compiler takes registers that only fewer
// have.
template <typename T, int VEC, int PACKS, int BUFFERS, int THREADS, int ROWS, int CLUSTER>
__global__ void __launch_bounds__(THREADS* ROWS, VEC > 1 ? 512 / (THREADS * ROWS) : 1)
    layer_norm_backward_kernel(const T* __restrict__ dy, const T* __restrict__ x,
                               const T* __restrict__ w, const float* __restrict__ mean,
                               const float* __restrict__ rstd, T* __restrict__ dx,
                               float* __restrict__ parts, long long M, int N) {
    walk<T, VEC, PACKS, BUFFERS, THREADS, ROWS, CLUSTER>(dy, x, w, mean, rstd, dx, parts, M, N);
}

// A kernel of its own, as clusters start slower than blocks, even clusters of one.
template <typename T, int VEC, int PACKS, int BUFFERS, int THREADS, int ROWS, int CLUSTER>
__global__ void __launch_bounds__(THREADS* ROWS, VEC > 1 ? 512 / (THREADS * ROWS) : 1)
    __attribute__((cluster_dims(CLUSTER, 1, 1)))
    layer_norm_backward_cluster_kernel(const T* __restrict__ dy, const T* __restrict__ x,
                                       const T* __restrict__ w, const float* __restrict__ mean,
                                       const float* __restrict__ rstd, T* __restrict__ dx,
                                       float* __restrict__ parts, long long M, int N) {
    walk<T, VEC, PACKS, BUFFERS, THREADS, ROWS, CLUSTER>(dy, x, w, mean, rstd, dx, parts, M, N);
}

// A block has a row. `means`: (2, M), of each row the means of g and of g * x_hat.
template <typename T, int VEC, int THREADS>
__global__ void __launch_bounds__(THREADS, 4)
    layer_norm_backward_means_kernel(const T* __restrict__ dy, const T* __restrict__ x,
                                     const T* __restrict__ w, const float* __restrict__ mean,
                                     const float* __restrict__ rstd, float* __restrict__ means,
                                     long long M, long long N) {
    __shared__ float sPartialG[32], sPartialGx[32];
    const long long row = blockIdx.x;
    const float mean_of_row = mean[row], rstd_of_row = rstd[row];
    dy += row * N;
    x += row * N;

    float g = 0.f, gx = 0.f;
#pragma unroll 2
    for (long long n = threadIdx.x * VEC; n < N; n += THREADS * VEC) {
        const auto dy_pack = load_pack<VEC>(dy + n), x_pack = load_pack<VEC>(x + n);
        const auto w_pack = load_pack<VEC>(w + n);
        float of_g = 0.f, of_gx = 0.f;  // of a pack: a long sum would round off more
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            const float g_k = float(dy_pack.v[k]) * float(w_pack.v[k]);
            of_g += g_k;
            of_gx += g_k * ((float(x_pack.v[k]) - mean_of_row) * rstd_of_row);
        }
        g += of_g;
        gx += of_gx;
    }
    g = reduce_row<THREADS>(g, sPartialG, 0.f, Sum());
    gx = reduce_row<THREADS>(gx, sPartialGx, 0.f, Sum());
    if (threadIdx.x == 0) {
        means[row] = g / N;
        means[M + row] = gx / N;
    }
}

// A block owns a strip of columns and PART rows. `parts`: (2, gridDim.y, N).
template <typename T, int VEC, int TX, int TY>
__global__ void __launch_bounds__(TX* TY)
    layer_norm_backward_columns_kernel(const T* __restrict__ dy, const T* __restrict__ x,
                                       const T* __restrict__ w, const float* __restrict__ mean,
                                       const float* __restrict__ rstd,
                                       const float* __restrict__ means, T* __restrict__ dx,
                                       float* __restrict__ parts, long long M, long long N,
                                       long long PART) {
    constexpr int STRIP = TX * VEC;
    __shared__ float sDw[TY][STRIP], sDb[TY][STRIP];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const long long n0 = (long long)blockIdx.x * STRIP, n = n0 + tx * VEC;
    const long long end = min(M, (blockIdx.y + 1) * PART);

    float dw[VEC] = {}, db[VEC] = {};
    if (n < N) {
        const auto w_pack = load_pack<VEC>(w + n);
#pragma unroll 1  // more rows at once would be slower
        for (long long row = blockIdx.y * PART + ty; row < end; row += TY) {
            const auto dy_pack = load_pack<VEC>(dy + row * N + n);
            const auto x_pack = load_pack<VEC>(x + row * N + n);
            const float mean_of_row = mean[row], rstd_of_row = rstd[row];
            const float mean_g = means[row], mean_gx = means[M + row];
            Pack<T, VEC> pack;
#pragma unroll
            for (int k = 0; k < VEC; ++k) {
                const float dy_k = dy_pack.v[k];
                const float x_hat = (float(x_pack.v[k]) - mean_of_row) * rstd_of_row;
                const float g = dy_k * float(w_pack.v[k]);
                dw[k] += dy_k * x_hat;
                db[k] += dy_k;
                pack.v[k] = T(rstd_of_row * (g - mean_g - x_hat * mean_gx));
            }
            store_pack(dx + row * N + n, pack);
        }
    }

#pragma unroll
    for (int k = 0; k < VEC; ++k) {
        sDw[ty][tx * VEC + k] = dw[k];
        sDb[ty][tx * VEC + k] = db[k];
    }
    __syncthreads();  // the sums of all rows of threads are there
    // From here on a thread has a column, or several.
    for (int column = ty * TX + tx; column < STRIP && n0 + column < N; column += TX * TY) {
        float of_w = 0.f, of_b = 0.f;
#pragma unroll
        for (int t = 0; t < TY; ++t) {
            of_w += sDw[t][column];
            of_b += sDb[t][column];
        }
        parts[blockIdx.y * N + n0 + column] = of_w;
        parts[(gridDim.y + blockIdx.y) * N + n0 + column] = of_b;
    }
}

// dw or db, by blockIdx.y: a block adds up TX columns of `parts`, (2, count, N), TY rows at a time.
template <typename T, int TX, int TY>
__global__ void __launch_bounds__(TX* TY)
    layer_norm_backward_sum_kernel(const float* __restrict__ parts, T* __restrict__ dw,
                                   T* __restrict__ db, int count, long long N) {
    __shared__ float sSums[TY][TX];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const long long n = (long long)blockIdx.x * TX + tx;
    parts += blockIdx.y * count * N;

    float sum = 0.f;
    if (n < N)
#pragma unroll 4
        for (int i = ty; i < count; i += TY) sum += parts[i * N + n];
    sSums[ty][tx] = sum;
    __syncthreads();  // the sums of all rows of threads are there
    if (ty == 0 && n < N) {
        float total = 0.f;
#pragma unroll
        for (int t = 0; t < TY; ++t) total += sSums[t][tx];
        (blockIdx.y == 0 ? dw : db)[n] = T(total);
    }
}
