// Each thread owns one pack of 16 bytes: every access is 128 bits wide and coalesced.
//
// T: the element type, in which the sums are formed. A sum of two in fp32, rounded to T, has the
// same bits.
#include "access.cuh"

template <typename T>
__global__ void vector_add_kernel(const T* __restrict__ x, const T* __restrict__ y,
                                  T* __restrict__ out, long long N) {
    constexpr int VEC = 16 / sizeof(T);
    const long long tid = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long i = tid * VEC;  // 64-bit: N may exceed 2^31

    if (i + VEC <= N) {
        const auto a = load_pack<VEC>(x + i), b = load_pack<VEC>(y + i);
        Pack<T> c;
#pragma unroll
        for (int k = 0; k < VEC; ++k) c.v[k] = a.v[k] + b.v[k];
        store_pack(out + i, c);
    } else {  // the last pack is partial, and threads beyond it have none
        for (long long k = i; k < N; ++k) out[k] = x[k] + y[k];
    }
}
