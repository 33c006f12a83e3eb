"""What a launch is given: names, types and numbers are checked, and packed as C lays them out."""

import ctypes

import numpy as np
import pytest
import torch

from implementations.common import driver, registry
from implementations.common.cuda_cpp import CudaSource, Kernel
from implementations.instructions.tensor_map import TensorMap

SCALE = """
#include "tensor_map.cuh"
// template <typename Wrong> __global__ void scale_kernel(int not_this) {
template <typename T, int VEC, bool TWICE>
__global__ void __launch_bounds__(VEC * 32)
    scale_kernel(const T* __restrict__ x, T* __restrict__ out, long long N, int step, float by) {
    for (long long i = threadIdx.x; i < N; i += step) out[i] = T(float(x[i]) * (1 + TWICE) * by);
}
__global__ void map_kernel(const __grid_constant__ TensorMap map, long long* __restrict__ out) {
#ifdef STUDY_CPU
    out[0] = map.rank, out[1] = map.shape[0], out[2] = map.strides[0], out[3] = map.box[1];
    out[4] = map.swizzle, out[5] = ((const float*)map.data)[map.strides[0]] == 7.f;
#endif
}
"""
X = torch.arange(8, dtype=torch.float32)
TEMPLATE = dict(T=torch.float32, VEC=2, TWICE=True)


@pytest.fixture
def source(tmp_path):
    if reason := registry.missing("cupy"):
        pytest.skip(reason)
    path = tmp_path / "scale.cu"
    path.write_text(SCALE)
    return CudaSource(path)


def scale(source, *args, kernel="scale_kernel", **template):
    source.launch(kernel, (1,), (64,), *args, **template)


def test_arguments_become_what_the_source_declares(source):
    out = torch.empty_like(X)
    scale(source, X, out, 8, 64, 3, TWICE=True, VEC=2, T=torch.float32)  # in any order, 3 a float
    assert torch.equal(out, 6 * X)


