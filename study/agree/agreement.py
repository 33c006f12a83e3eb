"""Judges outputs against a float64 oracle, by the rules that the kernels' specs name."""

import math
from dataclasses import dataclass, replace
from inspect import signature

import torch
from torch.utils._pytree import tree_map_only

from implementations.common.check import dtype_name
from implementations.common.rules import Exact, Oracle, OracleOfInputs, Rule, relative_rms
from implementations.common.spec import KernelSpec, Size


@dataclass(frozen=True)
class Judgement:
    """How near the outputs are.

    margin: the largest error over its bound; at most 1 where all agree.
    rms: the relative rms error.
    error: why they disagree, "" where they agree.
    """

    margin: float
    rms: float
    error: str


@dataclass(frozen=True)
class Expected:
    """One output as it must be.

    value: ŷ, in float64 unless it holds integers or bools.
    dtype: the output's.
    bound: the largest error allowed, in ŷ's shape; None: bit-equal to ŷ rounded to `dtype`.
    rms: the largest relative rms error allowed.
    """

    value: torch.Tensor
    dtype: torch.dtype
    bound: torch.Tensor | None
    rms: float = math.inf


def judge(spec: KernelSpec, size: Size, inputs: tuple, outputs, *, each: bool = False) -> Judgement:
    """Judge what the kernel gave for `inputs`: `outputs`, a tensor, or a tuple or list of them.

    each: judge each element, and no mean, where few elements may be left to take it of.
    """
    wanted, got = expected(spec, size, inputs), as_tuple(outputs)
    if len(got) != len(wanted):
        return Judgement(
            math.inf, math.inf, f"{len(wanted)} output(s) must come back, got {len(got)}"
        )
    if each:
        wanted = [replace(want, rms=math.inf) for want in wanted]
    judged = [compare(want, y) for want, y in zip(wanted, got, strict=True)]
    errors = [f"output {i}: {j.error}" for i, j in enumerate(judged) if j.error]
    margin, rms = (max((getattr(j, of) for j in judged), default=0) for of in ("margin", "rms"))
    return Judgement(margin, rms, "; ".join(errors))


def expected(spec: KernelSpec, size: Size, inputs: tuple) -> list[Expected]:
    """What each output must be: the oracle on the inputs upcast to float64, and its bound."""
    reference, parameters = spec.called(spec.reference), signature(spec.reference).parameters
    own = as_tuple(reference(*inputs))  # torch in the same dtype
    values = as_tuple(reference(*_each(inputs, torch.Tensor.double)))
    rules = spec.agreement if isinstance(spec.agreement, tuple) else (spec.agreement,) * len(own)
    inputs, (gradient, *_) = inputs[: len(parameters)], (*inputs[len(parameters) :], None)
    if spec.make_gradient and gradient is None:
        rules = rules[:1]
    if len(rules) != len(own):
        raise ValueError(f"{spec.name} must have a rule for each of {len(own)} outputs")
    magnitudes = (None,) * len(own)
    if any(rule.needs_magnitude for rule in rules):
        magnitude = spec.magnitude or spec.reference
        magnitudes = as_tuple(magnitude(*_each(inputs, lambda x: x.double().abs())))
    return [
        _expect(rule, OracleOfInputs(value, y, magnitude, size, inputs, gradient))
        for rule, value, y, magnitude in zip(rules, values, own, magnitudes, strict=True)
    ]


def _expect(rule: Rule, oracle: Oracle) -> Expected:
    if not oracle.own.dtype.is_floating_point:
        rule = Exact()
    return Expected(oracle.value, oracle.own.dtype, rule.bound(oracle), rule.rms(oracle))


def rule_name(spec: KernelSpec) -> str:
    """The rule of a kernel, or those of its outputs, as text."""
    return ", ".join(rule.name for rule in as_tuple(spec.agreement))


def compare(want: Expected, y: torch.Tensor) -> Judgement:
    """Judge one output. NaN and infinities must stand where ŷ rounded to the dtype has them."""
    if error := _form_error(want, y):
        return Judgement(math.inf, math.inf, error)
    if y.numel() == 0:
        return Judgement(0, 0, "")

    value, rounded = want.value.double(), want.value.to(want.dtype)
    same = (y == rounded) & (y.signbit() == rounded.signbit()) | y.isnan() & rounded.isnan()
    if want.bound is None and bool(same.all()):  # the rest takes memory that huge sizes have not
        return Judgement(0, 0, "")
    finite = y.isfinite() & rounded.isfinite()
    error = (y.double() - value).abs_().masked_fill_(~finite, 0)
    rms = relative_rms(error, value)
    if want.bound is None:
        ratio = torch.where(same, 0.0, math.inf)
    else:
        ratio = (error / want.bound).masked_fill_(error == 0, 0)
        ratio.masked_fill_(~(finite | same), math.inf)

    worst = ratio.argmax()
    margin = float(ratio.flatten()[worst])
    if margin > 1:
        at = tuple(int(i) for i in torch.unravel_index(worst, y.shape))
        times = f", {margin:.3g} times the bound" if math.isfinite(margin) else ""
        text = (
            f"{int((ratio > 1).sum())} of {y.numel()} elements are wrong, most that at {at}: "
            f"{y[at].item():.8g} instead of {value[at].item():.8g}{times}"
        )
        return Judgement(margin, rms, text)
    if rms > want.rms:
        text = f"the relative rms error must be at most {want.rms:.3g}, got {rms:.3g}"
        return Judgement(rms / want.rms, rms, text)
    return Judgement(max(margin, rms / want.rms), rms, "")


def _form_error(want: Expected, y) -> str:
    if not isinstance(y, torch.Tensor):
        return f"must be a torch tensor, got {type(y).__name__}"
    if y.dtype != want.dtype:
        return f"must have dtype {dtype_name(want.dtype)}, got {dtype_name(y.dtype)}"
    if y.shape != want.value.shape:
        return f"must have shape {tuple(want.value.shape)}, got {tuple(y.shape)}"
    if y.device != want.value.device:
        return f"must be on device {want.value.device}, got {y.device}"
    return ""


def _each(inputs: tuple, convert) -> tuple:
    """`inputs` with the floating-point tensors, those in lists too, converted."""
    return tree_map_only(
        torch.Tensor, lambda x: convert(x) if x.dtype.is_floating_point else x, inputs
    )


def as_tuple(outputs) -> tuple:
    """One output as a tuple of one, a list of outputs as a tuple."""
    return tuple(outputs) if isinstance(outputs, list | tuple) else (outputs,)
