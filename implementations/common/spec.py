"""What a kernel's spec states: formula, inputs, work, sizes, and how agreement is judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch

Size = Mapping[str, int]  # the named dimensions of one problem, e.g. {"M": 4096, "N": 8192}


@dataclass(frozen=True)
class Work:
    """The compulsory work of one call.

    bytes: each input read once and each output written once.
    flops: the operations of the mathematics, not of an implementation.
    limit: the measured ceiling that bounds the kernel: "copy", "read" or "write" of as many bytes,
        or "matmul", cuBLAS at as many flops.
    """

    bytes: int
    flops: int
    limit: str = "copy"

    @property
    def unit(self) -> str:
        """What speed is stated in: "GB/s", or "TFLOP/s" where flops bound the kernel."""
        return "TFLOP/s" if self.limit == "matmul" else "GB/s"

    def speed(self, microseconds: float) -> float:
        """This work done in `microseconds`, in `unit`."""
        return (
            self.bytes / microseconds / 1e3
            if self.unit == "GB/s"
            else self.flops / microseconds / 1e6
        )


@dataclass(frozen=True)
class Agreement:
    """How an output y is judged against the float64 oracle ŷ of the same rounded inputs.

    rule, with u the unit roundoff of the output's dtype, u_a = 2⁻²⁴ that of the fp32 accumulator,
    and r = u·max(|ŷ|, smallest normal number) the rounding of the result, subnormals included:
        exact        bit-equal to ŷ rounded to the output's dtype
        unary        |y - ŷ| ≤ ulp units in the last place of ŷ
        reduction    |y - ŷ| ≤ 8·√terms·u_a·Σ|x| + r
        contraction  |y - ŷ| ≤ 8·√terms·u_a·(|A||B|) + r
        composite    row by row, |y - ŷ| ≤ 2·max e + 8·u_a·max|ŷ| + r, and the relative rms error at
                     most twice torch's plus 2·u; e is the error beyond r of torch in the same dtype
                     (r itself, at a row's largest element, would hide its small ones)
    8·√terms: roundings go up as often as down (Higham and Mary, SIAM J. Sci. Comput. 41, 2019).
    Tensor cores truncate instead, on Hopper by at most 2·u_a·Σ|x| for every 16 terms: within the
    bound up to 4096 terms even if each took the most.
    terms: the name of the size's dimension that is summed over (reduction, contraction).
    ulp: the documented accuracy (unary).
    """

    rule: str
    terms: str | None = None
    ulp: int = 4


EXACT = Agreement("exact")
COMPOSITE = Agreement("composite")
SCALES = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)  # of a softmax's inputs


@dataclass(frozen=True)
class KernelSpec:
    """One kernel of the curriculum; the registry finds it as `SPEC` in `<name>.py`.

    reference: the formula in torch; float64 inputs make it the oracle. Its name and parameters are
        the interface of every backend.
    make_inputs: `(dtype, device, seed, **size)` → the reference's arguments, able to expose a bug.
    work: `(dtype, **size)` → Work.
    check_sizes: small and ragged, together reaching every branch of all backends.
    bench_sizes: what is timed in the first dtype. headline: the one the report's first table shows.
    dtypes: input dtypes. agreement: the rule and its parameters.
    baselines: what a user would call instead, by name, the main one first.
    other_sizes: what is timed in the other dtypes; the headline only, unless stated.
    huge_sizes: of more than 2³¹ elements, checked on a GPU in the last dtype.
    traffic: `(dtype, **size)` → the bytes that memory moves by the day's model, where these may be
        more than the compulsory ones; drawn beside the measured speed.
    warm: whether it is also timed on data that the call before left in the L2.
    refused: by what is wrong, a function from right arguments to such as every backend refuses, of
        those that are no tensors (for tensors the tests know themselves what to try).
    machine_code: what it must hold in every backend at the headline size, of "wide loads" and "wide
        stores" (128 bits a thread) and "tensor cores".
    sources: papers and pages the kernel follows.
    scales: what its inputs are multiplied by in the stability study.
    """

    name: str
    day: int
    title: str
    reference: Callable
    make_inputs: Callable[..., tuple]
    work: Callable[..., Work]
    check_sizes: tuple[Size, ...]
    bench_sizes: tuple[Size, ...]
    headline: Size
    dtypes: tuple[torch.dtype, ...]
    agreement: Agreement
    baselines: Mapping[str, Callable]
    other_sizes: tuple[Size, ...] = ()
    huge_sizes: tuple[Size, ...] = ()
    traffic: Callable[..., int] | None = None
    warm: bool = False
    refused: Mapping[str, Callable[..., tuple]] = field(default_factory=dict)
    machine_code: tuple[str, ...] = ("wide loads", "wide stores")
    sources: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()

    def __post_init__(self):
        if self.headline not in self.bench_sizes:
            raise ValueError(f"{self.name}: headline {self.headline} is not among its bench_sizes")

    def timed_sizes(self, dtype: torch.dtype) -> tuple[Size, ...]:
        """The sizes that are timed in one of `dtypes`."""
        return self.bench_sizes if dtype == self.dtypes[0] else self.other_sizes or (self.headline,)


def compiled(function: Callable) -> Callable:
    """`torch.compile(function)`, built at the first call: importing a spec stays cheap."""

    @cache
    def build():
        torch._dynamo.config.recompile_limit = 1000  # beyond it a new size would not be compiled
        return torch.compile(function, dynamic=False)

    def call(*args):
        return build()(*args)

    return call


def by_cupy(name: str, **options) -> Callable:
    """CuPy's own function `name` of torch tensors: in torch's memory, on its current stream.

    Raises Unavailable for bfloat16, which CuPy lacks.
    """

    def call(*args):
        import cupy

        from implementations.common.registry import Unavailable

        if any(x.dtype == torch.bfloat16 for x in args):
            raise Unavailable("CuPy has no bfloat16")
        memory = cupy.cuda.PythonFunctionAllocator(
            torch.cuda.caching_allocator_alloc,
            lambda pointer, device: torch.cuda.caching_allocator_delete(pointer),
        )
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
        with stream, cupy.cuda.using_allocator(memory.malloc):
            arrays = (cupy.asarray(x) for x in args)
            return torch.as_tensor(getattr(cupy, name)(*arrays, **options), device="cuda")

    return call


def generator(device: str | torch.device, seed: int) -> torch.Generator:
    """A torch generator on `device`, seeded."""
    return torch.Generator(device=device).manual_seed(seed)
