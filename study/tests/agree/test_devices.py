"""Every kernel runs on its inputs' GPU, whichever is current, in any stream, thread and graph."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent

import pytest
import torch
from torch.utils._pytree import tree_leaves

from implementations import DEVICE, TORCH_DEVICE
from implementations.common import registry
from study.agree import agreement
from study.tests.agree.test_bad_input import with_changed

COUNT = torch.cuda.device_count() if DEVICE == "cuda" else 0
on_gpu = pytest.mark.skipif(COUNT < 1, reason="a GPU is needed")
on_two = pytest.mark.skipif(COUNT < 2, reason="two GPUs are needed")
every = pytest.mark.parametrize("backend", registry.BACKENDS)
kernels = pytest.mark.parametrize("kernel", registry.kernels())
ORDER = ((0, 1), (1, 0), (1, 1), (0, 0), (0, 1))  # of the current GPU and the inputs'


def loaded(kernel, backend):
    """What is judged of it: where there is a gradient, its backward too."""
    if reason := registry.missing(backend):
        pytest.skip(reason)
    return registry.spec(kernel).called(registry.load(kernel, backend))


def problem(kernel, device=TORCH_DEVICE):
    """(spec, size, inputs) at the largest check size in the last dtype."""
    spec = registry.spec(kernel)
    size = max(spec.check_sizes, key=lambda size: spec.work(spec.dtypes[-1], **size).bytes)
    return spec, size, spec.arguments(spec.dtypes[-1], device, 0, **size)


def has_tensors(inputs):
    return any(isinstance(x, torch.Tensor) for x in tree_leaves(inputs))


@on_two
@every
@kernels
def test_on_either_gpu(kernel, backend):
    host = loaded(kernel, backend)
    for current, own in ORDER:
        with torch.cuda.device(own):  # torch's own ldexp, in a bound, ignores where its inputs are
            spec, size, inputs = problem(kernel, f"cuda:{own}")
        with torch.cuda.device(current):
            outputs = host(*inputs)
        torch.cuda.synchronize(own)
        if has_tensors(inputs):
            with torch.cuda.device(own):
                assert agreement.judge(spec, size, inputs, outputs).error == ""


@on_two
@kernels
def test_inputs_on_two_gpus_are_refused_by_name(kernel):
    spec, size, _ = problem(kernel, "cuda:0")
    inputs = spec.make_inputs(spec.dtypes[-1], "cuda:0", 0, **size)
    places = [i for i, x in enumerate(tree_leaves(inputs)) if isinstance(x, torch.Tensor)]
    told = set()
    for i in places[1:]:
        moved = with_changed(inputs, i, lambda x: x.to("cuda:1"))
        for backend in registry.BACKENDS:
            with pytest.raises(ValueError, match="must have the same device") as error:
                loaded(kernel, backend)(*moved)
            told.add(str(error.value))
    assert len(told) == max(len(places) - 1, 0)


@on_gpu
@every
@kernels
def test_in_a_side_stream_and_a_graph(kernel, backend):
    host = loaded(kernel, backend)
    spec, size, inputs = problem(kernel)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert agreement.judge(spec, size, inputs, host(*inputs)).error == ""
        with torch.device("cuda"):  # on which a number would be rounded, while it captures
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = host(*inputs)
        for y in agreement.as_tuple(outputs):
            y.fill_(1)
        graph.replay()
        assert agreement.judge(spec, size, inputs, outputs).error == ""


@on_gpu
@every
@kernels
def test_in_two_streams_at_once(kernel, backend):
    """Nothing that a call uses, a workspace say, is used by another before it ends."""
    host = loaded(kernel, backend)
    spec, size, inputs = problem(kernel)
    other = spec.arguments(spec.dtypes[-1], TORCH_DEVICE, 1, **size)
    streams = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    outputs = []
    for _ in range(20):
        for stream, given in zip(streams, (inputs, other), strict=True):
            with torch.cuda.stream(stream):
                outputs.append((given, host(*given)))
    torch.cuda.synchronize()
    for given, output in outputs:
        assert agreement.judge(spec, size, given, output).error == ""


@on_gpu
def test_a_forked_child_can_use_the_gpu():
    code = """
        import os
        from implementations.common import registry
        hosts = {}
        for kernel in registry.kernels():
            for backend in registry.BACKENDS:
                if not registry.missing(backend):
                    hosts[kernel] = registry.load(kernel, backend)
        if os.fork():
            assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        else:
            kernel, host = hosts.popitem()
            spec = registry.spec(kernel)
            host(*spec.make_inputs(spec.dtypes[0], "cuda", 0, **spec.check_sizes[0]))
    """
    subprocess.run([sys.executable, "-c", dedent(code)], check=True, timeout=120)


@every
@kernels
def test_from_several_threads(kernel, backend):
    host = loaded(kernel, backend)
    spec = registry.spec(kernel)
    sizes = sorted(spec.check_sizes, key=lambda size: spec.work(spec.dtypes[0], **size).bytes)[:3]

    def made(size):
        return size, spec.arguments(spec.dtypes[0], TORCH_DEVICE, 0, **size)

    cells = [made(size) for size in 2 * sizes]  # here, so that a thread launches first of all
    host(*cells[-1][1])
    with ThreadPoolExecutor(4) as pool:
        outputs = [*pool.map(lambda cell: host(*cell[1]), cells)]
    for (size, inputs), output in zip(cells, outputs, strict=True):
        assert agreement.judge(spec, size, inputs, output).error == ""
