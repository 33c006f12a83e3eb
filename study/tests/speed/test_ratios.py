"""The statistics, on samples whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from implementations.common.spec import Work
from study.speed import ratios

PROCESSES, ROUNDS = 3, 20
WORK = Work(bytes=3 * 10**8, flops=10**8)  # at 3,000 GB/s: 100 µs
FLOOR_US = 1.2


def entry(
    backend,
    us,
    variant="",
    *,
    kernel="k",
    cell="k-float32-N=1",
    size="N=1",
    noise=0,
    seed=0,
    **columns,
):
    """Samples of one entry, of log-normal noise."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "kernel": kernel,
            "backend": backend,
            "dtype": "float32",
            "size": size,
            "variant": variant,
            "cell": cell,
            "process": process,
            "round": i,
            "device_us": us * np.exp(noise * rng.standard_normal()),
            "error": "",
            "source_hash": "a",
        }
        | columns
        for process in range(PROCESSES)
        for i in range(ROUNDS)
    )


def limits(copy_us=100.0, cell="k-float32-N=1"):
    floor = entry("empty", FLOOR_US, kernel="_floor", cell=cell, size="blocks=1")
    copy = entry("copy", copy_us, kernel="_ceiling", cell=cell, size="bytes=300000000")
    return [floor, copy.assign(dtype="uint8")]


def derive(*entries, cupti=(), events=None):
    samples = pd.concat([*entries])
    checks = pd.DataFrame(
        {
            "kernel": "k",
            "backend": backend,
            "dtype": "float32",
            "size": "N=1",
            "variant": "",
            "source_hash": "a",
            "graph_us": samples.loc[samples["backend"] == backend, "device_us"].median(),
            "cupti_us": us,
            "event_us": events or us,
        }
        for backend, us in dict(cupti).items()
    )
    table = ratios.derive(samples, checks, lambda *key: WORK, lambda kernel: "torch")
    assert list(table.columns) == ratios.COLUMNS
    return table.set_index("backend")


def test_known_ratio_and_speed():
    noisy = {"noise": 0.015}
    table = derive(
        *limits(),
        entry("torch", 150, **noisy),
        entry("triton", 120, seed=1, **noisy),
        cupti={"torch": 150, "triton": 119},
    )
    row = table.loc["triton"]
    assert row["ratio"] == pytest.approx(1.25, rel=0.01)
    assert row["ratio_low"] < 1.25 < row["ratio_high"] < 1.27
    assert row["of_ceiling"] == pytest.approx(100 / 120, rel=0.01)
    assert row["speed"] == pytest.approx(2500, rel=0.01)
    assert (row["verdict"], row["samples"], row["processes"]) == ("faster", 60, 3)
    assert table.loc["torch", ["ratio", "verdict"]].tolist() == [1, "equal"]
    assert table.loc["copy", ["speed", "verdict"]].tolist() == [3000, ""]


def test_derivation_is_deterministic_and_ignores_order():
    entries = [*limits(), entry("torch", 150, noise=0.02), entry("triton", 120, noise=0.02, seed=1)]
    ratios._bootstrap.cache_clear()
    first = derive(*entries)
    ratios._bootstrap.cache_clear()
    shuffled = [e.sample(frac=1, random_state=3) for e in entries]
    pd.testing.assert_frame_equal(first, derive(*shuffled))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.96, 1.04, "equal"),
        (1.01, 1.04, "equal"),
        (1.01, 1.06, "faster"),
        (0.94, 0.99, "slower"),
        (0.94, 1.01, "undecided"),
        (np.nan, np.nan, "no verdict"),
    ],
)
def test_verdict(low, high, said):
    assert ratios.verdict(low, high) == said


def test_same_kernel_twice_is_equal_and_a_slowdown_is_found():
    cells = []
    for i in range(100):
        noisy = {"noise": 0.015, "cell": f"k-float32-N={i}", "size": f"N={i}"}
        cells += [
            limits(cell=noisy["cell"])[0],
            entry("triton", 100, seed=3 * i, **noisy),
            entry("triton", 100, "again", seed=3 * i + 1, **noisy),
            entry("triton", 105, "slower", seed=3 * i + 2, **noisy),
        ]
    table = ratios.protocol(pd.concat(cells)).set_index("check")
    assert table["cells"].tolist() == [100, 100]
    assert table.loc["same kernel twice", "rate"] >= 0.95
    assert table.loc["planted 5 % slowdown", "rate"] == 1


