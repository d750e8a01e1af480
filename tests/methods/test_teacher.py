"""Another model as the zero-shot teacher: only its logits meet the student's, and other pictures are refused."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch.nn import functional as F

import prograd_fast as pf
from prograd_fast.methods import Task, Teacher, fingerprint, method_named
from prograd_fast.report.compare import description
from prograd_fast.training import (
    Grid,
    TrainOptions,
    make_plan,
    plan_facts,
    run_facts,
    run_grid,
    teacher_of,
    train_method,
    tune,
)
from prograd_fast.training.checkpoint import differing
from tests.cli.support import run_here
from tests.methods.support import make_task, with_teacher
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip
from tests.tolerances import assert_close
from tests.training.support import no_bars

# each that computes the general loss in a place of its own
METHODS = {
    "prograd": {"n_ctx": 6},
    "cocoop": {"lambda_": 1.0, "n_ctx": 6},
    "dept": {"lambda_": 1.0},
    "proda": {"lambda_": 1.0, "n_contexts": 4},
    "anchoropt": {"lambda_": 1.0, "anchor_epochs": 1},
    "taskres": {"lambda_": 1.0},
    "prolip": {"lambda_": 1.0, "lr": 1e-3},
}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"prolip"}))  # whose own features lie before the projection
@pytest.mark.parametrize("batch_size", [None, 7])
def test_the_same_model_changes_nothing(name, batch_size):
    """Bit for bit: the same operations on the same numbers."""
    method = method_named(name, {**METHODS[name], "epochs": 3, "batch_size": batch_size})
    task = make_task(method=method)
    learners = [method.start(one) for one in (task, with_teacher(task, task.model, task.image_features))]
    histories = [tune(learner) for learner in learners]
    assert histories[0].general_loss == histories[1].general_loss
    for key, value in learners[0].module.state_dict().items():
        assert torch.equal(learners[1].module.state_dict()[key], value), key


@pytest.mark.parametrize("name", METHODS)
def test_the_general_loss_is_that_to_the_live_teacher(name):
    method = method_named(name, {**METHODS[name], "epochs": 3, "temperature": 2.0})
    task = with_teacher(make_task(method=method))
    learner, own = method.start(task), method.start(replace(task, teacher=None))
    rows = torch.arange(0, 20, 3)
    model, x = task.teacher.model, task.teacher.image_features[rows]
    template = method.teacher_templates[0]
    prompts = [template.format(name.replace("_", " ")) for name in CLASS_NAMES]
    with torch.no_grad():
        live = model.logit_scale.exp() * x @ F.normalize(model.encode_text(TOKENIZER(prompts)), dim=-1).T
    batch = learner.rows(task.image_features)[rows]
    assert batch.shape[1] == task.image_features.shape[1] + 40
    learner.generator.manual_seed(0)
    found = learner.losses(batch, task.labels[rows])
    own.generator.manual_seed(0)
    student = student_logits(own, task.image_features[rows])
    assert student.shape == live.shape
    log_t, log_s = (live / 2).log_softmax(1), (student / 2).log_softmax(1)
    expected = 2.0**2 * (log_t.exp() * (log_t - log_s)).sum(1).mean()
    assert_close(found.general.detach(), expected, "formula", torch.float64)


def student_logits(learner, x):
    """(B, C), at the start."""
    if not hasattr(learner, "context"):
        return learner.module(x, learner.texts).detach()
    seen = {}
    learner.criterion.register_forward_pre_hook(lambda module, args: seen.update(logits=args[0].detach()))
    learner.losses(x, torch.zeros(len(x), dtype=torch.int64))
    return seen["logits"]


def test_the_teacher_counts():
    """Other features of the teacher lead elsewhere; the task loss at the start is the same."""
    method = method_named("prograd", {"epochs": 4, "n_ctx": 6})
    task = make_task()
    taught = with_teacher(task)
    histories = [tune(method.start(one)) for one in (task, taught)]
    assert histories[0].task_loss[0] == histories[1].task_loss[0]
    assert histories[0].general_loss[0] != histories[1].general_loss[0]
    assert histories[0].task_loss[2:] != histories[1].task_loss[2:]


def test_what_cannot_work_is_refused():
    task = make_task()
    taught = with_teacher(task)
    with pytest.raises(ValueError, match=r"expected features of the task's pictures in the task's order"):
        replace(taught, pictures=fingerprint(map(str, reversed(range(20)))))
    with pytest.raises(ValueError, match=r"fingerprint not given"):
        replace(taught, pictures="")
    with pytest.raises(ValueError, match=r"expected image features of shape \(20, D'\) on cpu, got \(19, 40\)"):
        replace(taught, teacher=replace(taught.teacher, image_features=taught.teacher.image_features[1:]))
    for name, settings in (("kgcoop", {}), ("xerm", {}), ("taskres", {})):
        with pytest.raises(ValueError, match=f"teacher: {name} has no loss to a zero-shot teacher"):
            tune(method_named(name, settings).start(taught))
    learner = method_named("prograd", {"epochs": 1}).start(taught)
    with pytest.raises(ValueError, match="expected no views beside it"):
        tune(learner, features=lambda epoch: taught.image_features)
    with pytest.raises(ValueError, match="expected 24 columns and the teacher's 40 behind them, got 24"):
        learner.losses(task.image_features, task.labels)


def test_fingerprints_know_the_order():
    assert fingerprint(["a", "b"]) == fingerprint(iter(["a", "b"]))
    assert len({fingerprint(keys) for keys in (["a", "b"], ["b", "a"], ["a"], ["ab"], [])}) == 5


def test_a_model_teaches_through_the_whole_run(clip, shapes):
    """The same model teaches what it is; its facts are the checkpoint's, and another set's features are refused."""
    method = method_named("prograd", {"epochs": 3, "batch_size": 5})
    plan = make_plan(shapes, shots=2, seed=0, partition=None)
    plain, taught = (train_method(method, clip, shapes, plan, no_bars, teacher=one) for one in (None, clip))
    assert plain[0]["steps"]["general_loss"] == taught[0]["steps"]["general_loss"]
    assert plain[0]["facts"]["teacher"] is None
    assert taught[0]["facts"]["teacher"][2] == clip.digest
    without, taught_by = plain[0]["facts"], run_facts(method, clip, plan_facts(shapes, plan), TrainOptions(), clip)
    assert differing(json.loads(json.dumps(without)), taught_by).startswith("its teacher is None")
    assert differing(json.loads(json.dumps(taught_by)), without).startswith("its teacher is [")
    with pytest.raises(ValueError, match="kgcoop has no loss"):
        train_method(method_named("kgcoop", {}), clip, shapes, plan, no_bars, teacher=clip)
    with pytest.raises(ValueError, match="expected no augmented views"):
        train_method(method, clip, shapes, plan, no_bars, options=TrainOptions(views=2), teacher=clip)
    other = teacher_of(clip, shapes, np.flip(plan.train.rows).copy())
    task = Task(clip.model, clip.tokenizer, shapes.class_names, other.image_features, torch.zeros(len(plan.train.rows)))
    with pytest.raises(ValueError, match="in the task's order"):
        replace(task, teacher=other, pictures=teacher_of(clip, shapes, plan.train.rows).pictures)


def test_the_command(shapes_dir, clip_dir, tmp_path, monkeypatch, capfd):
    model = f"local-dir:{clip_dir}"
    train = ["train", "--data", shapes_dir, "--model", model, "--epochs", 3, "--shots", 2, "--out", tmp_path / "run"]
    taught = [*train, "--teacher-model", model]
    assert run_here(monkeypatch, *taught) == 0
    facts = json.loads((tmp_path / "run" / "record.json").read_text())["facts"]
    assert facts["teacher"][0] == model
    assert run_here(monkeypatch, *taught, "--resume") == 0
    assert "nothing is left to do" in capfd.readouterr().out
    for options, message in (
        ([*train, "--resume"], "its teacher is ["),
        ([*taught, "--force", "--method", "kgcoop"], "teacher: kgcoop has no loss to a zero-shot teacher"),
        ([*taught, "--force", "--views", 2], "--teacher-model and --views exclude each other"),
        ([*train, "--force", "--teacher-pretrained", "openai"], "expected --teacher-model NAME beside it"),
    ):
        assert run_here(monkeypatch, *options) != 0
        assert message in capfd.readouterr().err


def test_a_grid_keeps_to_another_teacher(clip, shapes, tmp_path):
    """Those with `lambda_` do, as `train_method` has it; the others are runs of a grid without a teacher."""
    other = replace(clip, name="other", model=changed(clip.model))
    prograd = method_named("prograd", {"epochs": 3, "batch_size": 5})
    grid = Grid([method_named("kgcoop", {"epochs": 2}), prograd], [1, 2], seeds=2)
    results = run_grid(grid, clip, shapes, tmp_path, no_bars, teacher=other)
    assert results["teacher"] == {"name": "other", "pretrained": None, "digest": other.digest, "methods": ["prograd"]}
    assert "The general loss of prograd is that to the zero-shot logits of other." in description(results).notes
    for run in results["runs"]:
        if run["method"] == "prograd":
            plan = make_plan(shapes, run["shots"], run["seed"], None)
            alone = train_method(prograd, clip, shapes, plan, no_bars, teacher=other)[0]
            own = train_method(prograd, clip, shapes, plan, no_bars)[0]
            assert run["steps"]["general_loss"] == alone["steps"]["general_loss"] != own["steps"]["general_loss"]
    again = run_grid(grid, clip, shapes, tmp_path, no_bars, teacher=other)
    assert [run["seconds"] for run in again["runs"]] == [run["seconds"] for run in results["runs"]]
    only_kgcoop = replace(grid, methods=grid.methods[:1])
    run_grid(only_kgcoop, clip, shapes, tmp_path, no_bars)  # what has no teacher is the same run
    for third in (None, clip):
        with pytest.raises(ValueError, match=r"is a run of another grid: its teacher is \["):
            run_grid(grid, clip, shapes, tmp_path, no_bars, teacher=third)
    with pytest.raises(ValueError, match="teacher: kgcoop has no loss to a zero-shot teacher"):
        run_grid(only_kgcoop, clip, shapes, tmp_path / "new", no_bars, teacher=other)
    with pytest.raises(ValueError, match="expected no augmented views"):
        run_grid(replace(grid, options=TrainOptions(views=2)), clip, shapes, tmp_path, no_bars, teacher=other)


def changed(model):
    """A copy that sees and reads otherwise."""
    copy = deepcopy(model)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for p in copy.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return copy


def test_the_command_compare(shapes_dir, clip_dir, tmp_path, monkeypatch, capfd):
    model = f"local-dir:{clip_dir}"
    settings = tmp_path / "settings.json"
    settings.write_text('{"prograd": {"epochs": 2}}')
    base = ["compare", "--data", shapes_dir, "--model", model, "--shots", "1", "--seeds", 1, "--out", tmp_path / "grid"]
    grid = [*base, "--methods", "zero-shot,prograd", "--settings", settings]
    assert run_here(monkeypatch, *grid, "--teacher-model", model) == 0
    assert (
        "The general loss of prograd is that to the zero-shot logits of local-dir:"
        in capfd.readouterr().out.replace("\n", " ")
    )
    assert json.loads((tmp_path / "grid" / "results.json").read_text())["teacher"]["methods"] == ["prograd"]
    for options, message in (
        (grid, "its teacher is ["),
        ([*grid, "--teacher-model", "nosuch"], "--teacher-model: unknown model 'nosuch'"),
        ([*base, "--methods", "zero-shot,kgcoop", "--teacher-model", model], "teacher: zero-shot, kgcoop have no loss"),
        ([*grid, "--teacher-model", model, "--views", 2], "--teacher-model and --views exclude each other"),
        ([*grid, "--teacher-pretrained", "openai"], "expected --teacher-model NAME beside it"),
    ):
        assert run_here(monkeypatch, *options) != 0
        assert message in capfd.readouterr().err


def eva(name):
    """EVA's tower in open_clip's frame with random weights; "tiny": its smallest, and two text layers."""
    if name != "tiny":
        return open_clip.create_model(name, pretrained=None)
    vision = CLIPVisionCfg(timm_model_name="eva02_tiny_patch14_224", timm_pool="token", timm_proj=None, image_size=224)
    return CustomTextCLIP(embed_dim=192, vision_cfg=vision, text_cfg=CLIPTextCfg(width=64, heads=2, layers=2))


@pytest.mark.parametrize("name", ["tiny", pytest.param("EVA02-B-16", marks=pytest.mark.slow)])
def test_eva_as_backbone_and_as_teacher(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = eva(name).eval()
        pictures = torch.rand(2, 3, 224, 224)
    names, labels = CLASS_NAMES[:3], torch.tensor([0, 2])
    with torch.no_grad():
        seen = F.normalize(model.encode_image(pictures), dim=-1)
        prompts = [f"a picture of a {name.replace('_', ' ')}." for name in names]
        whole = F.normalize(model.encode_text(TOKENIZER(prompts)), dim=-1)
    teacher = pf.clip.ZeroShotTeacher(model, TOKENIZER, names, "a picture of a {}.")
    assert_close(teacher.class_features, whole, "tower", torch.float32)
    net = pf.clip.PromptedCLIP(model, TOKENIZER, names, n_ctx=4)
    optimizer = pf.ProGradAdamW(net.parameters(), lr=1e-3)
    optimizer.backward(*pf.losses.DualLoss()(net.logits(seen), teacher.logits(seen), labels))
    before = net.prompt.ctx.detach().clone()
    optimizer.step()
    assert net.prompt.ctx.isfinite().all()
    assert not torch.equal(net.prompt.ctx, before)
    student = tiny_clip(dtype=torch.float32)
    small = F.normalize(torch.randn(2, 24, generator=torch.Generator().manual_seed(0)), dim=-1)
    keys = fingerprint("ab")
    task = Task(student, TOKENIZER, names, small, labels, teacher=Teacher(model, TOKENIZER, seen, keys), pictures=keys)
    assert tune(method_named("prograd", {"epochs": 2}).start(task)).completed
