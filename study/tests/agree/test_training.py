"""What a small transformer learns with each backend, and with a gradient that is wrong."""

from dataclasses import replace
from math import comb

import pytest
import torch

from implementations.common import registry
from study.agree import training
from study.bench import entries
from study.bench.cells import Cell, size_text
from study.report import figures
from study.report.data import Data
from study.tests import chosen

SMALL = {"B": 1, "H": 1, "M": 20, "D": 64, "layers": 1, "steps": 3}
every = pytest.mark.parametrize("backend", registry.BACKENDS)
kernels = pytest.mark.parametrize("kernel", chosen.differentiable())


def attend(kernel, backend):
    try:
        return entries.function(Cell(kernel, backend, training.DTYPE, size_text(training.SIZE)))
    except registry.Unavailable as reason:
        pytest.skip(str(reason))


@every
@kernels
def test_the_first_steps_are_those_of_the_baseline(kernel, backend):
    wanted = training.losses(attend(kernel, entries.reference(kernel)), 0, **SMALL)
    found = training.losses(attend(kernel, backend), 0, **SMALL)
    assert found == pytest.approx(wanted, rel=1e-3)
    assert wanted[-1] < wanted[0] - 0.1


@kernels
def test_another_gradient_gives_another_curve(kernel):
    right = attend(kernel, entries.reference(kernel))

    def wrong(q, k, v, causal, sm_scale):
        return right(q.detach(), k, v, causal, sm_scale)

    wanted, found = (training.losses(f, 0, **SMALL | {"steps": 20}) for f in (right, wrong))
    assert found[0] == wanted[0]
    assert found[1:] != pytest.approx(wanted[1:], rel=1e-3)


def test_seeds_differ_and_repeat():
    def mean(q, k, v, causal, sm_scale):
        return v.cumsum(2) / torch.arange(1, v.shape[2] + 1)[:, None]

    one, again, other = (training.losses(mean, seed, **SMALL) for seed in (0, 0, 1))
    assert one == again != other


def test_the_text_is_sums_that_are_right():
    sums = training.text(100).split(";")[:-1]
    assert len(sums) == 100
    for each in sums:
        terms, total = each.split("=")
        assert sum(map(int, terms.split("+"))) == int(total)


@kernels
def test_cells_are_the_backends_and_the_baseline(kernel):
    names = [cell.backend for cell in training.cells(kernel, ("numba", "triton"))]
    assert names == ["numba", "triton", entries.reference(kernel)]
    plain = next(k for k in registry.kernels() if k not in chosen.differentiable())
    assert training.cells(plain, registry.BACKENDS) == []


@kernels
def test_curves_that_leave_the_seeds_are_told(kernel, made_up):
    data = Data.load(made_up)
    for backend in registry.BACKENDS:
        assert data.learns_alike(kernel, backend).value == 1
        assert data.apart_by_chance(kernel, backend).value == 1
        assert data.last_loss(kernel, backend).value == pytest.approx(100 / 30 + 0.1)
    t = data.training
    t.loc[(t.backend == "cupy") & (t.step > 10), "loss"] += 3  # the seeds span 0.2
    assert data.learns_alike(kernel, "cupy").value == pytest.approx(1 / 3)
    assert data.learns_alike(kernel, "numba").value == 1
    seeds = data.curves(kernel, "cupy").shape[1]  # only their own hands lie as far apart
    assert data.apart_by_chance(kernel, "cupy").value == pytest.approx(2 / comb(2 * seeds, seeds))
    assert data.apart_by_chance(kernel, "numba").value == 1
    without = replace(data, training=t[t.backend != "numba"])
    assert without.learns_alike(kernel, "numba").note == "not measured"
    assert without.apart_by_chance(kernel, "numba").note == "not measured"


@kernels
def test_figure_shows_all_curves_and_survives_their_lack(kernel, made_up):
    data = Data.load(made_up)
    left, right = figures.training(data, kernel).axes
    assert len(left.lines) == len(right.lines) == len(registry.BACKENDS)
    assert max(abs(line.get_ydata()).max() for line in right.lines) < 1e-9
    without = replace(data, training=data.training.iloc[:0])
    assert not figures.training(without, kernel).axes[0].lines
