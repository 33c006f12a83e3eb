// Copies from global to shared memory that a thread starts without waiting for them: they pass by
// the registers, and are waited for in groups, in the order in which those were closed; bulk copies
// at an mbarrier. The twin of async_copy.py.
#pragma once

// Copy 16 bytes from global to shared memory, past the registers and L1, without waiting: the first
// `bytes` of them from `src`, zeros for the rest.
__device__ __forceinline__ void cp_async_16(void* dst, const void* src, int bytes) {
#ifdef STUDY_CPU
    study::Copy copy = {dst, {}, study::self->groups};
    memcpy(copy.bytes, src, bytes);
    study::self->copies.push_back(copy);
    memset(dst, 0xFF, 16);  // what it holds until the wait is undefined
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(dst)),
                 "l"(src), "r"(bytes)
                 : "memory");
#endif
}

// The same of 4 bytes, which leave a line in L1: all of them, or zeros.
__device__ __forceinline__ void cp_async_4(void* dst, const void* src, bool taken) {
#ifdef STUDY_CPU
    study::Copy copy = {dst, {}, study::self->groups, 4};
    if (taken) memcpy(copy.bytes, src, 4);
    study::self->copies.push_back(copy);
    memset(dst, 0xFF, 4);  // what it holds until the wait is undefined
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(dst)),
                 "l"(src), "r"(taken ? 4 : 0)
                 : "memory");
#endif
}

// Close this thread's current group of copies.
__device__ __forceinline__ void cp_async_commit() {
#ifdef STUDY_CPU
    ++study::self->groups;
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most N of this thread's newest groups are still under way.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
#ifdef STUDY_CPU
    auto& copies = study::self->copies;
    for (; !copies.empty() && copies.front().group < study::self->groups - N; copies.pop_front())
        memcpy(copies.front().dst, copies.front().bytes, copies.front().size);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Copy `bytes` from global to shared memory, all at multiples of 16, without waiting: the copy
// engine does it, and counts the bytes at an mbarrier of this block. Compute capability 9.0.
__device__ __forceinline__ void cp_async_bulk(void* dst, const void* src, int bytes,
                                              unsigned long long* barrier) {
#ifdef STUDY_CPU
    const study::Call call = study::from("cp_async_bulk");
    if ((uintptr_t(dst) | uintptr_t(src) | bytes) % 16)
        study::fail(call, "a bulk copy must be of whole chunks of 16 bytes, at multiples of 16");
    std::vector<char> copied((const char*)src, (const char*)src + bytes);
    memset(dst, 0xFF, bytes);  // what it holds until the wait is undefined
    study::send(call, barrier, study::OWN, dst, std::move(copied));
#else
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"((unsigned)__cvta_generic_to_shared(dst)),
        "l"(src), "r"(bytes), "r"((unsigned)__cvta_generic_to_shared(barrier))
        : "memory");
#endif
}
