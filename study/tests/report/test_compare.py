"""What `study compare` says of a second machine: one alike, one slower, one of fewer rounds."""

import json
import shutil

import pytest

from study.bench import store
from study.bench.cells import UnknownName, select
from study.bench.entries import reference, work
from study.report import compare
from study.report.data import PUBLISHED, Data
from study.report.estimates import Estimate, State
from study.report.prose import TEXT
from study.report.sources import HOME
from study.speed import ratios
from study.tests import made_up_data

STREAM, PRODUCT = made_up_data.stream(), made_up_data.product()
FALSE, NO_DATA, UNDECIDED, HOLDS = State
CLAIMS = {
    "product_ahead": f"ratio('{PRODUCT}', 'triton', to='cupy') >= 1.05",
    "product_alike": f"all_of(ratio('{PRODUCT}', 'numba', to='cupy') >= 0.9, "
    f"ratio('{PRODUCT}', 'numba', to='cupy') <= 1.1)",
    "stream_at_the_limit": f"least(of_limit, '{STREAM}') >= 0.9",
    "stream_behind": f"0.9 >= least(of_limit, '{STREAM}')",
    "short": f"tokens('{STREAM}', 'cupy', to='triton') >= 1",
}


@pytest.fixture(scope="module")
def original(made_up, tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    shutil.copytree(made_up, path, dirs_exist_ok=True)
    return path


@pytest.fixture
def data(original, tmp_path):
    """A data folder with the published machine."""
    return shutil.copytree(original, tmp_path / "data")


@pytest.fixture
def text(tmp_path):
    """A folder with a text that makes the CLAIMS."""
    path = tmp_path / "text"
    path.mkdir()
    claims = (made_up_data.claim(*claim) for claim in CLAIMS.items())
    (path / "some_text.md").write_text("\n".join(claims))
    return path


def add(data, change):
    """Add a machine whose samples are the published ones, changed."""
    shutil.copytree(data / PUBLISHED, data / "some-gpu")
    samples = change(store.read(data / PUBLISHED / "samples.parquet"))
    store.write(data / "some-gpu" / "samples.parquet", samples)
    store.write(data / "some-gpu" / "timings.csv", made_up_data.timings(samples))


def slow_triton(samples):
    """Half the speed of Triton in two kernels."""
    slow = samples.kernel.isin([PRODUCT, STREAM])
    slow &= samples.backend == "triton"
    return samples.assign(device_us=samples.device_us.where(~slow, 2 * samples.device_us))


def half(samples):
    """Every second round."""
    return samples[samples["round"] % 2 == 0]


def verdicts(rows):
    """The verdicts of rows that have one, by their first column."""
    found = [list(row.values()) for row in rows]
    return {row[0].removeprefix(compare.BELOW): row[-1] for row in found if row[-1]}


def loaded(data):
    return Data.load(data, PUBLISHED), Data.load(data, "some-gpu")


def test_same_data_have_the_same_states(data):
    shutil.copytree(data / PUBLISHED, data / "some-gpu")
    rows, on_sources = compare.conclusions(*loaded(data), TEXT)
    assert rows and on_sources
    for row in rows:
        _, published, here, verdict = row.values()
        assert str(published) == str(here)
        assert verdict in ("", published)  # of an estimate, of a conclusion
    estimates = [row for row in rows if isinstance(row["published"], Estimate)]
    assert len(estimates) >= len(rows) - len(estimates) > 0  # each conclusion has its numbers
    orders = compare.orderings(select(), *loaded(data))
    assert set(verdicts(orders).values()) == {"holds"}


def test_slower_backend_reverses_what_rests_on_it(data, text):
    add(data, slow_triton)
    rows, on_sources = compare.conclusions(*loaded(data), text)
    assert on_sources == ["short (holds)"]
    assert verdicts(rows) == {
        "product ahead": "reversed",
        "product alike": "holds",
        "stream at the limit": "reversed",
        "stream behind": "reversed",
    }
    assert [row["conclusion"] for row in rows if not row["verdict"]] == [
        "· >= 1.05",
        "· >= 0.9, <= 1.1",
        "· >= 0.9",
        "· 0.9 >=",
    ]
    here = [row["some-gpu"] for row in rows if not row["verdict"]]
    assert here[0].value == pytest.approx(rows[1]["published"].value / 2, rel=0.01)
    for kernel, said in ((PRODUCT, "reversed"), (STREAM, "changed")):
        assert verdicts(compare.orderings(select(kernel), *loaded(data))) == {
            "Triton / Numba": said,
            "Triton / CUDA C++": said,
            "Numba / CUDA C++": "holds",
        }


def test_differences_are_what_does_not_hold(data, text):
    add(data, slow_triton)
    assert compare.others(data) == ["some-gpu"]
    found = compare.differences(*loaded(data), text)
    assert found["conclusions"] == "reversed 3, holds 1"
    shown = [row["conclusion"] for row in found["reversed"]]
    assert shown[:3] == ["product ahead", "· >= 1.05", "stream at the limit"]
    shown = [row["ratio of speeds"] for row in found["reordered"]]
    slower = ["· Triton / Numba", "· Triton / CUDA C++"]
    assert shown == [STREAM, *slower, PRODUCT, *slower]


def reverses_nothing(data):
    """What the published data conclude holds here or is undecided."""
    rows, _ = compare.conclusions(*loaded(data), TEXT)
    assert rows
    for row in rows:
        _, published, _, verdict = row.values()
        assert verdict in (published, "undecided", "")
    orders = verdicts(compare.orderings(select(), *loaded(data)))
    assert set(orders.values()) <= {"holds", "undecided", "no data"}


def test_half_of_the_rounds_reverse_nothing(data):
    """A second data set from a part of the first: conclusions may become undecided, no more."""
    add(data, half)
    reverses_nothing(data)


def test_half_of_the_published_rounds_reverse_nothing(tmp_path):
    """The same of what was measured. To see it: write such a folder into data/, as here, and run
    `study compare some-gpu`."""
    data = shutil.copytree(HOME / "data", tmp_path / "data")
    shutil.copytree(data / PUBLISHED, data / "some-gpu")
    samples = half(store.read(data / PUBLISHED / "samples.parquet"))
    checks = store.read(data / PUBLISHED / "crosschecks.csv")
    table = ratios.derive(samples, checks, work, reference)
    store.write(data / "some-gpu" / "samples.parquet", samples)
    store.write(data / "some-gpu" / "timings.csv", table)
    reverses_nothing(data)


@pytest.mark.parametrize(
    ("published", "here", "said"),
    [
        (HOLDS, HOLDS, "holds"),
        (HOLDS, FALSE, "reversed"),
        (FALSE, HOLDS, "reversed"),
        (FALSE, FALSE, "does not hold"),
        (HOLDS, UNDECIDED, "undecided"),
        (UNDECIDED, FALSE, "undecided"),
        (UNDECIDED, NO_DATA, "no data"),
    ],
)
def test_verdict_on_a_conclusion(published, here, said):
    assert compare.judge(published, here) == said


FASTER, SLOWER = Estimate(1.2, 1.1, 1.3), Estimate(0.8, 0.7, 0.9)
EQUAL, OPEN = Estimate(1.01, 1.0, 1.02), Estimate(1.01, 0.9, 1.1)


@pytest.mark.parametrize(
    ("published", "here", "said"),
    [
        (FASTER, FASTER, "holds"),
        (SLOWER, SLOWER, "holds"),
        (EQUAL, Estimate(0.98, 0.97, 0.99), "holds"),  # both within ±5 %
        (FASTER, SLOWER, "reversed"),
        (FASTER, OPEN, "undecided"),
        (FASTER, EQUAL, "changed"),
        (Estimate(1.04, 1.01, 1.06), Estimate(1.03, 1.02, 1.045), "undecided"),  # they overlap
        (FASTER, Estimate(0.8, 0.7, 0.9, note="launch-bound"), "undecided"),
        (FASTER, Estimate(note="failed"), "no data"),
    ],
)
def test_verdict_on_an_ordering(published, here, said):
    assert compare.order(published, here) == compare.order(here, published) == said


def test_printed_and_written(data, text, tmp_path, capsys):
    add(data, slow_triton)
    out = tmp_path / "compare.md"
    compare.run(select(PRODUCT), None, data=data, out=out, text=text)
    for said in (capsys.readouterr().out, out.read_text()):
        assert "product ahead" in said and "Triton / CUDA C++" in said
        assert "conclusions: reversed 3, holds 1" in said
        assert "orderings: reversed 2, holds 1" in said
        assert "the same on any machine, from the sources alone: short (holds)" in said
        assert STREAM not in said and "stale:" not in said and "stale, not" not in said


def test_stale_rows_are_named_and_not_counted(data, text, capsys):
    shutil.copytree(data / PUBLISHED, data / "some-gpu")
    made_up_data.age(data / "some-gpu", STREAM, "numba")
    compare.run(select(STREAM), "some-gpu", data=data, text=text)
    said = capsys.readouterr().out
    assert f"stale, not counted: timings.csv: {STREAM}-numba (some-gpu)" in said
    assert "conclusions: holds 2, no data 2" in said
    assert "orderings: no data 2, holds 1" in said


def test_chosen_machine(data, monkeypatch):
    with pytest.raises(UnknownName, match=r"compare needs one machine beside .*: none \("):
        compare.choose(None, data)
    (data / "nvidia-l4").mkdir()
    assert compare.choose(None, data) == "nvidia-l4"
    assert compare.choose(PUBLISHED, data) == PUBLISHED
    (data / "nvidia-a100").mkdir()
    with pytest.raises(UnknownName, match=r"there are: nvidia-a100, nvidia-l4$"):
        compare.choose(None, data)
    with pytest.raises(
        UnknownName, match=r"no machine is called 'nvidia-l40'; the nearest: nvidia-l4"
    ):
        compare.choose("nvidia-l40", data)
    monkeypatch.setattr(compare, "DEVICE", "cuda")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA L40S")
    assert compare.choose(None, data) == "nvidia-l40s"  # `run` says that it was not timed
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    with pytest.raises(UnknownName, match="there are"):
        compare.choose(None, data)


def test_machine_without_timings_is_named(data, tmp_path):
    (data / "some-gpu").mkdir()
    with pytest.raises(RuntimeError, match=r"some-gpu/timings\.csv must hold timings, it has none"):
        compare.run(select(), None, data=data)
    (tmp_path / "empty" / "some-gpu").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=rf"{PUBLISHED}/timings\.csv must hold timings"):
        compare.run(select(), None, data=tmp_path / "empty")


@pytest.mark.parametrize("name", ["timings.csv", "samples.parquet", "environment.json"])
def test_damaged_file_is_named(data, name):
    shutil.copytree(data / PUBLISHED, data / "some-gpu")
    (data / "some-gpu" / "environment.json").write_text(json.dumps({}))
    (data / "some-gpu" / name).write_bytes(b'"\xff')
    with pytest.raises(store.DamagedData, match=rf"some-gpu/{name} is damaged"):
        compare.run(select(), None, data=data)
