"""Guards image features on disk: the same numbers for less work, and damage that is noticed."""

import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from prograd_fast.clip import LoadedClip
from prograd_fast.clip.feature_cache import FeatureCache, clear, default_cache, row_sums, stored, tower_identity
from prograd_fast.data import PictureSet
from prograd_fast.training import encode_pictures
from prograd_fast.training import features as features_module
from tests.clip.support import KEYS, VALUES, Counted, shards
from tests.conftest import draw
from tests.tolerances import assert_close


@pytest.fixture
def counted(clip, monkeypatch) -> Counted:
    return Counted(clip, monkeypatch)


def test_second_look_is_free_and_equal(clip, shapes, tmp_path, counted):
    rows = np.arange(len(shapes))
    fresh = encode_pictures(clip, shapes, rows).values
    batches = counted.batches
    first = encode_pictures(clip, shapes, rows, cache=tmp_path).values
    assert counted.batches == 2 * batches
    seen = []
    second = encode_pictures(clip, shapes, rows[::-1], lambda: seen.append(1), cache=tmp_path).values
    assert counted.batches == 2 * batches
    assert torch.equal(fresh, first)
    assert torch.equal(fresh, second)
    assert len(seen) == len(rows)


def test_part_from_the_cache_and_part_new(clip, shapes, tmp_path, counted):
    # 5 cached first, in a batch of their own: the others are encoded in other batches than without a cache
    fresh = encode_pictures(clip, shapes, np.arange(len(shapes))).values
    cached = encode_pictures(clip, shapes, np.arange(20, 25), cache=tmp_path).values
    before = counted.batches
    mixed = encode_pictures(clip, shapes, np.arange(len(shapes)), cache=tmp_path).values
    assert torch.equal(mixed[20:25], cached)
    # the place in a batch may change the order of a matrix library's sums: MKL's on Intel's processors does
    assert_close(mixed, fresh, "tower", torch.float32)
    assert counted.batches == before + 2  # 35 of 40 pictures
    assert len(shards(tmp_path)) == 2


def test_key_is_the_content_not_the_name(clip, tmp_path, counted):
    file = tmp_path / "a.png"

    def encode() -> torch.Tensor:
        pictures = PictureSet("one", ("a",), np.zeros(1, int), np.array(["test"]), np.array([""]), [file])
        return encode_pictures(clip, pictures, np.arange(1), cache=tmp_path / "cache").values

    draw("red_circle", 0).save(file)
    first = encode()
    draw("black_dot", 0).save(file)
    assert not torch.equal(encode(), first)
    draw("red_circle", 0).save(file)
    assert torch.equal(encode(), first)
    assert counted.batches == 2


def test_other_weights_modules_or_transform_share_nothing(clip, shapes, tmp_path, monkeypatch):
    identity = features_module._identity(clip, 48)
    weight = clip.model.visual.proj
    with torch.no_grad():
        weight[0, 0] += 1e-6
    assert features_module._identity(clip, 48) != identity
    with torch.no_grad():
        weight[0, 0] -= 1e-6
    shifted = LoadedClip(
        clip.name, None, clip.model, clip.tokenizer, lambda image: clip.preprocess(image) + 1e-3, clip.device
    )
    assert features_module._identity(shifted, 48) != identity
    assert features_module._identity(clip, 96) != identity
    plain, quick = nn.Sequential(nn.Linear(2, 2), nn.GELU()), nn.Sequential(nn.Linear(2, 2), nn.SiLU())
    quick.load_state_dict(plain.state_dict())
    assert tower_identity(plain) != tower_identity(quick)
    FeatureCache(tmp_path, {"model": "one"}).put(KEYS, VALUES)
    assert FeatureCache(tmp_path, {"model": "two"}).get(KEYS) == {}
    assert FeatureCache(tmp_path, {"model": "one"}).get(KEYS).keys() == set(KEYS)


