// The D elements of a row, the output for one query, belong to LANES threads, a pack of 16 bytes
// each, and a block has ROWS rows. A thread goes over the parts, PARTS at a time, and keeps m_i,
// the largest lse_s so far, l_i, the sum of exp(lse_s - m_i), and acc, that of exp(lse_s -
// m_i)·o_s.
//
// T: the element type. BLOCK: the threads of a block. rows: B·H·M, of each of the S parts.
#include <math_constants.h>

#include "access.cuh"

// Between these m_i stays, as inf - inf would be NaN: of parts that saw no key, whose lse_s is
// -inf, LOWEST is subtracted, and l_i is 0; of an lse_s of inf LARGEST is, and l_i is inf.
constexpr float LARGEST = 3.402823466e38f, LOWEST = -LARGEST;

template <typename T, int D, int PARTS, int BLOCK>
__global__ void __launch_bounds__(BLOCK)
    attention_merge_kernel(const T* __restrict__ o_parts, const float* __restrict__ lse_parts,
                           T* __restrict__ o, float* __restrict__ lse, int S, int rows) {
    constexpr int VEC = 16 / sizeof(T), LANES = D / VEC, ROWS = BLOCK / LANES;
    const int row = blockIdx.x * ROWS + threadIdx.x / LANES, d = threadIdx.x % LANES * VEC;
    if (row >= rows) return;  // no barrier below waits for it

    float m_i = LOWEST, l_i = 0.f, acc[VEC] = {};  // fp32, whatever T
    for (int s = 0; s < S; s += PARTS) {
        Pack<T> pack[PARTS];
        float lse_s[PARTS];
#pragma unroll
        for (int p = 0; p < PARTS; ++p) {  // all loads are under way before the first is used
            lse_s[p] = -CUDART_INF_F;      // beyond the last part as of one that saw no key
            if (s + p < S) {
                const long long at = (long long)(s + p) * rows + row;
                lse_s[p] = lse_parts[at];  // LANES threads read the same word: one access
                pack[p] = load_pack<VEC>(o_parts + at * D + d);
            }
        }

        float m = m_i;
#pragma unroll
        for (int p = 0; p < PARTS; ++p) m = fmaxf(m, lse_s[p]);  // a NaN makes l_i and acc NaN
        m = fminf(m, LARGEST);
        const float alpha = __expf(m_i - m);  // what came before is scaled once for all PARTS
        l_i *= alpha;
#pragma unroll
        for (int k = 0; k < VEC; ++k) acc[k] *= alpha;
#pragma unroll
        for (int p = 0; p < PARTS; ++p)
            if (lse_s[p] != -CUDART_INF_F) {  // else o_s may hold anything: 0 * NaN would be NaN
                const float w = __expf(lse_s[p] - m);
                l_i += w;
#pragma unroll
                for (int k = 0; k < VEC; ++k) acc[k] += w * float(pack[p].v[k]);
            }
        m_i = m;
    }

    const float scale = l_i == 0.f ? 0.f : 1.f / l_i;
    Pack<T> pack;
#pragma unroll
    for (int k = 0; k < VEC; ++k) pack.v[k] = T(acc[k] * scale);
    store_pack(o + (long long)row * D + d, pack);
    if (d == 0) lse[row] = m_i + logf(l_i);
}
