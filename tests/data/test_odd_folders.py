"""Whatever is in a user's folder: training succeeds, or ends with one line and leaves nothing behind."""

from pathlib import Path

import numpy as np
import pytest

from tests.cli.support import run_here
from tests.conftest import draw_shapes

NAMES = ["red_circle", "blue_square", "green_bar", "black_dot"]


def damage_a_picture(data: Path, random: np.random.RandomState) -> None:
    """Bytes flipped, cut off, drawn at random or none at all."""
    file = data / NAMES[random.randint(4)] / f"{random.randint(4):02}.png"
    content = bytearray(file.read_bytes())
    match random.randint(5):
        case 0:
            for at in random.randint(len(content), size=8):
                content[at] ^= 1 << random.randint(8)
        case 1:
            del content[random.randint(len(content)) :]
        case 2:
            content = bytearray(random.bytes(200))
        case 3:
            content = bytearray()
        case 4:
            content = bytearray(b"\x89PNG\r\n\x1a\n" + random.bytes(100))
    file.write_bytes(content)


def wrong_class_list(data: Path, random: np.random.RandomState) -> None:
    """Names missing, double, empty, unknown, too long for the tower, or no text at all."""
    lines = [f"{name}\t{name.replace('_', ' ')}" for name in NAMES]
    match random.randint(6):
        case 0:
            lines.pop(random.randint(4))
        case 1:
            lines[0] = lines[1].replace(NAMES[1], NAMES[0])  # two folders of one name
        case 2:
            lines[random.randint(4)] = "nowhere\tsomething"
        case 3:
            lines[0] = f"{NAMES[0]}\t{'very ' * random.randint(1, 200)}red circle"
        case 4:
            lines[0] = f"{NAMES[0]}\t{''.join(map(chr, random.randint(0, 0xD800, size=12)))}"
        case 5:
            (data / "classes.txt").write_bytes(random.bytes(60))
            return
    (data / "classes.txt").write_text("\n".join(lines), encoding="utf-8")


def odd_layout(data: Path, random: np.random.RandomState) -> None:
    """Folders where pictures are expected, empty folders, files beside them, half a split of one's own."""
    match random.randint(5):
        case 0:
            (data / NAMES[0] / "folder.png").mkdir()
        case 1:
            (data / "empty class").mkdir()
        case 2:
            (data / "notes.txt").write_text("not a class")
        case 3:
            (data / "train").mkdir()
        case 4:
            for file in list((data / NAMES[1]).iterdir())[1:]:
                file.unlink()


@pytest.mark.parametrize("seed", [*range(18), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(18, 36))])
def test_odd_folders(tmp_path, clip_dir, capfd, monkeypatch, seed):
    random = np.random.RandomState(seed)
    data, out = draw_shapes(tmp_path / "data", per_class=4), tmp_path / "out"
    (damage_a_picture, wrong_class_list, odd_layout)[seed % 3](data, random)
    code = run_here(
        monkeypatch,
        *("train", "--data", data, "--out", out, "--shots", 1, "--epochs", 2, "--model", f"local-dir:{clip_dir}"),
    )
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert code in (0, 2)
    if code == 0:
        assert sorted(file.name for file in out.iterdir()) == ["curves.png", "prompt.safetensors", "record.json"]
    else:
        lines = [line for line in said.splitlines() if line.startswith("prograd-fast: ")]
        assert len(lines) == 1
        assert len(lines[0]) > 30
        assert not out.exists()


def test_both_ends_are_reached(tmp_path, clip_dir, monkeypatch):
    """The fuzzing above is of use only where some folders still train."""
    data = draw_shapes(tmp_path / "data", per_class=4)
    (data / "notes.txt").write_text("not a class")
    arguments = ["--data", data, "--out", tmp_path / "out", "--shots", 1, "--epochs", 2]
    assert run_here(monkeypatch, "train", *arguments, "--model", f"local-dir:{clip_dir}") == 0
