"""The checker is checked: right outputs pass, wrong ones fail, for every kernel and every rule."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from implementations.common import registry
from implementations.common.check import dtype_name
from implementations.common.rules import (
    Attention,
    AttentionGradient,
    Composite,
    Contraction,
    Exact,
    Function,
    InverseRoot,
    Reduction,
    Unary,
)
from implementations.common.spec import KernelSpec, Work, generator
from study.agree.agreement import as_tuple, expected, judge, rule_name
from study.bench.cells import Cell, seed, size_text

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CASES = [
    pytest.param(kernel, dtype, id=f"{kernel}-{dtype_name(dtype)}")
    for kernel in registry.kernels()
    for dtype in registry.spec(kernel).dtypes
]


def perfect(spec, size, inputs):
    """The correctly rounded outputs."""
    return tuple(want.value.to(want.dtype) for want in expected(spec, size, inputs))


def made(kernel, dtype):
    """The arguments at each check size, on the CPU."""
    for size in registry.spec(kernel).check_sizes:
        cell = Cell(kernel, "", dtype_name(dtype), size_text(size))
        yield registry.spec(kernel).arguments(dtype, "cpu", seed(cell), **size)


def problems(kernel, dtype):
    """(spec, size, inputs, correctly rounded outputs) at each check size."""
    spec = registry.spec(kernel)
    for size, inputs in zip(spec.check_sizes, made(kernel, dtype), strict=True):
        yield spec, size, inputs, perfect(spec, size, inputs)


def last_column_stale(y):
    y = y.clone()
    if y.ndim and y.shape[-1] > 1:
        y[..., -1] = y[..., -2]
    return y


def last_element_nan(y):
    y = y.clone(memory_format=torch.contiguous_format)
    if y.numel() and y.dtype.is_floating_point:
        y.view(-1)[-1] = math.nan
    return y


MUTATIONS = {
    "zeros": torch.zeros_like,
    "rows permuted": lambda y: y.roll(1, 0) if y.ndim else y,
    "elements permuted": lambda y: y.roll(1, -1) if y.ndim else y,
    "last column stale": last_column_stale,
    "last element NaN": last_element_nan,
    "last row missing": lambda y: y[:-1] if y.ndim else y,
    "another dtype": torch.Tensor.double,
}


def truncated(want):
    """The output rounded toward zero: one unit nearer to it where rounding went away from it."""
    y = want.value.to(want.dtype)
    words = y.view({2: torch.int16, 4: torch.int32}[y.element_size()]).clone()
    words -= (y.double().abs() > want.value.abs()).to(words.dtype)
    return words.view(want.dtype)


def is_same(a, b):
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and bool(((a == b) | a.isnan() & b.isnan()).all())


@pytest.mark.parametrize(("kernel", "dtype"), CASES)
def test_inputs_depend_on_the_seed_alone(kernel, dtype):
    """And not on torch's own generator, or on what another test drew of it."""
    state = torch.get_rng_state()
    once = list(made(kernel, dtype))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(list(made(kernel, dtype)), once, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("kernel", "dtype"), CASES)
def test_correctly_rounded_agrees(kernel, dtype):
    for spec, size, inputs, outputs in problems(kernel, dtype):
        judged = judge(spec, size, inputs, outputs)
        assert judged.error == "", size
        assert judged.margin <= 1


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize(("kernel", "dtype"), CASES)
def test_mutation_disagrees(kernel, dtype, mutation):
    mutants, constant = 0, True
    for spec, size, inputs, outputs in problems(kernel, dtype):
        for i, y in enumerate(outputs):
            constant &= y.numel() == 0 or is_same(y, y.reshape(-1)[0].expand_as(y))
            mutant = MUTATIONS[mutation](y)
            if not is_same(mutant, y):
                mutants += 1
                judged = judge(spec, size, inputs, (*outputs[:i], mutant, *outputs[i + 1 :]))
                assert judged.error.startswith(f"output {i}: "), size
                assert judged.margin > 1
    if constant and not mutants:
        pytest.skip("all elements of the output are the same by definition")
    if mutation == "last element NaN" and not dtype.is_floating_point:
        pytest.skip("integers have no NaN")
    assert mutants > 0


def sees_truncation(rule, dtype):
    """Whether a rule leaves no room for it. A sum's roundings in float32 take more, and those of
    an attention's scores and weights, and of what its gradients are made of."""
    if isinstance(rule, Unary):
        return rule.ulp < 1
    return (
        isinstance(rule, Exact)
        or dtype.itemsize == 2
        and not isinstance(rule, Attention | AttentionGradient)
    )


