// Reductions over the threads of a row, which are some lanes of a warp, or a block. The twin of
// reduce.py.
#pragma once

struct Max {
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Sum {
    __device__ float operator()(float a, float b) const { return a + b; }
};

// The reduction of `value` over the threads of a row, in every one of them. `sPartial` holds a
// value a warp and is used once, so the one barrier suffices.
template <int THREADS, typename Op>
__device__ float reduce_row(float value, float* sPartial, float neutral, Op op) {
#pragma unroll
    for (int delta = (THREADS < 32 ? THREADS : 32) / 2; delta > 0; delta /= 2)
        value = op(value, __shfl_xor_sync(0xffffffff, value, delta));
    if constexpr (THREADS > 32) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        if (lane == 0) sPartial[warp] = value;
        __syncthreads();
        value = lane < THREADS / 32 ? sPartial[lane] : neutral;
#pragma unroll
        for (int delta = 16; delta > 0; delta /= 2)
            value = op(value, __shfl_xor_sync(0xffffffff, value, delta));
    }
    return value;
}

// The sum of `value` over LANES neighbouring lanes, in each of them.
template <int LANES>
__device__ float sum_lanes(float value) {
#pragma unroll
    for (int delta = LANES / 2; delta > 0; delta /= 2)
        value += __shfl_xor_sync(0xffffffff, value, delta);
    return value;
}
