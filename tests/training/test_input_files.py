"""Files that anybody can give: every kind of wrong content, and every kind of file, ends in one line that names it."""

import json
import os
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

import prograd_fast as pf
from prograd_fast.clip.feature_cache import FeatureCache
from prograd_fast.data import load_folder
from prograd_fast.files.reading import MAX_DEPTH, parse_json, read_bytes, read_json, read_text
from prograd_fast.files.tensors import write_sealed
from prograd_fast.training import encode_pictures, load_run
from tests.cli.support import fail
from tests.clip.support import KEYS, VALUES, shards
from tests.conftest import draw
from tests.fuzz.files import odd_file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        ("[1,]", "Expecting|Illegal"),
        ("NaN", "NaN is not JSON"),
        ('{"a": [-Infinity]}', "-Infinity is not JSON"),
        ("1e999", "beyond 64 bits"),
        ("-1e999", "beyond 64 bits"),
        ("9223372036854775808", "beyond 64 bits"),
        ("1" * 10_000, "beyond 64 bits"),
        ('{"a": 1, "b": 2, "a": 1}', "the name 'a' is there twice"),
        ("[" * 1_000_000, "nested too deeply"),
        ('{"a":' * 1_000_000, "nested too deeply"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested more than"),
    ],
    ids=lambda value: value[:20],
)
def test_json_that_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize(
    "value", [0, -1, 2**63 - 1, -(2**62), 1e308, 5e-324, "\ud800", {}, [[[]]], {"a": [None, True]}]
)
def test_json_comes_back(value):
    assert parse_json(json.dumps(value)) == value
    depth = MAX_DEPTH
    assert parse_json("[" * depth + "]" * depth)


@pytest.mark.parametrize(
    "read", [read_bytes, read_text, read_json, load_run, pf.clip.load_prompt, pf.clip.load_learned]
)
@pytest.mark.parametrize("make", ["folder", "pipe", "/dev/zero", "/dev/stdin", "/dev/tty", "huge"])
def test_only_regular_files_of_a_size_that_can_be_are_read(tmp_path, read, make):
    file = tmp_path / ("record.json" if read is load_run else "file")
    match make:
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "huge":
            with file.open("wb") as content:
                content.truncate(1 << 42)
        case _:
            file.symlink_to(make)
    with pytest.raises((ValueError, OSError), match=str(tmp_path)):
        read(tmp_path if read is load_run else file)


@pytest.mark.parametrize("content", [b"\xff\xfe{\x00}\x00", b'{"a": "\xe4"}', b"\xed\xa0\x80"])
def test_text_that_is_not_utf_8(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="utf-8"):
        read_json(tmp_path / "file")


def write_prompt(path: Path, tensors: dict, **changes) -> None:
    header = {
        "class_names": ["cat", "dog"],
        "class_specific": False,
        "class_token_position": "end",
        "n_ctx": 2,
        "text_width": 4,
        "model_digest": "0" * 64,
        "library_version": "0",
        "metadata": {},
    }
    write_sealed(path, "prograd_fast", json.dumps(header | changes), tensors)


@pytest.mark.parametrize(
    ("ctx", "message"),
    [
        (torch.full((2, 4), torch.nan), "ctx has NaN"),
        (torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, torch.inf]]), "ctx has NaN or infinite"),
        (torch.zeros(2, 4, dtype=torch.int64), "ctx is torch.int64"),
        (torch.zeros(2, 4, dtype=torch.bool), "ctx is torch.bool"),
        (torch.zeros(2, 4, dtype=torch.complex64), "ctx is torch.complex64"),
        (torch.zeros(2, 4).to(torch.float8_e5m2), "ctx is torch.float8"),
        (torch.zeros(2, 5), "has shape"),
        (torch.zeros(8), "has shape"),
        (torch.zeros(()), "has shape"),
        (torch.zeros(0, 4), "has shape"),
    ],
)
def test_contexts_that_are_refused(tmp_path, ctx, message):
    write_prompt(tmp_path / "p", {"ctx": ctx})
    with pytest.raises(ValueError, match=f"{tmp_path}/p is not a whole prompt file .*{message}"):
        pf.clip.load_prompt(tmp_path / "p")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_contexts_that_are_taken(tmp_path, dtype):
    write_prompt(tmp_path / "p", {"ctx": torch.ones(2, 4, dtype=dtype)})
    assert pf.clip.load_prompt(tmp_path / "p").ctx.dtype == dtype


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": [1, 2]},
        {"class_names": "cat"},
        {"class_names": {"cat": 1}},
        {"class_names": []},
        {"class_specific": 1},
        {"class_token_position": ["end"]},
        {"class_token_position": "behind"},
        {"n_ctx": 2.0},
        {"n_ctx": True},
        {"text_width": None},
        {"model_digest": None},
        {"library_version": 1},
        {"metadata": []},
    ],
)
def test_headers_that_are_refused(tmp_path, changes):
    write_prompt(tmp_path / "p", {"ctx": torch.ones(2, 4)}, **changes)
    with pytest.raises(ValueError, match="is not a whole prompt file"):
        pf.clip.load_prompt(tmp_path / "p")


