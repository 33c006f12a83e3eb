// __half, __nv_bfloat16 and pairs of them. Results are computed in double and rounded once from
// there, to nearest even, as the GPU does: a double is exact or has bits to spare.
#pragma once
#include <math.h>

#include <bit>
#include <cstdint>
#include <type_traits>

#include "vectors.hpp"

namespace study {

constexpr double power_of_two(int exponent) {
    return std::bit_cast<double>(uint64_t(1023 + exponent) << 52);
}

// a * b + c in double, its last bit set if there is more below: rounding it again is then exact.
inline double sticky_fma(double a, double b, double c) {
    const double product = a * b, sum = product + c;  // the product is exact
    const double c_part = sum - product;
    const double error = (product - (sum - c_part)) + (c - c_part);
    uint64_t bits = std::bit_cast<uint64_t>(sum);
    if (error != 0 && isfinite(sum) && bits % 2 == 0) bits += (error > 0) == (sum > 0) ? 1 : -1;
    return std::bit_cast<double>(bits);
}

template <int EXPONENT, int MANTISSA>
struct Float16 {
    static constexpr int BIAS = (1 << (EXPONENT - 1)) - 1;
    static constexpr uint16_t INF = ((1 << EXPONENT) - 1) << MANTISSA;

    uint16_t bits;

    Float16() = default;

    template <typename Number>
        requires std::is_arithmetic_v<Number>
    Float16(Number number) : bits(narrow(number)) {}

    operator float() const {
        const float scaled = std::bit_cast<float>((bits & 0x7fffu) << (23 - MANTISSA));
        float x = scaled * float(power_of_two(127 - BIAS));  // exact, subnormals too
        if ((bits & INF) == INF) x = (bits & 0x7fff) > INF ? NAN : INFINITY;
        return bits >> 15 ? -x : x;
    }

    static uint16_t narrow(double x) {
        if (x != x) return 0x7fff;  // the NaN that the GPU gives
        const uint16_t sign = signbit(x) << 15;
        x = fabs(x);
        if (x >= power_of_two(BIAS + 1)) return sign | INF;
        // next to `unit` the last place of a double is that of the result: adding rounds
        const double power = std::bit_cast<double>(std::bit_cast<uint64_t>(x) >> 52 << 52);
        const double unit = fmax(power, power_of_two(1 - BIAS)) * power_of_two(52 - MANTISSA);
        x = (x + unit) - unit;
        // with the exponent's bias in place of a double's, the bits are at their place
        return sign | std::bit_cast<uint64_t>(x * power_of_two(BIAS - 1023)) >> (52 - MANTISSA);
    }

    friend Float16 operator+(Float16 a, Float16 b) { return double(a) + double(b); }
    friend Float16 operator-(Float16 a, Float16 b) { return double(a) - double(b); }
    friend Float16 operator*(Float16 a, Float16 b) { return double(a) * double(b); }
    friend Float16 operator/(Float16 a, Float16 b) { return double(a) / double(b); }
    friend Float16 operator-(Float16 a) { return -float(a); }
    Float16& operator+=(Float16 b) { return *this = *this + b; }
    Float16& operator-=(Float16 b) { return *this = *this - b; }
    Float16& operator*=(Float16 b) { return *this = *this * b; }
    Float16& operator/=(Float16 b) { return *this = *this / b; }

    friend Float16 __hadd(Float16 a, Float16 b) { return a + b; }
    friend Float16 __hsub(Float16 a, Float16 b) { return a - b; }
    friend Float16 __hmul(Float16 a, Float16 b) { return a * b; }
    friend Float16 __hdiv(Float16 a, Float16 b) { return a / b; }
    friend Float16 __hfma(Float16 a, Float16 b, Float16 c) { return sticky_fma(a, b, c); }
    friend Float16 __hmax(Float16 a, Float16 b) { return fmaxf(a, b); }
    friend Float16 __hmin(Float16 a, Float16 b) { return fminf(a, b); }
    friend Float16 __hneg(Float16 a) { return -a; }
    friend Float16 __habs(Float16 a) { return fabsf(a); }
    friend bool __heq(Float16 a, Float16 b) { return float(a) == float(b); }
    friend bool __hne(Float16 a, Float16 b) { return float(a) != float(b); }
    friend bool __hlt(Float16 a, Float16 b) { return float(a) < float(b); }
    friend bool __hle(Float16 a, Float16 b) { return float(a) <= float(b); }
    friend bool __hgt(Float16 a, Float16 b) { return float(a) > float(b); }
    friend bool __hge(Float16 a, Float16 b) { return float(a) >= float(b); }
    friend bool __hisnan(Float16 a) { return isnan(float(a)); }
    friend int __hisinf(Float16 a) { return isinf(float(a)) ? (a < 0 ? -1 : 1) : 0; }
    friend Float16 hexp(Float16 a) { return exp(double(a)); }
    friend Float16 hexp2(Float16 a) { return exp2(double(a)); }
    friend Float16 hlog(Float16 a) { return log(double(a)); }
    friend Float16 hlog2(Float16 a) { return log2(double(a)); }
    friend Float16 hsin(Float16 a) { return sin(double(a)); }
    friend Float16 hcos(Float16 a) { return cos(double(a)); }
    friend Float16 htanh(Float16 a) { return tanh(double(a)); }
    friend Float16 hsqrt(Float16 a) { return sqrt(double(a)); }
    friend Float16 hrsqrt(Float16 a) { return 1 / sqrt(double(a)); }
    friend Float16 hrcp(Float16 a) { return 1 / double(a); }
    friend Float16 hfloor(Float16 a) { return floorf(a); }
    friend Float16 hceil(Float16 a) { return ceilf(a); }
    friend Float16 hrint(Float16 a) { return rintf(a); }
};

template <typename H>
struct alignas(4) Pair16 {
    H x, y;

