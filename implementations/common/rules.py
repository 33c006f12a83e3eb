"""How an output y is judged against the float64 oracle ŷ of the same rounded inputs.

A spec names one rule, or one for each output. u is the unit roundoff of the output's dtype, u_a
that of the fp32 accumulator, and r = u·max(|ŷ|, smallest normal number) the rounding of the
result, subnormals included.
"""

import math
from dataclasses import dataclass

import torch

U_ACC = 2.0**-24
MOST_AT_ONCE = 2**28  # of elements in a part of a bound


@dataclass(frozen=True)
class Oracle:
    """One output as the reference has it.

    value: ŷ, float64 unless it holds integers or bools. own: torch's result in the kernel's dtype.
    magnitude: as ŷ, of the inputs' magnitudes, where the rule asks for it. size: the cell's.
    """

    value: torch.Tensor
    own: torch.Tensor
    magnitude: torch.Tensor | None
    size: dict

    @property
    def rounding(self) -> torch.Tensor:
        info = torch.finfo(self.own.dtype)
        return self.value.abs().clamp_min_(info.tiny).mul_(info.eps / 2)


@dataclass(frozen=True)
class OracleOfInputs(Oracle):
    """With what the kernel was given, where a magnitude does not tell enough of it.

    gradient: with respect to its first output, where it is one that torch differentiates.
    """

    inputs: tuple
    gradient: torch.Tensor | None = None


class Rule:
    """A rule gives the largest error allowed. needs_magnitude: whether it asks for that."""

    needs_magnitude = False

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def bound(self, oracle: Oracle) -> torch.Tensor | None:
        """The largest |y - ŷ|, in the shape of ŷ; None: bit-equal to ŷ rounded to the dtype."""
        raise NotImplementedError

    def rms(self, oracle: Oracle) -> float:
        """The largest relative rms error."""
        return math.inf


@dataclass(frozen=True)
class Exact(Rule):
    """Bit-equal to ŷ rounded to the output's dtype. So are all outputs of integers and bools."""

    def bound(self, oracle):
        return None


@dataclass(frozen=True)
class Unary(Rule):
    """|y - ŷ| ≤ ulp units in the last place of ŷ, and half of one of each wider format: of float64,
    as ŷ is, and of float32, from which a result of 16 bits is rounded.

    4: the documented accuracy of a function. 0.5: rounded correctly, as one fused multiplication
    and addition is; what is cut off instead lies up to 1 away.
    """

    ulp: float = 4

    def bound(self, oracle):
        dtype = oracle.own.dtype
        wider = [w for w in (torch.float32, torch.float64) if w.itemsize > dtype.itemsize]
        halves = sum(_unit(oracle.value, each) / 2 for each in wider)
        return self.ulp * _unit(oracle.value, dtype) + halves


@dataclass(frozen=True)
class Function(Rule):
    """|y - ŷ| ≤ ulp units in the last place of float32, in which a function is calculated, half of
    one of float64, as ŷ is, and half of one of 16 bits, to which the result is then rounded.

    ulp: what the documented accuracy of the functions that are called amounts to.
    """

    ulp: float

    def bound(self, oracle):
        rounded = {oracle.own.dtype, torch.float64} - {torch.float32}
        halves = sum(_unit(oracle.value, each) / 2 for each in rounded)
        return self.ulp * _unit(oracle.value, torch.float32) + halves


@dataclass(frozen=True)
class Reduction(Rule):
    """|y - ŷ| ≤ 8·√terms·u_a·Σ|x| + r, where the size's dimension `terms` is summed over.

    8·√terms: roundings go up as often as down (Higham and Mary, SIAM J. Sci. Comput. 41, 2019).
    """

    terms: str
    needs_magnitude = True

    def bound(self, oracle):
        count = oracle.size[self.terms]
        return 8 * math.sqrt(count) * U_ACC * oracle.magnitude + oracle.rounding


