// A block of threads owns as many elements, a thread one of them.
__global__ void program_ids_kernel(int* __restrict__ out, int n) {
    const int pid = blockIdx.x;
    const long long i = (long long)pid * blockDim.x + threadIdx.x;  // in the last block beyond 2^31

    if (i < n) out[i] = pid;
}
