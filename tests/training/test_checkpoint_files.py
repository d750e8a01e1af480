"""A checkpoint file is whole and of this run, or it is refused in one line; any state comes back as it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prograd_fast.files.reading import parse_json
from prograd_fast.files.tensors import write_sealed
from prograd_fast.methods import ProGradCoOp
from prograd_fast.training import tune
from prograd_fast.training.checkpoint import (
    _HEADER,
    Checkpoints,
    _pack,
    differing,
    load_checkpoint,
    save_checkpoint,
)
from tests.training.support import RUN, STATE, Killed, interrupted, make_learner, same


def test_any_state_comes_back(tmp_path):
    save_checkpoint(tmp_path / "c", STATE, RUN)
    assert same(load_checkpoint(tmp_path / "c", RUN), STATE)
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_what_json_cannot_hold_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(TypeError, match="a checkpoint cannot hold PosixPath"):
        save_checkpoint(tmp_path / "c", {"path": tmp_path}, RUN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"seed": 4}, {"class_names": ["a", "c"]}, {"new": 1}])
def test_checkpoint_of_another_run(tmp_path, change):
    save_checkpoint(tmp_path / "c", STATE, RUN)
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"belongs to another run: its {name} is") as caught:
        load_checkpoint(tmp_path / "c", RUN | change)
    assert "\n" not in str(caught.value)


def test_of_many_settings_the_one_that_differs_is_told():
    """CLAP has a setting with the name of a fact that is told in other words."""
    clap = {"method": "clap", "settings": {"lr": 0.1, "weights": "l2"}, "weights": "a digest"}
    other = {**clap, "settings": {"lr": 0.1, "weights": "constant"}}
    assert differing(clap, other) == "its settings.weights is 'l2', this one's 'constant'"
    assert differing({**clap, "settings": {"lr": 0.1}}, clap) == "its settings.weights is None, this one's 'l2'"
    assert differing(clap, {**clap, "weights": "another"}) == "its model has other weights"
    assert differing(clap, dict(clap)) is None


@pytest.mark.parametrize("seed", range(60))
def test_damaged_checkpoints_are_refused(tmp_path, seed):
    # one flipped bit, a cut, a swapped block, bytes of something else: at random places of header, tree and tensors
    file, draw = tmp_path / "c", np.random.RandomState(seed)
    save_checkpoint(file, STATE, RUN)
    content = bytearray(file.read_bytes())
    at = int(draw.randint(len(content)))
    match seed % 4:
        case 0:
            content[at] ^= 1 << draw.randint(8)
        case 1:
            del content[at:]
        case 2:
            content[at : at + 16] = content[at : at + 16][::-1] if at + 16 < len(content) else b""
        case 3:
            content[at : at + 8] = draw.bytes(8)
    assert content != file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole checkpoint") as caught:
        load_checkpoint(file, RUN)
    assert str(file) in str(caught.value)


def test_nothing_is_unpickled(tmp_path):
    torch.save(STATE, tmp_path / "c")
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        load_checkpoint(tmp_path / "c", RUN)


def test_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c", RUN)
    checkpoints.save({"step": 1})

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device"):
        checkpoints.save({"step": 2})
    assert checkpoints.load() == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


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
        interrupted(make_learner(ProGradCoOp(epochs=3, batch_size=10)), file, after=5)
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
    learner = make_learner(ProGradCoOp(epochs=3, batch_size=10))
    with pytest.raises(ValueError, match=f"{file} does not fit this run .* delete it to begin anew") as caught:
        tune(learner, checkpoints=Checkpoints(file, RUN))
    assert "\n" not in str(caught.value)


def test_the_state_itself_fits(tmp_path, state):
    save_checkpoint(tmp_path / "c", state, RUN)
    tune(make_learner(ProGradCoOp(epochs=3, batch_size=10)), checkpoints=Checkpoints(tmp_path / "c", RUN))


def test_a_tree_that_a_checkpoint_can_hold_is_not_too_deep():
    depth = str(_pack(STATE, {})).count("{")
    assert depth < 100
    assert parse_json(json.dumps(_pack(STATE, {})), finite=False)
