"""Files that anybody can write or damage: each is read right, or refused with a ValueError of one line."""

import functools
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

import prograd_fast as pf
from prograd_fast.cli.compare import _read_settings
from prograd_fast.clip import feature_cache
from prograd_fast.clip.feature_cache import FeatureCache
from prograd_fast.data import load_folder
from prograd_fast.files.reading import parse_json
from prograd_fast.files.tensors import digest, write_sealed
from prograd_fast.methods import ProGradCoOp, Task, method_named
from prograd_fast.training import grid as grids
from prograd_fast.training import load_run, save_run, tune
from prograd_fast.training.checkpoint import _HEADER, Checkpoints, _pack, save_checkpoint
from prograd_fast.training.record import seal
from tests.fuzz.registry import target

DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
    *(torch.int64, torch.int32, torch.uint8, torch.bool),
)
RUN = {"method": "prograd", "seed": 3}


@contextmanager
def refused_in_one_line():
    """A block may raise ValueError with one line, and nothing else."""
    message = "a ValueError of one line"
    try:
        yield
    except ValueError as error:
        message = str(error)
    assert message, "a ValueError without a message"
    assert "\n" not in message, message


def damaged(content: bytes, random: Random) -> bytes:
    """One damage: a bit, bytes, a cut, a block twice, swapped, zeroed or of another place; never the same bytes."""
    for _ in range(100):
        result = bytearray(content)
        at, n = random.randrange(len(content)), random.choice([1, 2, 8, 64, 512])
        match random.randrange(7):
            case 0:
                result[at] ^= 1 << random.randrange(8)
            case 1:
                result[at : at + n] = random.randbytes(n)
            case 2:
                del result[at:]
            case 3:
                del result[at : at + n]
            case 4:
                result[at:at] = result[at : at + n]
            case 5:
                result[at : at + n] = bytes(len(result[at : at + n]))
            case 6:
                other = random.randrange(len(content))
                result[at : at + n] = content[other : other + n]
        if bytes(result) != content:
            return bytes(result)
    return b""


def odd_value(random: Random, depth: int = 0) -> Any:
    """A JSON value that nobody expects."""
    odd = [
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**62,
        -(2**63),
        0.5,
        -0.0,
        1e308,
        1e-320,
        "",
        "a",
        "ctx",
        "\ud800",
        "\x1b[2J",
    ]
    odd += ["{}", "nan", "../../etc/passwd", "x" * 10_000, [], {}, [[]], ["a", "a"], [1, 2], {"a": 1}, list(range(300))]
    if depth < 3 and random.random() < 0.2:
        return [odd_value(random, depth + 1) for _ in range(random.randrange(4))]
    if depth < 3 and random.random() < 0.2:
        return {random.choice(["a", "tensor", "dict", "list"]): odd_value(random, depth + 1)}
    return random.choice(odd)


