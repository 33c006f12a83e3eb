// A thread stores PACKS packs of 16 bytes, a block's width apart, so that neighbours in a warp
// store neighbouring packs.
#include "access.cuh"

template <typename T, int PACKS>
__global__ void fill_kernel(T* __restrict__ out, long long N, float value) {
    constexpr int VEC = 16 / sizeof(T);
    const long long first = (long long)blockIdx.x * blockDim.x * PACKS + threadIdx.x;
    const long long packs = N / VEC;  // 64-bit: N may exceed 2^31

    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < VEC; ++k) pack.v[k] = T(value);

#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const long long i = first + p * blockDim.x;
        if (i < packs) store_pack(out + i * VEC, pack);
    }
    if (first < N % VEC) out[packs * VEC + first] = T(value);  // what fills no pack
}
