"""The files of an implementation as the report names them, and lines of them."""

from pathlib import Path

from implementations.common import registry

HOME = Path(__file__).parents[2]
LANGUAGE = {".cu": "cuda", ".py": "python"}


def files(kernel: str, backend: str) -> list[Path]:
    """An implementation's own files, the kernel before the host."""
    return sorted(registry.files(kernel, backend), key=lambda path: path.suffix != ".cu")


def links(kernel: str) -> str:
    """All of a kernel's files as links, from the folder report/."""
    return ", ".join(
        f"[{path.name}]({'../' / path.relative_to(HOME) if HOME in path.parents else path})"
        for backend in registry.BACKENDS
        for path in files(kernel, backend)
    )


def lines(kernel: str, backend: str, first: str, last: str) -> str:
    """The lines of an implementation from the one with `first` to the next one with `last`, as a
    fenced block. Raises ValueError where no file has both."""
    for path in files(kernel, backend):
        text = path.read_text().splitlines()
        begin = next((i for i, line in enumerate(text) if first in line), len(text))
        end = next((i for i, line in enumerate(text) if i >= begin and last in line), None)
        if end is not None:
            return "\n".join((f"```{LANGUAGE[path.suffix]}", *text[begin : end + 1], "```"))
    raise ValueError(
        f"{kernel} in {backend} must have a line with {first!r} and from there on one with {last!r}"
    )
