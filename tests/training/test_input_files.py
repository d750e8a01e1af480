"""Files that anybody can give: every kind of wrong content, and every kind of file, ends in one line that names it."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

import prograd_fast as pf
from prograd_fast.clip.feature_cache import FeatureCache, default_cache
from prograd_fast.data import load_folder
from prograd_fast.inputs import MAX_DEPTH, parse_json, read_bytes, read_json, read_text
from prograd_fast.methods import ProGrad
from prograd_fast.tensor_files import write_sealed
from prograd_fast.training import encode_pictures, load_run, tune
from prograd_fast.training.checkpoint import _HEADER, Checkpoints, _pack, load_checkpoint, save_checkpoint
from tests.cli.test_cli import fail
from tests.clip.support import KEYS, VALUES, shards
from tests.conftest import draw, draw_shapes
from tests.fuzz.files import odd_file
from tests.paths import REPOSITORY
from tests.training.test_checkpoint import RUN, STATE, Killed, interrupted, make_learner

# ---------------------------------------------------------------------------------------------------------------- JSON


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


# ------------------------------------------------------------------------------------------------------------- prompts


def write_prompt(path: Path, tensors: dict, **changes) -> None:
    header = {
        "class_names": ["cat", "dog"],
        "class_specific": False,
        "class_token_position": "end",
        "n_ctx": 2,
        "text_width": 4,
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


# --------------------------------------------------------------------------------------------------------- checkpoints


def packed(tree: object, **tensors: torch.Tensor) -> tuple[str, dict[str, torch.Tensor]]:
    return json.dumps({"state": tree, "run": RUN}), tensors


DEEP: object = 1
for _ in range(300):
    DEEP = {"tuple": [DEEP]}


@pytest.mark.parametrize(
    "tree",
    [
        {"tensor": ["0", [1 << 40]]},  # would take 4 TB
        {"tensor": ["0", [1 << 62]]},
        {"tensor": ["0", [-1]]},
        {"tensor": ["0", [0]]},
        {"tensor": ["0", [1, 1]]},
        {"tensor": ["0", []]},
        {"tensor": ["0", "a"]},
        {"tensor": ["0", [1.0]]},
        {"tensor": ["1", [1]]},
        {"tensor": "0"},
        {"tensor": None},
        {"dict": 1},
        {"dict": [[1]]},
        {"dict": [[[], 1]]},
        {"dict": {"a": 1}},
        {"list": None},
        {"tuple": 3},
        {"set": []},
        {},
        {"list": [], "tuple": []},
        DEEP,
    ],
    ids=lambda tree: json.dumps(tree)[:40],
)
def test_crafted_trees_of_a_checkpoint(tmp_path, tree):
    write_sealed(tmp_path / "c", _HEADER, *packed(tree, **{"0": torch.ones(3)}))
    with pytest.raises(ValueError, match=f"{tmp_path}/c is not a whole checkpoint") as caught:
        load_checkpoint(tmp_path / "c", RUN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "1", "{}", '{"state": 1}', '{"state": 1, "run": []}', "[" * 10_000, ""])
def test_crafted_texts_of_a_checkpoint(tmp_path, text):
    write_sealed(tmp_path / "c", _HEADER, text, {})
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        load_checkpoint(tmp_path / "c", RUN)


def test_strides_of_every_layout_come_back(tmp_path):
    x = torch.arange(24.0).reshape(2, 3, 4)
    layouts = [
        x,
        x.mT,
        x.permute(2, 0, 1),
        x[:, :1],
        x[:, :1].mT,
        x[:, :, 2:3],
        x[:0],
        x.expand(2, 2, 3, 4),
        x[0, 0, 0],
    ]
    layouts += [torch.ones(5, 1).T, torch.ones(1, 5).T, torch.ones(1, 1, 5).permute(2, 0, 1), torch.empty(0, 4).T]
    save_checkpoint(tmp_path / "c", layouts, RUN)
    for found, expected in zip(load_checkpoint(tmp_path / "c", RUN), layouts, strict=True):
        assert torch.equal(found, expected)
        assert found.stride() == expected.clone().stride()


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> dict:
    """Of a run in the middle of its second epoch."""
    file = tmp_path_factory.mktemp("state") / "c"
    with pytest.raises(Killed):
        interrupted(make_learner(ProGrad(epochs=3, batch_size=10)), file, after=5)
    return load_checkpoint(file, RUN)


def changed(state: dict, path: str, value: object) -> dict:
    """The state with another entry at a path such as "optimizer/state/0/momentum_buffer"; ... takes it out."""
    name, _, rest = path.partition("/")
    key = int(name) if name.isdigit() else name
    if isinstance(state, list | tuple):
        return type(state)(changed(item, rest, value) if i == key and rest else value if i == key else item
                           for i, item in enumerate(state))  # fmt: skip
    if value is ... and not rest:
        return {name: item for name, item in state.items() if name != key}
    return {**state, key: changed(state[key], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("module", {}),
        ("module/ctx", torch.zeros(1, 2)),
        ("module/ctx", 3),
        ("module/other", torch.zeros(1)),
        ("learner", {}),
        ("learner/generator", torch.zeros(3, dtype=torch.uint8)),
        ("learner/generator", torch.zeros(5056)),
        ("learner/generator", "seed"),
        ("optimizer", 1),
        ("optimizer/param_groups", []),
        ("optimizer/param_groups/0/lr", "fast"),
        ("optimizer/param_groups/0/params", [0, 1]),
        ("optimizer/param_groups/0/momentum", ...),
        ("optimizer/state/0/momentum_buffer", torch.zeros(4, 8)),
        ("optimizer/state/0/momentum_buffer", torch.zeros(())),
        ("optimizer/state/0/momentum_buffer", torch.zeros(4, 32, dtype=torch.int64)),
        ("optimizer/state/0/momentum_buffer", 0.5),
        ("optimizer/state/0/momentum_buffer", []),
        ("optimizer/state/7", {"momentum_buffer": torch.zeros(4, 32)}),
        ("optimizer/state/0", [1]),
        ("optimizer/rule", {"units": 1}),
        ("schedule", []),
        ("schedule/last_epoch", None),
        ("schedule/step", 1),  # would hide the method
        ("schedule/lr_lambdas", [{"__class__": 1}]),
        ("scaler", {"scale": 1.0}),
        ("random", []),
        ("random/0", torch.zeros(10, dtype=torch.uint8)),
        ("random/0", None),
        ("epoch", -1),
        ("epoch", 4),
        ("epoch", 0.5),
        ("epoch", 10**15),
        ("batch", -1),
        ("batch", 10**15),
        ("batch", "0"),
        ("last_good", []),
        ("last_good/0", torch.zeros(3)),
        ("best", None),
        ("columns", ["task"]),
        ("columns", [1, 2, 3, 4]),
        ("columns", "task"),
        ("measured", torch.zeros(3)),
        ("measured", torch.zeros(2, 4, dtype=torch.int64)),
        ("measured", []),
        ("validation", ["high"]),
        ("validation", 1),
        ("new", 1),
        ("module", ...),
        ("epoch", ...),
        ("columns", ...),
    ],
)
def test_states_that_do_not_fit_are_refused(tmp_path, state, path, value):
    file = tmp_path / "c"
    save_checkpoint(file, changed(state, path, value), RUN)
    learner = make_learner(ProGrad(epochs=3, batch_size=10))
    with pytest.raises(ValueError, match=f"{file} does not fit this run .* delete it to begin anew") as caught:
        tune(learner, checkpoints=Checkpoints(file, RUN))
    assert "\n" not in str(caught.value)


def test_the_state_itself_fits(tmp_path, state):
    save_checkpoint(tmp_path / "c", state, RUN)
    tune(make_learner(ProGrad(epochs=3, batch_size=10)), checkpoints=Checkpoints(tmp_path / "c", RUN))


def test_a_tree_that_a_checkpoint_can_hold_is_not_too_deep():
    depth = str(_pack(STATE, {})).count("{")
    assert depth < 100
    assert parse_json(json.dumps(_pack(STATE, {})), finite=False)


# --------------------------------------------------------------------------------------------------------------- cache


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


# ----------------------------------------------------------------------------------------------------- no home, no name


def test_a_user_without_a_home(monkeypatch, caplog):
    import pwd

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with caplog.at_level(logging.WARNING):
        assert default_cache() is None
    (record,) = caplog.records
    assert "no home folder" in record.getMessage()


# The interpreter itself may lie where only its owner reads: everything is imported before the user changes.
AS_NOBODY = """
import json, os, pwd, sys
from prograd_fast import cli
arguments, home, out = json.loads(sys.argv[1])

