// Each thread owns one pack of the output, which it stores at once. It fetches the elements one by
// one: what goes into a pack may start at any address of x, where a wide load is not aligned, and
// may lie beyond either end.
//
// T: the element type.
#include "access.cuh"

template <typename T>
__global__ void shift_kernel(const T* __restrict__ x, T* __restrict__ out, long long N,
                             long long offset, float fill_value) {
    constexpr int VEC = 16 / sizeof(T);
    const long long tid = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long i = tid * VEC;  // 64-bit: N may exceed 2^31

    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
        const long long src = i + k - offset;
        // The test comes before the load: what x does not have is never read.
        pack.v[k] = src >= 0 && src < N ? x[src] : T(fill_value);
    }

    if (i + VEC <= N) {
        store_pack(out + i, pack);
    } else {  // the last pack is partial
#pragma unroll
        for (int k = 0; k < VEC; ++k)
            if (i + k < N) out[i + k] = pack.v[k];
    }
}
