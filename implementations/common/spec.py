"""What a kernel's spec states: formula, inputs, work, sizes, and how agreement is judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from implementations.common.rules import Rule
from implementations.common.tuning import Tuning

# The named dimensions of one problem, e.g. {"M": 4096, "N": 8192}, and the flags and scalars that
# belong to it, e.g. {"N": 4096, "causal": True, "p": 0.1}: all are passed to `make_inputs` and
# `work` by name, and stand as text in data/ as "N=4096,causal=True,p=0.1".
Size = Mapping[str, int | bool | float]


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


SCALES = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)  # of a softmax's inputs


@dataclass(frozen=True)
class KernelSpec:
    """One kernel of the curriculum; the registry finds it as `SPEC` in `<name>.py`.

    reference: the formula in torch; float64 inputs make it the oracle. Its name and parameters are
        the interface of every backend.
    make_inputs: `(dtype, device, seed, **size)` → the reference's arguments, able to expose a bug.
    make_gradient: `(dtype, device, seed, **size)` → the gradient with respect to the output, of a
        kernel that torch differentiates; None at sizes at which it is only called.
    work: `(dtype, **size)` → Work, its backward included.
    check_sizes: small and ragged, together reaching every branch of all backends.
    bench_sizes: what is timed in the first dtype. headline: the one the report's first table shows.
    dtypes: input dtypes. agreement: the rule of its output, or one for each output.
    magnitude: the same parameters → what errors are measured by, an output each, where the
        reference of the inputs' magnitudes is no bound.
    baselines: what a user would call instead, by name, the main one first.
    random_baselines: those of them that draw other numbers, and so give other bits, at each call.
    modes: those of them that are an implementation in another mode, each with its backend.
    other_sizes: what is timed in the other dtypes; the headline only, unless stated.
    more_sizes: checked as well on a GPU, on which they take no time.
    huge_sizes: of more than 2³¹ elements, or as many as are taken, checked on a GPU in the last
        dtype.
    limits: by dimension, a size in which it is the largest that every backend takes, as grids and
        32-bit numbers end; one more is refused. A dimension that has none may be any int.
    traffic: `(dtype, **size)` → the bytes that memory moves by the day's model, where these may be
        more than the compulsory ones; drawn beside the measured speed.
    workspace: `(gpu, dtype, **size)` → the bytes that a call allocates beside its outputs on a GPU
        of such Properties, the same in all backends, where the day is about these.
    not_finite: `(**size)` → the parameters that are also checked with NaN and infinities; all
        unless stated.
    counted: sizes of which the hardware's counters are read beside the headline.
    warm: whether it is also timed on data that the call before left in the L2.
    refused: by what is wrong, a function from right arguments to such as every backend refuses, of
        those that are no tensors (for tensors the tests know themselves what to try).
    machine_code: what it must hold in every backend at the headline size, of "wide loads" and "wide
        stores" (128 bits a thread) and "tensor cores".
    sources: papers and pages the kernel follows.
    scales: what its inputs are multiplied by in the stability study.
    ladder: the figure that it is a rung of, "" for none; rungs are in the order of the days.
    tuning: the configurations that `study tune` searches, at its bench_sizes.
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
    agreement: Rule | tuple[Rule, ...]
    baselines: Mapping[str, Callable]
    random_baselines: tuple[str, ...] = ()
    modes: Mapping[str, str] = field(default_factory=dict)
    make_gradient: Callable | None = None
    magnitude: Callable | None = None
    other_sizes: tuple[Size, ...] = ()
    more_sizes: tuple[Size, ...] = ()
    huge_sizes: tuple[Size, ...] = ()
    limits: Mapping[str, Size] = field(default_factory=dict)
    traffic: Callable[..., int] | None = None
    workspace: Callable[..., int] | None = None
    not_finite: Callable[..., tuple[str, ...]] | None = None
    counted: tuple[Size, ...] = ()
    warm: bool = False
    refused: Mapping[str, Callable[..., tuple]] = field(default_factory=dict)
    machine_code: tuple[str, ...] = ("wide loads", "wide stores")
    sources: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    ladder: str = ""
    tuning: Tuning | None = None

    def __post_init__(self):
        if self.headline not in self.bench_sizes:
            raise ValueError(f"{self.name}: headline {self.headline} is not among its bench_sizes")

    def timed_sizes(self, dtype: torch.dtype) -> tuple[Size, ...]:
        """The sizes that are timed in one of `dtypes`."""
        return self.bench_sizes if dtype == self.dtypes[0] else self.other_sizes or (self.headline,)

    def arguments(self, dtype: torch.dtype, device: str, seed: int, **size) -> tuple:
        """What `called` takes: the inputs, and where its gradients are asked for, that with respect
        to its output."""
        inputs = self.make_inputs(dtype, device, seed, **size)
        gradient = self.make_gradient and self.make_gradient(dtype, device, seed, **size)
        return inputs if gradient is None else (*inputs, gradient)

    def backend_of(self, name: str) -> str:
        """The backend that a mode is of; of any other name itself."""
        return self.modes.get(name, name)

    def called(self, function: Callable) -> Callable:
        """What is judged and timed of a function with the reference's parameters: itself, and of a
        kernel that torch differentiates what gives its output and then each tensor's gradient."""
        if self.make_gradient is None:
            return function
        count = len(signature(self.reference).parameters)

        def forward_and_backward(*arguments):
            inputs, gradient = arguments[:count], arguments[count:]
            if not gradient:
                return function(*inputs)
            inputs = tree_map_only(torch.Tensor, lambda x: x.detach().requires_grad_(), inputs)
            y = function(*inputs)
            leaves = [x for x in tree_leaves(inputs) if isinstance(x, torch.Tensor)]
            return (y.detach(), *torch.autograd.grad(y, leaves, gradient))

        return forward_and_backward


def generator(device: str | torch.device, seed: int) -> torch.Generator:
    """A torch generator on `device`, seeded."""
    return torch.Generator(device=device).manual_seed(seed)