def test_a_prompt_file_without_digest_is_refused(tmp_path):
    import safetensors.torch

    header = {"class_names": ["cat"], "class_specific": False, "class_token_position": "end", "n_ctx": 1}
    text = json.dumps(header | {"text_width": 4, "library_version": "0", "metadata": {}})
    (tmp_path / "p").write_bytes(safetensors.torch.save({"ctx": torch.ones(1, 4)}, {"prograd_fast": text}))
    with pytest.raises(ValueError, match="has no digest"):
        pf.clip.load_prompt(tmp_path / "p")


@pytest.mark.parametrize("kind", range(7))
def test_odd_files_among_the_features(tmp_path, caplog, kind):
    cache = FeatureCache(tmp_path, {"model": "one"})
    cache.put(KEYS, VALUES)
    (shard,) = shards(tmp_path)

    class Chosen(Random):
        def randrange(self, *bounds):
            return kind if bounds == (7,) else super().randrange(*bounds)

    odd_file(Chosen(0), shard.with_name("0.safetensors"))
    assert cache.get(KEYS).keys() == set(KEYS)
    assert "0.safetensors" in caplog.text


@pytest.mark.parametrize("text", ["[" * 1_000_000, "[]", "{}", '{"identity": 1}', "\ud800"], ids=lambda text: text[:5])
def test_crafted_headers_are_discarded_once(tmp_path, caplog, text):
    cache = FeatureCache(tmp_path, {"model": "one"})
    cache.put(KEYS, VALUES)
    (shard,) = shards(tmp_path)
    header = json.dumps({"__metadata__": {"prograd_fast_features": text}}).encode()
    shard.write_bytes(len(header).to_bytes(8, "little") + header)
    assert cache.get(KEYS) == {}
    assert not shard.exists()
    assert "computed again" in caplog.text


def test_features_of_another_width_are_computed_again(clip, shapes, tmp_path, caplog):
    rows = np.arange(6)
    expected = encode_pictures(clip, shapes, rows, cache=tmp_path).values
    (shard,) = shards(tmp_path)
    stored = FeatureCache(tmp_path, json.loads(identity_of(shard)))
    keys = keys_of(shard)
    shard.unlink()
    stored.put(keys[:4], torch.zeros(4, 3))  # right digests, right identity
    assert torch.equal(encode_pictures(clip, shapes, rows, cache=tmp_path).values, expected)
    assert "features are 3 wide, expected 24" in caplog.text
    assert torch.equal(encode_pictures(clip, shapes, rows, cache=tmp_path).values, expected)


def identity_of(shard: Path) -> str:
    from safetensors import safe_open

    with safe_open(shard, framework="pt") as file:
        return json.loads(file.metadata()["prograd_fast_features"])["identity"]


def keys_of(shard: Path) -> list[bytes]:
    from safetensors.torch import load_file

    return [bytes(key.tolist()) for key in load_file(shard)["keys"]]


@pytest.mark.parametrize(
    "content",
    [b"\xff", b"[" * 100_000, b'{"coop": {"epochs": NaN}}', b'{"coop": {"lr": 1e999}}', b'{"coop": 1}', b"{}{}"],
)
def test_settings_files_that_are_refused(tmp_path, shapes_dir, capfd, monkeypatch, content):
    (tmp_path / "s").write_bytes(content)
    arguments = ["--data", shapes_dir, "--methods", "coop", "--out", tmp_path / "out", "--settings", tmp_path / "s"]
    assert f"--settings {tmp_path}/s" in fail(capfd, monkeypatch, "compare", *arguments)


@pytest.mark.parametrize("preset", [3, [], {}, ["vit-b16-base-to-new"], "\ud800"])
def test_presets_of_another_kind(tmp_path, shapes_dir, capfd, monkeypatch, preset):
    (tmp_path / "s").write_text(json.dumps({"lasp": {"preset": preset}}))
    arguments = ["--data", shapes_dir, "--methods", "lasp", "--out", tmp_path / "out", "--settings", tmp_path / "s"]
    assert "lasp has no preset" in fail(capfd, monkeypatch, "compare", *arguments)


def test_a_pipe_for_class_names_does_not_wait(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            draw("red_circle", i).save(tmp_path / name / f"{i}.png")
    os.mkfifo(tmp_path / "classes.txt")
    with pytest.raises(ValueError, match=r"classes\.txt is not a regular file"):
        load_folder(tmp_path)
