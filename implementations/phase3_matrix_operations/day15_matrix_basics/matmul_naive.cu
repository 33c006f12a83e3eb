// Each thread owns one element of C: it walks along a row of A and down a column of B, in steps of
// their strides, and keeps nothing for its neighbours. What these load again comes from the L1.
//
// BLOCK_M, BLOCK_N: rows and columns of C that a block owns, a thread each.

template <int BLOCK_M, int BLOCK_N>
__global__ void __launch_bounds__(BLOCK_M* BLOCK_N)
    matmul_naive_kernel(const float* __restrict__ A, const float* __restrict__ B,
                        float* __restrict__ C, long long M, long long N, long long K,
                        long long stride_am, long long stride_ak, long long stride_bk,
                        long long stride_bn) {
    // All blocks along x, where a grid may have 2^31 - 1 of them; along y only 65535.
    const unsigned pid = blockIdx.x, blocks_n = (N + BLOCK_N - 1) / BLOCK_N;
    const long long m = (long long)(pid / blocks_n) * BLOCK_M + threadIdx.y;
    const long long n = (long long)(pid % blocks_n) * BLOCK_N + threadIdx.x;

    // A warp shares a row of A: its loads there are one address. If stride_bn is 1, its loads of B
    // are one line, as are its stores.
    if (m < M && n < N) {
        const float *a = A + m * stride_am, *b = B + n * stride_bn;
        float acc = 0.f;
        for (long long k = 0; k < K; ++k) acc += a[k * stride_ak] * b[k * stride_bk];
        C[m * N + n] = acc;
    }
}
