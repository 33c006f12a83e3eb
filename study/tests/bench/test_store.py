"""Tables of before are read as those of today: their hashes are related to the fingerprints."""

import pandas as pd
import pytest

from implementations.common import registry
from study.bench import store

KERNEL = registry.kernels()[0]
FORMER, UNKNOWN = "0123456789ab", "ffffffffffff"


@pytest.fixture
def related(tmp_path, monkeypatch):
    """A table of relations: FORMER is the present `triton` of KERNEL, and its spec was the same."""
    path = tmp_path / "related.csv"
    rows = [(KERNEL, "triton", FORMER, "present"), (KERNEL, "", "", "spec")]
    pd.DataFrame(rows, columns=["kernel", "backend", "before", "now"]).to_csv(path, index=False)
    monkeypatch.setattr(store, "RELATED", path)
    store._relations.cache_clear()
    yield
    store._relations.cache_clear()


def table(backends=("triton", "triton", "numba"), hashes=(FORMER, UNKNOWN, FORMER), **columns):
    rows = dict(kernel=KERNEL, backend=backends, dtype="float32", size="N=1", source_hash=hashes)
    return pd.DataFrame(rows | columns)


def test_what_is_related_has_the_present_fingerprint(related, tmp_path):
    table().to_csv(tmp_path / "stability.csv", index=False)
    found = store.read(tmp_path / "stability.csv")
    assert list(found.source_hash) == ["present", UNKNOWN, FORMER]
    store.write(tmp_path / "stability.csv", found)  # and keeps it
    assert list(store.read(tmp_path / "stability.csv").source_hash) == list(found.source_hash)


def test_variants_of_before_are_related_too(related, tmp_path):
    endings = table(backends=("triton", "triton#2", "triton, warm"), hashes=FORMER)
    endings.to_parquet(tmp_path / "samples.parquet")
    found = store.read(tmp_path / "samples.parquet")
    assert list(found.variant) == ["", "again", "warm"]
    assert set(found.backend) == {"triton"} and set(found.source_hash) == {"present"}


def test_the_spec_of_what_is_related_was_the_same(related, tmp_path):
    table(rule="exact").to_csv(tmp_path / "agreement.csv", index=False)
    found = store.read(tmp_path / "agreement.csv")
    assert list(found.spec_hash.fillna("")) == ["spec", "", ""]
    table(rule="exact", spec_hash=["mine", "", "mine"]).to_csv(
        tmp_path / "agreement.csv", index=False
    )
    found = store.read(tmp_path / "agreement.csv")
    assert list(found.spec_hash.fillna("")) == ["mine", "", "mine"]


@pytest.mark.parametrize("name", store.READ_FROM_TEXT)
def test_what_was_read_from_the_text_is_not_related(related, tmp_path, name):
    table().to_csv(tmp_path / name, index=False)
    assert list(store.read(tmp_path / name).source_hash) == [FORMER, UNKNOWN, FORMER]
