// The blocks of a cluster run together on neighbouring multiprocessors and reach each other's
// shared memory. The twin of cluster.py; compute capability 9.0. A kernel says by
// `__attribute__((cluster_dims(n, 1, 1)))`, which is what __cluster_dims__ stands for, that its
// blocks run in clusters of n along x, of which the grid must have a whole number. 8 is the most
// that every such GPU takes.
#pragma once

#if __CUDA_ARCH__ < 900  // a compiler for less refuses the attribute, even for clusters of 1
#define cluster_dims(x, y, z)
#endif

// Tell the cluster that this thread is here, without waiting. Orders no memory: what the others
// learn from it is that this block has begun, before which they may not touch its shared memory.
__device__ __forceinline__ void cluster_barrier_arrive() {
#ifdef STUDY_CPU
    study::cluster_arrive(study::from("cluster_barrier_arrive"), false);
#else
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

// Wait until every thread of the cluster has arrived.
__device__ __forceinline__ void cluster_barrier_wait() {
#ifdef STUDY_CPU
    study::cluster_wait(study::from("cluster_barrier_wait"));
#else
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Arrive and wait: __syncthreads for a cluster. What was stored before is seen after it.
__device__ __forceinline__ void cluster_barrier() {
#ifdef STUDY_CPU
    study::cluster_arrive(study::from("cluster_barrier"), true);
    study::cluster_wait(study::from("cluster_barrier"));
#else
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
#endif
}

// *dst = value in the shared memory of the cluster's block `rank`; dst is the address in this
// one's.
__device__ __forceinline__ void store_remote(float* dst, unsigned rank, float value) {
#ifdef STUDY_CPU
    *static_cast<float*>(study::remote(study::from("store_remote"), dst, rank)) = value;
#else
    asm volatile(
        "{ .reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "st.shared::cluster.f32 [there], %2; }" ::"r"((unsigned)__cvta_generic_to_shared(dst)),
        "r"(rank), "f"(value)
        : "memory");
#endif
}

// The same without waiting, and without an order: it counts its 4 bytes at the mbarrier of block
// `rank`, of which `barrier` is the address in this one's.
__device__ __forceinline__ void store_async(float* dst, unsigned rank, float value,
                                            unsigned long long* barrier) {
#ifdef STUDY_CPU
    const study::Call call = study::from("store_async");
    memset(study::remote(call, dst, rank), 0xFF, 4);  // undefined until the wait
    const char* bytes = reinterpret_cast<const char*>(&value);
    study::send(call, barrier, rank, dst, {bytes, bytes + 4});
#else
    asm volatile(
        "{ .reg .b32 there, barrier;\n"
        "mapa.shared::cluster.u32 there, %0, %2;\n"
        "mapa.shared::cluster.u32 barrier, %1, %2;\n"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [there], %3, [barrier]; }" ::"r"(
            (unsigned)__cvta_generic_to_shared(dst)),
        "r"((unsigned)__cvta_generic_to_shared(barrier)), "r"(rank), "f"(value)
        : "memory");
#endif
}
