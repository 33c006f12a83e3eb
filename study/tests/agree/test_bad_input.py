"""Arguments that a kernel does not take: the same sentence from every backend, before any work."""

from contextlib import nullcontext
from math import prod

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from implementations import TORCH_DEVICE
from implementations.common import registry
from study.agree import agreement
from study.tests import chosen


def offset_by_one(x):
    return torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape).copy_(x)


def fake(x):
    with FakeTensorMode():
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def negated_view(x):
    """A view of a conjugate's imaginary part: its values are not the bits that it points to."""
    parts = torch.stack((x.float(), x.float()), -1)
    return torch.view_as_complex(parts).conj().imag


BAD = {
    "dtype": (lambda x: x.to(torch.complex64), TypeError),
    "device": (lambda x: x.to("meta"), ValueError),
    "no tensor": (torch.Tensor.tolist, TypeError),
    "fake": (fake, TypeError),
    "functional": (FunctionalTensor.to_functional, TypeError),
    "zero tensor": (lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype), TypeError),
    "sparse": (torch.Tensor.to_sparse, TypeError),
    "nested": (lambda x: torch.nested.nested_tensor([x, x]), TypeError),
    "negated view": (negated_view, TypeError),
    "gradient": (lambda x: x.clone().requires_grad_(), ValueError),
}
UNUSUAL = {
    "dimensions": lambda x: x[None],
    "strides": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "alignment": offset_by_one,
    "rows": lambda x: x[:-1].clone(),
}


class Work(TorchDispatchMode):
    """Records every operation on tensors, allocations included."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.done.append(str(function))
        return function(*args, **(kwargs or {}))


def refusal(host, inputs):
    """The type and text of what `host` raises; None where it raises nothing."""
    work = Work()
    try:
        with work:
            host(*inputs)
    except (TypeError, ValueError) as error:
        assert work.done == [], "arguments must be refused before any work"
        return type(error), str(error)


def lengths(size):
    return [n for n in size.values() if type(n) is int]


def problem(kernel):
    """(spec, size, inputs) at the first check size with at least 2 in every dimension."""
    spec = registry.spec(kernel)
    size = next(s for s in spec.check_sizes if min(lengths(s)) > 1)
    return spec, size, spec.make_inputs(spec.dtypes[0], TORCH_DEVICE, 0, **size)


def hosts(kernel):
    found = {b: registry.load(kernel, b) for b in registry.BACKENDS if not registry.missing(b)}
    if not found:
        pytest.skip("no backend can run here")
    return found


def with_changed(inputs, i, change):
    """The arguments with the i-th of them, or of the elements of lists among them, changed."""
    leaves, tree = tree_flatten(inputs)
    leaves[i] = change(leaves[i])
    return tree_unflatten(leaves, tree)


def tensor_arguments(bad):
    return pytest.mark.parametrize(
        ("kernel", "i", "bad"),
        [
            pytest.param(kernel, i, name, id=f"{kernel}-{i}-{name}")
            for kernel in registry.kernels()
            for i, x in enumerate(tree_leaves(problem(kernel)[2]))
            if isinstance(x, torch.Tensor)
            for name in bad
            if not (name == "gradient" and kernel in chosen.differentiable())
        ],
    )


@tensor_arguments(BAD)
def test_refused_with_one_sentence(kernel, i, bad):
    _, _, inputs = problem(kernel)
    change, kind = BAD[bad]
    with FunctionalTensorMode() if bad == "functional" else nullcontext():
        inputs = with_changed(inputs, i, change)
    refusals = {backend: refusal(host, inputs) for backend, host in hosts(kernel).items()}
    (told,) = set(refusals.values())
    assert told is not None
    assert told[0] is kind
    assert " must " in told[1] and ", got " in told[1]


@pytest.mark.parametrize(
    ("kernel", "wrong"),
    [
        pytest.param(kernel, wrong, id=f"{kernel}-{wrong}")
        for kernel in registry.kernels()
        for wrong in registry.spec(kernel).refused
    ],
)
def test_other_arguments_are_refused_with_one_sentence(kernel, wrong):
    spec, _, inputs = problem(kernel)
    inputs = spec.refused[wrong](*inputs)
    (told,) = {refusal(host, inputs) for host in hosts(kernel).values()}
    assert told is not None
    assert " must " in told[1] and ", got " in told[1]


@tensor_arguments(UNUSUAL)
def test_unusual_is_refused_or_right(kernel, i, bad):
    spec, size, inputs = problem(kernel)
    inputs = with_changed(inputs, i, UNUSUAL[bad])
    refusals = set()
    for host in hosts(kernel).values():
        told = refusal(host, inputs)
        refusals.add(told)
        if told is None:
            assert agreement.judge(spec, size, inputs, host(*inputs)).error == ""
        else:
            assert told[0] is ValueError
    assert len(refusals) == 1


def odd_where_one(x):
    """The same elements: the stride of a dimension of one says nothing, and may be any."""
    steps = (3 if n == 1 else step for n, step in zip(x.shape, x.stride(), strict=True))
    return x.as_strided(x.shape, tuple(steps), x.storage_offset())


@pytest.mark.parametrize("kernel", registry.kernels())
def test_the_stride_of_a_dimension_of_one_is_no_matter(kernel):
    spec = registry.spec(kernel)
    beside = [s for s in spec.check_sizes if min(lengths(s)) == 1 < max(lengths(s))]
    alone = [s for s in spec.check_sizes if max(lengths(s)) == 1]
    if not beside + alone:
        pytest.skip("no check size has a dimension of one")
    for sizes in filter(None, (beside, alone)):
        size = min(sizes, key=lambda s: prod(lengths(s)))
        inputs = spec.make_inputs(spec.dtypes[0], TORCH_DEVICE, 0, **size)
        odd = tree_map_only(torch.Tensor, odd_where_one, inputs)
        for host in hosts(kernel).values():
            assert agreement.judge(spec, size, inputs, host(*odd)).error == ""


@pytest.mark.parametrize("transform", [torch.func.functionalize, torch.func.grad, torch.vmap])
@tensor_arguments({"wrapped": None})
def test_what_a_transform_wraps_is_refused_with_one_sentence(kernel, i, bad, transform):
    _, _, inputs = problem(kernel)
    told = set()
    for host in hosts(kernel).values():

        def call(x, host=host):
            told.add(refusal(host, with_changed(inputs, i, lambda _: x)))
            return x.sum()

        x = tree_leaves(inputs)[i]
        transform(call)(x[None] if transform is torch.vmap else x)
    ((kind, text),) = told
    assert kind is TypeError and "memory of its own, got one that a transform" in text


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kernel", registry.kernels())
def test_without_gradients_parameters_are_taken(kernel, without):
    spec, size, inputs = problem(kernel)
    parameters = tree_map_only(
        torch.Tensor, lambda x: torch.nn.Parameter(x) if x.is_floating_point() else x, inputs
    )
    for host in hosts(kernel).values():
        with without():
            outputs = host(*parameters)
        assert agreement.judge(spec, size, inputs, outputs).error == ""


@pytest.mark.parametrize("kernel", registry.kernels())
def test_a_compiled_caller_gets_the_same(kernel):
    _, _, inputs = problem(kernel)
    for host in hosts(kernel).values():
        torch._dynamo.reset()

        def caller(*args, host=host):
            return [2 * y for y in agreement.as_tuple(host(*args))]

        both = caller(*inputs), torch.compile(caller, backend="eager")(*inputs)
        for wanted, got in zip(*both, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)
