// Each block owns a tile of one matrix: the grid has columns along x, rows along y and matrices
// along z. Each warp takes 32 neighbouring packs of a row, which is coalesced, and each thread the
// same pack of ROWS rows, for which it loads the bias once.
//
// T: the element type. VEC: elements of a pack of 16 bytes, 1 where rows are not aligned. ROWS: the
// rows of a thread.
#include "access.cuh"

// Computes a pack in each of ROWS rows, which lie `step` rows of N elements apart. x, row_scale and
// out point at the first. ROWS: all rows of a thread, or 1.
template <int ROWS, typename T, int VEC>
__device__ __forceinline__ void affine_rows(const T* __restrict__ x,
                                            const T* __restrict__ row_scale,
                                            const Pack<T, VEC>& bias, T* __restrict__ out,
                                            long long step, long long N) {
    Pack<T, VEC> pack[ROWS];
    float scale[ROWS];  // fp32, as all that is calculated: T is rounded to once, at the end
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {  // all loads are under way before the first is used
        pack[r] = load_pack<VEC>(x + r * step * N);
        scale[r] = float(row_scale[r * step]);
    }

#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int k = 0; k < VEC; ++k)  // fused: the product is not rounded
            pack[r].v[k] = T(fmaf(float(pack[r].v[k]), scale[r], float(bias.v[k])));

#pragma unroll
    for (int r = 0; r < ROWS; ++r) store_pack(out + r * step * N, pack[r]);
}

template <typename T, int VEC, int ROWS>
__global__ void affine_3d_kernel(const T* __restrict__ x, const T* __restrict__ row_scale,
                                 const T* __restrict__ col_bias, T* __restrict__ out, int M,
                                 long long N) {
    const long long n = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    const int step = blockDim.y;  // neighbouring warps take neighbouring rows
    const int m0 = blockIdx.y * (ROWS * step) + threadIdx.y;
    // No barrier follows that would wait for these threads. VEC divides N, so packs are whole.
    if (n >= N) return;

    const auto bias = load_pack<VEC>(col_bias + n);
    const long long start = (long long)blockIdx.z * M * N + n;  // of column n in this matrix
    if (m0 + (ROWS - 1) * step < M) {
        affine_rows<ROWS>(x + start + m0 * N, row_scale + m0, bias, out + start + m0 * N, step, N);
    } else {  // at the lower edge the rows come one by one
        for (int m = m0; m < M; m += step)
            affine_rows<1>(x + start + m * N, row_scale + m, bias, out + start + m * N, step, N);
    }
}
