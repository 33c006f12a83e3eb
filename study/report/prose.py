"""Texts with numbers from the data, and claims that are tested on them.

A claim stands in report/text/ as a name, a test and a sentence:

    {% call claim("softmax_at_the_limit", "least(of_limit, 'softmax_fused') >= 0.94") %}
    All three run at the limit of the memory, the slowest at {{ least(of_limit, "softmax_fused") }}.
    {% endcall %}

`Prose` renders such texts and gathers their claims, on the data of any machine.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2

from implementations.common import registry
from study.report import sources, tables
from study.report.data import Data, bound_by
from study.report.estimates import State, all_of, gather, gigabytes
from study.report.markdown import markdown_table

REPORT = Path(__file__).parents[2] / "report"
TEXT = REPORT / "text"
COMPILED = "torch.compile"  # a baseline


@dataclass(frozen=True)
class Claim:
    """A sentence of the report, and what the data say about it. where: the text it stands in."""

    name: str
    test: str
    sentence: str
    state: State
    where: str


class Prose:
    """Renders the texts of report/text/ (Markdown with Jinja2) on one machine's data.

    claims: those of the texts rendered so far, by name. elsewhere: by claim, the other GPUs whose
    data say the opposite, which then stand beside it.
    """

    MARK = {State.HOLDS: "✓", State.FALSE: "✗", State.UNDECIDED: "?", State.NO_DATA: "–"}

    def __init__(self, data: Data, elsewhere: Mapping[str, list[str]] | None = None):
        self.claims: dict[str, Claim] = {}
        self.elsewhere = elsewhere or {}
        self._where = ""
        self.environment = jinja2.Environment(undefined=jinja2.StrictUndefined, lstrip_blocks=True)

        def measured(kernels: Iterable[str]) -> tuple[str, ...]:
            return tuple(kernel for kernel in kernels if kernel not in data.unmeasured)

        methods = (
            "speed",
            "of_limit",
            "ratio",
            "clock",
            "margin",
            "count",
            "tokens",
            "ceiling",
            "machine_code",
            *("counter", "moved", "host_us"),
            "finite",
            "largest",
            "intensity",
            "of_fastest",
            "of_traffic",
            "faster_than",
            "workspace",
            *("learns_alike", "apart_by_chance", "last_loss"),
            "gained",
            "nearly_best",
        )
        self.environment.globals = {
            **{name: getattr(data, name) for name in methods},
            **{"least": gather(min), "most": gather(max), "median": gather(statistics.median)},
            "all_of": all_of,
            "gigabytes": gigabytes,
            "memory_bound": measured(bound_by("GB/s")),
            "compute_bound": measured(bound_by("TFLOP/s")),
            "compilable": measured(
                k for k in registry.kernels() if COMPILED in registry.spec(k).baselines
            ),
            "kernels": registry.kernels(),
            "unmeasured": data.unmeasured,
            "phase": lambda n: tuple(k for k in registry.kernels() if registry.phase(k) == n),
            "title": {name: backend.title for name, backend in registry.BACKENDS.items()},
            "machine": data.machine,
            "lines": sources.lines,
            "table": lambda name, *args: markdown_table(tables.TABLES[name](data, *args)),
            "claim": self._claim,
        }

    def render(self, path: Path) -> str:
        """The text of one file as Markdown. Raises RuntimeError naming the file that is wrong."""
        self._where = path.name
        try:
            return self.environment.from_string(path.read_text()).render().strip()
        except Exception as error:  # the text's own expressions may raise anything
            raise RuntimeError(f"{path}: {error}") from error

    def _claim(self, name: str, test: str, caller: Callable[[], str]) -> str:
        if name in self.claims:
            raise ValueError(f"the claim {name!r} stands twice")
        state = self.environment.compile_expression(test, undefined_to_none=False)()
        if not isinstance(state, State):
            raise TypeError(f"the test of {name!r} must compare estimates, got {state!r}")
        sentence = caller().strip()
        self.claims[name] = Claim(name, test, sentence, state, self._where)
        mark = self.MARK[state] + ("" if state is State.HOLDS else f" {state.value}")
        title = f"{state.value}: {test}".replace('"', "'")
        marked = f'{sentence}\N{NO-BREAK SPACE}[{mark}](#claims "{title}")'
        if state is State.HOLDS and (others := self.elsewhere.get(name)):
            marked += f" Not so on {' and '.join(others)}."
        return marked


def typed_numbers(text: str) -> list[str]:
    """The numbers typed into prose, which may come stale unnoticed.

    Not counted: what is in an expression, a claim's test or a code span (definitions, e.g.
    `N ≤ 32768`), digits within a name (fp16, H100, L2), the numbers of a list, and days.
    """
    text = re.sub(r"{%.*?%}|{#.*?#}|```.*?```|`[^`\n]+`", " ", text, flags=re.DOTALL)
    literal = re.findall(r"{{\s*([^}A-Za-z]*?\d[^}A-Za-z]*?)\s*}}", text)
    text = re.sub(r"{{.*?}}|\]\([^)]*\)|[Dd]ays? \d+|^ *\d+\. ", " ", text, flags=re.DOTALL | re.M)
    return literal + re.findall(r"(?<!\w)(?<!\w[.-])\d(?:[\d.,]*\d)?", text)