@pytest.mark.parametrize(("kernel", "dtype"), CASES)
def test_truncated_disagrees(kernel, dtype):
    rules, rounded, rejected = as_tuple(registry.spec(kernel).agreement), set(), set()
    for spec, size, inputs, outputs in problems(kernel, dtype):
        for i, want in enumerate(expected(spec, size, inputs)):
            rule = rules[i % len(rules)]
            if not want.dtype.is_floating_point or not sees_truncation(rule, want.dtype):
                continue
            mutant = truncated(want)
            if not is_same(mutant, outputs[i]):
                judged = judge(spec, size, inputs, (*outputs[:i], mutant, *outputs[i + 1 :]))
                rounded.add(i)
                rejected |= {i} if judged.error.startswith(f"output {i}: ") else set()
    if not rounded:
        pytest.skip("no output is rounded, or its rule leaves room for how")
    assert rejected == rounded  # not at each size: the few elements of one may lie near


def move(want, index):
    """The correctly rounded output with one element moved by ten times its bound, or by one bit."""
    y = want.value.to(want.dtype, copy=True)
    if want.bound is None:
        y.view(-1).view(torch.uint8)[index * y.element_size()] ^= 1
    else:
        y.view(-1)[index] = want.value.view(-1)[index] + 10 * want.bound.view(-1)[index]
    return y


def contiguous(want):
    """An expected output whose elements can be counted through."""
    bound = want.bound if want.bound is None else want.bound.contiguous()
    return replace(want, value=want.value.contiguous(), bound=bound)