def crafted(value: Any, random: Random) -> Any:
    """A tree with one or a few entries missing, new, exchanged or odd."""
    value = json.loads(json.dumps(value))
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        places = list(_places(value))
        if not places:
            return odd_value(random)
        node, key = random.choice(places)
        match random.randrange(6):
            case 0:
                del node[key]
            case 1 | 2 | 3:
                node[key] = odd_value(random)
            case 4:
                other, name = random.choice(places)
                node[key] = json.loads(json.dumps(other[name]))
            case 5:
                if isinstance(node, dict):
                    node[random.choice(["new", "ctx", "state", "0"])] = odd_value(random)
                else:
                    node.insert(key, odd_value(random))
    return value


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every entry of a tree: what holds it, and its name or place there."""
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from _places(node[key])


def odd_tensor(random: Random) -> torch.Tensor:
    """Any dtype and shape, with or without NaN."""
    dtype = random.choice(DTYPES)
    shape = [random.choice([0, 1, 2, 3, 4, 32]) for _ in range(random.randrange(4))]
    tensor = (10 * torch.rand(shape)).to(dtype)
    if tensor.numel() and dtype in (torch.float32, torch.float64) and random.random() < 0.3:
        tensor.view(-1)[0] = random.choice([torch.nan, torch.inf, -torch.inf])
    return tensor


def odd_file(random: Random, path: Path) -> None:
    """Something that is not the file that is expected there."""
    match random.randrange(7):
        case 0:
            path.mkdir()
        case 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            path.symlink_to("/proc/self/mem")
        case 4:
            path.write_text("[" * random.choice([10, 100, 10_000, 1_000_000]))
        case 5:
            path.write_bytes((2 ** random.randrange(64) - 1).to_bytes(8, "little") + random.randbytes(50))
        case 6:
            with path.open("wb") as file:
                file.truncate(1 << 42)  # takes no room


# ---- JSON


@target("JSON")
def any_json(random: Random, folder: Path) -> None:
    """`parse_json` gives what json gives, or refuses."""
    text = json.dumps([odd_value(random) for _ in range(5)])
    if random.random() < 0.7:
        text = damaged(text.encode(), random).decode("latin-1")
    if random.random() < 0.1:
        text = random.choice(
            ["NaN", "[Infinity]", '{"a": 1, "a": 2}', "1" * 5000, "1e999", "[" * 10**5, '{"a":' * 10**5]
        )
    with refused_in_one_line():
        value = parse_json(text)
        assert value == json.loads(text)


@target("--settings FILE")
def settings_file(random: Random, folder: Path) -> None:
    """Settings of a comparison."""
    file = folder / "settings.json"
    whole = {"coop": {"epochs": 2, "lr": 0.1}, "lasp": {"preset": "vit-b16-base-to-new", "virtual_classes": ["kite"]}}
    match random.randrange(3):
        case 0:
            file.write_bytes(damaged(json.dumps(whole).encode(), random))
        case 1:
            file.write_text(json.dumps(crafted(whole, random)))
        case 2:
            odd_file(random, file)
    with refused_in_one_line():
        for name, own in _read_settings(file).items():
            method_named(name, {key: value for key, value in own.items() if key != "preset"}, own.get("preset"))


@target("classes.txt")
def class_list(random: Random, folder: Path) -> None:
    """Readable names of class folders."""
    for name in ("cat", "dog", "ox"):
        (folder / name).mkdir()
        for i in range(2):
            (folder / name / f"{i}.png").touch()
    file = folder / "classes.txt"
    whole = "cat\ta cat\ndog a dog\nox\tan ox\n".encode(random.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    if random.random() < 0.8:
        file.write_bytes(damaged(whole, random) if random.random() < 0.8 else whole)
    else:
        odd_file(random, file)
    with refused_in_one_line():
        assert len(load_folder(folder).class_names) == 3


# ---- runs


@functools.cache
def _run() -> tuple[dict[str, Any], Any]:
    """A record and a learner, without pictures."""
    from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip

    method = ProGradCoOp(epochs=2)
    names = list(CLASS_NAMES)
    learner = method.start(Task.without_pictures(tiny_clip(dtype=torch.float32), TOKENIZER, names))
    record = {
        "method": method.name,
        "settings": asdict(method),
        "model": {"name": "emoji-lite", "pretrained": None},
        "data": {"name": "shapes", "class_names": names},
        "trained_classes": names,
        "shots": 1,
        "seed": 0,
        "partition": None,
        "accuracy": {"all": 0.25, "validation": 0.5},
        "facts": {"method": method.name, "seed": 0},
        "steps": {"task_loss": [1.0, 0.5], "cosine": [None, -0.25]},
    }
    return json.loads(json.dumps(record)), learner


@functools.cache
def _run_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        save_run(Path(folder), *_run())
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


class _Told(logging.Handler):
    """The warnings of the library."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage()


@target("run, damaged")
def damaged_run(random: Random, folder: Path) -> None:
    """One damage to record.json or prompt.safetensors is refused, told, or changes nothing of what they say."""
    files = _run_files()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    name = random.choice(sorted(files))
    (folder / name).write_bytes(damaged(files[name], random))
    told = _Told()
    log = logging.getLogger("prograd_fast")
    log.addHandler(told)
    try:
        with refused_in_one_line():
            record, learned = load_run(folder)
            assert record == _run()[0] or "has been changed" in told.text
            assert torch.equal(learned["ctx"], _run()[1].module.ctx)
    finally:
        log.removeHandler(told)
    if name == "prompt.safetensors":
        with refused_in_one_line():
            assert torch.equal(pf.clip.load_prompt(folder / name).ctx, _run()[1].module.ctx)


@target("run, crafted")
def crafted_run(random: Random, folder: Path) -> None:
    """A record of any content, whose prompt belongs to it: used, or refused."""
    record, learner = _run()
    changed = crafted(record, random)
    with refused_in_one_line():
        try:
            save_run(folder, changed, learner)
        except (KeyError, TypeError):  # not even written
            (folder / "prompt.safetensors").write_bytes(_run_files()["prompt.safetensors"])
            (folder / "record.json").write_text(json.dumps(changed))
        read, learned = load_run(folder)
        method = method_named(read["method"], read["settings"])
        if getattr(method, "n_ctx", None) in (None, 4) and method.name == "prograd":
            method.restore(learner.task.model, learner.task.tokenizer, read["trained_classes"], learned)


