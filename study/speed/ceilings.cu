// The machine's own limits, every access a pack of 16 bytes, and a kernel that does nothing.

template <int PACKS>
__global__ void copy_kernel(const int4* __restrict__ x, int4* __restrict__ out, long long N) {
    const long long start = (long long)blockIdx.x * blockDim.x * PACKS + threadIdx.x;
    int4 v[PACKS];  // all loads in flight before the first store
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const long long i = start + p * blockDim.x;
        if (i < N) v[p] = x[i];
    }
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const long long i = start + p * blockDim.x;
        if (i < N) out[i] = v[p];
    }
}

// A warp leaves one word, so that no load can be dropped: 1 byte written for 1024 read.
template <int PACKS>
__global__ void read_kernel(const int4* __restrict__ x, unsigned* __restrict__ out, long long N) {
    const long long start = (long long)blockIdx.x * blockDim.x * PACKS + threadIdx.x;
    int4 v[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const long long i = start + p * blockDim.x;
        v[p] = i < N ? x[i] : int4{0, 0, 0, 0};
    }
    unsigned bits = 0;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) bits ^= v[p].x ^ v[p].y ^ v[p].z ^ v[p].w;
    bits = __reduce_xor_sync(0xFFFFFFFF, bits);
    if (threadIdx.x % 32 == 0) out[(blockIdx.x * blockDim.x + threadIdx.x) / 32] = bits;
}

template <int PACKS>
__global__ void write_kernel(int4* __restrict__ out, long long N, int value) {
    const long long start = (long long)blockIdx.x * blockDim.x * PACKS + threadIdx.x;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const long long i = start + p * blockDim.x;
        if (i < N) out[i] = int4{value, value, value, value};
    }
}

template <int UNUSED>
__global__ void empty_kernel() {}
