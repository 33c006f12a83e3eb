"""Kernels that torch differentiates, as its users call them; the values are judged elsewhere."""

import pytest
import torch

from implementations import TORCH_DEVICE
from implementations.common import registry
from study.speed.dispatch import smallest
from study.tests import chosen

every = pytest.mark.parametrize("backend", registry.BACKENDS)
kernels = pytest.mark.parametrize("kernel", chosen.differentiable())


def loaded(kernel, backend):
    if reason := registry.missing(backend):
        pytest.skip(reason)
    return registry.load(kernel, backend)


def problem(kernel):
    """The spec and the inputs of its smallest check size."""
    spec = registry.spec(kernel)
    return spec, spec.make_inputs(spec.dtypes[0], TORCH_DEVICE, 0, **smallest(spec))


def leaves(inputs):
    return [x for x in inputs if isinstance(x, torch.Tensor)]


def trained(inputs, convert=torch.Tensor.clone):
    """The inputs as parameters of a model."""
    return [convert(x).requires_grad_() if isinstance(x, torch.Tensor) else x for x in inputs]


def loss(host, inputs):
    return host(*inputs).float().square().sum()


@pytest.mark.parametrize("kernel", chosen.differentiable())
def test_the_oracle_has_the_gradient_of_what_it_calculates(kernel):
    """By finite differences, where a query sees no key too."""
    spec = registry.spec(kernel)
    by_bytes = sorted(spec.check_sizes, key=lambda size: spec.work(spec.dtypes[0], **size).bytes)
    for size in by_bytes[:4]:
        inputs = spec.make_inputs(torch.float64, "cpu", 0, **size)
        inputs = [x / 100 if isinstance(x, torch.Tensor) else x for x in inputs]  # no saturation
        assert torch.autograd.gradcheck(spec.reference, trained(inputs), fast_mode=True)


@every
@kernels
def test_any_of_the_inputs_may_need_a_gradient(kernel, backend):
    host, (_, inputs) = loaded(kernel, backend), problem(kernel)
    parameters = trained(inputs)
    wanted = torch.autograd.grad(loss(host, parameters), leaves(parameters))
    for i, want in enumerate(wanted):
        some = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs]
        some[i] = some[i].clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(host, some), some[i])
        assert torch.equal(found, want)


@every
@kernels
def test_the_gradient_of_a_sum_is_one_number_expanded(kernel, backend):
    host, (_, inputs) = loaded(kernel, backend), problem(kernel)
    parameters = trained(inputs)
    found = torch.autograd.grad(host(*parameters).sum(), leaves(parameters))
    y = host(*parameters)
    wanted = torch.autograd.grad(y, leaves(parameters), torch.ones_like(y))
    for x, want in zip(found, wanted, strict=True):
        assert torch.equal(x, want)


@every
@kernels
def test_views_give_the_same_in_the_order_of_their_strides(kernel, backend):
    """Of tensors of four dimensions: neighbouring heads lie side by side in a row."""

    def heads_last(x):
        return x.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)

    host, (_, inputs) = loaded(kernel, backend), problem(kernel)
    dense, views = trained(inputs), trained(inputs, heads_last)
    wanted = torch.autograd.grad(loss(host, dense), leaves(dense))
    found = torch.autograd.grad(loss(host, views), leaves(views))
    for x, want, given in zip(found, wanted, leaves(views), strict=True):
        assert torch.equal(x, want)
        assert x.stride() == given.stride()


@every
@kernels
def test_without_a_gradient_there_is_no_history(kernel, backend):
    host, (_, inputs) = loaded(kernel, backend), problem(kernel)
    wanted = host(*inputs)
    assert not wanted.requires_grad
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            y = host(*trained(inputs))
        assert not y.requires_grad
        assert torch.equal(y, wanted)


@every
@kernels
def test_autocast_casts_what_it_is_given(kernel, backend):
    host, (spec, inputs) = loaded(kernel, backend), problem(kernel)
    wide = trained(inputs, torch.Tensor.float)
    with pytest.raises(TypeError, match="must have dtype"):
        host(*wide)
    for dtype in spec.dtypes:
        narrow = trained(inputs, lambda x, dtype=dtype: x.detach().to(dtype))
        with torch.autocast(TORCH_DEVICE, dtype=dtype):
            y = host(*wide)
        assert y.dtype == dtype
        assert torch.equal(y, host(*narrow))
        found = torch.autograd.grad(y.float().square().sum(), leaves(wide))
        wanted = torch.autograd.grad(loss(host, narrow), leaves(narrow))
        for x, want in zip(found, wanted, strict=True):
            assert x.dtype == torch.float32
            assert torch.equal(x, want.float())


@every
@kernels
def test_a_second_derivative_is_refused(kernel, backend):
    host, (_, inputs) = loaded(kernel, backend), problem(kernel)
    parameters = trained(inputs)
    first = torch.autograd.grad(loss(host, parameters), leaves(parameters), create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        sum(x.float().sum() for x in first).backward()


@every
@kernels
def test_it_is_whole_in_a_compiled_model(kernel, backend):
    """Forward and backward are operators, and torch breaks no graph for them."""
    host, (_, inputs) = loaded(kernel, backend), problem(kernel)
    parameters = trained(inputs)
    wanted = torch.autograd.grad(loss(host, parameters), leaves(parameters))
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: loss(host, x), backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(*parameters), leaves(parameters))
    for x, want in zip(found, wanted, strict=True):
        assert torch.equal(x, want)


@every
@kernels
def test_its_operators_are_right_by_torchs_own_check(kernel, backend):
    _, (_, inputs) = loaded(kernel, backend), problem(kernel)
    scalars = [x for x in inputs if not isinstance(x, torch.Tensor)]
    operators = getattr(torch.ops, f"study_{kernel}")
    forward, backward = (
        getattr(operators, f"{backend}_{which}").default for which in ("forward", "backward")
    )
    torch.library.opcheck(forward, tuple(inputs))
    saved = *leaves(inputs), *forward(*inputs)
    torch.library.opcheck(backward, (*saved, saved[-2], *scalars))
