"""Every method against its authors' released code, in float64 (golden/, see golden/README.md)."""

import numpy as np
import pytest
import torch

from prograd_fast.methods import (
    LASP,
    NFL,
    CoCoOp,
    KgCoOp,
    PromptSRC,
    SubPT,
    SubPTNFL,
    Task,
    Variational,
    XERMClassifier,
)
from prograd_fast.methods.nfl import novel_distance
from prograd_fast.methods.xerm import CausalNormClassifier
from prograd_fast.training.update import update
from tests.golden.methods import COCOOP, Golden, check_cocoop, set_start, step_by_hand, words
from tests.ops.support import BACKENDS, running_on
from tests.tiny_clip import TOKENIZER
from tests.tolerances import assert_close

ALL = torch.float64


def test_features_are_the_authors():
    golden = Golden("cocoop_words")
    for step in range(golden.recipe["steps"]):
        golden.close(golden.features(step), "image_features", step)


# -------------------------------------------------------------------------------------------------------------- CoCoOp


@pytest.mark.parametrize("backend", BACKENDS)  # Triton: tests/gpu/triton/interpreted/golden.py
@pytest.mark.parametrize("name", COCOOP)
def test_cocoop(name, backend):
    with running_on(backend):
        check_cocoop(name)


def test_cocoop_starts_from_the_words():
    golden = Golden("cocoop_words")
    golden.close(golden.start(CoCoOp, **words(golden)).context.ctx, "param0_ctx")


# -------------------------------------------------------------------------------------------------------------- KgCoOp


def test_kgcoop():
    golden = Golden("kgcoop_words")
    learner = golden.start(KgCoOp, **words(golden), templates=(golden.recipe["template"],), weight=golden.recipe["w"])
    golden.close(learner.context.ctx, "ctx0")
    golden.close(learner.teacher.class_features, "fixed_features")
    for step in range(golden.recipe["steps"]):
        x = golden.features(step).detach()
        golden.close(learner.scores(golden.recipe["class_names"])(x), "logits", step)
        losses, gradients, _ = step_by_hand(learner, x, golden.labels[step])
        golden.close(losses.task, "loss", step)
        golden.close(losses.terms["knowledge"] / golden.recipe["w"], "score", step)
        golden.close(gradients["ctx"], "grad", step)
        golden.close(learner.context.ctx, "ctx", step)


# ---------------------------------------------------------------------------------------------------------------- LASP

LEARNER = {"ctx": "prompt_learner.ctx", "correction": "prompt_learner.w"}


@pytest.mark.parametrize("name", ["lasp_virtual", "lasp_clipped"])  # virtual classes, image norms; a clipped gradient
def test_lasp(name, monkeypatch):
    golden = Golden(name)
    recipe = golden.recipe
    virtual = [name for name in recipe["all_class_names"] if name not in recipe["class_names"]]
    learner = golden.start(
        LASP,
        **words(golden),
        virtual_classes=tuple(virtual),
        sentences=tuple(recipe["templates"]),
        alpha=recipe["alpha"],
        clip_grad_norm=recipe["clip_grad_norm"],
        virtual_in_logits=recipe["include_all_classes"],
    )
    set_start(learner, golden, LEARNER)
    shape = golden.arrays["class_text_features"].shape
    noises = torch.from_numpy(golden.rng.standard_normal((recipe["steps"], *shape)))
    golden.close(noises[0], "noise_step0")
    norms = {}
    if recipe["finetune_vit_ln"]:  # with a loop of one's own, as the class says
        blocks = golden.model.visual.named_parameters(prefix="image_encoder")
        norms = {name: p for name, p in blocks if ".ln_1." in name or ".ln_2." in name}
        assert len(norms) == 8
        learner.optimizer.add_param_group({"params": list(norms.values()), "lr": recipe["vit_ln_lr"]})
    everything = [*learner.module.parameters(), *norms.values()]
    for step in range(recipe["steps"]):
        noise = recipe["noise_std"] * noises[step] * float(golden.arrays["noisy"][step])
        monkeypatch.setattr(LASP, "draw", lambda self, generator, like, noise=noise: noise)
        golden.close(learner.scores(recipe["class_names"])(golden.features(step).detach()), "logits", step)
        for p in norms.values():
            p.requires_grad_()
        x, y = golden.features(step), golden.labels[step]
        losses = learner.losses(x, y)
        golden.close(losses.task, "loss", step)
        golden.close(losses.terms["cross_entropy"], "task_loss", step)
        golden.close(losses.terms["text_to_text"] / recipe["alpha"], "text_loss", step)
        gradients = torch.autograd.grad(losses.task, everything)
        if step == 0:
            for name, gradient in zip([*LEARNER.values(), *norms], gradients, strict=True):
                golden.close(gradient.view(golden.arrays[f"raw_grad_{name}"].shape), f"raw_grad_{name}")
        update(learner, (golden.features(step), y))
        if recipe["clip_grad_norm"] is not None:  # else the update takes the gradients without `.grad`
            gradients = [p.grad for p in everything]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        golden.close(norm, "grad_norm", step)
        golden.close(learner.context.ctx, "param_prompt_learner.ctx", step)
        golden.close(learner.context.correction[None], "param_prompt_learner.w", step)
    for name, p in norms.items():
        golden.close(p, f"param_{name}")