@dataclass(frozen=True)
class InverseRoot(Rule):
    """|y - ŷ| ≤ (4·√terms + 4)·u_a·|ŷ| + r, where ŷ is one over the root of a sum whose terms, as
    many as the size's dimension `terms`, are not negative.

    Such a sum is as accurate relatively as a Reduction is, 8·√terms·u_a, which the root halves; 4:
    quotients, roots and what is added to the sum are rounded.
    """

    terms: str

    def bound(self, oracle):
        share = 4 * math.sqrt(oracle.size[self.terms]) + 4
        return share * U_ACC * oracle.value.abs() + oracle.rounding


@dataclass(frozen=True)
class Contraction(Reduction):
    """|y - ŷ| ≤ 8·√terms·u_a·(|A||B|) + r.

    Tensor cores truncate, on Hopper by at most 2·u_a·Σ|x| for every 16 terms: within the bound up
    to 4096 terms even if each took the most.
    """


@dataclass(frozen=True)
class Composite(Rule):
    """Row by row, |y - ŷ| ≤ 2·max e + 8·u_a·max|ŷ| + r, and the relative rms error at most twice
    torch's plus 2·u.

    e is the error beyond r of torch in the same dtype: r itself, at a row's largest element, would
    hide its small ones.
    """

    def bound(self, oracle):
        error = (_error(oracle) - oracle.rounding).clamp_min_(0)
        return 2 * _row_max(error) + 8 * U_ACC * _row_max(oracle.value.abs()) + oracle.rounding

    def rms(self, oracle):
        return 2 * relative_rms(_error(oracle), oracle.value) + torch.finfo(oracle.own.dtype).eps


@dataclass(frozen=True)
class Attention(Composite):
    """Of q, k, v, causal and scale, where weights p, and scores s if `rounded_scores`, are rounded
    to 16 bits: |y - ŷ| ≤ min(Σ e·|v|, 8·√(2·Σ e²·(v² + ŷ²))) + 8·√N·u_a·Σ p·|v| + r, summed over
    the keys, and the relative rms error at most as of a Composite, and an eighth of the last sum.

    A score's error is δ = u·|s| + 8·√D·u_a·scale·|q|·|k| + 4·u_a·(1 + max s - s): rounded, from a
    sum, and as an argument of exp. A weight becomes at most g·p, where g = exp(δ)·Σ p·exp(δ), and
    is rounded: e = g·(p + u·max(p, smallest normal number)) - p. All may go one way, if they are
    few; as they go up as often as down, their sum is beyond 8 times its root mean square in one of
    10¹³ (Hoeffding, J. Am. Stat. Assoc. 58, 1963).
    """

    rounded_scores: bool = True

    def bound(self, oracle):
        bound, v = oracle.rounding, _of_all_heads(oracle.inputs[2], oracle)
        for rows, p, delta in _weights(oracle, self.rounded_scores):
            e = _growth(p, delta).mul_(_rounded(p, oracle)).sub_(p)
            all_one_way, square = e @ v.abs(), oracle.value[..., rows, :] ** 2
            square *= e.square_().sum(-1, keepdim=True)
            usual = 8 * (2 * (e @ v.square() + square)).sqrt_()
            bound[..., rows, :] += torch.minimum(all_one_way, usual)
        return bound.add_(self._sums(oracle))

    def rms(self, oracle):
        return super().rms(oracle) + relative_rms(self._sums(oracle) / 8, oracle.value)

    def _sums(self, oracle):
        """What the sums over the keys are off by."""
        sums, v = torch.zeros_like(oracle.value), _of_all_heads(oracle.inputs[2], oracle).abs_()
        for rows, p, _ in _weights(oracle, self.rounded_scores):
            sums[..., rows, :] = 8 * math.sqrt(p.shape[-1]) * U_ACC * (p @ v)
        return sums


@dataclass(frozen=True)
class LogSumExp(Rule):
    """Of the same inputs: |y - ŷ| ≤ log Σ p·exp(δ) + 8·√N·u_a + 4·u_a·(1 + |ŷ|) + r, where y is the
    logarithm of the sum of exp(s) over the keys, and s is not rounded."""

    def bound(self, oracle):
        bound = oracle.rounding + 4 * U_ACC * (1 + oracle.value.abs())
        for rows, p, delta in _weights(oracle, rounded=False):
            bound[..., rows] += (p * delta.exp_()).sum(-1).log_()
            bound[..., rows] += 8 * math.sqrt(p.shape[-1]) * U_ACC
        return bound


