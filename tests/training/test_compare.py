"""`compare` from its options to tables and plots: right figures, and one line for a mistake."""

import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import open_clip
import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from prograd_fast import methods
from prograd_fast.cli.compare import _runnable
from prograd_fast.cli.matching import check_match
from prograd_fast.methods import GDA, TCP, CoOp, LinearProbe, ProGradCoOp, ProLIP, TipAdapter, ZeroShot
from prograd_fast.report import report_comparison
from prograd_fast.report.statistics import Spread
from prograd_fast.training import Grid, run_grid
from tests.cli.support import fail, run_here
from tests.training.support import no_bars

METHODS = (ZeroShot(), LinearProbe(), CoOp(epochs=3), ProGradCoOp(epochs=4))


def test_spread_of_runs():
    spread = Spread.of([1.0, 2.0, 3.0, 4.0])
    sd = math.sqrt(5 / 3)
    assert (spread.mean, spread.n) == (2.5, 4)
    assert spread.sd == pytest.approx(sd)
    assert spread.half_width == pytest.approx(3.182446305 * sd / 2, rel=1e-8)  # t-table: 0.975, 3 degrees of freedom
    assert str(spread) == "2.5 ± 2.1 (1.3)"
    assert str(Spread.of([40.0])) == "40.0"


def test_report_of_base_and_new_classes(clip, shapes, tmp_path):
    grid = Grid(METHODS, [1, 2], seeds=2, partitions=1)
    results = run_grid(grid, clip, shapes, tmp_path, no_bars, transfer=[replace(shapes, name="other")])
    results["runs"][2]["steps"]["cosine"][1] = None  # a gradient was zero
    stream = io.StringIO()
    report_comparison(results, tmp_path, Console(file=stream, width=200))
    pictures = ["conflict.png", "cost.png", "plane.png", "shots.png"]
    assert {file.name for file in tmp_path.iterdir()} == {*pictures, "results.json", "runs", "tables.md"}
    for name in pictures:
        with Image.open(tmp_path / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20  # something is drawn
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    text = (tmp_path / "tables.md").read_text()
    assert "Model local-dir:" in text
    assert "transform Compose(" in text
    assert "fp32" in text
    assert "base and new classes, partitions 0; shots 1, 2; seeds 0, 1." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["method", "shots", "base", "new", "harmonic mean", "other"]
    assert [row[:2] for row in rows[2:]] == [
        [title, shots] for title in ("zero-shot", "linear probe", "CoOp", "ProGrad") for shots in ("1", "2")
    ]
    coop = [100 * run["accuracy"]["new"] for run in results["runs"] if run["method"] == "coop" and run["shots"] == 2]
    assert rows[7][3] == str(Spread.of(coop))
    assert rows[5][3:] == ["-", "-", "-"]  # the probe cannot name new classes
    assert "linear probe" in stream.getvalue()


def test_report_of_one_run_without_gradients(clip, shapes, tmp_path):
    results = run_grid(Grid(METHODS[:1], [1], seeds=1), clip, shapes, tmp_path, no_bars)
    report_comparison(results, tmp_path, Console(file=io.StringIO()))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cost.png", "results.json", "runs", "tables.md"]
    assert re.search(r"\| zero-shot \| 1 \| \d+\.\d \|", (tmp_path / "tables.md").read_text())


def test_compare(shapes_dir, clip_dir, tmp_path, capfd, monkeypatch):
    (tmp_path / "settings.json").write_text('{"coop": {"epochs": 2}, "prograd": {"epochs": 2, "lr": 0.1}}')
    arguments = ["compare", "--data", shapes_dir, "--methods", "zero-shot,coop,prograd", "--shots", "1,2"]
    arguments += ["--seeds", 2, "--imbalance", 2, "--views", 2, "--model", f"local-dir:{clip_dir}"]
    arguments += ["--settings", tmp_path / "settings.json", "--out", tmp_path / "grid"]
    for _ in range(2):  # the second time everything is there
        assert run_here(monkeypatch, *arguments) == 0
    printed = capfd.readouterr().out
    assert "long-tail" in printed
    assert "Wrote results.json, tables.md, shots.png, conflict.png, cost.png in" in " ".join(printed.split())
    results = json.loads((tmp_path / "grid" / "results.json").read_text())
    assert len(results["runs"]) == 12
    run = results["runs"][-1]
    assert (run["method"], run["settings"]["lr"], run["regime"]["views"], run["imbalance"]) == ("prograd", 0.1, 2, 2)
    assert {"all", "balanced", "long-tail", "validation"} == run["accuracy"].keys()


@pytest.fixture
def bare_clip(tmp_path):
    """A model for which neither TCP can start, whose tower must be causal, nor ProLIP, which needs a projection."""
    vision = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none", "image_size": 32}
    text = {"width": 32, "heads": 2, "layers": 2, "no_causal_mask": True}
    config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
    model = open_clip.CustomTextCLIP(**config)
    folder = tmp_path / "bare-clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config | {"custom_text": True}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def test_of_all_methods_those_are_left_out_that_cannot_start(bare_clip, shapes_dir, tmp_path, capfd, monkeypatch):
    """One that was named is an error, before anything is trained."""
    arguments = ["compare", "--data", shapes_dir, "--shots", "1", "--seeds", 1, "--model", bare_clip]
    monkeypatch.setattr(methods, "METHODS", (ZeroShot, TCP, LinearProbe, ProLIP))
    assert run_here(monkeypatch, *arguments, "--out", tmp_path / "grid") == 0
    said = capfd.readouterr().out
    assert "Left out tcp: block: expected a causal text tower" in said
    assert "Left out prolip: the image tower TimmModel has no visual projection" in said
    results = json.loads((tmp_path / "grid" / "results.json").read_text())
    assert [run["method"] for run in results["runs"]] == ["zero-shot", "linear-probe"]

    (tmp_path / "settings.json").write_text('{"tcp": {"epochs": 2}}')
    settings = ["--settings", tmp_path / "settings.json"]
    for named, reason in ((["--methods", "zero-shot,prolip"], "prolip: the image"), (settings, "tcp: block")):
        assert reason in fail(capfd, monkeypatch, *arguments, *named, "--out", tmp_path / "named")
        assert not (tmp_path / "named").exists()
    monkeypatch.setattr(methods, "METHODS", (ProLIP,))
    assert "no visual projection" in fail(capfd, monkeypatch, *arguments, "--out", tmp_path / "named")


def test_classes_of_other_sets_have_to_fit_too(clip, shapes):
    other = replace(shapes, class_names=(*shapes.class_names[:-1], "cat " * 90))
    assert _runnable([LinearProbe()], ["linear-probe"], clip, [shapes, other]) == [LinearProbe()]  # is not tested there
    with pytest.raises(ValueError, match=r"zero-shot: .* is too long"):
        _runnable([LinearProbe(), ZeroShot()], ["zero-shot"], clip, [shapes, other])


def test_what_is_not_chosen_for_want_of_validation_pictures_is_told(clip, shapes, capsys):
    methods = [GDA(), CoOp(), TipAdapter()]
    check_match(clip, [shapes], methods)
    check_match(
        clip, [replace(shapes, split=np.where(shapes.split == "validation", "test", shapes.split))], methods[1:2]
    )
    assert capsys.readouterr().out == ""
    check_match(clip, [replace(shapes, split=np.where(shapes.split == "validation", "test", shapes.split))], methods)
    expected = "shapes has no validation pictures, by which are chosen: alpha of GDA, alpha and beta of Tip-Adapter."
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--methods coop,lora", "unknown method 'lora'"),
        ("--methods coop,coop", "methods: expected one or more, each once"),
        ("--shots 1,two", "--shots: expected numbers with commas"),
        ("--shots 0", "shots must be 1 or more, got 0"),
        ("--seeds 0", "'--seeds'"),
        ("--partitions 1 --imbalance 3", "long-tailed grid learns all classes"),
        ("--also nowhere", "no picture set or folder 'nowhere'"),
        ("--settings nowhere.json", "nowhere.json cannot be read as JSON"),
        ("--settings LIST", 'expected {"METHOD": {"NAME": VALUE'),
        ("--settings OTHER", "--settings has 'lora', which is not among the methods"),
        ("--settings WRONG", "coop has no setting speed"),
        ("--precision int8", "precision: expected one of"),
        ("--model ViT-B-23", "unknown model 'ViT-B-23'"),
    ],
)
def test_mistakes_get_one_line(arguments, message, shapes_dir, tmp_path, capfd, monkeypatch):
    for name, content in (("LIST", "[1]"), ("OTHER", '{"lora": {}}'), ("WRONG", '{"coop": {"speed": 1}}')):
        (tmp_path / name).write_text(content)
    words = [tmp_path / word if word in ("LIST", "OTHER", "WRONG") else word for word in arguments.split()]
    line = fail(capfd, monkeypatch, "compare", "--data", shapes_dir, "--out", tmp_path / "out", *words)
    assert re.search(re.escape(message), line), line
    assert not (tmp_path / "out").exists()
