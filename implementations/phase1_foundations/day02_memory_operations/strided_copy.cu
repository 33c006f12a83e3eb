// Each thread copies PER_THREAD elements, which lie a block's width apart in out. In each access of
// a warp, neighbours read elements of x that are `step` apart and write neighbouring elements of
// out: stores are coalesced, loads the less so the larger step is.
//
// T: the element type. PER_THREAD: the elements of a thread.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T, int PER_THREAD>
__global__ void strided_copy_kernel(const T* __restrict__ x, T* __restrict__ out, long long start,
                                    long long step, long long n) {
    const long long first = (long long)blockIdx.x * blockDim.x * PER_THREAD + threadIdx.x;

    T v[PER_THREAD];  // in registers: the loops over it are unrolled
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {  // all loads are under way before the first store
        const long long i = first + k * blockDim.x;
        if (i < n) v[k] = x[start + i * step];  // 64-bit: x may have more than 2^31 elements
    }

#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const long long i = first + k * blockDim.x;
        if (i < n) out[i] = v[k];
    }
}
