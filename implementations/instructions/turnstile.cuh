// Blocks that pass a place in global memory one after another, in an order that is always the same:
// a counter says whose turn it is. A block may wait for those of a lower index only: GPUs begin
// these first, though CUDA does not promise it, so that some block can always go on. The twin of
// turnstile.py.
#pragma once

// Wait until the counter is `turn`. One thread of a block waits; after a barrier all of them see
// what the blocks before have stored.
__device__ __forceinline__ void wait_turn(const int* counter, int turn) {
#ifdef STUDY_CPU
    const int now = __atomic_load_n(counter, __ATOMIC_ACQUIRE);
    if (now != turn)  // blocks run one after another, to their ends
        study::fail(study::from("wait_turn"),
                    study::format("wait_turn: turn %d never comes, at %d", turn, now));
#else
    int now;
    do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    while (now != turn);
#endif
}

// Let the counter be `turn`, the next one. One thread of a block does it, after a barrier: what all
// of them have stored is seen by whom it lets go on.
__device__ __forceinline__ void pass_turn(int* counter, int turn) {
#ifdef STUDY_CPU
    const int now = __atomic_exchange_n(counter, turn, __ATOMIC_ACQ_REL);
    if (now != turn - 1)  // on a GPU whoever is late would take back a later turn
        study::fail(study::from("pass_turn"),
                    study::format("pass_turn: turn %d does not follow, at %d", turn, now));
#else
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(counter), "r"(turn) : "memory");
#endif
}