def flip_a_bit(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_found_named_and_mended(tmp_path, caplog, seed):
    # a flipped bit or a cut anywhere in the file: header, keys, values. Never a wrong feature.
    cache = FeatureCache(tmp_path, {"model": "one"})
    cache.put(KEYS, VALUES)
    (shard,) = shards(tmp_path)
    content = shard.read_bytes()
    at = int(np.random.RandomState(seed).randint(len(content)))
    shard.write_bytes(flip_a_bit(content, at) if seed % 2 else content[:at])
    found = cache.get(KEYS)
    assert found == {}
    (record,) = caplog.records
    assert str(shard) in record.getMessage()
    assert "computed again" in record.getMessage()
    assert "\n" not in record.getMessage()
    cache.put(KEYS, VALUES)
    caplog.clear()
    assert torch.equal(torch.stack([cache.get(KEYS)[key] for key in KEYS]), VALUES)
    assert not caplog.records


def test_damaged_features_are_encoded_again(clip, shapes, tmp_path, counted, caplog):
    rows = np.arange(10)
    expected = encode_pictures(clip, shapes, rows, cache=tmp_path).values
    (shard,) = shards(tmp_path)
    shard.write_bytes(shard.read_bytes()[:-40])
    assert torch.equal(encode_pictures(clip, shapes, rows, cache=tmp_path).values, expected)
    assert counted.batches == 2
    assert "are damaged" in caplog.text


@pytest.mark.parametrize("why", ["a file is in the way", "full disk"])
def test_cache_that_cannot_be_written_is_named_once_and_does_not_stop(clip, shapes, tmp_path, caplog, monkeypatch, why):
    folder = tmp_path / "cache"
    if why == "full disk":
        real = Path.write_bytes

        def full(path: Path, content: bytes) -> int:
            real(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        folder.write_text("")
    monkeypatch.setattr(features_module, "STORE_EVERY", 8)
    with caplog.at_level(logging.WARNING):
        encode_pictures(clip, shapes, np.arange(20), cache=folder)
    assert caplog.text.count("not kept") == 1
    assert not [file for file in folder.rglob("*") if file.is_file()]


def put_many(folder: Path, worker: int) -> None:
    cache = FeatureCache(folder, {"model": "one"})
    for i in range(20):
        cache.put([bytes([worker, i]) * 16], VALUES[:1] * i)
        cache.put(KEYS, VALUES)  # all write this one
        assert torch.equal(cache.get(KEYS)[KEYS[0]], VALUES[0])


def test_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    workers = [context.Process(target=put_many, args=(tmp_path, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    keys = [bytes([worker, i]) * 16 for worker in range(3) for i in range(20)]
    found = FeatureCache(tmp_path, {"model": "one"}).get(keys)
    assert found.keys() == set(keys)
    assert torch.equal(found[keys[-1]], VALUES[0] * 19)
    assert not list(tmp_path.rglob(".*"))


def test_a_long_encoding_is_stored_in_parts(clip, shapes, tmp_path, monkeypatch, counted):
    monkeypatch.setattr(features_module, "STORE_EVERY", 32)
    encode = clip.model.encode_image

    def stop_in_the_second_part(images: torch.Tensor) -> torch.Tensor:
        if shards(tmp_path):
            raise KeyboardInterrupt
        return encode(images)

    with monkeypatch.context() as patch:
        patch.setattr(clip.model, "encode_image", stop_in_the_second_part)
        with pytest.raises(KeyboardInterrupt):
            encode_pictures(clip, shapes, np.arange(40), cache=tmp_path)
    before = counted.batches
    encode_pictures(clip, shapes, np.arange(40), cache=tmp_path)
    assert counted.batches == before + 1  # 32 of 40 were kept


def many(n: int, width: int) -> tuple[list[bytes], torch.Tensor]:
    keys = [i.to_bytes(32, "little") for i in range(n)]
    return keys, torch.randn(n, width, generator=torch.Generator().manual_seed(0))


def resident() -> int:
    """Bytes of this process in memory, pages of mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_features_are_mapped_and_only_those_asked_for_are_read(tmp_path):
    """82 MB in one file, and rows from two places of it: around each, the system may map a few megabytes."""
    keys, values = many(20_000, 1024)
    FeatureCache(tmp_path, {"model": "one"}).put(keys, values)
    (shard,) = shards(tmp_path)
    rows = np.r_[100:200, 15_100:15_200]
    wanted = [keys[row] for row in rows]
    before = resident()
    found = FeatureCache(tmp_path, {"model": "one"}).get(wanted)
    taken = found.table(wanted).take(np.arange(len(wanted)))
    assert resident() - before < shard.stat().st_size / 4
    assert torch.equal(taken, values[rows])
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(shard))]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    assert any(start <= found[wanted[0]].data_ptr() < end for start, end in ranges)


def test_all_features_in_batches_take_no_memory_of_their_own(tmp_path):
    keys, values = many(20_000, 1024)
    FeatureCache(tmp_path, {"model": "one"}).put(keys, values)

    def anonymous() -> int:
        (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("RssAnon")]
        return 1024 * int(line.split()[1])

    before = anonymous()
    table = FeatureCache(tmp_path, {"model": "one"}).get(keys).table(keys)
    for start in range(0, len(keys), 100):
        assert torch.equal(table.take(np.arange(start, start + 100)), values[start : start + 100])
    assert anonymous() - before < values.nbytes / 4


def test_damage_in_a_row_that_nobody_asks_for_is_left_alone(tmp_path, caplog):
    cache = FeatureCache(tmp_path, {"model": "one"})
    cache.put(KEYS, VALUES)
    (shard,) = shards(tmp_path)
    content = shard.read_bytes()
    shard.write_bytes(flip_a_bit(content, content.index(VALUES[3].numpy().tobytes()) + 5))
    assert torch.equal(cache.get(KEYS[:3]).table(KEYS[:3]).take(np.arange(3)), VALUES[:3])
    assert shard.exists()
    assert not caplog.records
    assert cache.get(KEYS[3:]) == {}
    assert not shard.exists()


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_file_that_goes_meanwhile_stays_mapped(tmp_path, how):
    cache = FeatureCache(tmp_path, {"model": "one"})
    cache.put(KEYS, VALUES)
    found = cache.get(KEYS)
    cache.put(KEYS, VALUES + 1) if how == "replaced" else clear(tmp_path)
    assert torch.equal(found.table(KEYS[::-1]).take(np.arange(5)), VALUES.flip(0))
    if how == "replaced":
        assert torch.equal(cache.get(KEYS)[KEYS[0]], VALUES[0] + 1)


def test_rows_of_several_parts_come_in_the_order_that_is_asked_for(tmp_path):
    cache = FeatureCache(tmp_path, {"model": "one"})
    for some in (slice(0, 2), slice(2, 5)):
        cache.put(KEYS[some], VALUES[some])
    new, other = bytes([9]) * 32, bytes([8]) * 32
    known = cache.get([*KEYS, new])
    assert new not in known
    known.add(known.slots([other, new]), VALUES[:2])  # in memory, beside two files
    assert known.keys() == {*KEYS, new}
    table = known.table([KEYS[4], new, *KEYS])
    assert torch.equal(table.take(np.array([1, 0, 5, 5])), VALUES[[1, 4, 3, 3]])
    assert torch.equal(table.take(np.array([3, 2])), VALUES[[1, 0]])
    assert table.take(np.array([], np.int64)).shape == (0, 7)
    moved = table.to(torch.device("meta"))
    assert moved.take(np.arange(7)).shape == (7, 7)
    assert table.to(torch.device("cpu")) is table


@pytest.mark.parametrize("width", [6, 7])  # an even number of words is summed two by two
def test_every_bit_of_a_row_counts_in_its_checksum(width):
    values = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    sums = row_sums(values, np.arange(2))
    content = values.numpy().tobytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        found = row_sums(torch.frombuffer(damaged, dtype=torch.float32).view(2, width), np.arange(2))
        assert (found != sums).tolist() == [bit < 32 * width, bit >= 32 * width]


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "prograd-fast" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache() == Path("/home/somebody/.cache/prograd-fast/features")


def test_what_is_stored_is_told_and_removed_alone(tmp_path):
    FeatureCache(tmp_path, {"model": "one"}, label="first").put(KEYS, VALUES)
    FeatureCache(tmp_path, {"model": "one"}, label="first").put(KEYS[:2], VALUES[:2])
    FeatureCache(tmp_path, {"model": "two"}).put(KEYS, VALUES)
    other = tmp_path / "0123456789abcdef" / "mine.safetensors"
    other.parent.mkdir()
    other.write_text("somebody's own")
    (tmp_path / "photos").mkdir()
    first, second = sorted(stored(tmp_path), key=lambda one: -one.pictures)
    assert (first.label, first.pictures, second.pictures) == ("first", 7, 5)
    assert first.size == sum(file.stat().st_size for file in FeatureCache(tmp_path, {"model": "one"}).folder.iterdir())
    clear(tmp_path)
    assert stored(tmp_path) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0123456789abcdef", "mine.safetensors", "photos"]
    assert stored(tmp_path / "nowhere") == []
