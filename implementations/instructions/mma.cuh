// Tensor cores: a warp multiplies fragments, of which each thread holds a few registers, and loads
// them from shared memory. The twin of mma.py. Layouts over the lanes: PTX ISA, "Matrix fragments
// for mma.m16n8k16" and "ldmatrix".
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#ifdef STUDY_CPU
// mma_m16n8k16, by the last lane to come, from the registers of all: products are exact in fp32,
// sums are in fp32.
template <typename T>
void mma_of_warp(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    struct Lane {
        unsigned a[4], b[2];
        float d[4];
    };
    auto multiply = [](Lane* lanes) {
        float A[16][16], B[16][8], C[16][8] = {};
        for (int l = 0; l < 32; ++l) {
            const int g = l / 4, t = l % 4 * 2;
            for (int j = 0; j < 4; ++j) {
                const auto pair = std::bit_cast<study::Pair16<T>>(lanes[l].a[j]);
                A[g + j % 2 * 8][t + j / 2 * 8] = pair.x;
                A[g + j % 2 * 8][t + j / 2 * 8 + 1] = pair.y;
            }
            for (int j = 0; j < 2; ++j) {
                const auto pair = std::bit_cast<study::Pair16<T>>(lanes[l].b[j]);
                B[t + j * 8][g] = pair.x;
                B[t + j * 8 + 1][g] = pair.y;
            }
        }
        for (int m = 0; m < 16; ++m)
            for (int k = 0; k < 16; ++k)
                for (int n = 0; n < 8; ++n) C[m][n] += A[m][k] * B[k][n];
        for (int l = 0; l < 32; ++l)
            for (int j = 0; j < 4; ++j) lanes[l].d[j] += C[l / 4 + j / 2 * 8][l % 4 * 2 + j % 2];
    };
    const Lane mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}};
    const Lane done = study::together(study::from("mma_m16n8k16"), ~0u, mine, multiply);
    for (int j = 0; j < 4; ++j) d[j] = done.d[j];
}
#endif

// D = A·B + D for a 16x16 tile of A (row-major), 16x8 of B (column-major) and 16x8 fp32 of D.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4],
                                             const unsigned (&b)[2]);

template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&d)[4], const unsigned (&a)[4],
                                                     const unsigned (&b)[2]) {
#ifdef STUDY_CPU
    mma_of_warp<__half>(d, a, b);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const unsigned (&a)[4],
                                                            const unsigned (&b)[2]) {
#ifdef STUDY_CPU
    mma_of_warp<__nv_bfloat16>(d, a, b);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8x8 matrices of 16-bit elements from shared memory; lane l gives the address of row l % 8 of
// matrix l / 8, 16 bytes long.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row) {
#ifdef STUDY_CPU
    const auto rows = study::exchange(study::from("ldmatrix_x4"), ~0u, (const unsigned*)row);
    const int g = study::self->lane / 4, t = study::self->lane % 4;
    for (int j = 0; j < 4; ++j) r[j] = rows[8 * j + g][t];
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
#endif
}

// The same, each matrix transposed on its way into the registers.
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
#ifdef STUDY_CPU
    const auto rows =
        study::exchange(study::from("ldmatrix_x4_trans"), ~0u, (const unsigned short*)row);
    const int g = study::self->lane / 4, t = study::self->lane % 4 * 2;
    for (int j = 0; j < 4; ++j) r[j] = rows[8 * j + t][g] | rows[8 * j + t + 1][g] << 16;
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
#endif
}
