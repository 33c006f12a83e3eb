// Each block of threads copies every gridDim-th BLOCK of elements, of which a thread copies PACKS
// packs of 16 bytes: every access is 128 bits wide and coalesced.
//
// T: the element type. THREADS: the threads of a block. PACKS: the packs of a thread in a BLOCK.
#include "access.cuh"

template <typename T, int THREADS, int PACKS>
__global__ void __launch_bounds__(THREADS)
    grid_stride_copy_kernel(const T* __restrict__ x, T* __restrict__ out, long long N) {
    constexpr int VEC = 16 / sizeof(T), BLOCK = THREADS * PACKS * VEC;
    const int pid = blockIdx.x, tid = threadIdx.x;
    const long long step = (long long)gridDim.x * BLOCK;

    long long start = (long long)pid * BLOCK;  // 64-bit: N may exceed 2^31
    for (; start + BLOCK <= N; start += step) {
        Pack<T> pack[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; ++p)  // all loads are under way before the first store
            pack[p] = load_pack<VEC>(x + start + (p * THREADS + tid) * VEC);

#pragma unroll
        for (int p = 0; p < PACKS; ++p)
            store_pack(out + start + (p * THREADS + tid) * VEC, pack[p]);
    }

    // The last, partial BLOCK falls to the block of threads whose turn it is.
    for (long long i = start + tid; i < N; i += THREADS) out[i] = x[i];
}
