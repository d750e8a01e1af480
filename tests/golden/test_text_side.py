"""TCP, DePT, ATPrompt, ProDA and AnchorOPT against their authors' released code, in float64, on every backend here."""

import pytest
import torch
from torch.nn import functional as F

from prograd_fast.methods import TCP, AnchorOPT, ATPrompt, DePT, ProDA
from prograd_fast.methods.proda import variances
from tests.golden.methods import Golden, step_by_hand
from tests.ops.support import BACKENDS, running_on
from tests.tiny_clip import TOKENIZER
from tests.tolerances import assert_close


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with running_on(request.param):
        yield


def named(learner, names):
    """What is tuned, by its name in the file."""
    return {names[name]: p for name, p in learner.module.named_parameters()}


def set_starts(learner, golden, names):
    with torch.no_grad():
        for name, p in named(learner, names).items():
            p.copy_(golden.tensor(f"param0_{name}"))


def check_step(learner, golden, names, step, x):
    """Losses, gradients and new parameters of a step; returns its losses."""
    losses, gradients, _ = step_by_hand(learner, x, golden.labels[step])
    golden.close(losses.task, "loss", step)
    for name, gradient in gradients.items():
        golden.close(gradient, f"grad_{names[name]}", step)
    for name, p in named(learner, names).items():
        golden.close(p, f"param_{name}", step)
    return losses


# ----------------------------------------------------------------------------------------------------------------- TCP

TCP_NAMES = {
    "ctx": "ctx",
    "meta_net.0.weight": "meta_net.linear1.weight",
    "meta_net.0.bias": "meta_net.linear1.bias",
    "meta_net.2.weight": "meta_net.linear2.weight",
    "meta_net.2.bias": "meta_net.linear2.bias",
}


def test_tcp():
    golden = Golden("tcp")
    recipe = golden.recipe
    kind = recipe["prompt_template"].removeprefix("X X X X {}").removesuffix(".")  # ", a type of pet"
    assert recipe["template"] == f"a photo of a {{}}{kind}."
    settings = {"n_ctx": recipe["n_ctx"], "ctx_init": None, "block": recipe["insert_before_block"]}
    names, new_names = ([name + kind for name in recipe[key]] for key in ("class_names", "new_class_names"))
    golden.recipe["class_names"] = names
    learner = golden.start(TCP, **settings, templates=("a photo of a {}.",), weight=recipe["score_weight"])
    assert learner.context.meta_net[0].out_features == recipe["arch"]["embed_dim"] // recipe["class_tokens"]
    set_starts(learner, golden, TCP_NAMES)
    golden.close(learner.teacher.class_features, "fixed_features")
    padded = F.pad(learner.net.encoder.token_ids, (0, 77 - learner.net.encoder.token_ids.shape[1]))
    assert torch.equal(padded, golden.tensor("tokenized_prompts"))
    for step in range(recipe["steps"]):
        x = golden.features(step).detach()
        golden.close(x, "image_features", step)
        golden.close(learner.context.tokens(learner.net.class_names), "class_tokens", step)
        golden.close(learner.context.class_features(learner.net, x, None), "text_features", step)
        golden.close(learner.scores(names)(x), "logits", step)
        golden.close(learner.scores(names)(x), "eval_logits", step)
        losses = check_step(learner, golden, TCP_NAMES, step, x)
        golden.close(losses.terms["cross_entropy"], "ce_loss", step)
        golden.close(losses.terms["knowledge"] / recipe["score_weight"], "score", step)
    golden.close(learner.scores(new_names)(golden.features(0).detach()), "new_logits")


# ---------------------------------------------------------------------------------------------------------------- DePT

DEPT_NAMES = {
    "ctx": "ctx",
    "text_scale": "film_lp_text.scale",
    "text_bias": "film_lp_text.bias",
    "image_scale": "film_lp_img.scale",
    "image_bias": "film_lp_img.bias",
    "head.weight": "linear_probe_proj.weight",
    "head.bias": "linear_probe_proj.bias",
}


