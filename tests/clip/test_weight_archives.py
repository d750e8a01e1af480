"""Archives of torch are read without running anything in them, however they are made."""

import io
import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from prograd_fast.clip.pretrained import read_weights
from prograd_fast.clip.pretrained.archive import Archive, Inert, StoredTensor
from tests.tiny_clip import tiny_clip


class Runs:
    """The deed that no pickle may do: it leaves a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def write_archive(file: Path, data: bytes, numbers: bytes = bytes(64), compression: int = zipfile.ZIP_STORED) -> None:
    """A zip of torch's form around any pickle."""
    with zipfile.ZipFile(file, "w", compression) as content:
        content.writestr("archive/data.pkl", data)
        content.writestr("archive/data/0", numbers)
        content.writestr("archive/version", "3\n")


def tensor_pickle(
    offset: int = 0, shape: tuple = (2, 3), strides: tuple = (3, 1), kind: type = torch.FloatStorage, key: str = "0"
) -> bytes:
    """A pickle of {"weight": tensor} as torch.save writes it."""

    class Storage:
        pass

    class Described:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage, offset, shape, strides, False, {})

    class Writer(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", kind, key, "cpu", 6) if value is storage else None

    storage, content = Storage(), io.BytesIO()
    Writer(content, 2).dump({"weight": Described()})
    return content.getvalue()


def test_any_class_is_inert(tmp_path):
    torch.save({"weight": torch.arange(6.0), "deed": Runs(tmp_path / "marker"), "path": tmp_path}, tmp_path / "weights")
    archive = Archive.open(tmp_path / "weights")
    assert isinstance(archive.tree["deed"], Inert)
    assert isinstance(archive.tree["path"], Inert)
    assert torch.equal(archive.tree["weight"].read(), torch.arange(6.0))
    assert "posix.system" in archive.classes
    assert not (tmp_path / "marker").exists()


GLOBALS = [b"cposix\nsystem\n", b"cbuiltins\nexec\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"ctorch.jit\nload\n"]


@pytest.mark.parametrize("name", GLOBALS)
@pytest.mark.parametrize("call", [b"(S'touch marker'\ntR.", b"(S'touch marker'\nt\x81.", b"(S'touch marker'\nt}b."])
def test_calls_do_nothing(tmp_path, monkeypatch, name, call):
    monkeypatch.chdir(tmp_path)
    write_archive(tmp_path / "weights", b"\x80\x02" + name + call)
    with pytest.raises(ValueError, match=r"holds no CLIP model|is damaged"):
        read_weights(tmp_path / "weights")
    assert os.listdir(tmp_path) == ["weights"]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (1, 2, 3)])
def test_tensors_come_back(tmp_path, dtype, shape):
    tensor = (10 * torch.randn(shape)).to(dtype)
    torch.save({"a": tensor, "same": tensor, "part": tensor[..., None].expand(*shape, 2)[..., 0]}, tmp_path / "weights")
    tree = Archive.open(tmp_path / "weights").tree
    for stored in tree.values():
        assert isinstance(stored, StoredTensor)
        assert torch.equal(stored.read(), tensor)
        assert stored.read().dtype == dtype


OUTSIDE = {
    "offset": {"offset": 11},
    "far": {"offset": 1 << 62},
    "negative offset": {"offset": -1},
    "shape": {"shape": (100, 3)},
    "huge": {"shape": (1 << 40, 1 << 40), "strides": (0, 0)},
    "negative shape": {"shape": (-2, 3)},
    "strides": {"strides": (300, 1)},
    "negative strides": {"strides": (-3, 1)},
    "wider numbers": {"kind": torch.DoubleStorage, "shape": (3, 3)},
    "uneven": {"strides": (1,)},
    "no such numbers": {"key": "1"},
    "another folder": {"key": "../data.pkl"},
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_tensors_stay_within_their_numbers(tmp_path, kind):
    write_archive(tmp_path / "weights", tensor_pickle(**OUTSIDE[kind]))
    stored = Archive.open(tmp_path / "weights").tree["weight"]
    with pytest.raises((ValueError, KeyError)):
        stored.read()


def test_the_pickle_of_the_tests_is_torchs(tmp_path):
    write_archive(tmp_path / "weights", tensor_pickle(), torch.arange(6.0).numpy().tobytes())
    read = Archive.open(tmp_path / "weights").tree["weight"].read()
    assert torch.equal(read, torch.arange(6.0).view(2, 3))
    assert torch.equal(torch.load(tmp_path / "weights", weights_only=True)["weight"], read)


ODD = {
    "compressed": lambda file: write_archive(file, tensor_pickle(), bytes(1 << 20), zipfile.ZIP_DEFLATED),
    "cut off": lambda file: write_archive(file, tensor_pickle()[:-9]),
    "no pickle": lambda file: write_archive(file, b"weights"),
    "empty pickle": lambda file: write_archive(file, b""),
    "recursive": lambda file: write_archive(file, b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."),
    "other zip": lambda file: zipfile.ZipFile(file, "w").writestr("a.txt", "text"),
    "long": lambda file: write_archive(file, b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b"x."),
    "memo": lambda file: write_archive(file, b"\x80\x02}r\xff\xff\xff\xff."),
    "extension": lambda file: write_archive(file, b"\x80\x02\x82\x01."),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_archives_are_refused_in_one_line(tmp_path, kind):
    ODD[kind](tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"^[^\n]*$"):
        read_weights(tmp_path / "weights.pt")


def test_damage_anywhere_is_a_value_error(tmp_path):
    """One byte changed, in the pickle and around it."""
    file = tmp_path / "weights.pt"
    state = {name: value for name, value in tiny_clip(dtype=torch.float32).state_dict().items() if value.numel() < 500}
    torch.save(state | {"visual.proj": torch.zeros(1)}, file)
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as content:
        end = content.getinfo("weights/data.pkl").file_size + 200
    for at in [*range(0, end, 97), *range(len(whole) - 400, len(whole), 7)]:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with suppress(ValueError):  # or it was a number
            read_weights(file)