@target("run, odd files")
def odd_run(random: Random, folder: Path) -> None:
    """Folders, pipes, devices and huge files in place of a run's."""
    files = _run_files()
    odd = random.choice(sorted(files))
    for name, content in files.items():
        if name != odd:
            (folder / name).write_bytes(content)
    odd_file(random, folder / odd)
    with refused_in_one_line():
        load_run(folder)
        raise AssertionError("it was taken")
    if odd == "prompt.safetensors":
        with refused_in_one_line():
            pf.clip.load_prompt(folder / odd)
            raise AssertionError("it was taken")


@target("prompt file, crafted")
def crafted_prompt(random: Random, folder: Path) -> None:
    """Headers and tensors of any kind, with the right digest."""
    file = folder / "prompt.safetensors"
    header = {
        "class_names": ["cat", "dog"],
        "class_specific": random.random() < 0.3,
        "class_token_position": random.choice(["end", "middle", "front"]),
        "n_ctx": 2,
        "text_width": 32,
        "model_digest": "0" * 64,
        "library_version": "0",
        "metadata": {},
    }
    tensors = {"ctx": torch.randn(2, 2, 32) if header["class_specific"] else torch.randn(2, 32)}
    if random.random() < 0.5:
        tensors[random.choice(["ctx", "other", ""])] = odd_tensor(random)
    told = json.dumps(crafted(header, random)) if random.random() < 0.7 else json.dumps(header)
    try:
        write_sealed(file, "prograd_fast", told, tensors)
    except (ValueError, RuntimeError, TypeError):  # dtypes that safetensors or a digest cannot have
        return
    with refused_in_one_line():
        saved = pf.clip.load_prompt(file)
        assert saved.ctx.is_floating_point()
        assert saved.ctx.isfinite().all()
        model, tokenizer = _run()[1].task.model, _run()[1].task.tokenizer
        replace(saved, model_digest=pf.clip.model_digest(model)).build(model, tokenizer).class_features()


# ---- checkpoints


@functools.cache
def _checkpoint() -> tuple[dict[str, Any], bytes]:
    """A state in the middle of training, and its file."""
    from tests.training.support import make_learner

    states: list[dict[str, Any]] = []

    class Kept(Checkpoints):
        def save(self, state: Any) -> None:
            states.append({**state, "validation": list(state["validation"])})

        def load(self) -> None:
            return None

    tune(make_learner(ProGradCoOp(epochs=2, batch_size=10)), checkpoints=Kept(Path("nowhere"), RUN, every=0.0))
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "c", states[4], RUN)
        return states[4], (Path(folder) / "c").read_bytes()


def _resume(file: Path) -> None:
    from tests.training.support import make_learner

    tune(make_learner(ProGradCoOp(epochs=2, batch_size=10)), checkpoints=Checkpoints(file, RUN, every=3600.0))


@target("checkpoint, damaged")
def damaged_checkpoint(random: Random, folder: Path) -> None:
    """One damage to a checkpoint is noticed, or the file says the same."""
    file, (_, content) = folder / "c", _checkpoint()
    file.write_bytes(damaged(content, random))
    with refused_in_one_line():
        _resume(file)


@target("checkpoint, crafted tree")
def crafted_checkpoint(random: Random, folder: Path) -> None:
    """Packed trees of any content, with the right digest: wrong kinds, missing tensors, strides, depths."""
    file, (state, _) = folder / "c", _checkpoint()
    tensors: dict[str, torch.Tensor] = {}
    packed = crafted({"state": _pack(state, tensors), "run": RUN}, random)
    if random.random() < 0.1:
        packed["state"] = functools.reduce(lambda tree, _: {"tuple": [tree]}, range(random.choice([10, 300])), 1)
    if random.random() < 0.2:
        del tensors[random.choice(sorted(tensors))]
    if random.random() < 0.2:
        tensors[random.choice(sorted(tensors))] = odd_tensor(random)
    try:
        write_sealed(file, _HEADER, json.dumps(packed), tensors)
    except (ValueError, RuntimeError, TypeError):
        return
    with refused_in_one_line():
        _resume(file)


