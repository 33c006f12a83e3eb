"""Shows that the data of another state of the sources are data of the present one.

    python -m study.code.relate CHECKOUT [KERNEL...]

CHECKOUT is a working tree of the state that was measured; all kernels are related, or those named.
An implementation is related where every launch at all its sizes has the same machine code for an
H200, the same grid, block and shared memory, and the same arguments but for addresses; what its
host does beside is no part of a device time or of a result. A spec is related where all its check
sizes have the same inputs, oracles and bounds. Each relation is a row of related.csv, by which
`store.read` gives rows that were measured before their present fingerprint.
"""

import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
RELATED = ROOT / "study" / "bench" / "related.csv"
KEY = ["kernel", "backend", "before"]  # backend: "" for the spec
CODE = (".text", ".nv.constant", ".nv.global.init")  # sections of a cubin
WITHOUT_CONTENTS = 8  # a section's type


def main(checkout: str, *kernels: str) -> None:
    """Relate a checkout to this one; print what is the same and what is not."""
    import pandas as pd

    from implementations.common import registry

    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        roots = Path(checkout).resolve(), ROOT
        jobs = {
            kernel: [pool.submit(_recorded, root, kernel) for root in roots]
            for kernel in kernels or registry.kernels()
        }
        for kernel, pair in jobs.items():
            before, now = (job.result() for job in pair)
            for name, (what, fingerprint) in now.items():
                known, former = before.get(name, (None, ""))
                print(kernel, name or "spec", "same" if known == what else "CHANGED", flush=True)
                if known == what and former != fingerprint:
                    rows.append((kernel, name, former, fingerprint))
    new = pd.DataFrame(rows, columns=[*KEY, "now"])
    if RELATED.exists():
        old = pd.read_csv(RELATED, dtype=str, keep_default_na=False)
        # what led to a state that is related now leads on
        onward = new.set_index(KEY)["now"]
        found = onward.reindex(pd.MultiIndex.from_frame(old[["kernel", "backend", "now"]]))
        old["now"] = found.fillna(pd.Series(old["now"].to_numpy(), found.index)).to_numpy()
        new = pd.concat([old, new]).drop_duplicates(KEY, keep="last")
    new.to_csv(RELATED, index=False, lineterminator="\n")


def _recorded(root: Path, kernel: str) -> dict[str, tuple]:
    """By backend, and "" (the spec): what must be the same, and the hash in data/."""
    found = {}
    for device in ("compile", "cpu"):
        with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
            environment = {"STUDY_DEVICE": device, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-P", __file__, "--record", kernel, file.name]
            subprocess.run(command, env=os.environ | environment, cwd=root, check=True)
            found |= json.load(file)
    return found


# --- in a process of its own, where the modules are those of a checkout ---------------------------


def record(kernel: str, out: str) -> None:
    """Write what `_recorded` reads."""
    from implementations import DEVICE
    from implementations.common import registry
    from study.bench.fingerprint import fingerprint, spec_fingerprint

    if DEVICE == "compile":
        found = {backend: _launches(kernel, backend) for backend in registry.BACKENDS}
    else:
        found = {"": _expectations(kernel)}
    hashes = {n: fingerprint(kernel, n) if n else spec_fingerprint(kernel) for n in found}
    Path(out).write_text(json.dumps({name: (what, hashes[name]) for name, what in found.items()}))


def _launches(kernel: str, backend: str) -> dict[str, list]:
    """The launches of each cell."""
    from implementations.common import registry
    from implementations.tiers.compile import launches
    from study.bench.cells import select
    from study.code.codegen import inputs

    host, found = registry.spec(kernel).called(registry.load(kernel, backend)), {}
    for kind in ("check", "large", "bench"):
        for cell in select(kernel, backend).cells(kind):
            launches.clear()
            host(*inputs(cell))
            found[f"{cell.dtype} {cell.size}"] = [
                (_code(x.cubin, x.symbol), x.grid, x.block, x.shared_bytes, x.arguments)
                for x in launches
            ]
    return found


def _code(cubin: bytes, symbol: str) -> str:
    """A hash of a kernel's instructions and constants, whatever it is called."""
    (at,), (size, count, names) = (
        struct.unpack_from("<Q", cubin, 40),
        struct.unpack_from("<HHH", cubin, 58),
    )
    sections = [struct.unpack_from("<IIQQQQ", cubin, at + i * size) for i in range(count)]
    texts = {}
    for name, kind, _, _, start, length in sections:
        first = sections[names][4] + name
        text = cubin[first : cubin.index(b"\0", first)].decode().replace(symbol, "")
        if text.startswith(CODE):
            texts[text] = b"" if kind == WITHOUT_CONTENTS else cubin[start : start + length]
    return hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]


def _expectations(kernel: str) -> dict[str, str]:
    """A hash of inputs, oracles and bounds of each check size."""
    from torch.utils._pytree import tree_leaves

    from implementations.common import registry
    from study.agree import agreement
    from study.bench.cells import seed, select

    spec, found = registry.spec(kernel), {}
    for cell in select(kernel, "triton").cells("check"):
        inputs = spec.arguments(cell.torch_dtype, "cpu", seed(cell), **cell.sizes)
        wanted = agreement.expected(spec, cell.sizes, inputs)
        parts = (
            *tree_leaves(inputs),
            *(x for w in wanted for x in (w.value, w.dtype, w.bound, w.rms)),
        )
        digest = hashlib.sha256(b"\n".join(map(_bytes, parts)))
        found[f"{cell.dtype} {cell.size}"] = digest.hexdigest()[:16]
    return found


def _bytes(value) -> bytes:
    import torch

    if not isinstance(value, torch.Tensor):
        return repr(value).encode()
    bits = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{value.dtype} {tuple(value.shape)}".encode() + bits


if __name__ == "__main__":
    record(*sys.argv[2:]) if sys.argv[1] == "--record" else main(*sys.argv[1:])