@pytest.mark.parametrize(("kernel", "dtype"), CASES)
def test_one_element_moved_disagrees(kernel, dtype):
    moved = 0
    for spec, size, inputs, outputs in problems(kernel, dtype):
        for i, want in enumerate(map(contiguous, expected(spec, size, inputs))):
            count = want.value.numel()
            for index in {0, count // 2, count - 1} if count else ():
                if not want.value.view(-1)[index].isfinite():  # cannot be moved
                    continue
                mutant = move(want, index)
                judged = judge(spec, size, inputs, (*outputs[:i], mutant, *outputs[i + 1 :]))
                assert judged.error.startswith(f"output {i}: 1 of "), (size, index)
                moved += 1
    assert moved > 0


# One small problem a rule, of shape (rows, columns), for the properties below.


def rounded_sum(x, y):
    return x + y


def exponential(x):
    return torch.exp(x)


def row_sums(x, y):
    return x.sum(-1)


def inverse_norms(x, y):
    return 1 / x.square().sum(-1).sqrt()


def product(x, y):
    return x @ y.T


def softmax(x, y):
    return torch.softmax(x, -1)


RULES = {
    rounded_sum: Exact(),
    exponential: Unary(ulp=2),
    row_sums: Reduction("N"),
    inverse_norms: InverseRoot("N"),
    product: Contraction("N"),
    softmax: Composite(),
}


def problem(reference, dtype, seed, scale=1.0, shape=(3, 17), **stated):
    """A spec, its size and inputs of normal random numbers times `scale`.

    stated: what the spec says otherwise than here.
    """
    size = dict(zip("MN", shape, strict=True))
    usual = {
        "name": reference.__name__,
        "day": 1,
        "title": "",
        "reference": reference,
        "make_inputs": lambda *_: (),
        "work": lambda dtype, **size: Work(0, 0),
        "check_sizes": (),
        "bench_sizes": (size,),
        "headline": size,
        "dtypes": (dtype,),
        "agreement": RULES.get(reference),
        "baselines": {},
    }
    spec = KernelSpec(**usual | stated)
    g = generator("cpu", seed)
    x, y = ((scale * torch.randn(shape, generator=g)).to(dtype) for _ in range(2))
    return spec, size, (x,) if reference is exponential else (x, y)


references = st.sampled_from(list(RULES))
dtypes = st.sampled_from(FLOATS)
seeds = st.integers(0, 2**32 - 1)
scales = st.integers(-24, 12).map(lambda e: 2.0**e)  # subnormal in float16 up to overflow


@given(references, dtypes, seeds, scales)
def test_correctly_rounded_agrees_at_any_scale(reference, dtype, seed, scale):
    spec, size, inputs = problem(reference, dtype, seed, scale)
    assert judge(spec, size, inputs, perfect(spec, size, inputs)).error == ""


@given(references, dtypes, seeds, st.integers(0, 8))
def test_any_element_moved_disagrees(reference, dtype, seed, index):
    spec, size, inputs = problem(reference, dtype, seed)
    (want,) = expected(spec, size, inputs)
    index %= want.value.numel()
    assert judge(spec, size, inputs, move(want, index)).error.startswith("output 0: 1 of")


@given(dtypes, seeds, st.integers(1, 6), st.sampled_from((-1, 1)))
def test_unary_counts_units_in_the_last_place(dtype, seed, units, direction):
    spec, size, inputs = problem(exponential, dtype, seed)
    (want,) = expected(spec, size, inputs)
    ulp = want.bound / spec.agreement.ulp
    y = (want.value + direction * units * ulp).to(dtype)
    wrong = judge(spec, size, inputs, y).error != ""
    assert wrong == bool(((y.double() - want.value).abs() > 2 * ulp).any())
    assert wrong or units <= 2
    assert not wrong or units >= 2


def fma(x, y):
    """x · (1 + 2⁻⁷ + 2⁻⁹) + y: of 16 bits, rounded to float32 by the fma and again by the store."""
    return x * (1 + 2**-7 + 2**-9) + y


@given(dtypes, seeds, scales)
def test_half_a_unit_is_correct_rounding(dtype, seed, scale):
    spec, size, inputs = problem(fma, dtype, seed, scale, agreement=Unary(ulp=0.5))
    (want,) = expected(spec, size, inputs)
    through = torch.float32 if dtype.itemsize == 2 else torch.float64
    right = want.value.to(through).to(dtype)
    assert judge(spec, size, inputs, right).error == ""
    cut = truncated(want)
    away = (cut.double() - want.value).abs() > 1.001 * (right.double() - want.value).abs()
    assert (judge(spec, size, inputs, cut).error != "") == bool(away.any())


@given(st.sampled_from(FLOATS[1:]), seeds, scales, st.integers(-3, 3))
def test_units_of_float32_leave_sixteen_bits_one_rounding(dtype, seed, scale, units):
    spec, size, inputs = problem(fma, dtype, seed, scale, agreement=Function(ulp=4))
    (want,) = expected(spec, size, inputs)
    assume(want.value.abs().max() < 60_000)  # or the rounding decides what is infinite
    off = want.value.float()
    for _ in range(abs(units)):
        off = off.nextafter(torch.tensor(math.copysign(math.inf, units)))
    assert judge(spec, size, inputs, off.to(dtype)).error == ""
    cut = truncated(want)
    far = (cut.double() - want.value).abs() > 1.01 * want.bound
    assert (judge(spec, size, inputs, cut).error != "") == bool(far.any())


@given(dtypes, st.integers(1, 3000), seeds)
def test_sequential_fp32_sum_is_a_reduction(dtype, N, seed):
    spec, size, inputs = problem(row_sums, dtype, seed, shape=(1, N))
    total = torch.cumsum(inputs[0].float(), -1)[:, -1].to(dtype)  # the worst order there is
    assert judge(spec, size, inputs, total).error == ""


@given(dtypes, st.integers(1, 3000), seeds)
def test_root_of_a_sequential_fp32_sum_is_an_inverse_root(dtype, N, seed):
    spec, size, inputs = problem(inverse_norms, dtype, seed, shape=(1, N))
    squares = torch.cumsum(inputs[0].float().square(), -1)[:, -1]
    assert judge(spec, size, inputs, (1 / squares.sqrt()).to(dtype)).error == ""
    most = expected(spec, size, inputs)[0].bound / squares.double().rsqrt()
    assert most.max() < (3e-3 if dtype == torch.float32 else 2**-7)


@given(st.integers(1, 256), seeds)
def test_tf32_is_no_fp32_contraction(N, seed):
    spec, size, inputs = problem(product, torch.float32, seed, shape=(64, N))
    a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in inputs)  # 10 bits kept
    assert judge(spec, size, inputs, a @ b.T).error != ""


def test_small_elements_count_beside_a_large_one():
    spec, size, _ = problem(softmax, torch.float16, seed=0)
    x = torch.zeros(3, 17, dtype=torch.float16)
    x[:, 0] = 9  # the row's other elements are 1.2e-4, a quarter of the large one's rounding error
    (want,) = expected(spec, size, (x, x))
    y = want.value.half()
    y[:, 1:] *= 0.98
    assert judge(spec, size, (x, x), want.value.half()).error == ""
    assert judge(spec, size, (x, x), y).error.startswith("output 0: 48 of 51")


def test_exact_tells_signs_of_zero_apart_and_takes_any_nan():
    spec, size, _ = problem(rounded_sum, torch.float32, seed=0)
    x = torch.tensor([0.0, math.nan, math.inf])
    y = torch.tensor([-0.0, 1.0, 1.0])
    right = torch.tensor([0.0, -math.nan, math.inf])
    assert judge(spec, size, (x, y), right).error == ""
    assert judge(spec, size, (x, y), torch.tensor([-0.0, math.nan, math.inf])).error != ""