def test_lasp_golden_files_hold_both_cases():
    noisy = np.concatenate([Golden(name).arrays["noisy"] for name in ("lasp_virtual", "lasp_clipped")])
    assert 0 < noisy.mean() < 1
    clipped = Golden("lasp_clipped")
    raw = [clipped.arrays[f"raw_grad_{name}"] for name in LEARNER.values()]
    assert np.sqrt(sum((g**2).sum() for g in raw)) > 1


# --------------------------------------------------------------------------------------------------------- variational


def networks(ours, theirs):
    return {
        f"{ours}.{i}.{kind}": f"meta_net.{theirs}.module.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")
    }


POSTERIORS = {
    False: {"ctx": "ctx", "mean": "mean_posterior", "log_variance": "std_posterior"},
    True: {
        "ctx": "ctx",
        **networks("mean_net", "weight_mean"),
        **networks("log_variance_net", "weight_log_variance"),
    },
}


@pytest.mark.parametrize("kind", ["unconditional", "conditional"])
def test_variational(kind):
    golden = Golden(f"vpt_{kind}")
    recipe, conditional = golden.recipe, kind == "conditional"
    names = POSTERIORS[conditional]
    learner = golden.start(
        Variational,
        **words(golden),
        samples=recipe["samples"],
        kl_weight=recipe["kl_weight"],
        conditional=conditional,
    )
    set_start(learner, golden, names)
    for step in range(recipe["steps"]):
        learner.context.noise = lambda n, generator, step=step: golden.tensor("noise", step)
        x = golden.features(step).detach()
        mean, log_variance = learner.context.posterior(x)
        golden.close(mean, "mu", step)
        golden.close(log_variance, "logvar", step)
        golden.close(learner.scores(recipe["class_names"])(x), "prediction", step)
        losses, gradients, _ = step_by_hand(learner, x, golden.labels[step])
        golden.close(losses.task, "loss", step)
        golden.close(losses.terms["prior"] / recipe["kl_weight"], "kl", step)
        for name, gradient in gradients.items():
            whole = f"grad_{names[name]}"
            if golden.arrays[whole].shape == gradient.shape:  # the networks' are stored for the first step alone
                if step == 0:
                    golden.close(gradient, whole)
            else:
                golden.close(gradient, whole, step)
        golden.close(learner.context.ctx, "param_ctx", step)
    for name, p in learner.module.named_parameters():
        last = golden.tensor(f"param_{names[name]}")
        assert_close(p, last if last.shape == p.shape else last[-1], "golden trajectory", ALL)


# ------------------------------------------------------------------------------------------------------- SubPT and NFL


def enter_subspace(learner, golden):
    """As if the early epochs had given the file's contexts."""
    stack = golden.tensor("stack")
    learner.memory["trajectory"] = stack[:-1].flatten(1)
    learner.set_parameters(stack[-1].flatten().clone())
    learner.epoch_ended(golden.recipe["t_early"])
    basis, theirs = learner.memory["basis"], golden.tensor("U")
    assert_close(basis.T @ basis, theirs.T @ theirs, "golden trajectory", ALL)  # the rows' signs are arbitrary
    golden.close(learner.context.ctx, "ctx0")


@pytest.mark.parametrize(("name", "method"), [("subpt_steps", SubPT), ("nfl_subpt_steps", SubPTNFL)])
def test_subpt_and_nfl(name, method, monkeypatch):
    golden = Golden(name)
    recipe = golden.recipe
    settings = {"n_ctx": recipe["n_ctx"], "early_epochs": recipe["t_early"], "rank": recipe["r"]}
    settings["ctx_init"] = recipe["template"].removesuffix(" {}.") if recipe["ctx_init"] else None
    if method is SubPTNFL:
        settings |= {"weight": recipe["lambda_"], "novel_names": tuple(recipe["novel_names"])}
        monkeypatch.setattr(NFL, "fixed_features", lambda self, learner: golden.tensor("novel_features"))
    learner = golden.start(method, **settings)
    if not recipe["ctx_init"]:  # random: theirs
        with torch.no_grad():
            learner.context.ctx.copy_(golden.tensor("ctx0"))
        learner.memory["start"] = golden.tensor("ctx0").flatten()
    enter_subspace(learner, golden)
    for step in range(recipe["steps"]):
        x = golden.features(step).detach()
        golden.close(learner.scores(recipe["class_names"])(x), "logits", step)
        if method is SubPTNFL:
            novel = learner.net.with_classes(recipe["novel_names"]).class_features()
            golden.close(novel, "novel_text_features", step)
        losses, raw, applied = step_by_hand(learner, x, golden.labels[step])
        golden.close(losses.task, "total_loss", step)
        golden.close(losses.terms["cross_entropy"], "task_loss", step)
        if method is SubPTNFL:
            golden.close(losses.terms["novel"], "nfl_loss", step)
        golden.close(raw["ctx"], "grad", step)
        golden.close(applied["ctx"], "applied_grad", step)
        golden.close(learner.context.ctx, "ctx", step)


