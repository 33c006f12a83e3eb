// Each thread owns one pack of 16 bytes: every access is 128 bits wide and coalesced.
//
// T: the element type. The function is that of fp32, and its result rounded to T once.
#include "access.cuh"

template <typename T>
__global__ void asin_kernel(const T* __restrict__ x, T* __restrict__ y, long long N) {
    constexpr int VEC = 16 / sizeof(T);
    const long long tid = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long i = tid * VEC;  // 64-bit: N may exceed 2^31

    if (i + VEC <= N) {
        auto pack = load_pack<VEC>(x + i);
#pragma unroll
        for (int k = 0; k < VEC; ++k) pack.v[k] = T(asinf(float(pack.v[k])));
        store_pack(y + i, pack);
    } else {  // the last pack is partial, and threads beyond it have none
        for (long long k = i; k < N; ++k) y[k] = T(asinf(float(x[k])));
    }
}
