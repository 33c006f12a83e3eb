"""Kernels that tests take by what they are; those that only the made-up data need stand there."""

from inspect import signature

import torch

from implementations.common import registry
from implementations.common.rules import Function
from study.agree.mutants import Conditions, other_gpus
from study.bench.cells import select
from study.report.data import bound_by

THREE_TYPES = {torch.float32, torch.float16, torch.bfloat16}


def small() -> str:
    """The kernel with the fewest cells to check of those that move no more than a copy, come in
    three dtypes, and are checked at some size without elements."""
    found = []
    for kernel in bound_by("GB/s"):
        spec = registry.spec(kernel)
        copies = spec.work(spec.dtypes[0], **spec.headline).limit == "copy"
        empty = any(0 in size.values() for size in spec.check_sizes)
        if copies and empty and set(spec.dtypes) == THREE_TYPES:
            found.append(kernel)
    return min(found, key=lambda kernel: len(registry.spec(kernel).check_sizes))


def softmaxes(*, overflow: bool) -> list[str]:
    """The kernels of the stability study whose formula overflows at inputs of 100, or does not."""
    large = torch.tensor([[100.0, 0.0]])
    found = [
        kernel
        for kernel in registry.kernels()
        if (spec := registry.spec(kernel)).scales
        and spec.reference(large).isfinite().all() != overflow
    ]
    return _some(found, f"a kernel with scales whose formula overflows: {overflow}")


def staged() -> list[tuple[str, str]]:
    """The kernels and backends that take as many stages as the shared memory of a block holds."""
    every = select()
    found = [
        (kernel, backend)
        for kernel in every.kernels
        for backend in every.backends
        if any(".stages(" in path.read_text() for path in registry.files(kernel, backend))
    ]
    return _some(found, "an implementation that calls `stages`")


def on_other_gpus() -> list[tuple[str, str, Conditions]]:
    """The kernels and backends that launch otherwise on another GPU, and what is told of that."""
    every = select()
    found = [
        (kernel, backend, gpu)
        for kernel in every.kernels
        for backend in every.backends
        for gpu in other_gpus(kernel, backend)
    ]
    return _some(found, "an implementation that asks for the multiprocessors or clusters")


def functions() -> list[str]:
    """The kernels of one function, element by element, that is calculated in fp32."""
    every = registry.kernels()
    found = [kernel for kernel in every if isinstance(registry.spec(kernel).agreement, Function)]
    return _some(found, "a kernel whose rule is that of a function")


def random() -> list[str]:
    """The kernels that draw by a seed, with probability p."""
    every = registry.kernels()
    found = [
        k for k in every if {"p", "seed"} <= {*signature(registry.spec(k).reference).parameters}
    ]
    return _some(found, "a kernel with the parameters p and seed")


def differentiable() -> list[str]:
    """The kernels that torch differentiates."""
    found = [kernel for kernel in registry.kernels() if registry.spec(kernel).make_gradient]
    return _some(found, "a kernel with a gradient")


def _some(found: list, what: str) -> list:
    """Not nothing: a test that is parametrised by it would pass unseen."""
    assert found, f"there must be {what}"
    return found
