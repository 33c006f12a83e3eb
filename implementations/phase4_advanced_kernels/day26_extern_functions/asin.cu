// Each block owns PACKS packs of 16 bytes a thread, neighbouring threads neighbouring packs: every
// access is 128 bits wide and coalesced, and a thread's loads are all under way at once.
//
// T: the element type. The function is that of fp32, and its result rounded to T once. PACKS: of a
// thread.
#include "access.cuh"

template <typename T, int PACKS>
__global__ void asin_kernel(const T* __restrict__ x, T* __restrict__ y, long long N) {
    constexpr int VEC = 16 / sizeof(T);
    const int step = blockDim.x * VEC;                             // from a pack to the next
    const long long first = (long long)blockIdx.x * PACKS * step;  // 64-bit: N may exceed 2^31

    if (first + PACKS * step <= N) {
        const long long i = first + threadIdx.x * VEC;
        Pack<T> packs[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; ++p) packs[p] = load_pack<VEC>(x + i + p * step);
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
#pragma unroll
            for (int k = 0; k < VEC; ++k) packs[p].v[k] = T(asinf(float(packs[p].v[k])));
            store_pack(y + i + p * step, packs[p]);
        }
    } else {  // the last block goes element by element
        for (long long i = first + threadIdx.x; i < N; i += blockDim.x)
            y[i] = T(asinf(float(x[i])));
    }
}
