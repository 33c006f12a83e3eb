// Each thread stores PACKS packs of 16 bytes, which lie a block's width apart: neighbours in a warp
// store neighbouring packs, and their stores are coalesced.
//
// T: the element type. PACKS: the packs of a thread.
#include "access.cuh"

template <typename T, int PACKS>
__global__ void fill_kernel(T* __restrict__ out, long long N, float value) {
    constexpr int VEC = 16 / sizeof(T);
    const long long first = (long long)blockIdx.x * blockDim.x * PACKS + threadIdx.x;
    const long long packs = N / VEC;  // 64-bit: N may exceed 2^31

    // The host has rounded value to T, so the conversion is exact, infinities and NaN included.
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