def test_parameters_of_template_and_kernel(source):
    kernel = Kernel(source.path, "scale_kernel")
    assert kernel.template == {"T": "typename", "VEC": "int", "TWICE": "bool"}
    assert kernel.parameters == {
        "x": "const T*",
        "out": "T*",
        "N": "long long",
        "step": "int",
        "by": "float",
    }
    assert kernel.instantiation(TEMPLATE) == "scale_kernel<float, 2, true>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (dict(T=torch.float32, VEC=2), "takes the template arguments T, VEC, TWICE, got T, VEC"),
        (TEMPLATE | dict(PACKS=1), "got T, VEC, TWICE, PACKS"),
        (TEMPLATE | dict(T=torch.int32), "T of scale_kernel must be one of float32, float16"),
        (TEMPLATE | dict(T=2), "T of scale_kernel must be one of float32"),
        (TEMPLATE | dict(VEC=2.0), "VEC of scale_kernel must be of type int, got 2.0"),
        (TEMPLATE | dict(VEC=True), "VEC of scale_kernel must be of type int, got True"),
        (TEMPLATE | dict(TWICE=1), "TWICE of scale_kernel must be of type bool, got 1"),
    ],
    ids=str,
)
def test_template_arguments_that_do_not_fit_are_named(source, template, message):
    with pytest.raises(TypeError, match=message):
        scale(source, X, X, 8, 64, 1.0, **template)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((X, X, 8, 64), TypeError, "takes the 5 arguments x, out, N, step, by, got 4"),
        ((8, X, 8, 64, 1.0), TypeError, "x of scale_kernel must be a Tensor, got int"),
        ((X, X, X, 64, 1.0), TypeError, "N of scale_kernel must be of type long long"),
        ((X, X, 8.0, 64, 1.0), TypeError, "N of scale_kernel must be of type long long, got 8.0"),
        (
            (X, X, 8, 2**31, 1.0),
            OverflowError,
            "step of scale_kernel must be of type int, got 2147",
        ),
        ((X, X, 8, 64, "1"), TypeError, "by of scale_kernel must be of type float, got '1'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_arguments_that_do_not_fit_are_named(source, args, error, message):
    with pytest.raises(error, match=message):
        scale(source, *args, **TEMPLATE)


def test_unknown_kernel_is_named(source):
    with pytest.raises(ValueError, match="scale.cu must define the __global__ function other"):
        scale(source, kernel="other")


# --- tensor maps ----------------------------------------------------------------------------------


def test_a_tensor_map_in_cuda_cpp_on_the_cpu(source):
    x = torch.zeros(3, 8)
    x[1, 0] = 7
    out = torch.empty(6, dtype=torch.int64)
    scale(source, TensorMap(x, (2, 4), swizzle=32), out, kernel="map_kernel")
    assert out.tolist() == [2, 3, 8, 4, 32, 1]
    with pytest.raises(TypeError, match="map of map_kernel must be a TensorMap, got Tensor"):
        scale(source, x, out, kernel="map_kernel")


def test_a_tensor_map_in_numba_on_the_cpu():
    if reason := registry.missing("numba"):
        pytest.skip(reason)
    from numba import cuda

    from implementations.common import numba_cuda

    seen = []

    @cuda.jit
    def kernel(map_, out):
        seen.append(map_)
        out[0] = 1

    out = torch.zeros(1)
    map_ = TensorMap(torch.zeros(3, 8), (2, 4))
    numba_cuda.launch(kernel, (1,), (1,), map_, out)
    assert seen == [map_] and out.item() == 1
    kinds = numba_cuda.kinds((map_, out, 3, np.int32(3), np.float32(3)))
    texts = [str(kind) for kind in numba_cuda.signature(kinds)]
    assert texts == [
        "array(uint8, 1d, C)",
        "array(float32, 1d, C)",
        "int64",
        "int32",
        "float32",
    ]


@pytest.mark.parametrize(
    ("tensor", "box", "swizzle", "message"),
    [
        (torch.zeros(3, 8, dtype=torch.float64), (2, 4), 0, "must be of .*float64"),
        (torch.zeros(3, 8), (4,), 0, "1 to 5 dimensions"),
        (torch.zeros(8, 3).T, (2, 4), 0, "rows must be contiguous"),
        (torch.zeros(3, 6), (2, 4), 0, "start at multiples of 16 bytes"),
        (torch.zeros(3, 512), (2, 260), 0, "sides of 1 to 256"),
        (torch.zeros(3, 8), (2, 6), 0, "rows multiples of 16 bytes"),
        (torch.zeros(3, 64), (2, 16), 32, "hold a box's row of 64 bytes, got 32"),
        (torch.zeros(3, 64), (2, 16), 48, "swizzle must be 0, 32, 64, 128"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_no_tensor_map_can_be_is_refused(tensor, box, swizzle, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TensorMap(tensor, box, swizzle)


# --- on a GPU: what the driver is handed ----------------------------------------------------------


class AsInC(ctypes.Structure):
    _fields_ = [
        ("small", ctypes.c_int16),
        ("pointer", ctypes.c_uint64),
        ("number", ctypes.c_int32),
        ("long", ctypes.c_int64),
        ("flag", ctypes.c_bool),
        ("float", ctypes.c_float),
    ]


def test_parameters_are_packed_as_in_c(monkeypatch):
    handed = []

    def launch_kernel(handle, *rest):
        *numbers, stream, params, extra = rest
        pointer, buffer, size, count, end = (ctypes.c_void_p * 5).from_address(extra)
        length = ctypes.c_size_t.from_address(count).value
        handed.append((numbers, stream, ctypes.string_at(buffer, length), (pointer, size, end)))
        return (0,)

    monkeypatch.setattr(driver, "cuLaunchKernel", launch_kernel)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 77, raising=False)
    values = [-3, 2**63 + 5, -7, -(2**40), True, 0.5]
    driver.Function(1, list("hQiq?f")).launch((5, 2), (32,), values, 1024, 0)
    driver.Function(1, ["i", "128s", "i"]).launch((1,), (1, 2, 3), [1, b"m" * 128, 2], 0, 0)

    numbers, stream, buffer, marks = handed[0]
    assert numbers == [5, 2, 1, 32, 1, 1, 1024] and stream == 77 and marks == (1, 2, None)
    assert buffer == bytes(AsInC(*values))[: len(buffer)]
    assert len(buffer) == AsInC.float.offset + 4
    _, _, buffer, _ = handed[1]  # 128 bytes at a multiple of 64
    assert buffer[64:192] == b"m" * 128 and buffer[:1] == b"\1" and buffer[192:193] == b"\2"


def test_what_the_driver_refuses_is_told(monkeypatch):
    from cuda.bindings.driver import CUresult

    refused = CUresult.CUDA_ERROR_INVALID_VALUE
    monkeypatch.setattr(driver, "cuLaunchKernel", lambda *args: (refused,))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    with pytest.raises(RuntimeError, match="it says CUDA_ERROR_INVALID_VALUE"):
        driver.Function(1, ["i"]).launch((1,), (1,), [1], 0, 0)
