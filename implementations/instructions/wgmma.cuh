// Tensor cores that read their operands from shared memory: a warpgroup, which is four warps of
// which the first is a multiple of four, starts a product and is free until it waits. The twin of
// wgmma.py; compute capability 9.0 and no other. Layouts: PTX ISA, "Asynchronous warpgroup-level
// matrix instructions", with the swizzle of 128 bytes.
#pragma once
#include "access.cuh"

#ifdef STUDY_CPU
// wgmma_m64n256k64 for one thread: what it will add, and what it has read of its operands.
template <typename T>
void start_product(study::Call call, float (&d)[32][4], const T* a, const T* b, bool keep) {
    study::Thread& self = *study::self;
    const char* capability = getenv("STUDY_CAPABILITY");
    if (capability && capability[0] != '9') study::fail(call, "wgmma needs compute capability 9.0");
    if (!self.fenced)
        study::fail(call, "fence_async must stand between the wait for operands and their use");
    study::exchange(call, ~0u, b);  // all lanes of the warp have come
    const int row = self.warp % 4 * 16 + self.lane / 4, col = self.lane % 4 * 2;
    auto at = [](int r, int c) { return r * 64 + (c ^ r % 8 * 8); };
    if (self.product.empty()) self.product.assign(&d[0][0], &d[0][0] + 128);
    auto read = [&](const T* x) {
        self.operands.push_back({x, std::bit_cast<uint16_t>(*x)});
        return float(*x);
    };
    float A[2][64];
    for (int h = 0; h < 2; ++h)
        for (int k = 0; k < 64; ++k) A[h][k] = read(a + at(row + 8 * h, k));
    for (int j = 0; j < 32; ++j)
        for (int e = 0; e < 2; ++e) {
            float& low = self.product[4 * j + e];
            float& high = self.product[4 * j + 2 + e];
            if (!keep) low = high = 0;
            for (int k = 0; k < 64; ++k) {
                const float B = read(b + j / 8 * 64 * 64 + at(k, j % 8 * 8 + col + e));
                low += A[0][k] * B, high += A[1][k] * B;
            }
            d[j][e] = d[j][e + 2] = NAN;  // until the wait
        }
}

inline void finish_product(study::Call call, float (&d)[32][4]) {
    study::Thread& self = *study::self;
    for (const auto& [place, bits] : self.operands)
        if (*static_cast<const uint16_t*>(place) != bits)
            study::fail(call, "operands must stay as they are until the product is waited for");
    std::copy(self.product.begin(), self.product.end(), &d[0][0]);
    self.product.clear(), self.operands.clear();
}
#else
// The registers of d in the order of PTX: 0 to 127 of an asm statement.
#define WGMMA_REGISTERS                                                                      \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
    "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "  \
    "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "  \
    "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "  \
    "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "  \
    "%87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, "    \
    "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "   \
    "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"
#define D_4(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define D_16(j) D_4(j), D_4(j + 1), D_4(j + 2), D_4(j + 3)
#define D_128 D_16(0), D_16(4), D_16(8), D_16(12), D_16(16), D_16(20), D_16(24), D_16(28)

// A product of 16 columns of A and 16 rows of B: the first, which may discard what d was, and one
// more, of the next 16, which lie 32 bytes and 16 rows further. Four are one group.
#define WGMMA_K16(type)                                                              \
    "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " " WGMMA_REGISTERS \
    ", a, b, keep, 1, 1, 0, 1;\n"
#define FIRST_K16(type) "wgmma.fence.sync.aligned;\n" WGMMA_K16(type) "setp.eq.b32 keep, 0, 0;\n"
#define MORE_K16(type) "add.s64 a, a, 2; add.s64 b, b, 128;\n" WGMMA_K16(type)
#define WGMMA_K64(type)                                                              \
    "{ .reg .pred keep; .reg .b64 a, b;\n"                                           \
    "setp.ne.b32 keep, %130, 0; mov.b64 a, %128; mov.b64 b, %129;\n" FIRST_K16(type) \
        MORE_K16(type) MORE_K16(type) MORE_K16(type) "wgmma.commit_group.sync.aligned; }\n"
#define WGMMA_START(type, d, of_a, of_b, keep) \
    asm volatile(WGMMA_K64(type) : D_128 : "l"(of_a), "l"(of_b), "r"(int(keep)) : "memory")
#define WGMMA_WAIT(d) asm volatile("wgmma.wait_group.sync.aligned 0;" : D_128 : : "memory")