def test_dept():
    """With image features of their own length."""
    golden = Golden("dept_coop")
    recipe = golden.recipe
    settings = {"head_weight": recipe["lp_weight"], "head_rate": recipe["lr_exp"], "image_length": 1.0}
    learner = golden.start(DePT, n_ctx=recipe["n_ctx"], ctx_init=None, **settings)
    set_starts(learner, golden, DEPT_NAMES)
    rates = [[group["lr"], len(group["params"])] for group in learner.optimizer.param_groups]
    assert rates == [[lr, len(names)] for lr, names in recipe["lr_groups"]]
    ids = learner.net.encoder.token_ids
    assert torch.equal(F.pad(ids, (0, 77 - ids.shape[1])), golden.tensor("tokenized_prompts"))
    for step in range(recipe["steps"]):
        x = golden.model.encode_image(golden.images[step]).detach()
        golden.close(x, "raw_image_features", step)
        golden.close(F.normalize(x, dim=-1), "image_features", step)
        texts, y = learner.net.class_features(unit=False), golden.labels[step]
        golden.close(texts, "text_features", step)
        golden.close(learner.net.logits(F.normalize(x, dim=-1)), "logits", step)
        rows = torch.cat([learner.context.of_texts(texts[y]), learner.context.of_images(x)])
        golden.close(rows, "logits_lp", step)
        assert torch.equal(y.repeat(2), golden.tensor("labels_lp", step))
        golden.close(learner.scores(recipe["class_names"])(x), "fused_logits", step)
        losses = check_step(learner, golden, DEPT_NAMES, step, x)
        golden.close(losses.terms["cross_entropy"] / (1 - recipe["lp_weight"]), "ce_loss", step)
        golden.close(losses.terms["head"] / recipe["lp_weight"], "lp_loss", step)
    x = golden.model.encode_image(golden.images[0]).detach()
    golden.close(learner.scores(recipe["new_class_names"])(x), "new_logits")


# ------------------------------------------------------------------------------------------------------------ ATPrompt


def test_atprompt():
    golden = Golden("atprompt")
    recipe = golden.recipe
    (n_attribute,) = set(recipe["n_att"])
    settings = {"attributes": tuple(recipe["att_texts"]), "n_attribute": n_attribute, "n_ctx": recipe["n_ctx"]}
    learner = golden.start(ATPrompt, **settings, ctx_init=None)
    soft = ~learner.context.is_word[:, 0]

    def rows(name, *step):
        """The soft rows of an array, in their order in the prompt."""
        return torch.cat([golden.tensor(f"{name}_{part}", *step) for part in ("ctx_att1", "ctx_att2", "ctx")])

    with torch.no_grad():
        learner.context.ctx[soft] = rows("param0")
    ids = learner.net.encoder.token_ids
    at = learner.net.encoder.context_positions[:, ~soft]
    in_place = ids.scatter(
        1, at, TOKENIZER(recipe["att_texts"])[:, 1].expand_as(at)
    )  # the file has the words' ids there
    assert torch.equal(F.pad(in_place, (0, 77 - ids.shape[1])), golden.tensor("tokenized_prompts"))
    for step in range(recipe["steps"]):
        x = golden.features(step).detach()
        golden.close(x, "image_features", step)
        golden.close(learner.class_features(recipe["class_names"]), "text_features", step)
        golden.close(learner.scores(recipe["class_names"])(x), "logits", step)
        losses, gradients, _ = step_by_hand(learner, x, golden.labels[step])
        golden.close(losses.task, "loss", step)
        assert not gradients["ctx"][~soft].any()
        for found, name in ((gradients["ctx"], "grad"), (learner.context.ctx, "param")):
            assert_close(found[soft], rows(name, step), "golden trajectory", torch.float64)
    golden.close(learner.scores(recipe["new_class_names"])(golden.features(0).detach()), "new_logits")


# --------------------------------------------------------------------------------------------------------------- ProDA


def test_proda(monkeypatch):
    golden = Golden("proda")
    recipe = golden.recipe
    settings = {"n_contexts": recipe["n_prompt"], "contexts_at_once": recipe["prompt_batch"]}
    learner = golden.start(ProDA, **settings, alpha=recipe["ortho_weight"], n_ctx=recipe["n_ctx"], ctx_init=None)
    context, place = learner.context, golden.tensor("place")
    assert place.bincount().tolist() == context.sizes
    with torch.no_grad():
        *others, last = golden.tensor("param0_ctx")
        context.others.copy_(torch.stack(others))
        context.ctx.copy_(last)
    ids = learner.net.encoder.token_ids
    assert torch.equal(F.pad(ids, (0, 77 - ids.shape[1])), golden.tensor("tokenized_prompts"))
    nameless = learner.nameless.token_ids
    assert torch.equal(F.pad(nameless, (0, 77 - nameless.shape[1])), golden.tensor("nc_tokenized_prompts"))
    for step in range(recipe["steps"]):
        x, y = golden.features(step).detach(), golden.labels[step]
        golden.close(x, "image_features", step)
        golden.close(learner.scores(recipe["class_names"])(x), "eval_logits", step)
        chosen = golden.tensor("prompt_index", step).sort().values  # by place; the order is that of a sum
        monkeypatch.setattr(context, "taken", place[chosen].bincount(minlength=3).tolist())
        monkeypatch.setattr(context, "noise", lambda n, generator, chosen=chosen: chosen[:, None])
        features = context.features(learner.net, chosen[:, None])
        logits = learner.net.logits(x, features.mean(0)) + 0.5 * learner.scale**2 * variances(features, x, y)
        golden.close(logits, "logits", step)
        losses, gradients, _ = step_by_hand(learner, x, y)
        golden.close(losses.task, "loss", step)
        golden.close(losses.terms["cross_entropy"], "ce_loss", step)
        golden.close(losses.terms["overlap"] / recipe["ortho_weight"], "ortho_loss", step)
        golden.close(torch.cat([gradients["others"], gradients["ctx"][None]]), "grad_ctx", step)
        golden.close(context.contexts, "param_ctx", step)
    golden.close(learner.scores(recipe["new_class_names"])(golden.features(0).detach()), "new_logits")


