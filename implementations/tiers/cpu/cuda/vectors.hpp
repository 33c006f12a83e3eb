// CUDA's vector types, aligned as on the GPU.
#pragma once

#define STUDY_VECTOR(T, name)                                    \
    struct name##1 {                                             \
        T x;                                                     \
    };                                                           \
    struct alignas(sizeof(T) < 8 ? 2 * sizeof(T) : 16) name##2 { \
        T x, y;                                                  \
    };                                                           \
    struct name##3 {                                             \
        T x, y, z;                                               \
    };                                                           \
    struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) name##4 { \
        T x, y, z, w;                                            \
    };                                                           \
    constexpr name##1 make_##name##1(T x) {                      \
        return {x};                                              \
    }                                                            \
    constexpr name##2 make_##name##2(T x, T y) {                 \
        return {x, y};                                           \
    }                                                            \
    constexpr name##3 make_##name##3(T x, T y, T z) {            \
        return {x, y, z};                                        \
    }                                                            \
    constexpr name##4 make_##name##4(T x, T y, T z, T w) {       \
        return {x, y, z, w};                                     \
    }

STUDY_VECTOR(signed char, char)
STUDY_VECTOR(unsigned char, uchar)
STUDY_VECTOR(short, short)
STUDY_VECTOR(unsigned short, ushort)
STUDY_VECTOR(int, int)
STUDY_VECTOR(unsigned, uint)
STUDY_VECTOR(long long, longlong)
STUDY_VECTOR(unsigned long long, ulonglong)
STUDY_VECTOR(float, float)
STUDY_VECTOR(double, double)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
