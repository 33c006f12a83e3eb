// Each block reads consecutive elements of row m, one a thread, which is coalesced, and stores each
// into a row of its own, which is not: every element takes a sector of 32 bytes to itself.
//
// T: the element type.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T>
__global__ void transpose_naive_kernel(const T* __restrict__ x, T* __restrict__ out, long long M,
                                       long long N) {
    const long long m = blockIdx.x;  // 64-bit: M * N may exceed 2^31
    const long long n = blockIdx.y * blockDim.x + threadIdx.x;

    if (n < N) out[n * M + m] = x[m * N + n];  // neighbours store M elements apart
}