@dataclass(frozen=True)
class AttentionGradient(Composite):
    """Of q, k, v, o, (lse,) do, causal and scale, the gradient with respect to q, k or v, named by
    `of`. With δ and g as of Attention, dp = do·vᵀ, and ds = p·(dp - Σ o·do), which is rounded to 16
    bits as p is:

    |y - ŷ| ≤ min(Σ e·|x|, 8·√(2·Σ e²·x²)) + Σ f·|x| + 8·√terms·u_a·Σ |w|·|x| + r, summed over the
    keys for q and over the queries for k and v; w is ds, ds and p, x is k, q and do, and all but
    v's is times the scale. e is what rounding w to 16 bits costs, and f too, if `rounded_scores`.
    f is what calculating w in fp32 costs: (g - 1)·|w|, and of ds also g·p·(8·√D·u_a·(|do|·|v| +
    Σ |o|·|do|) + 2·u_a·(|dp| + |Σ o·do|)). The relative rms error is at most as of a Composite, and
    an eighth of what fp32 costs.

    If `own_forward`, it is of q, k, v, causal and scale, with do as the oracle's gradient: o is off
    by what Attention allows, ε, and lse, beyond what g has, by η = max δ / 8 + 16·√N·u_a, as |lse|
    is at most max δ / (8·√D·u_a) + log N. Then δ is larger by η, and what Σ o·do costs by Σ ε·|do|.
    """

    of: str
    rounded_scores: bool = False
    own_forward: bool = False

    def bound(self, oracle):
        wide, all_one_way, square = self._errors(oracle)
        usual = square.mul_(2).sqrt_().mul_(8)
        return torch.minimum(all_one_way, usual).add_(wide).add_(oracle.rounding)

    def rms(self, oracle):
        wide, *_ = self._errors(oracle)
        return super().rms(oracle) + relative_rms(wide / 8, oracle.value)

    def _errors(self, oracle):
        """What fp32 costs; what 16 bits cost, if all roundings go one way; and their squares."""
        q, k, v, *given, causal, scale = oracle.inputs
        o, do = (None, oracle.gradient) if self.own_forward else (given[0], given[-1])
        groups, D = q.shape[1] // max(1, k.shape[1]), q.shape[-1]
        k, v = (_of_all_heads(x, oracle) for x in (k, v))
        over_keys, factor = self.of == "q", 1 if self.of == "v" else abs(scale)
        N = k.shape[-2]
        terms = N if over_keys else q.shape[-2] * groups
        shape = (q if over_keys else k).shape
        found = torch.zeros(3, *shape, dtype=torch.float64, device=q.device)
        for rows, p, delta in _weights(oracle, self.rounded_scores):
            part = do[..., rows, :].double()
            if self.own_forward:
                eta = delta.amax(-1, keepdim=True) / 8 + 16 * math.sqrt(N) * U_ACC
                delta.add_(eta).masked_fill_(p == 0, 0)
            growth = _growth(p, delta)
            if self.of == "v":
                w, x, inner = p, part, 0
            else:
                x = k if over_keys else q[..., rows, :].double()
                o_part = p @ v if self.own_forward else o[..., rows, :].double()
                dp, sums = part @ v.mT, (o_part * part).sum(-1, keepdim=True)
                of_sums = part.abs() @ v.abs().mT + (o_part * part).abs().sum(-1, keepdim=True)
                inner = 8 * math.sqrt(D) * U_ACC * of_sums + 2 * U_ACC * (dp.abs() + sums.abs())
                if self.own_forward:
                    inner += self._off(o_part, p, growth, v, oracle).mul_(part.abs()).sum(-1, True)
                w = (p * (dp - sums)).abs()
            rounding = growth * (_rounded(w, oracle) - w)
            calculated = growth * (w + p * inner) - w
            narrow = rounding + calculated if self.rounded_scores else rounding
            wide = calculated + 8 * math.sqrt(terms) * U_ACC * w
            for i, (errors, others) in enumerate(
                ((wide, x.abs()), (narrow, x.abs()), (narrow**2, x**2))
            ):
                at = found[i, ..., rows, :] if over_keys else found[i]
                at += (errors if over_keys else errors.mT) @ others
        found[:2] *= factor
        found[2] *= factor**2
        if not over_keys and groups > 1:
            found = found.unflatten(2, (-1, groups)).sum(3)
        return found

    @staticmethod
    def _off(o, p, growth, v, oracle):
        """By how much some rows of o may be off, as of Attention."""
        e = growth * _rounded(p, oracle) - p
        squares = e.square() @ v.square() + o.square() * e.square().sum(-1, keepdim=True)
        usual = squares.mul_(2).sqrt_().mul_(8)
        sums = 8 * math.sqrt(p.shape[-1]) * U_ACC * (p @ v.abs())
        return torch.minimum(e @ v.abs(), usual) + sums + (_rounded(o.abs(), oracle) - o.abs())


