// Each thread owns one pack of 16 bytes: every access is 128 bits wide and coalesced. One call of
// Philox gives the words of four elements.
//
// T: the element type. It is multiplied in fp32 and rounded to T once.
#include "access.cuh"
#include "philox.cuh"

template <typename T>
__global__ void seeded_dropout_kernel(const T* __restrict__ x, T* __restrict__ y, long long N,
                                      long long threshold, float scale, long long seed) {
    constexpr int VEC = 16 / sizeof(T);
    const long long tid = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long i = tid * VEC;  // 64-bit: N may exceed 2^31

    // The load is under way while the words are made.
    Pack<T> pack;
    if (i + VEC <= N) {
        pack = load_pack<VEC>(x + i);
    } else {  // the last pack is partial, and threads beyond it have none
#pragma unroll
        for (int k = 0; k < VEC; ++k)
            if (i + k < N) pack.v[k] = x[i + k];
    }

#pragma unroll
    for (int c = 0; c < VEC / 4; ++c) {
        const Words words = philox_4x32(seed, tid * (VEC / 4) + c);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int k = 4 * c + j;
            const bool kept = words.v[j] >= threshold;
            // A NaN is dropped too: it is not multiplied by 0.
            pack.v[k] = T(kept ? float(pack.v[k]) * scale : 0.f);
        }
    }

    if (i + VEC <= N) {
        store_pack(y + i, pack);
    } else {
#pragma unroll
        for (int k = 0; k < VEC; ++k)
            if (i + k < N) y[i + k] = pack.v[k];
    }
}
