// Each block of threads owns as many elements as it has threads, and each thread one of them:
// neighbours store neighbours, and a warp's store is coalesced.
__global__ void program_ids_kernel(int* __restrict__ out, int n) {
    const int pid = blockIdx.x;
    const long long i = (long long)pid * blockDim.x + threadIdx.x;  // the last block may reach 2^31

    if (i < n) out[i] = pid;
}
