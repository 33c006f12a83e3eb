// Each block owns a tile: the grid has packs of VEC columns along x and rows along y. Each thread
// holds one pack of `row` in registers and takes the same columns of ROWS rows. x and out move a
// pack at a time, and neighbouring threads access neighbouring packs, which is coalesced.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. ROWS: the
// rows of a thread.
#include "access.cuh"

// Computes a pack in each of ROWS rows, which lie `step` rows of N elements apart. x, col and out
// point at the first. ROWS: all rows of a thread, or 1.
template <int ROWS, typename T, int VEC>
__device__ __forceinline__ void fma_rows(const T* __restrict__ x, const Pack<T, VEC>& scale,
                                         const T* __restrict__ col, T* __restrict__ out,
                                         long long step, long long N) {
    Pack<T, VEC> pack[ROWS];
    float bias[ROWS];  // fp32, as all that is calculated: T is rounded to once, at the end
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {  // all loads are under way before the first is used
        pack[r] = load_pack<VEC>(x + r * step * N);
        bias[r] = float(col[r * step]);
    }

#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int k = 0; k < VEC; ++k)  // fused: the product is not rounded
            pack[r].v[k] = T(fmaf(float(pack[r].v[k]), float(scale.v[k]), bias[r]));

#pragma unroll
    for (int r = 0; r < ROWS; ++r) store_pack(out + r * step * N, pack[r]);
}

template <typename T, int VEC, int ROWS>
__global__ void broadcast_fma_kernel(const T* __restrict__ x, const T* __restrict__ row,
                                     const T* __restrict__ col, T* __restrict__ out, int M,
                                     long long N) {
    const long long n = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    const int step = blockDim.y;  // neighbours along y take neighbouring rows
    const int m0 = blockIdx.y * (ROWS * step) + threadIdx.y;
    // No barrier follows that would wait for these threads. VEC divides N, so packs are whole.
    if (n >= N) return;

    const auto scale = load_pack<VEC>(row + n);  // once for all rows
    if (m0 + (ROWS - 1) * step < M) {
        fma_rows<ROWS>(x + m0 * N + n, scale, col + m0, out + m0 * N + n, step, N);
    } else {  // at the lower edge the rows come one by one
        for (int m = m0; m < M; m += step)
            fma_rows<1>(x + m * N + n, scale, col + m, out + m * N + n, step, N);
    }
}