def train(folder):
    sys.argv[1:] = [*arguments, "--out", folder]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code or 0

assert train(out + "/first") == 0
os.environ.pop("XDG_CACHE_HOME", None)
os.environ.pop("HOME", None)
if home is not None:
    os.environ["HOME"] = home
if os.getuid() == 0:
    os.setgid(12345)
    os.setuid(12345)
else:
    pwd.getpwuid = {}.__getitem__
print("now", file=sys.stderr)
sys.exit(train(out + "/second"))
"""


@pytest.mark.parametrize("home", [None, "/root", "/nonexistent", ""])
def test_a_container_with_any_user_trains(clip_dir, home):
    with tempfile.TemporaryDirectory() as folder:  # pytest's are for their owner alone
        train_as_nobody(Path(folder), clip_dir, home)


def train_as_nobody(folder: Path, clip_dir: Path, home: str | None) -> None:
    folder.chmod(0o777)
    data, model = draw_shapes(folder / "shapes", per_class=3), shutil.copytree(clip_dir, folder / "model")
    for path in (model, *model.iterdir()):
        path.chmod(0o755)
    arguments = f"train --data {data} --shots 1 --epochs 1 --model local-dir:{model}".split()
    command = [sys.executable, "-c", AS_NOBODY, json.dumps([arguments, home, str(folder)])]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.partition("now\n")[2].count("image features are not kept") == 1, done.stderr
    assert (folder / "second" / "record.json").exists()


# ------------------------------------------------------------------------------------------------------------- command


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
