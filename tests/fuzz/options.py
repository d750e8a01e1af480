"""The command with odd options: it works, or ends with one line, quickly, and never by its last resort."""

import contextlib
import functools
import io
import json
import logging
import os
import tempfile
import unicodedata
from pathlib import Path
from random import Random

import torch
from PIL import Image
from safetensors.torch import save_file

from prograd_fast import cli
from prograd_fast.methods import METHODS
from tests.fuzz.registry import target
from tests.tiny_clip import tiny_clip

NUMBERS = [
    "inf",
    "-inf",
    "nan",
    "-1",
    "0",
    "1e300",
    "1e999",
    "1e-320",
    "9" * 40,
    "9" * 5000,
    "٣",
    "0x10",
    "",
    " ",
    "two",
]
NUMBERS += ["1", "2", "3", "1,2", "1,1", ",", "1,1e9", "1,1000000000", "true", "null"]
TEXTS = [
    "",
    " ",
    "\0",
    "a\0b",
    "\x1b[2J",
    "\ud800",
    "\udcff",
    "a" * 300_000,
    "very " * 5000,
    "{}",
    "{0}",
    "%s",
    "$x^$",
    "‮x",
]
TEXTS += [
    "[red]x",
    "😀",
    "photo",
    "a photo of a",
    "-",
    "--",
    "..",
    "/",
    "/dev/null",
    "/proc/self/mem",
    "con:",
    "hf-hub:",
    ":",
]
JSONS = [
    "[" * 100_000,
    "{" * 900,
    "[" * 900 + "]" * 900,
    '{"a": 1}',
    "[]",
    "[1]",
    '["{}"]',
    '["\\ud800 {}"]',
    "1e400",
    "-1e400",
    "NaN",
]
JSONS += [
    "true",
    "null",
    '"x"',
    "9" * 400,
    "-" + "9" * 4000,
    "9" * 5000,
    '"' + "x" * 200_000 + '"',
    "[[[1]]]",
    "0.5",
    "-0.0",
    "2",
]
PATHS = [*TEXTS, "/dev/null", "/proc/x", "/dev/full/x", "run", "x/y/z"]
DEVICES = [
    "cpu",
    "cpu:1",
    "cpu:-1",
    "cuda",
    "cuda:99999999999999999999",
    "meta",
    "mps",
    "xla",
    "hpu",
    "vulkan",
    "lazy",
    "ort",
    "ideep",
]
DEVICES += [
    "privateuseone",
    "xpu",
    "mtia",
    "maia",
    "fpga",
    "ve",
    "ipu",
    "opengl",
    "opencl",
    "mkldnn",
    "cpu cpu",
    "CPU",
    "cpu:0:0",
]
# a training that is asked for many epochs may well take long
TRAIN = {
    **dict.fromkeys(
        ["--shots", "--seed", "--partition", "--lr", "--max-memory", "--accumulate", "--patience", "--views"], NUMBERS
    ),
    "--n-ctx": [*NUMBERS, "76", "77", "1000000000"],
    "--epochs": [number for number in NUMBERS if number not in ("1e300",)],
    **dict.fromkeys(["--ctx-init", "--model", "--pretrained", "--data", "--method", "--preset", "--precision"], TEXTS),
    **dict.fromkeys(["--out", "--cache", "--log"], PATHS),
    "--device": DEVICES,
}
COMPARE = {
    **dict.fromkeys(["--shots", "--seeds", "--partitions", "--imbalance", "--views", "--max-memory"], NUMBERS),
    **dict.fromkeys(["--methods", "--also", "--settings", "--model", "--data", "--precision"], TEXTS),
    "--device": DEVICES,
}


@functools.cache
def places() -> tuple[str, str]:
    """A folder of pictures and a model, tiny both."""
    root = Path(tempfile.mkdtemp())
    for name in ("red", "blue"):
        (root / "data" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (4, 4), name).save(root / "data" / name / f"{i}.png")
    (root / "clip").mkdir()
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": {"width": 32, "heads": 2, "layers": 2}}
    (root / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    weights = tiny_clip(dtype=torch.float32).state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, root / "clip/open_clip_model.safetensors"
    )
    return str(root / "data"), f"local-dir:{root / 'clip'}"


def ends_well(arguments: list[str], folder: Path) -> None:
    """The command in this process: exit code 0, or one line."""
    out, err = io.StringIO(), io.StringIO()
    before = os.getcwd()
    os.chdir(folder)  # where relative paths lead
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run(arguments)
    finally:
        logging.root.setLevel(level)
        os.chdir(before)
    told = [line for line in err.getvalue().splitlines() if line.startswith("prograd-fast: ")]
    assert code in (0, 1, 2), (code, arguments)
    assert len(told) == (code == 2), (code, err.getvalue())  # 1: training diverged, which is told on stdout
    assert len(err.getvalue()) < 20_000
    assert "Traceback" not in err.getvalue()
    odd = [c for c in out.getvalue() + err.getvalue() if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c != "\n"]
    assert not odd, odd


def options(random: Random, among: dict[str, list[str]], given: dict[str, str]) -> list[str]:
    """Some odd ones in the place of good ones."""
    chosen = random.sample(list(among), min(len(among), random.choice([1, 1, 2, 3])))
    values = given | {name: random.choice(among[name]) for name in chosen}
    return [text for name, value in values.items() for text in (name, value)]


@target("options of train")
def train(random: Random, folder: Path) -> None:
    """Odd numbers, texts, paths, devices."""
    data, model = places()
    good = {"--data": data, "--model": model, "--out": "run", "--shots": "1", "--epochs": "1", "--method": "prograd"}
    ends_well(["train", "--no-cache", *options(random, TRAIN, good)], folder)


@target("settings of methods")
def settings(random: Random, folder: Path) -> None:
    """Any JSON for any setting of any method."""
    data, model = places()
    method = random.choice(METHODS)
    names = [*(text.split("=")[0] for text in method.defaults()), "", "nothing", "__class__", "name", "\x1b]0;x\a"]
    good = {"--data": data, "--model": model, "--out": "run", "--shots": "1", "--method": method.name}
    if hasattr(method, "epochs"):
        good["--epochs"] = "1"
    odd = []
    for _ in range(random.choice([1, 1, 2])):
        odd += ["--set", f"{random.choice(names)}={random.choice(JSONS + NUMBERS + TEXTS)}"]
    ends_well(["train", "--no-cache", *options(random, {}, good), *odd], folder)


@target("options of compare")
def compare(random: Random, folder: Path) -> None:
    """Odd grids of a method that takes no time."""
    data, model = places()
    good = {"--data": data, "--model": model, "--out": "grid", "--shots": "1", "--seeds": "1", "--methods": "zero-shot"}
    ends_well(["compare", "--no-cache", *options(random, COMPARE, good)], folder)


@target("words of the command")
def words(random: Random, folder: Path) -> None:
    """Whatever words there are."""
    known = ["train", "compare", "evaluate", "predict", "methods", "doctor", "--help", "--data", "--out", "--top", "."]
    ends_well(random.choices([*known, *TEXTS, *NUMBERS], k=random.randint(0, 5)), folder)
