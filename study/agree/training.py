"""Whether a model learns alike with each backend: a transformer that is trained from several seeds.

A row of training.csv is a point of a loss curve: of a kernel that torch differentiates, in a
backend or as the main baseline has it.
    seed    of the weights and of the batches
    step    after so many steps of the optimiser
    loss    cross-entropy in nats, the mean of the EVERY steps before
    error   why there is none
"""

import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from rich.table import Column, Table
from torch import nn

from implementations import DEVICE, TORCH_DEVICE
from implementations.common import registry
from implementations.common.spec import generator
from study.agree.verify import workers_here
from study.bench import entries, store
from study.bench.cells import KEY, Cell, Selection, size_text
from study.bench.entries import UNAVAILABLE
from study.bench.fingerprint import fingerprint
from study.bench.progress import console, progress, say_failed
from study.bench.worker import Worker, WorkerFailed

TIMEOUT = 600  # seconds for a cell
SIZE = {
    "B": 32,
    "H": 4,
    "M": 256,
    "D": 64,
    "layers": 4,
    "steps": 400,
}  # B sequences of M characters
DTYPE = "bfloat16"  # of autocast; weights and their moments are float32
SEEDS = range(5)
EVERY = 10
RATE = 1e-3  # of AdamW, from 0 in the first EVERY steps
SUMS, LETTERS = 20_000, sorted("0123456789+=;")  # of the text that is learnt
COLUMNS = [*KEY, "seed", "step", "loss", "error", "source_hash"]


def text(count: int) -> str:
    """Sums such as "38+85=123;", drawn from a fixed seed: a language whose rule can be learnt."""
    draw = random.Random(0)
    sums = []
    for _ in range(count):
        a, b = draw.randrange(100), draw.randrange(100)
        sums.append(f"{a}+{b}={a + b};")
    return "".join(sums)


class Block(nn.Module):
    """A layer of a transformer, normalised first."""

    def __init__(self, attend: Callable, heads: int, head_dim: int):
        super().__init__()
        width = heads * head_dim
        self.attend, self.heads = attend, heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, H, M, D), views
        o = self.attend(q, k, v, True, q.shape[-1] ** -0.5)
        x = x + self.out(o.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Transformer(nn.Module):
    """Of characters, each predicted from those before."""

    def __init__(self, attend: Callable, H: int, M: int, D: int, layers: int):
        super().__init__()
        self.letters, self.places = nn.Embedding(len(LETTERS), H * D), nn.Embedding(M, H * D)
        self.blocks = nn.Sequential(*(Block(attend, H, D) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(H * D), nn.Linear(H * D, len(LETTERS))

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        places = torch.arange(letters.shape[1], device=letters.device)
        return self.head(self.norm(self.blocks(self.letters(letters) + self.places(places))))


def losses(attend: Callable, seed: int, B, H, M, D, layers, steps) -> list[float]:
    """The loss at each step of a model that attends by `attend`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(attend, H, M, D, layers).to(TORCH_DEVICE)
    data = torch.tensor([LETTERS.index(letter) for letter in text(SUMS)])
    g, found = generator("cpu", seed), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimiser, 1 / EVERY, total_iters=EVERY)
    for _ in range(steps):
        starts = torch.randint(len(data) - M, (B, 1), generator=g)
        batch = data[starts + torch.arange(M + 1)].to(TORCH_DEVICE)
        with torch.autocast(TORCH_DEVICE, dtype=getattr(torch, DTYPE)):
            logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        warm_up.step()
        found.append(loss.detach())
    return torch.stack(found).tolist()


def cells(kernel: str, backends: Iterable[str]) -> list[Cell]:
    """What is trained with a kernel: the backends and the main baseline; nothing where it has no
    gradient."""
    spec = registry.spec(kernel)
    names = [*backends, *filter(None, [entries.reference(kernel)])] if spec.make_gradient else []
    return [Cell(kernel, name, DTYPE, size_text(SIZE)) for name in names]


def train(cell: Cell) -> list[dict]:
    """The rows of one cell. What the kernel raises is passed on, unless it cannot run here."""
    try:
        attend, found = entries.function(cell), []
        for seed in SEEDS:
            curve = torch.tensor(losses(attend, seed, **cell.sizes)).view(-1, EVERY).mean(1)
            found += [
                _row(cell, "", seed=seed, step=EVERY * (i + 1), loss=loss)
                for i, loss in enumerate(curve.tolist())
            ]
        return found
    except registry.Unavailable as reason:
        return [_row(cell, f"{UNAVAILABLE}{reason}")]


def _row(cell: Cell, error: str, seed=-1, step=0, loss=math.nan) -> dict:
    figures = {"seed": seed, "step": step, "loss": loss}
    stamp = {"error": error, "source_hash": fingerprint(cell.kernel, cell.backend)}
    return cell.key | figures | stamp


def run(selection: Selection, *, data: Path) -> bool:
    """Train with a selection, each cell in a worker; print a summary and save training.csv.

    The rows of a kernel replace those in the file, others stay. Returns whether all that can run
    here did. Raises RuntimeError without a GPU, and DamagedData where the file cannot be read.
    """
    if DEVICE != "cuda":
        raise RuntimeError(f"train must have a GPU, got STUDY_DEVICE={DEVICE}")
    path = data / store.machine_name(torch.cuda.get_device_name()) / "training.csv"
    store.read(path)
    wanted = [cell for kernel in selection.kernels for cell in cells(kernel, selection.backends)]
    rows = []
    with progress("train", len(wanted)) as step, workers_here(len(wanted)) as each:

        def train_cell(worker: Worker, cell: Cell) -> list[dict]:
            step(str(cell))
            return _call(worker, cell)

        for cell, found in zip(wanted, each(train_cell, wanted), strict=True):
            store.replace(path, Selection((cell.kernel,), (cell.backend,)), found)
            rows += found
    return _summarise(rows)


def _call(worker: Worker, cell: Cell) -> list[dict]:
    try:
        return worker.call(train, cell, timeout=TIMEOUT)
    except WorkerFailed as failure:
        return [_row(cell, failure.reason)]


def _summarise(rows: list[dict]) -> bool:
    """Print the last losses and all errors; whether there are none that count."""
    table = Table(Column("kernel", no_wrap=True), "backend", "last loss, by seed")
    of = pd.DataFrame(rows, columns=COLUMNS).query("error == ''")
    for key, group in of.groupby(["kernel", "backend"], sort=False):
        last = group[group.step == group.step.max()]
        table.add_row(*key, ", ".join(f"{loss:.4f}" for loss in last.loss))
    console.print(table)
    return say_failed(rows, "was not trained with")
