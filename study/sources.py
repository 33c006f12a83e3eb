"""The hash that ties a row of data to the source it measured."""

import hashlib

from implementations.common import registry


def source_hash(kernel: str, backend: str) -> str:
    """Twelve hex digits over the files of one implementation (a baseline: the kernel's spec)."""
    if backend in registry.BACKENDS:
        paths = registry.sources(kernel, backend)
    else:
        paths = (registry.folders()[kernel] / f"{kernel}.py",)
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
