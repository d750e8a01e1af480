"""Guards what makes the cache of features fast: sums of earlier versions, slots without look-up, files read ahead."""

import os

import numpy as np
import pytest
import torch
from safetensors import safe_open

from prograd_fast.clip import feature_cache
from prograd_fast.clip.feature_cache import FeatureCache, row_sums
from prograd_fast.clip.rows import KeyedRows
from prograd_fast.files.reading import read_ahead
from tests.clip.support import KEYS, VALUES, shards


@pytest.mark.parametrize(("width", "words"), [(6, np.uint64), (7, np.uint32)])
def test_sums_are_those_of_caches_on_disk(width, words):
    """Words without a sign, modulo 2⁶⁴; rows that follow each other, and others."""
    values = torch.randn(2000, width, generator=torch.Generator().manual_seed(0))
    expected = values.numpy().view(words).sum(1, dtype=np.uint64).view(np.int64)
    for rows in (np.arange(2000), np.arange(3, 1999), np.arange(0, 2000, 3)):
        assert np.array_equal(row_sums(values, rows).numpy(), expected[rows])


def test_slots_are_those_of_a_dictionary():
    """Also of keys that come twice, and where only some of a run of keys is there."""
    random = np.random.RandomState(0)
    for _ in range(300):
        keys = [bytes([k]) for k in random.randint(0, random.randint(3, 20), random.randint(1, 9))]
        found, last = KeyedRows(keys), {key: i for i, key in enumerate(keys)}
        start = random.randint(len(keys))
        part = keys[start : start + random.randint(1, 9)]
        for asked in (part, [*part, b"new"], [b"new", *part], keys, []):
            assert found.slots(asked).tolist() == [last.get(key, -1) for key in asked]


def test_a_list_that_changes_later_changes_no_slot():
    keys = [b"a", b"b"]
    found = KeyedRows(keys)
    keys[1] = b"c"
    assert found.slots([b"a", b"c"]).tolist() == [0, -1]


def test_following_shards_are_read_ahead_where_half_of_a_shard_is_wanted(tmp_path, monkeypatch):
    cache, asked = FeatureCache(tmp_path, {"model": "one"}), []
    for i in range(4):
        cache.put([bytes([i, *key[1:]]) for key in KEYS], VALUES)
    monkeypatch.setattr(feature_cache, "read_ahead", asked.append)
    files = shards(tmp_path)
    with safe_open(files[0], "pt") as file:
        wanted = [key.tobytes() for key in file.get_tensor("keys").numpy()]
    cache.get(wanted[:2])
    assert asked == []
    cache.get(wanted[:3])
    assert asked == files[1:3]


def test_files_of_any_kind_are_asked_for(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # to open it would block
    for name in ("empty", "folder", "pipe", "nothing"):
        read_ahead(tmp_path / name)
