"""Imports the packages that take seconds: a worker that uses a GPU is forked with them imported.

A process that has asked for CUDA must not fork, and importing these does not, while importing
`torch._inductor` does. Numba's part for CUDA is left out: `implementations` sets its options first.
"""

import os
from contextlib import suppress
from importlib import import_module

# inductor would start a pool of compilers in every worker
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

for _name in ("pandas", "torch._dynamo", "cupy", "numba"):
    with suppress(ImportError):  # told where it is needed
        import_module(_name)
