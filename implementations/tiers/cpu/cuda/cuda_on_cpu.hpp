// CUDA C++ as C++20: what a `.cu` finds when the CPU tier compiles it, in an unnamed namespace,
// behind this header. Its threads are fibres (fibers.cpp).
#pragma once
#include <math.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "fibers.hpp"
#include "float16.hpp"
#include "vectors.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static
// A library's thread-local variables lie together, where the runtime finds and fills them;
// AddressSanitizer guards only those that are not. Used: by others than the compiler sees.
#ifdef STUDY_SANITIZE_ADDRESS
#define __shared__ __attribute__((used)) static
#else
#define __shared__ __attribute__((used)) thread_local
#endif

constexpr int warpSize = study::WARP;

// --- threads that meet --------------------------------------------------------------------------

namespace study {

// As a default argument, it names the line of the call.
constexpr Call from(const char* operation, const char* file = __builtin_FILE(),
                    int line = __builtin_LINE()) {
    return {operation, file, line};
}

// The values that the lanes of `mask` hand in, by lane.
template <typename T>
const T* exchange(Call call, unsigned mask, T value) {
    return static_cast<const T*>(meet(call, mask, &value, sizeof value, nullptr));
}

// The same, but `combine` has worked on the table, once for all lanes; what it left for this one.
template <typename T, typename Combine>
T together(Call call, unsigned mask, T value, Combine) {
    auto combine = [](void* table) { Combine()(static_cast<T*>(table)); };
    return static_cast<const T*>(meet(call, mask, &value, sizeof value, combine))[self->lane];
}

// The lanes of `mask` whose value satisfies `test`.
template <typename T, typename Test>
unsigned ballot(Call call, unsigned mask, T value, Test test) {
    const T* values = exchange(call, mask, value);
    unsigned lanes = 0;
    for (unsigned lane = 0; lane < WARP; ++lane)
        if ((mask & self->lanes) >> lane & 1 && test(values[lane])) lanes |= 1u << lane;
    return lanes;
}

// The values of the lanes of `mask`, folded from the first lane on.
template <typename T, typename Fold>
T reduce(Call call, unsigned mask, T value, Fold fold) {
    const T* values = exchange(call, mask, value);
    unsigned lane = std::countr_zero(mask);
    T result = values[lane];
    while (++lane < WARP)
        if ((mask & self->lanes) >> lane & 1) result = fold(result, values[lane]);
    return result;
}

// The `width` lanes that this one exchanges with.
struct Segment {
    int first, end;
    explicit Segment(int width) : first(self->lane / width * width), end(first + width) {}
};

template <typename T>
T shuffle(Call call, unsigned mask, T value, int source) {
    const T* values = exchange(call, mask, value);
    if (!((mask & self->lanes) >> source & 1))
        fail(call, format("%s: lane %u reads lane %d, which takes no part", call.operation,
                          self->lane, source));
    return values[source];
}

}  // namespace study