def _odd_branch(value: Any, random: Random, depth: int = 0) -> Any:
    """A state with one branch odd: a tensor of another form, a number for a list and so on."""
    if isinstance(value, dict) and value and (depth < 1 or random.random() < 0.8):
        key = random.choice(list(value))
        return {**value, key: _odd_branch(value[key], random, depth + 1)}
    if isinstance(value, list | tuple) and value and random.random() < 0.8:
        i = random.randrange(len(value))
        changed = [*value[:i], _odd_branch(value[i], random, depth + 1), *value[i + 1 :]]
        return type(value)(changed)
    return odd_tensor(random) if random.random() < 0.5 else odd_value(random)


@target("checkpoint, crafted state")
def crafted_state(random: Random, folder: Path) -> None:
    """States that do not fit what they are restored into."""
    file, (state, _) = folder / "c", _checkpoint()
    try:
        save_checkpoint(file, _odd_branch(state, random), RUN)
    except (ValueError, RuntimeError, TypeError):
        return
    with refused_in_one_line():
        _resume(file)


@target("safetensors header")
def crafted_header(random: Random, folder: Path) -> None:
    """A header of any content before the tensors of a prompt file and of a checkpoint."""
    content = random.choice([_run_files()["prompt.safetensors"], _checkpoint()[1]])
    n = int.from_bytes(content[:8], "little")
    header = json.dumps(crafted(json.loads(content[8 : 8 + n]), random)).encode()
    length = len(header) if random.random() < 0.9 else random.randrange(2**63)
    file = folder / "file.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + header + content[8 + n :])
    with refused_in_one_line():
        pf.clip.load_learned(file)
    with refused_in_one_line():
        _resume(file)


# ---- features and grids


@target("feature cache")
def cached_features(random: Random, folder: Path) -> None:
    """Shards damaged, crafted or odd: never a wrong feature, never an error."""
    keys = [bytes([i]) * 32 for i in range(4)]
    values = torch.arange(12.0).reshape(4, 3)
    cache = FeatureCache(folder, {"model": "one"}, 3)
    cache.put(keys, values)
    (shard,) = cache.folder.iterdir()
    content = shard.read_bytes()
    match random.randrange(4):
        case 0:
            shard.write_bytes(damaged(content, random))
        case 1:
            n = int.from_bytes(content[:8], "little")
            header = json.dumps(crafted(json.loads(content[8 : 8 + n]), random)).encode()
            shard.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + n :])
        case 2:
            tensors = {name: odd_tensor(random) for name in ("keys", "sums", "values")}
            if random.random() < 0.5:
                tensors["keys"] = torch.zeros(4, 32, dtype=torch.uint8)
            if random.random() < 0.5:
                tensors["sums"] = torch.zeros(4, dtype=torch.int64)
            try:
                told = {"identity": cache._identity, **{name: digest(tensor) for name, tensor in tensors.items()}}
                shard.write_bytes(save(tensors, {feature_cache._HEADER: json.dumps(told)}))
            except (ValueError, RuntimeError, TypeError, KeyError):
                return
        case 3:
            shard.unlink()
            odd_file(random, shard)
    for _ in range(2):
        found = cache.get([*keys, bytes(32)])
        for key, value in found.items():
            assert value.shape == (3,)
            if key in keys[1:]:
                assert torch.equal(value, values[keys.index(key)])
    if not found:
        cache.put(keys, values)
        assert shard.is_dir() or cache.get(keys).keys() == set(keys)


@target("run of a grid")
def grid_run(random: Random, folder: Path) -> None:
    """A grid's run: as it was, run again, or another grid's."""
    file = folder / "coop-1shots-seed0.json"
    facts = {
        "method": "coop",
        "settings": {},
        "shots": 1,
        "seed": 0,
        "partition": None,
        "imbalance": None,
        "regime": {},
    }
    run = facts | {
        "facts": facts,
        "accuracy": {"all": 0.5},
        "seconds": {"train": 1.0, "evaluate": 1.0},
        "memory": None,
        "steps": {"cosine": [None, 0.5]},
    }
    match random.randrange(3):
        case 0:
            file.write_bytes(damaged(json.dumps(seal(run)).encode(), random))
        case 1:
            changed = crafted(run, random)
            file.write_text(json.dumps(seal(changed) if isinstance(changed, dict) else changed))
        case 2:
            odd_file(random, file)
    with refused_in_one_line():
        found = grids._finished(file, facts)
        assert found is None or all(isinstance(value, float) for value in found["accuracy"].values())