def test_nfl_loss():
    golden = Golden("nfl_loss")
    novel = golden.tensor("novel_features").requires_grad_()
    distance = novel_distance(novel, golden.tensor("novel_fixed"))
    golden.close(distance, "nfl_loss")
    (golden.recipe["lambda_"] * distance).backward()
    golden.close(novel.grad, "grad_novel_features")


# ----------------------------------------------------------------------------------------------------------- PromptSRC


def test_promptsrc():
    golden = Golden("promptsrc_text")
    recipe = golden.recipe
    learner = golden.start(
        PromptSRC,
        **words(golden),
        depth=recipe["depth_text"],
        text_weight=recipe["text_loss_weight"],
        gpa_mean=float(recipe["gpa_mean"]),
        gpa_std=float(recipe["gpa_std"]),
        epochs=recipe["gpa_epochs"],
    )
    assert set(learner.settings.sentences) == set(recipe["templates"])
    fixed = torch.nn.functional.normalize(golden.tensor("fixed_embeddings"), dim=-1)
    assert_close(learner.settings.fixed_features(learner), fixed, "golden trajectory", ALL)
    golden.close(learner.settings.weights(), "gpa_weights")
    with torch.no_grad():
        learner.context.deep.copy_(golden.tensor("param0_resblocks.1.VPT_shallow")[None])
    golden.close(learner.context.ctx, "param0_ctx")
    for step in range(recipe["steps"]):
        x = golden.features(step).detach()
        golden.close(learner.context.class_features(learner.net, x, None), "text_features", step)
        golden.close(learner.scores(recipe["class_names"])(x), "logits", step)
        golden.close(learner.net.logits(x, fixed), "teacher_logits", step)
        losses, gradients, _ = step_by_hand(learner, x, golden.labels[step])
        golden.close(losses.task, "loss", step)
        golden.close(losses.terms["cross_entropy"], "ce_loss", step)
        golden.close(losses.terms["text"] / recipe["text_loss_weight"], "text_loss", step)
        golden.close(losses.terms["logits"], "logit_loss", step)
        golden.close(gradients["ctx"], "grad_ctx", step)
        golden.close(gradients["deep"][0], "grad_resblocks.1.VPT_shallow", step)
        golden.close(learner.context.ctx, "param_ctx", step)
        golden.close(learner.context.deep[0], "param_resblocks.1.VPT_shallow", step)
        learner.epoch_ended(step + 1)
    golden.close(learner.context.ctx, "gpa_ctx")
    golden.close(learner.context.deep[0], "gpa_resblocks.1.VPT_shallow")


# ---------------------------------------------------------------------------------------------------------------- xERM


def test_xerm_pc():
    """The file has no features: pictures are told apart by their row, and the classifiers hold the logits."""
    golden = Golden("xerm_pc")
    counts, y = golden.tensor("class_counts"), golden.tensor("labels")
    n, n_classes = golden.arrays["factual_logits"].shape
    every = torch.arange(n_classes).repeat_interleave(counts)  # as frequent as in the training set
    names = [str(i) for i in range(n_classes)]
    task = Task(torch.nn.Module(), TOKENIZER, names, torch.zeros(len(every), n, dtype=ALL), every)
    learner = XERMClassifier(gamma=golden.recipe["gamma"]).start(task)
    with torch.no_grad():
        for classifier, logits in ((learner.teacher, "factual_logits"), (learner.student, "student_logits")):
            classifier.weight.copy_(golden.tensor(logits).T)
            classifier.bias.zero_()
    assert learner.criterion.eps == golden.recipe["eps"]
    assert golden.tensor("prior_test").std() < 1e-12
    golden.close(golden.tensor("factual_logits") + learner.criterion.offset, "counterfactual_logits")
    learner.epoch_ended(learner.settings.epochs)  # the student's turn
    loss = learner.losses(torch.eye(n, dtype=ALL), y).task
    golden.close(loss, "loss")
    golden.close(torch.autograd.grad(loss, learner.student.weight)[0].T, "grad_student_logits")


def test_xerm_tde():
    """Its loss is in test_losses.py. Teacher and student have features of their own there."""
    golden = Golden("xerm_tde")
    n_classes, n_features = golden.arrays["teacher_weight"].shape
    teacher, student = (CausalNormClassifier(n_features, n_classes).double() for _ in range(2))
    with torch.no_grad():
        teacher.weight.copy_(golden.tensor("teacher_weight"))
        student.weight.copy_(golden.tensor("student_weight"))
        teacher.mean.copy_(golden.tensor("mean_feature"))
    golden.close(teacher(golden.tensor("teacher_features")), "te_logits")
    golden.close(teacher.counterfactual(golden.tensor("teacher_features")), "tde_logits")
    golden.close(student(golden.tensor("student_features")), "student_logits")
