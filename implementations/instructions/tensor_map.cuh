// A tensor as the tensor memory accelerator sees it, which kernels take as a parameter of the form
// `const __grid_constant__ TensorMap`. The twin of tensor_map.py; compute capability 9.0.
#pragma once

#ifdef STUDY_CPU
// What the driver's 128 bytes say: sizes, strides and the box in elements, the innermost last.
struct alignas(64) TensorMap {
    void* data;
    int rank, itemsize, swizzle, unused;
    long long shape[5], strides[5];
    int box[5];
};
static_assert(sizeof(TensorMap) == 128, "as large as the driver's");
#else
struct alignas(64) TensorMap {
    unsigned char bytes[128];
};
#endif
