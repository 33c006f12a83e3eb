"""Imports the packages that take seconds: a worker that uses a GPU is forked with them imported.

A process that has used CUDA must not fork, and importing these does not use it. The part of Numba
for CUDA is not among them: `implementations` sets its options first.
"""

import os
from contextlib import suppress
from importlib import import_module

# inductor would start a pool of compilers in every worker
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

for _name in ("pandas", "torch._inductor.compile_fx", "cupy", "numba"):
    with suppress(ImportError):  # told where it is needed
        import_module(_name)
