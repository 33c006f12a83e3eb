// A thread owns PACKS packs of 16 bytes, a block's width apart: every load is 128 bits and
// coalesced.
#include <cuda_fp16.h>

template <typename T>
struct alignas(16) Pack {
    T v[16 / sizeof(T)];
};

template <typename T, int PACKS>
__global__ void vector_add_kernel(const T* __restrict__ x, const T* __restrict__ y,
                                  T* __restrict__ out, long long N) {
    constexpr int VEC = 16 / sizeof(T);
    // 64-bit: N may exceed 2^31
    const long long first = (long long)blockIdx.x * blockDim.x * PACKS + threadIdx.x;

#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const long long i = (first + p * blockDim.x) * VEC;
        if (i + VEC <= N) {
            const Pack<T> a = *reinterpret_cast<const Pack<T>*>(x + i);
            const Pack<T> b = *reinterpret_cast<const Pack<T>*>(y + i);
            Pack<T> c;
#pragma unroll
            for (int k = 0; k < VEC; ++k) c.v[k] = a.v[k] + b.v[k];
            *reinterpret_cast<Pack<T>*>(out + i) = c;
        } else {  // the last, partial pack
            for (long long k = i; k < N; ++k) out[k] = x[k] + y[k];
        }
    }
}
