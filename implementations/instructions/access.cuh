// Packs of 16 bytes: a thread moves neighbours in one access only where they are one object,
// aligned as a whole. The twin of access.py.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// COUNT neighbours that move in one access, of 16 bytes where they fill as many.
template <typename T, int COUNT = 16 / sizeof(T)>
struct alignas(COUNT * sizeof(T)) Pack {
    T v[COUNT];
};

template <int COUNT, typename T>
__device__ __forceinline__ Pack<T, COUNT> load_pack(const T* src) {
    return *reinterpret_cast<const Pack<T, COUNT>*>(src);
}

template <typename T, int COUNT>
__device__ __forceinline__ void store_pack(T* dst, const Pack<T, COUNT>& pack) {
    *reinterpret_cast<Pack<T, COUNT>*>(dst) = pack;
}

// dst[0] += pack.v[0] and so on, at multiples of 16 bytes in global memory: four additions that
// nobody waits for, in no order with those of other threads.
__device__ __forceinline__ void add_pack(float* dst, const Pack<float, 4>& pack) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(dst), "f"(pack.v[0]),
                 "f"(pack.v[1]), "f"(pack.v[2]), "f"(pack.v[3])
                 : "memory");
#else
    Pack<float, 4>& sum = *reinterpret_cast<Pack<float, 4>*>(dst);
    for (int e = 0; e < 4; ++e) atomicAdd(&sum.v[e], pack.v[e]);
#endif
}

// One store of 16 bytes, both at multiples of them, from shared to global memory. `store_pack`
// NVRTC 13 may divide into words, by how the caller calculates the address.
__device__ __forceinline__ void store_global_16(void* dst, const void* shared) {
    const Pack<unsigned, 4> words = load_pack<4>(static_cast<const unsigned*>(shared));
#ifdef STUDY_CPU
    store_pack(static_cast<unsigned*>(dst), words);
#else
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(dst), "r"(words.v[0]),
                 "r"(words.v[1]), "r"(words.v[2]), "r"(words.v[3])
                 : "memory");
#endif
}

// Two floats rounded to T, in one register; the first is its lower half.
template <typename T>
__device__ __forceinline__ unsigned pack_pair(float low, float high) {
    const Pack<T, 2> pair = {T(low), T(high)};
    return *reinterpret_cast<const unsigned*>(&pair);
}
