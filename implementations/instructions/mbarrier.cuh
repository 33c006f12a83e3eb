// Barriers in shared memory, at which some threads arrive and others wait: phase after phase, each
// of which ends when as many have arrived as the barrier counts. The twin of mbarrier.py.
#pragma once

// Begin phase 0 of a barrier that counts `arrivals`. One thread does it, and all others must have
// waited for it at another barrier before they use this one.
__device__ __forceinline__ void mbarrier_init(unsigned long long* barrier, int arrivals) {
#ifdef STUDY_CPU
    study::mbarrier_init(study::from("mbarrier_init"), barrier, arrivals);
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(barrier)),
                 "r"(arrivals)
                 : "memory");
#endif
}

// Have the blocks of the cluster and bulk copies see the barriers that this thread has begun, once
// the blocks have met.
__device__ __forceinline__ void fence_mbarrier_init() {
#ifdef STUDY_CPU
    study::fence_mbarrier_init();
#else
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// Arrive: what this thread did before is seen by those that wait for the phase.
__device__ __forceinline__ void mbarrier_arrive(unsigned long long* barrier) {
#ifdef STUDY_CPU
    study::mbarrier_arrive(study::from("mbarrier_arrive"), barrier);
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(
                     (unsigned)__cvta_generic_to_shared(barrier))
                 : "memory");
#endif
}

// Arrive, and have the phase wait for `bytes` more, which cp_async_bulk and store_async bring.
__device__ __forceinline__ void mbarrier_expect(unsigned long long* barrier, int bytes) {
#ifdef STUDY_CPU
    study::mbarrier_arrive(study::from("mbarrier_expect"), barrier, bytes);
#else
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(barrier)),
                 "r"(bytes)
                 : "memory");
#endif
}

// Arrive, without waiting, once the copies that this thread has started so far are there.
__device__ __forceinline__ void cp_async_arrive(unsigned long long* barrier) {
#ifdef STUDY_CPU
    for (const study::Copy& copy : study::self->copies) memcpy(copy.dst, copy.bytes, copy.size);
    study::self->copies.clear();
    study::mbarrier_arrive(study::from("cp_async_arrive"), barrier);
#else
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(
                     (unsigned)__cvta_generic_to_shared(barrier))
                 : "memory");
#endif
}

// Wait for the end of the phase of this parity, 0 or 1: of the one under way, or of the one before,
// for which nobody waits any more. So a wait for 1 passes while phase 0 is under way.
__device__ __forceinline__ void mbarrier_wait(unsigned long long* barrier, int parity) {
#ifdef STUDY_CPU
    study::mbarrier_wait(study::from("mbarrier_wait"), barrier, parity);
#else
    asm volatile(
        "{ .reg .pred ended;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
        "@!ended bra again; }" ::"r"((unsigned)__cvta_generic_to_shared(barrier)),
        "r"(parity)
        : "memory");
#endif
}