@pytest.mark.parametrize("reference", RULES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_where_the_oracle_is_finite(reference, value):
    spec, size, inputs = problem(reference, torch.float32, seed=0)
    (y,) = perfect(spec, size, inputs)
    y.view(-1)[1] = value
    assert judge(spec, size, inputs, y).error.startswith("output 0: 1 of")


@pytest.mark.parametrize("reference", [row_sums, product, softmax], ids=lambda f: f.__name__)
def test_finite_where_the_oracle_is_not(reference):
    spec, size, inputs = problem(reference, torch.float32, seed=0)
    inputs[0][1] = math.nan
    (y,) = perfect(spec, size, inputs)
    assert y[1].isnan().all()
    assert judge(spec, size, inputs, y).error == ""
    assert judge(spec, size, inputs, y.nan_to_num(0)).error != ""


def test_form_of_the_outputs():
    spec, size, inputs = problem(softmax, torch.float32, seed=0)
    (y,) = perfect(spec, size, inputs)
    for outputs, error in (
        ((y, y), "1 output(s) must come back, got 2"),
        (None, "output 0: must be a torch tensor, got NoneType"),
        (y.half(), "output 0: must have dtype float32, got float16"),
        (y.T, "output 0: must have shape (3, 17), got (17, 3)"),
        (y.to("meta"), "output 0: must be on device cpu, got meta"),
    ):
        judged = judge(spec, size, inputs, outputs)
        assert judged.error == error
        assert judged.margin == math.inf


def test_integer_outputs_are_exact():
    spec, size, (x, y) = problem(rounded_sum, torch.float32, seed=0)
    x, y = x.int(), y.int()
    assert judge(spec, size, (x, y), x + y).error == ""
    assert judge(spec, size, (x, y), x + y + (x > 0)).error != ""
    assert as_tuple(x) == (x,)


# Rules, one an output.


def copy_and_sums(x, y):
    return x.clone(), x.sum(-1)


EACH = (Exact(), Reduction("N"))


@given(seeds)
def test_each_output_is_judged_by_its_own_rule(seed):
    spec, size, inputs = problem(copy_and_sums, torch.float32, seed, agreement=EACH)
    outputs = perfect(spec, size, inputs)
    wanted = expected(spec, size, inputs)
    assert [want.bound is None for want in wanted] == [True, False]
    assert judge(spec, size, inputs, outputs).error == ""
    for i, want in enumerate(wanted):
        wrong = (*outputs[:i], move(want, 0), *outputs[i + 1 :])
        assert judge(spec, size, inputs, wrong).error.startswith(f"output {i}: 1 of")
    # half of its bound is allowed to a sum, and one bit is too much for a copy
    near = wanted[1].value + wanted[1].bound / 2
    assert judge(spec, size, inputs, (outputs[0], near.float())).error == ""
    bit = (outputs[0].view(torch.int32) ^ 1).view(torch.float32)
    assert judge(spec, size, inputs, (bit, outputs[1])).error.startswith("output 0: ")


def test_rules_of_outputs_are_named_in_their_order():
    spec, _, _ = problem(copy_and_sums, torch.float32, seed=0, agreement=EACH)
    assert rule_name(spec) == "exact, reduction"


@pytest.mark.parametrize("rules", [EACH[:1], (*EACH, Exact())], ids=len)
def test_as_many_rules_as_outputs_are_needed(rules):
    spec, size, inputs = problem(copy_and_sums, torch.float32, seed=0, agreement=rules)
    with pytest.raises(ValueError, match="copy_and_sums must have a rule for each of 2 outputs"):
        judge(spec, size, inputs, perfect(spec, size, inputs))


def mean_square(x, y):
    """Of x less its mean, which `reference(|x|)` says nothing about where x has both signs."""
    return (x - x.mean(-1, keepdim=True)).square().sum(-1)


def its_magnitude(x, y):
    return (x + x.mean(-1, keepdim=True)).square().sum(-1)


def test_a_spec_may_say_what_errors_are_measured_by():
    stated = {"agreement": Reduction("N"), "magnitude": its_magnitude}
    spec, size, (x, y) = problem(mean_square, torch.float32, seed=0, **stated)
    x, inputs = x.abs() + 100, (x.abs() + 100, y)
    (want,) = expected(spec, size, inputs)
    u = 2.0**-24
    magnitude = its_magnitude(x.double(), None)
    bound = 8 * math.sqrt(17) * u * magnitude + u * mean_square(x.double(), None)
    torch.testing.assert_close(want.bound, bound)
    y = (want.value + want.bound / 2).float()
    assert judge(spec, size, inputs, y).error == ""
    without, _, _ = problem(mean_square, torch.float32, seed=0, agreement=Reduction("N"))
    assert judge(without, size, inputs, y).error.startswith("output 0: ")