// Where a tile lies, in units of 16 bytes, and how: swizzled by 128 bytes, 1,024 bytes from 8 rows
// to the next 8; `leading` bytes from 64 columns to the next 64, where rows are of K.
__device__ __forceinline__ unsigned long long descriptor(const void* tile, int leading) {
    // in a cluster the upper bits name the block, and would change `leading`
    const unsigned at = (unsigned)__cvta_generic_to_shared(tile) & 0x3FFFF;
    return 1ull << 62 | 1024ull / 16 << 32 | (unsigned long long)leading / 16 << 16 | at / 16;
}
#endif

// Start d = A·B + d, or A·B where `keep` is false, of a warpgroup: A is 64 x 64, B 64 x 256, both
// of 16-bit T in shared memory from multiples of 1,024 bytes on. Rows are of 64 elements; B has its
// columns 64 to 127 below the first 64, and so on. Column c of row r is at place c ^ r % 8 * 8. Of
// d, 64 x 256 fp32, warp w of the four has rows 16 w to 16 w + 15, and lane l, as d[j], columns
// 8 j + l % 4 * 2 + {0, 1} of rows l / 4 and l / 4 + 8 of those. Until it is waited for, d and the
// operands must stay as they are.
template <typename T>
__device__ __forceinline__ void wgmma_m64n256k64(float (&d)[32][4], const T* a, const T* b,
                                                 bool keep);

template <>
__device__ __forceinline__ void wgmma_m64n256k64<__half>(float (&d)[32][4], const __half* a,
                                                         const __half* b, bool keep) {
#ifdef STUDY_CPU
    start_product(study::from("wgmma_m64n256k64"), d, a, b, keep);
#else
    WGMMA_START("f16", d, descriptor(a, 16), descriptor(b, 64 * 128), keep);
#endif
}

template <>
__device__ __forceinline__ void wgmma_m64n256k64<__nv_bfloat16>(float (&d)[32][4],
                                                                const __nv_bfloat16* a,
                                                                const __nv_bfloat16* b, bool keep) {
#ifdef STUDY_CPU
    start_product(study::from("wgmma_m64n256k64"), d, a, b, keep);
#else
    WGMMA_START("bf16", d, descriptor(a, 16), descriptor(b, 64 * 128), keep);
#endif
}

// Wait until the product that this warpgroup has started is in d.
__device__ __forceinline__ void wgmma_wait(float (&d)[32][4]) {
#ifdef STUDY_CPU
    finish_product(study::from("wgmma_wait"), d);
#else
    WGMMA_WAIT(d);  // d is of its operands, so that nothing reads it before
#endif
}

// Let what this thread has seen in shared memory be what a product that it starts will read there:
// those read past the path of ordinary loads.
__device__ __forceinline__ void fence_async() {
#ifdef STUDY_CPU
    study::self->fenced = true;
#else
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Have COUNT registers a thread from here on, a multiple of 8: fewer than the kernel began with,
// which others may take; or more, which waits until others have given as many. All warps of a
// warpgroup must call it.
template <int COUNT>
__device__ __forceinline__ void give_registers() {
#ifndef STUDY_CPU
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
#ifndef STUDY_CPU
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

// Store a warpgroup's d, rounded to T, as rows m0 to m0 + 63 and columns n0 to n0 + 255 of
// row-major C (M, N), whose rows are whole chunks of 16 bytes; what lies beyond its edges is not
// stored.
//
// Of 32 columns of a row, four neighbouring lanes hold two each of every 8. They exchange them, in
// two rounds, so that each has 8 neighbours, which it stores at once.
template <typename T>
__device__ __forceinline__ void store_accumulators(const float (&d)[32][4], T* C, int M, int N,
                                                   int m0, int n0) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, quad = lane % 4;
#pragma unroll
    for (int j = 0; j < 32; j += 4)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            unsigned words[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                words[i] = pack_pair<T>(d[j + i][2 * h], d[j + i][2 * h + 1]);
#pragma unroll
            for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (!(i & bit)) {  // word i + bit for word i of the lane that has this bit
                        const bool has = quad & bit;
                        const unsigned given = has ? words[i] : words[i + bit];
                        const unsigned got = __shfl_xor_sync(~0u, given, bit);
                        words[i] = has ? got : words[i];
                        words[i + bit] = has ? words[i + bit] : got;
                    }
            const int m = m0 + warp % 4 * 16 + h * 8 + lane / 4, n = n0 + (j + quad) * 8;
            const Pack<unsigned, 4> chunk = {words[0], words[1], words[2], words[3]};
            if (m < M && n < N)
                store_pack(reinterpret_cast<unsigned*>(C + (long long)m * N + n), chunk);
        }
}
