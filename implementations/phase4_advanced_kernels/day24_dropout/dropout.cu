// Each block owns PACKS packs of 16 bytes of x and y a thread, neighbouring threads neighbouring
// packs, and the bytes of the mask beside them: 4 or 8 a pack, which move at once too. Every access
// is coalesced, and a thread's loads are all under way while its words are made. One call of Philox
// gives the words of four elements.
//
// T: the element type. It is multiplied in fp32 and rounded to T once. PACKS: of a thread.
#include "access.cuh"
#include "philox.cuh"

template <typename T, int PACKS>
__global__ void dropout_kernel(const T* __restrict__ x, T* __restrict__ y, bool* __restrict__ keep,
                               long long N, unsigned threshold, float scale, long long seed) {
    constexpr int VEC = 16 / sizeof(T);
    const int step = blockDim.x * VEC;                             // from a pack to the next
    const long long first = (long long)blockIdx.x * PACKS * step;  // 64-bit: N may exceed 2^31

    if (first + PACKS * step <= N) {
        Pack<T> packs[PACKS];
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
            packs[p] = load_pack<VEC>(x + first + p * step + threadIdx.x * VEC);
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            const long long i = first + p * step + threadIdx.x * VEC;
            Pack<unsigned, VEC / 4> mask = {};  // a byte for each element
#pragma unroll
            for (int c = 0; c < VEC / 4; ++c) {
                const Words words = philox_4x32(seed, i / 4 + c);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    T& value = packs[p].v[4 * c + j];
                    const bool kept = words.v[j] >= threshold;
                    const float scaled = float(value) * scale;
                    value = T(kept ? scaled : 0.f);  // a NaN is dropped too
                    mask.v[c] += kept ? 1u << 8 * j : 0u;
                }
            }
            store_pack(y + i, packs[p]);
            store_pack(reinterpret_cast<unsigned*>(keep + i), mask);
        }
    } else {  // the last block goes four by four
#pragma unroll 1
        for (long long c = first / 4 + threadIdx.x; 4 * c < N; c += blockDim.x) {
            const Words words = philox_4x32(seed, c);
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (4 * c + j < N) {
                    const bool kept = words.v[j] >= threshold;
                    y[4 * c + j] = T(kept ? float(x[4 * c + j]) * scale : 0.f);
                    keep[4 * c + j] = kept;
                }
        }
    }
}