    friend Pair16 operator+(Pair16 a, Pair16 b) { return {a.x + b.x, a.y + b.y}; }
    friend Pair16 operator-(Pair16 a, Pair16 b) { return {a.x - b.x, a.y - b.y}; }
    friend Pair16 operator*(Pair16 a, Pair16 b) { return {a.x * b.x, a.y * b.y}; }
    friend Pair16 operator/(Pair16 a, Pair16 b) { return {a.x / b.x, a.y / b.y}; }
    friend Pair16 operator-(Pair16 a) { return {-a.x, -a.y}; }
    Pair16& operator+=(Pair16 b) { return *this = *this + b; }
    Pair16& operator-=(Pair16 b) { return *this = *this - b; }
    Pair16& operator*=(Pair16 b) { return *this = *this * b; }

    friend Pair16 __hadd2(Pair16 a, Pair16 b) { return a + b; }
    friend Pair16 __hsub2(Pair16 a, Pair16 b) { return a - b; }
    friend Pair16 __hmul2(Pair16 a, Pair16 b) { return a * b; }
    friend Pair16 __h2div(Pair16 a, Pair16 b) { return a / b; }
    friend Pair16 __hfma2(Pair16 a, Pair16 b, Pair16 c) {
        return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
    }
    friend Pair16 __hmax2(Pair16 a, Pair16 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
    friend Pair16 __hmin2(Pair16 a, Pair16 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
    friend Pair16 __hneg2(Pair16 a) { return -a; }
    friend Pair16 __habs2(Pair16 a) { return {__habs(a.x), __habs(a.y)}; }
    friend Pair16 h2exp(Pair16 a) { return {hexp(a.x), hexp(a.y)}; }
    friend Pair16 h2exp2(Pair16 a) { return {hexp2(a.x), hexp2(a.y)}; }
    friend float __low2float(Pair16 a) { return a.x; }
    friend float __high2float(Pair16 a) { return a.y; }
};

}  // namespace study

using __half = study::Float16<5, 10>;
using __half2 = study::Pair16<__half>;
using half = __half;
using half2 = __half2;
using __nv_bfloat16 = study::Float16<8, 7>;
using __nv_bfloat162 = study::Pair16<__nv_bfloat16>;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

#define STUDY_FUNCTION(T, name, parameters, ...) \
    inline T name parameters {                   \
        return __VA_ARGS__;                      \
    }

// What the type's name is part of: __float2half and __float2bfloat16, and so on.
#define STUDY_FLOAT16(H, H2, one, two)                                            \
    STUDY_FUNCTION(H, __float2##one, (float x), x)                                \
    STUDY_FUNCTION(H, __float2##one##_rn, (float x), x)                           \
    STUDY_FUNCTION(H, __double2##one, (double x), x)                              \
    STUDY_FUNCTION(H, __int2##one##_rn, (int x), x)                               \
    STUDY_FUNCTION(float, __##one##2float, (H x), x)                              \
    STUDY_FUNCTION(int, __##one##2int_rn, (H x), rintf(x))                        \
    STUDY_FUNCTION(short, __##one##_as_short, (H x), x.bits)                      \
    STUDY_FUNCTION(unsigned short, __##one##_as_ushort, (H x), x.bits)            \
    STUDY_FUNCTION(H, __short_as_##one, (short x), std::bit_cast<H>(x))           \
    STUDY_FUNCTION(H, __ushort_as_##one, (unsigned short x), std::bit_cast<H>(x)) \
    STUDY_FUNCTION(H2, __halves2##two, (H x, H y), {x, y})                        \
    STUDY_FUNCTION(H2, make_##two, (H x, H y), {x, y})                            \
    STUDY_FUNCTION(H2, __##one##2##two, (H x), {x, x})                            \
    STUDY_FUNCTION(H2, __float2##two##_rn, (float x), {x, x})                     \
    STUDY_FUNCTION(H2, __floats2##two##_rn, (float x, float y), {x, y})           \
    STUDY_FUNCTION(H2, __float22##two##_rn, (float2 a), {a.x, a.y})               \
    STUDY_FUNCTION(float2, __##two##2float2, (H2 a), {a.x, a.y})                  \
    STUDY_FUNCTION(H, __low2##one, (H2 a), a.x)                                   \
    STUDY_FUNCTION(H, __high2##one, (H2 a), a.y)                                  \
    STUDY_FUNCTION(H2, __low2##two, (H2 a), {a.x, a.x})                           \
    STUDY_FUNCTION(H2, __high2##two, (H2 a), {a.y, a.y})                          \
    STUDY_FUNCTION(H2, __lows2##two, (H2 a, H2 b), {a.x, b.x})                    \
    STUDY_FUNCTION(H2, __highs2##two, (H2 a, H2 b), {a.y, b.y})

STUDY_FLOAT16(__half, __half2, half, half2)
STUDY_FLOAT16(__nv_bfloat16, __nv_bfloat162, bfloat16, bfloat162)