inline void __syncthreads(study::Call call = study::from("__syncthreads")) {
    study::barrier(call, false);
}
inline int __syncthreads_count(int predicate,
                               study::Call call = study::from("__syncthreads_count")) {
    return study::barrier(call, predicate);
}
inline int __syncthreads_or(int predicate, study::Call call = study::from("__syncthreads_or")) {
    return study::barrier(call, predicate) > 0;
}
inline int __syncthreads_and(int predicate, study::Call call = study::from("__syncthreads_and")) {
    return study::barrier(call, !predicate) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, study::Call call = study::from("__syncwarp")) {
    study::meet(call, mask, nullptr, 0, nullptr);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              study::Call call = study::from("__shfl_sync")) {
    return study::shuffle(call, mask, value, study::Segment(width).first + source % width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 study::Call call = study::from("__shfl_up_sync")) {
    const int lane = study::self->lane, source = lane - delta;
    return study::shuffle(call, mask, value, source >= study::Segment(width).first ? source : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   study::Call call = study::from("__shfl_down_sync")) {
    const int lane = study::self->lane, source = lane + delta;
    return study::shuffle(call, mask, value, source < study::Segment(width).end ? source : lane);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  study::Call call = study::from("__shfl_xor_sync")) {
    const int lane = study::self->lane, source = lane ^ bits;
    return study::shuffle(call, mask, value, source < study::Segment(width).end ? source : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              study::Call call = study::from("__ballot_sync")) {
    return study::ballot(call, mask, predicate, [](int p) { return p != 0; });
}
inline int __any_sync(unsigned mask, int predicate, study::Call call = study::from("__any_sync")) {
    return study::ballot(call, mask, predicate, [](int p) { return p != 0; }) != 0;
}
inline int __all_sync(unsigned mask, int predicate, study::Call call = study::from("__all_sync")) {
    return study::ballot(call, mask, predicate, [](int p) { return p == 0; }) == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value,
                          study::Call call = study::from("__match_any_sync")) {
    return study::ballot(call, mask, value,
                         [=](T other) { return std::memcmp(&other, &value, sizeof value) == 0; });
}
// CUDA does not say which lanes are together: a lane can only rely on itself.
STUDY_FUNCTION(unsigned, __activemask, (), 1u << study::self->lane)

#define STUDY_REDUCE(name, expression)                                                \
    template <typename T>                                                             \
    T name(unsigned mask, T value, study::Call call = study::from(#name)) {           \
        return study::reduce(call, mask, value, [](T a, T b) { return expression; }); \
    }
STUDY_REDUCE(__reduce_add_sync, a + b)
STUDY_REDUCE(__reduce_min_sync, a < b ? a : b)
STUDY_REDUCE(__reduce_max_sync, a > b ? a : b)
STUDY_REDUCE(__reduce_and_sync, a& b)
STUDY_REDUCE(__reduce_or_sync, a | b)
STUDY_REDUCE(__reduce_xor_sync, a ^ b)

inline void __trap(study::Call call = study::from("__trap")) {
    study::fail(call, "__trap");
}
#undef assert
#define assert(condition) \
    ((condition) ? void() : study::fail(study::from("assert"), "assert(" #condition ")"))

STUDY_FUNCTION(void, __threadfence, (), study::fence())
STUDY_FUNCTION(void, __threadfence_block, (), study::fence())
STUDY_FUNCTION(void, __threadfence_system, (), study::fence())
STUDY_FUNCTION(void, __nanosleep, (unsigned), study::yield())

// --- atomics, which order no other memory -------------------------------------------------------

namespace study {

// *p becomes f(*p), in one step; what it was.
template <typename T, typename F>
T update(T* p, F f) {
    using Bits = std::conditional_t<sizeof(T) == 8, uint64_t,
                                    std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
    Bits* bits = reinterpret_cast<Bits*>(p);
    Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(bits, &old, std::bit_cast<Bits>(f(std::bit_cast<T>(old))),
                                        false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return std::bit_cast<T>(old);
}

}  // namespace study

#define STUDY_ATOMIC(name, expression)                                   \
    template <typename T>                                                \
    T name(T* p, std::type_identity_t<T> value) {                        \
        return study::update(p, [=](T old) -> T { return expression; }); \
    }
STUDY_ATOMIC(add_atomically, old + value)
STUDY_ATOMIC(atomicSub, old - value)
STUDY_ATOMIC(atomicMin, value < old ? value : old)
STUDY_ATOMIC(atomicMax, value > old ? value : old)
STUDY_ATOMIC(atomicExch, value)
STUDY_ATOMIC(atomicAnd, old& value)
STUDY_ATOMIC(atomicOr, old | value)
STUDY_ATOMIC(atomicXor, old ^ value)
STUDY_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
STUDY_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)

// Floats are not added as they arrive where the same bits are wanted of each run.
template <typename T>
T atomicAdd(T* p, std::type_identity_t<T> value, study::Call call = study::from("atomicAdd")) {
    if (!std::is_integral_v<T> && getenv("STUDY_SAME_BITS"))
        study::fail(call, "floats must be added in an order, got an atomic addition");
    return add_atomically(p, value);
}

template <typename T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    const T before = study::update(p, [=](T old) { return old == expected ? value : old; });
    if (before != expected) study::yield();  // it may be a lock, and its holder must go on
    return before;
}

// --- memory, bits, mathematics ------------------------------------------------------------------

#define STUDY_LOAD(name)  \
    template <typename T> \
    STUDY_FUNCTION(T, name, (const T* p), *p)
STUDY_LOAD(__ldg)
STUDY_LOAD(__ldca)
STUDY_LOAD(__ldcg)
STUDY_LOAD(__ldcs)
STUDY_LOAD(__ldlu)
STUDY_LOAD(__ldcv)

#define STUDY_STORE(name) \
    template <typename T> \
    STUDY_FUNCTION(void, name, (T * p, std::type_identity_t<T> value), void(*p = value))
STUDY_STORE(__stwb)
STUDY_STORE(__stcg)
STUDY_STORE(__stcs)
STUDY_STORE(__stwt)

STUDY_FUNCTION(int, __float_as_int, (float x), std::bit_cast<int>(x))
STUDY_FUNCTION(unsigned, __float_as_uint, (float x), std::bit_cast<unsigned>(x))
STUDY_FUNCTION(float, __int_as_float, (int x), std::bit_cast<float>(x))
STUDY_FUNCTION(float, __uint_as_float, (unsigned x), std::bit_cast<float>(x))
STUDY_FUNCTION(long long, __double_as_longlong, (double x), std::bit_cast<long long>(x))
STUDY_FUNCTION(double, __longlong_as_double, (long long x), std::bit_cast<double>(x))

STUDY_FUNCTION(int, __popc, (unsigned x), std::popcount(x))
STUDY_FUNCTION(int, __popcll, (unsigned long long x), std::popcount(x))
STUDY_FUNCTION(int, __clz, (unsigned x), std::countl_zero(x))
STUDY_FUNCTION(int, __clzll, (unsigned long long x), std::countl_zero(x))
STUDY_FUNCTION(int, __ffs, (int x), __builtin_ffs(x))
STUDY_FUNCTION(int, __ffsll, (long long x), __builtin_ffsll(x))
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}
STUDY_FUNCTION(int, __mulhi, (int a, int b), int64_t(a) * b >> 32)
STUDY_FUNCTION(unsigned, __umulhi, (unsigned a, unsigned b), uint64_t(a) * b >> 32)
STUDY_FUNCTION(uint64_t, __umul64hi, (uint64_t a, uint64_t b), (unsigned __int128)a* b >> 64)
STUDY_FUNCTION(unsigned, __funnelshift_l, (unsigned low, unsigned high, unsigned shift),
               (uint64_t(high) << 32 | low) << (shift & 31) >> 32)
STUDY_FUNCTION(unsigned, __funnelshift_r, (unsigned low, unsigned high, unsigned shift),
               (uint64_t(high) << 32 | low) >> (shift & 31))

// CUDA's min and max take two different types; of a NaN and a number they give the number.
template <typename A, typename B, typename T = std::common_type_t<A, B>>
constexpr T max(A a, B b) {
    return std::is_floating_point_v<T> ? T(fmax(T(a), T(b))) : T(a) > T(b) ? T(a) : T(b);
}
template <typename A, typename B, typename T = std::common_type_t<A, B>>
constexpr T min(A a, B b) {
    return std::is_floating_point_v<T> ? T(fmin(T(a), T(b))) : T(a) < T(b) ? T(a) : T(b);
}

// Not functions: the C library declares some of these names for itself.
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __powf powf
#define __sincosf sincosf
#define __fmaf_rn fmaf
#define __fsqrt_rn sqrtf
#define __frsqrt_rn rsqrtf

STUDY_FUNCTION(double, rsqrt, (double x), 1 / sqrt(x))
STUDY_FUNCTION(float, rsqrtf, (float x), rsqrt(x))
STUDY_FUNCTION(float, normcdff, (float x), 0.5 * erfc(-0.7071067811865476 * x))
STUDY_FUNCTION(float, __saturatef, (float x), fminf(fmaxf(x, 0), 1))
STUDY_FUNCTION(float, __frcp_rn, (float x), 1 / x)
STUDY_FUNCTION(float, fdividef, (float a, float b), a / b)
STUDY_FUNCTION(float, __fdividef, (float a, float b), a / b)
STUDY_FUNCTION(float, __fdiv_rn, (float a, float b), a / b)
STUDY_FUNCTION(float, __fmul_rn, (float a, float b), a* b)
STUDY_FUNCTION(float, __fadd_rn, (float a, float b), a + b)
STUDY_FUNCTION(float, __fsub_rn, (float a, float b), a - b)
STUDY_FUNCTION(float, __int2float_rn, (int x), x)
STUDY_FUNCTION(float, __uint2float_rn, (unsigned x), x)
STUDY_FUNCTION(int, __float2int_rn, (float x), rintf(x))
STUDY_FUNCTION(int, __float2int_rz, (float x), x)
STUDY_FUNCTION(int, __float2int_rd, (float x), floorf(x))

// --- the launch ---------------------------------------------------------------------------------

namespace study {

template <typename... Parameters>
void call(void (*kernel)(Parameters...), void** args) {
    [=]<size_t... I>(std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_cv_t<Parameters>*>(args[I])...);
    }(std::index_sequence_for<Parameters...>());
}

template <typename T>
constexpr char kind = std::is_pointer_v<T>          ? 'p'
                      : std::is_integral_v<T>       ? 'i'
                      : std::is_floating_point_v<T> ? 'f'
                                                    : 's';

template <typename... Parameters>
struct ParameterText {
    char text[2 * sizeof...(Parameters) + 1] = {};
    constexpr ParameterText(void (*)(Parameters...)) {
        char* end = text;
        ((*end++ = kind<Parameters>, *end++ = sizeof(Parameters)), ...);
    }
};

}  // namespace study

// What the runtime must know of the one kernel in a library.
#define STUDY_KERNEL(...)                                              \
    extern "C" void study_call(void** args) {                          \
        study::call(__VA_ARGS__, args);                                \
    }                                                                  \
    extern "C" const char* study_parameters() {                        \
        static constexpr study::ParameterText parameters(__VA_ARGS__); \
        return parameters.text;                                        \
    }                                                                  \
    extern "C" void* study_shared() {                                  \
        alignas(16) __shared__ char anchor;                            \
        return &anchor;                                                \
    }