# ----------------------------------------------------------------------------------------------------------- AnchorOPT


def test_anchoropt(monkeypatch):
    """With the authors' noise at the test, and read where they read."""
    golden = Golden("anchoropt")
    recipe = golden.recipe
    n_anchor, steps = recipe["anchor_len"], recipe["steps"]
    learner = golden.start(
        AnchorOPT,
        n_ctx=recipe["n_ctx"],
        ctx_init=None,
        n_anchor=n_anchor,
        descriptions=tuple(recipe["descriptions"]),
        anchor_epochs=steps,
        anchor_weight=recipe["anchor_mse_weight"],
        entropy_weight=recipe["ce_weight"],
        kd_weight=recipe["kd_weight"],
        kd_temperature=recipe["kd_temperature"],
        gumbel_temperature=recipe["gumbel_temp"],
        noise_at_test=True,
        read_early=True,
    )
    context, names = learner.context, recipe["class_names"]
    with torch.no_grad():
        context.anchor.copy_(golden.tensor("stage1_param0_anchor_ctx_1"))
        context.ctx.copy_(golden.tensor("param0_ctx"))
        context.place_logits.copy_(golden.tensor("param0_ctx_pos_params"))
    _, first, second = context._of(learner.net)
    ids, of = first.token_ids.clone(), 1 + n_anchor  # a context token keeps the place of "of"
    ids[:, of] = golden.tensor("stage1_tokenized_prompts")[:, of]
    assert torch.equal(ids, golden.tensor("stage1_tokenized_prompts")[:, : ids.shape[1]])
    ids = learner.net.encoder.token_ids
    assert torch.equal(ids, golden.tensor("tokenized_prompts")[:, : ids.shape[1]])
    assert torch.equal(second.token_ids[:, n_anchor + 1 :], learner.net.encoder.token_ids[:, 1:])
    golden.close(learner._fixed, "stage1_description_features")

    for step in range(steps):
        golden.close(context.anchor_features(learner.net), "stage1_anchor_features", step)
        losses = learner.losses(golden.features(step).detach(), golden.labels[step])
        golden.close(losses.task, "stage1_loss", step)
        learner.optimizer.zero_grad()
        learner.optimizer.backward(losses.task, losses.general)
        golden.close(context.anchor.grad, "stage1_grad_anchor_ctx_1", step)
        learner.optimizer.step()
        golden.close(context.anchor, "stage1_param_anchor_ctx_1", step)
        learner.epoch_ended(step + 1)
    golden.close(context.anchor, "anchor")

    for step in range(steps):
        x, noise = golden.features(step).detach(), golden.tensor("gumbel", step)
        golden.close(x, "image_features", step)
        monkeypatch.setattr(context, "noise", lambda n, generator, noise=noise: noise)
        golden.close(context.places(noise), "position", step)
        golden.close(learner.class_features(names), "text_features", step)
        golden.close(learner.scores(names)(x), "logits", step)
        golden.close(learner.net.logits(x, learner._fixed), "anchor_logits", step)
        losses = learner.losses(x, golden.labels[step])
        golden.close(losses.task, "loss", step)
        golden.close(losses.terms["cross_entropy"] / recipe["ce_weight"], "ce_loss", step)
        golden.close(losses.terms["distillation"] / recipe["kd_weight"], "kd_loss", step)
        learner.optimizer.zero_grad()
        learner.optimizer.backward(losses.task, losses.general)
        golden.close(context.ctx.grad, "grad_ctx", step)
        golden.close(context.place_logits.grad, "grad_ctx_pos_params", step)
        learner.optimizer.step()
        golden.close(context.ctx, "param_ctx", step)
        golden.close(context.place_logits, "param_ctx_pos_params", step)
    golden.close(context.anchor, "anchor")
    monkeypatch.setattr(context, "noise", lambda n, generator: golden.tensor("gumbel", 0))
    golden.close(learner.scores(recipe["new_class_names"])(golden.features(0).detach()), "new_logits")