def test_protocol_entries_stay_out_of_the_timings():
    planted = entry("triton", 120, "again"), entry("triton", 126, "slower")
    table = derive(*limits(), entry("triton", 120), *planted)
    assert sorted(table.index) == ["copy", "empty", "triton"]
    pd.testing.assert_frame_equal(table, derive(*limits(), entry("triton", 120)))


def test_what_stays_in_the_l2_is_a_row_without_a_rank():
    table = derive(
        *limits(), entry("torch", 150), entry("triton", 120), entry("triton", 30, "warm")
    )
    row = table[table["variant"] == "warm"].loc["triton"]
    assert (row["device_us_p50"], row["speed"]) == pytest.approx((30, 10_000))
    assert (row["reference"], row["ceiling"], row["verdict"], row["error"]) == ("", "", "", "")
    assert np.isnan(row["ratio"])
    cold = table[table["variant"] == ""].loc["triton"]
    assert (cold["device_us_p50"], cold["ratio"]) == pytest.approx((120, 1.25))


def test_interval_covers_the_spread_between_processes():
    shift = pd.Series([0.97, 1.0, 1.03]).repeat(ROUNDS).to_numpy()
    ours = entry("triton", 100, noise=0.001)
    ours["device_us"] *= shift
    low, high = ratios.intervals(ours, entry("torch", 100))[["low", "high"]].iloc[0]
    assert low < 0.975 and high > 1.025


def test_only_rounds_that_both_have_count():
    ours, theirs = entry("triton", 100), entry("torch", 100)
    theirs.loc[theirs["process"] == 2, "device_us"] = 1000
    row = derive(*limits(), ours[ours["process"] < 2], theirs).loc["triton"]
    assert (row["ratio_low"], row["ratio_high"]) == (1, 1)


@pytest.mark.parametrize(
    ("us", "cupti", "events", "said"),
    [
        (100, 99, 150, "equal"),
        (100, 85, 88, "no verdict"),  # 14 % and 12 % apart
        (100, 110, 112, "no verdict"),
        (100, 120, 101, "equal"),
        (5, 2.5, 9, "equal"),  # 1.3 µs apart
        (3.5, 2.3, 4, "launch-bound"),
    ],
)
def test_cross_check_and_floor(us, cupti, events, said):
    table = derive(
        *limits(copy_us=us),
        entry("torch", us),
        entry("triton", us),
        cupti={"triton": cupti},
        events=events,
    )
    assert table.loc["triton", "verdict"] == said


def test_no_cross_check_no_verdict():
    table = derive(*limits(), entry("torch", 100), entry("triton", 100))
    assert table.loc["triton", "verdict"] == "no verdict"


def test_faster_than_the_ceiling_is_an_error():
    table = derive(*limits(), entry("torch", 100), entry("triton", 94), cupti={"triton": 93})
    assert table.loc["torch", "error"] == ""
    said = "3191 GB/s is above 105 % of the fastest ceiling of any bandwidth, 3000 GB/s"
    assert table.loc["triton", "error"] == said
    assert table.loc["triton", "verdict"] == "no verdict"


def test_faster_than_a_copy_is_possible_where_reading_is():
    read = entry("read", 92, kernel="_ceiling", cell="other", size="bytes=300000000")
    table = derive(*limits(), read.assign(dtype="uint8"), entry("torch", 100), entry("triton", 94))
    assert table.loc["triton", "error"] == ""
    assert table.loc["triton", "of_ceiling"] == pytest.approx(100 / 94)


def test_failure_is_a_row_with_its_error():
    failed = entry("numba", np.nan).head(1).assign(error="killed by SIGSEGV")
    row = derive(*limits(), entry("torch", 100), failed).loc["numba"]
    assert (row["error"], row["verdict"], row["samples"]) == ("killed by SIGSEGV", "no verdict", 0)
    assert np.isnan(row["device_us_p50"])


def test_rows_of_an_older_source_do_not_count():
    old, new = entry("triton", 200), entry("triton", 100, source_hash="b")
    row = derive(*limits(), entry("torch", 100), old[old["process"] > 0], new.head(ROUNDS)).loc[
        "triton"
    ]
    assert (row["ratio"], row["samples"], row["source_hash"]) == (1, ROUNDS, "b")


def test_no_samples_no_rows():
    table = ratios.derive(pd.DataFrame(), pd.DataFrame(), None, None)
    assert table.empty and list(table.columns) == ratios.COLUMNS
