// Random words by a counter (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011):
// no state is kept, so any thread makes the words of any place. The twin of philox.py.
#pragma once

struct Words {
    unsigned v[4];
};

// a * b in 64 bits. The compiler would widen the factors too, and add up halves that are zero.
__device__ __forceinline__ unsigned long long mul_wide(unsigned a, unsigned b) {
#ifdef STUDY_CPU
    return (unsigned long long)a * b;
#else
    unsigned long long product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
    return product;
#endif
}

// The words of Philox4x32-10 under the key `seed`, at the counter (offset, 0).
__device__ __forceinline__ Words philox_4x32(long long seed, long long offset) {
    unsigned c0 = unsigned(offset), c1 = unsigned(offset >> 32), c2 = 0, c3 = 0;
    unsigned k0 = unsigned(seed), k1 = unsigned(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long p0 = mul_wide(c0, 0xD2511F53), p1 = mul_wide(c2, 0xCD9E8D57);
        c0 = unsigned(p1 >> 32) ^ c1 ^ k0;
        c1 = unsigned(p1);
        c2 = unsigned(p0 >> 32) ^ c3 ^ k1;
        c3 = unsigned(p0);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return {{c0, c1, c2, c3}};
}