def _of_all_heads(x: torch.Tensor, oracle: Oracle) -> torch.Tensor:
    """Keys or values in float64, those of a head of queries each."""
    heads = oracle.inputs[0].shape[1]
    return x.double().repeat_interleave(heads // max(1, x.shape[1]), 1)


def _weights(oracle: Oracle, rounded: bool):
    """For some queries at once: where they are, their weights, and δ of the scores.

    rounded: whether the scores are rounded to 16 bits.
    """
    q, k, *_, causal, scale = oracle.inputs
    k = _of_all_heads(k, oracle)
    (B, H, M, D), N = q.shape, k.shape[-2]
    if q.numel() == 0 or N == 0:
        return
    u = torch.finfo(q.dtype).eps / 2 if rounded else 0
    step = max(1, MOST_AT_ONCE // (B * H * max(N, D)))
    for m in range(0, M, step):
        part = q[..., m : m + step, :].double()
        s = scale * part @ k.mT
        delta = u * s.abs() + 8 * math.sqrt(D) * U_ACC * abs(scale) * (part.abs() @ k.abs().mT)
        if causal:
            hidden = torch.ones_like(s[0, 0], dtype=torch.bool).triu_(N - M + 1 + m)
            s.masked_fill_(hidden, -math.inf)
        delta += 4 * U_ACC * (1 + s.amax(-1, keepdim=True) - s)
        p = torch.softmax(s, -1).nan_to_num_(nan=0)  # of a query that sees no key
        yield slice(m, m + step), p, delta.masked_fill_(p == 0, 0)


def _growth(p: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """How many times as large weights may be, 0 where they are 0: g of Attention."""
    growth = delta.exp().masked_fill_(p == 0, 0)
    return growth.mul_((p * growth).sum(-1, keepdim=True))


def _rounded(w: torch.Tensor, oracle: Oracle) -> torch.Tensor:
    """The largest that positive numbers may be after they are rounded to 16 bits."""
    info = torch.finfo(oracle.inputs[0].dtype)
    return w + info.eps / 2 * w.clamp_min(info.tiny)


def _unit(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The unit in the last place of each element of a float64 tensor in a dtype, as float64."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(value.abs().clamp_min_(info.tiny))
    return torch.ldexp(torch.full_like(value, info.eps / 2), exponent)


def relative_rms(error: torch.Tensor, value: torch.Tensor) -> float:
    """‖error‖ / ‖value‖ over what is finite in `value`; 0 where both are 0."""
    above = float(torch.linalg.vector_norm(error))
    below = float(torch.linalg.vector_norm(value.masked_fill(~value.isfinite(), 0)))
    return above / below if below else math.inf if above else 0.0


def _error(oracle: Oracle) -> torch.Tensor:
    return (oracle.own.double() - oracle.value).abs_().nan_to_num_(nan=0, posinf=0)


def _row_max(x: torch.Tensor) -> torch.Tensor:
    """The largest finite element of each row (last dimension), kept as a column."""
    x = x.masked_fill(~x.isfinite(), 0)
    return x.amax(-1, keepdim=True) if x.ndim and x.numel() else x
