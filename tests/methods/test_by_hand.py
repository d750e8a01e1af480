"""Guards what is each method's own, against a few lines that say it another way; float64 on a tiny CLIP."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import prograd_fast as pf
from prograd_fast.methods import (
    LASP,
    NFL,
    TCP,
    AnchorOPT,
    ATPrompt,
    CoCoOp,
    CoOp,
    DePT,
    KgCoOp,
    ProDA,
    PromptSRC,
    SubPT,
    Variational,
    prompt_tuning,
)
from prograd_fast.methods.proda import variances
from prograd_fast.training import TrainOptions
from prograd_fast.training.loop import tune
from prograd_fast.training.update import update
from tests.methods.support import make_task
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, WHOLE, tiny_clip
from tests.tolerances import assert_close

SENTENCES = ("a photo of a {}.", "itap of a {}.", "a photo of a {}.")  # one of them twice, as in LASP's list


@pytest.fixture(scope="module")
def task():
    return make_task()


def close(actual, expected):
    assert_close(actual, expected, "formula", torch.float64)


def features_of(net, context):
    """One context's class features, (C, D)."""
    return net.class_features(context)


def test_cocoop_adds_to_every_token_what_it_makes_of_the_picture(task):
    learner = CoCoOp().start(task)
    w1, b1, w2, b2 = (p.detach() for p in learner.context.meta_net.parameters())
    scale = task.model.logit_scale.exp()
    for x in (task.image_features[:1], task.image_features[3:7]):  # B = 1; B = 4, as many as tokens
        logits = []
        for picture in x:
            shift = w2 @ torch.relu(w1 @ picture + b1) + b2
            features = features_of(learner.net, torch.stack([row + shift for row in learner.context.ctx.detach()]))
            logits.append(scale * features @ picture)
        close(learner.scores(CLASS_NAMES)(x), torch.stack(logits))
    assert w1.shape == (24 // 16, 24)


def test_cocoop_with_prograd_projects_each_tensor_on_its_own(task):
    learner = CoCoOp(lambda_=1.0, n_ctx=6, lr=0.1, momentum=0.0).start(task)
    parameters = dict(learner.module.named_parameters())
    with torch.no_grad():
        parameters["meta_net.0.bias"].fill_(0.5)  # its one ReLU is open
    conflicts = []
    for _ in range(12):
        losses = learner.losses(task.image_features, task.labels)
        before = {name: p.detach().clone() for name, p in parameters.items()}
        a = torch.autograd.grad(losses.task, list(parameters.values()), retain_graph=True)
        b = torch.autograd.grad(losses.general, list(parameters.values()))
        update(learner, (task.image_features, task.labels))
        for name, x, y in zip(parameters, a, b, strict=True):
            dot = float((x * y).sum())
            conflicts.append(dot < 0)
            close(parameters[name], before[name] - 0.1 * (x if dot >= 0 else x - dot / y.square().sum() * y))
    steps = torch.tensor(conflicts).view(12, 5)
    assert (steps.any(1) & ~steps.all(1)).any()  # in one step some tensors conflict and others do not


def test_variational_prediction_is_the_mean_of_the_samples_probabilities(task):
    for conditional in (False, True):
        learner = Variational(samples=4, conditional=conditional).start(task)
        x, y = task.image_features[:3], task.labels[:3]
        noise = learner.context.noise(3, torch.Generator().manual_seed(5))
        assert noise.shape == (4, 3 if conditional else 1, 32)
        learner.context.noise = lambda n, generator, noise=noise: noise
        mean, log_variance = (z.detach().expand(3, -1) for z in learner.context.posterior(x))
        expected = torch.zeros(3, len(CLASS_NAMES), dtype=torch.float64)
        for s in range(4):
            for i in range(3):
                shift = mean[i] + noise[s, i if conditional else 0] * log_variance[i].exp().sqrt()
                features = features_of(learner.net, learner.context.ctx.detach() + shift)
                expected[i] += (task.model.logit_scale.exp() * features @ x[i]).softmax(0) / 4
        losses = learner.losses(x, y)
        close(losses.terms["cross_entropy"], -expected[range(3), y].log().mean())
        prior = torch.distributions.Normal(torch.zeros(32).double(), 1.0)
        posterior = torch.distributions.Normal(mean, log_variance.exp().sqrt())
        kl = torch.distributions.kl_divergence(posterior, prior).mean()
        close(losses.terms["prior"], 0.001 * kl)


def test_samples_of_pictures_are_their_own(task):
    """In training each picture of a batch has noise of its own; unconditional samples are shared."""
    for conditional in (False, True):
        context = Variational(samples=2, conditional=conditional).start(task).context
        noise = context.noise(5, torch.Generator().manual_seed(0))
        assert noise.unique().numel() == noise.numel() == 2 * (5 if conditional else 1) * 32


def test_kgcoop(task):
    learner = KgCoOp(weight=3.0, n_ctx=6).start(task)
    teacher = pf.clip.ZeroShotTeacher(task.model, TOKENIZER, CLASS_NAMES, "a picture of a {}.")
    features = learner.net.class_features().detach()
    expected = 3.0 * (1 - sum(float(u @ v) for u, v in zip(features, teacher.class_features, strict=True)) / 5)
    terms = learner.losses(task.image_features, task.labels).terms
    assert float(terms["knowledge"]) == pytest.approx(expected, rel=1e-9)


def test_lasp_asks_each_sentence_for_its_prompt(task, monkeypatch):
    learner = LASP(alpha=2.0, sentences=SENTENCES, virtual_classes=("kite", "tabby_cat")).start(task)
    monkeypatch.setattr(LASP, "draw", lambda self, generator, like: 0.0)
    with torch.no_grad():
        learner.context.correction.normal_(generator=torch.Generator().manual_seed(1))
    names = [*CLASS_NAMES, "kite"]  # "tabby_cat" is a class already
    net = learner.net.with_classes(names)
    raw = net.encoder(learner.context.ctx[None])[0]
    prompts = F.normalize(raw + learner.context.correction, dim=1)
    losses = []
    for sentence in SENTENCES:
        written = pf.clip.ZeroShotTeacher(task.model, TOKENIZER, names, sentence).class_features
        logits = task.model.logit_scale.exp() * written @ prompts.T  # a row for each sentence, a column for each prompt
        losses.append(F.cross_entropy(logits, torch.arange(len(names))))
    terms = learner.losses(task.image_features, task.labels).terms
    close(terms["text_to_text"], 2.0 * torch.stack(losses).mean())
    logits = task.model.logit_scale.exp() * task.image_features @ prompts[:5].T
    close(terms["cross_entropy"], F.cross_entropy(logits, task.labels))


def test_lasp_virtual_classes_with_logits(task):
    settings = {"sentences": SENTENCES, "virtual_classes": ("kite", "sea animal"), "lambda_": 1.0, "n_ctx": 6}
    learner = LASP(**settings, virtual_in_logits=True).start(task)
    logits = learner.net.with_classes([*CLASS_NAMES, "kite", "sea animal"]).logits(task.image_features)
    losses = learner.losses(task.image_features, task.labels)
    close(losses.terms["cross_entropy"], F.cross_entropy(logits, task.labels))
    teacher = pf.clip.ZeroShotTeacher(
        task.model, TOKENIZER, [*CLASS_NAMES, "kite", "sea animal"], "a picture of a {}."
    ).logits(task.image_features)
    close(losses.general, F.kl_div(logits.log_softmax(1), teacher.softmax(1), reduction="batchmean"))


def test_lasp_noise_is_there_in_half_of_the_steps():
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(3, 4, 5, dtype=torch.float64)
    draws = [LASP(noise=0.1).draw(generator, like) for _ in range(400)]
    drawn = [draw for draw in draws if draw.any()]
    assert 160 < len(drawn) < 240  # four standard deviations
    assert float(torch.stack(drawn).std()) == pytest.approx(0.1, rel=0.05)


def test_nfl(task):
    learner = NFL(weight=2.0, novel_names=("kite", "sea animal")).start(task)
    novel = learner.net.with_classes(["kite", "sea animal"]).class_features()
    prompts = [*pf.methods.templates.IMAGENET, "a picture of a {}."]
    fixed = pf.clip.ZeroShotTeacher(task.model, TOKENIZER, ["kite", "sea animal"], prompts).class_features
    actual = learner.losses(task.image_features, task.labels).terms["novel"]
    expected = 2.0 * (1 - (novel * fixed).sum(1)).mean()
    assert_close(actual, expected, "trajectory", torch.float64)  # their 1e-12 is beside the squared norms, 1


def test_subpt_moves_in_the_span_of_its_early_epochs(task):
    method = SubPT(epochs=4, early_epochs=5, rank=3, lr=0.3)
    learner = method.start(task)
    start = learner.context.ctx.detach().clone().flatten()
    contexts = []
    ended = learner.epoch_ended

    def remember(epoch):
        contexts.append(learner.context.ctx.detach().clone().flatten())
        ended(epoch)

    learner.epoch_ended = remember
    assert len(tune(learner).task_loss) == 9
    early = torch.stack(contexts[:5])
    _, _, v = torch.pca_lowrank(early, q=5, center=True, niter=8)
    moved = learner.context.ctx.detach().flatten() - start
    assert moved.norm() > 1e-3
    residual = moved - v[:, :3] @ (v[:, :3].T @ moved)
    assert float(residual.norm() / moved.norm()) < 1e-6
    assert float((contexts[4] - start - v[:, :3] @ (v[:, :3].T @ (contexts[4] - start))).norm()) > 1e-3


def test_promptsrc_ends_with_the_weighted_mean_of_its_epochs(task):
    method = PromptSRC(epochs=4, gpa_mean=3.0, gpa_std=0.8, sentences=SENTENCES, lr=0.3)
    learner = method.start(task)
    seen, ended = [], learner.epoch_ended

    def remember(epoch):
        seen.append([p.detach().clone() for p in learner.module.parameters()])
        ended(epoch)

    learner.epoch_ended = remember
    tune(learner)
    weights = [math.exp(-((e - 3.0) ** 2) / (2 * 0.8**2)) for e in range(1, 5)]
    for i, p in enumerate(learner.module.parameters()):
        close(p, sum(w * values[i] for w, values in zip(weights, seen, strict=True)) / sum(weights))


@pytest.mark.parametrize(("method", "settings"), [(KgCoOp, {}), (LASP, {"sentences": SENTENCES}), (PromptSRC, {})])
def test_losses_from_features_are_those_of_logits(task, monkeypatch, method, settings):
    """Large batches take the first way, with terms that need logits (PromptSRC) and with others."""
    learner = method(lambda_=1.0, n_ctx=6, **settings).start(task)
    state = learner.generator.get_state()
    results = []
    for worth_saving in (1e9, -1e9):
        monkeypatch.setattr(prompt_tuning, "WORTH_SAVING", worth_saving)
        learner.generator.set_state(state)
        losses = learner.losses(task.image_features, task.labels)
        gradients = [torch.autograd.grad(loss, learner.context.ctx, retain_graph=True)[0] for loss in losses[:2]]
        results.append([losses.task, losses.general, *gradients, losses.correct.double()])
    for from_logits, from_features in zip(*results, strict=True):
        close(from_features, from_logits)


def test_losses_from_features_store_no_logits(task, monkeypatch):
    monkeypatch.setattr(prompt_tuning, "WORTH_SAVING", -1e9)
    monkeypatch.setattr(pf.clip.PromptedCLIP, "logits", None)
    learner = CoOp().start(task)
    losses = learner.losses(task.image_features, task.labels)
    assert losses.general is not None
    assert losses.correct is not None


def test_tcp_block_is_two_thirds_of_the_way_or_as_told():
    for layers, settings, expected in ((12, {}, 8), (3, {}, 2), (2, {}, 1), (3, {"block": 1}, 1)):
        task = replace(make_task(), model=tiny_clip(layers=layers))
        assert TCP(**settings).start(task).context.block == expected
    for layers, settings, block in ((1, {}, 0), (2, {"block": 2}, 2)):
        task = replace(make_task(), model=tiny_clip(layers=layers))
        with pytest.raises(ValueError, match=f"block: expected a block of the text tower .* got {block}; the tower"):
            TCP(**settings).start(task)


def test_tcp_tokens_are_those_of_the_class_whatever_the_list(task):
    learner = TCP(n_ctx=6).start(task)
    every = learner.class_features(CLASS_NAMES)
    close(learner.class_features(CLASS_NAMES[3:]), every[3:])
    close(learner.class_features(["kite", CLASS_NAMES[1]])[1], every[1])


def test_dept_tells_other_classes_by_similarity_alone(task):
    learner = DePT(n_ctx=6).start(task)
    x, net = task.image_features, learner.net
    with torch.no_grad():
        learner.context.head.bias.normal_(generator=torch.Generator().manual_seed(1))
    lengths = net.class_features(unit=False).norm(dim=1)
    close(learner.context.length, lengths.mean())
    head = learner.context.head(lengths.mean() * x)  # scale 1, bias 0
    both = 0.3 * net.logits(x) + 0.7 * head
    close(learner.scores(CLASS_NAMES)(x), both)
    close(learner.scores([CLASS_NAMES[3], CLASS_NAMES[0]])(x), both[:, [3, 0]])
    close(learner.scores([*CLASS_NAMES, "kite"])(x), net.with_classes([*CLASS_NAMES, "kite"]).logits(x))


def test_dept_head_has_its_own_rate_and_the_same_warm_up(task):
    rates = []
    learner = DePT(epochs=3, warmup_epochs=1, warmup_lr=1e-4, lr=0.1, momentum=0.0).start(task)
    tune(learner, lambda: rates.append([group["lr"] for group in learner.optimizer.param_groups]))
    assert rates[0] == pytest.approx([1e-4, 1e-4])
    assert rates[1] == pytest.approx([0.1, 0.65])
    assert rates[2] == pytest.approx([0.075, 0.4875])


def test_atprompt_is_the_sentence_that_it_says(task):
    """Words of any number of tokens: "playfulness" has two, "energy" behind it stays."""
    learner = ATPrompt(attributes=("playfulness", "energy"), n_attribute=1, ctx_init="a photo of a").start(task)
    soft = ~learner.context.is_word[:, 0]
    assert soft.tolist() == [True, False, False, True, False, *[True] * 4]
    with torch.no_grad():  # soft tokens that are words make a sentence
        embedding = task.model.token_embedding.weight
        learner.context.ctx[[0, 3]] = embedding[TOKENIZER(["cat"])[0, 1]]
    sentences = TOKENIZER([f"cat playfulness cat energy a photo of a {name}." for name in learner.class_names])
    close(learner.class_features(CLASS_NAMES), F.normalize(task.model.encode_text(sentences), dim=1))


def test_atprompt_keeps_its_words_through_weight_decay(task, tmp_path):
    learner = ATPrompt(weight_decay=0.5, epochs=3, lr=0.1).start(task)
    start = learner.context.ctx.detach().clone()
    assert tune(learner).completed
    moved = (learner.context.ctx != start).any(1)
    assert torch.equal(moved, ~learner.context.is_word[:, 0])
    learner.save(tmp_path / "prompt.safetensors")
    net = pf.clip.load_prompt(tmp_path / "prompt.safetensors").build(task.model, TOKENIZER)
    close(net.class_features(), learner.class_features(CLASS_NAMES))


def test_proda_takes_contexts_of_every_place_and_tells_by_the_mean_of_all(task):
    learner = ProDA(n_contexts=8, n_ctx=6).start(task)
    drawn = [learner.context.noise(1, learner.generator).flatten().tolist() for _ in range(40)]
    assert all(len(set(one)) == 4 for one in drawn)
    assert {tuple(sum(i in place for i in one) for place in (range(2), range(2, 4), range(4, 8))) for one in drawn} == {
        (1, 1, 2)
    }
    assert {i for one in drawn for i in one} == set(range(8))
    mean = torch.zeros(len(CLASS_NAMES), 24, dtype=torch.float64)
    for i, context in enumerate(learner.context.contexts.detach()):
        place = ("front", "middle", "end", "end")[i // 2]
        net = pf.clip.PromptedCLIP(
            task.model, TOKENIZER, CLASS_NAMES, None, context.clone(), class_token_position=place
        )
        mean += net.class_features().detach() / 8
    close(learner.class_features(CLASS_NAMES), mean)


def test_proda_variances():
    generator = torch.Generator().manual_seed(0)
    features, x = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((3, 4, 5), (6, 5)))
    labels = torch.tensor([0, 1, 2, 3, 3, 0])
    deviations = features - features.mean(0)
    expected = torch.zeros(6, 4, dtype=torch.float64)
    for b, y in enumerate(labels):
        for c in range(4):
            expected[b, c] = (x[b] ** 2 * (deviations[:, y] - deviations[:, c]) ** 2).sum() / 4
    close(variances(features, x, labels), expected)


def test_anchoropt_puts_one_token_in_each_place_and_reads_at_the_end_of_text(task):
    learner = AnchorOPT(n_anchor=2, ctx_init="a photo of").start(task)
    context, embedding = learner.context, task.model.token_embedding.weight
    with torch.no_grad():
        context.anchor.copy_(embedding[TOKENIZER(["cat dog"])[0, 1:3]])
        context.place_logits.fill_(0.0)
        for place, token in enumerate([3, 0, 4, 2, 2]):  # of a, photo, of, cat, dog
            context.place_logits[place, token] = 1.0
    sentences = TOKENIZER([f"cat a dog of of {name}." for name in learner.class_names])
    close(learner.class_features(CLASS_NAMES), F.normalize(task.model.encode_text(sentences), dim=1))
    anchored = pf.clip.ZeroShotTeacher(task.model, TOKENIZER, ["kite", "owl"], "cat dog of {}.").class_features
    placed = pf.clip.ZeroShotTeacher(task.model, TOKENIZER, ["kite", "owl"], "cat a dog of of {}.").class_features
    close(learner.class_features(["kite", "owl"]), (anchored + placed) / 2)


def test_anchoropt_noise_and_early_reading_are_asked_for(task):
    features = [AnchorOPT(**s).start(task).class_features(CLASS_NAMES) for s in ({}, {}, {"noise_at_test": True})]
    assert torch.equal(features[0], features[1])
    assert not torch.allclose(features[0], features[2])
    early = AnchorOPT(read_early=True).start(task)
    ids = early.context._of(early.net)[2].token_ids
    cut = ids.clone()
    cut[:, 1:] = torch.where(ids[:, 1:] == 49407, 0, ids[:, 1:])  # what stands at the end of text does not matter
    rows = early.context.places(None) @ torch.cat([early.context.ctx, early.context.anchor])
    words = early.net.tower.embed(cut)
    words[:, 1:6] = rows.detach()
    whole = early.net.tower.encode(words, ids, early=1)
    close(early.class_features(CLASS_NAMES), F.normalize(whole, dim=1))
    model = task.model.requires_grad_(False)
    hook = model.transformer.register_forward_pre_hook(lambda *arguments: None)  # the tower's own way
    try:
        close(AnchorOPT(read_early=True).start(task).class_features(CLASS_NAMES), early.class_features(CLASS_NAMES))
    finally:
        hook.remove()


def test_anchoropt_learns_the_anchor_first_and_leaves_it_then(task):
    seen = []
    learner = AnchorOPT(anchor_epochs=3, epochs=4, lr=0.1).start(task)
    tune(learner, lambda: seen.append([p.detach().clone() for p in learner.module.parameters()]))
    start, anchored, end = seen[0], seen[2], seen[-1]
    moved = [
        [not torch.equal(x, y) for x, y in zip(a, b, strict=True)] for a, b in ((start, anchored), (anchored, end))
    ]
    names = [name for name, _ in learner.module.named_parameters()]
    assert names == ["ctx", "anchor", "place_logits"]
    assert moved == [[False, True, False], [True, False, True]]


def test_tcp_needs_a_tower_whose_blocks_can_be_reached(task):
    with pytest.raises(ValueError, match=r"block: expected a causal text tower .* no causal attention mask"):
        TCP().start(replace(task, model=WHOLE["not causal"]()))


@pytest.mark.parametrize("method", [DePT, ATPrompt, ProDA, AnchorOPT])
def test_prompts_go_through_towers_that_need_every_position(task, method):
    learner = method(epochs=2, lr=0.1).start(replace(task, model=WHOLE["not causal"]()))
    before = learner.losses(task.image_features, task.labels).task
    for _ in range(3):
        update(learner, (task.image_features, task.labels))
    assert before.isfinite()
    assert learner.scores(["kite", *CLASS_NAMES])(task.image_features).isfinite().all()


@pytest.mark.parametrize("method", [TCP, DePT, ATPrompt, AnchorOPT, ProDA])
def test_text_side_methods_train_under_autocast(method):
    settings = {"epochs": 2, "lambda_": 1.0} | ({"anchor_epochs": 2} if method is AnchorOPT else {})
    histories = []
    for precision in ("fp32", "bf16"):
        learner = method(**settings).start(make_task(dtype=torch.float32))
        histories.append(tune(learner, options=TrainOptions(precision)))
    wide, narrow = histories
    for whole, rounded in ((wide.task_loss, narrow.task_loss), (wide.general_loss, narrow.general_loss)):
        assert_close(torch.tensor(rounded), torch.tensor(whole), "autocast training", torch.bfloat16)


def test_each_stage_of_anchoropt_has_a_schedule_of_its_own_length(task):
    """The authors train the anchor in a run of its own, whose rate falls to its end; see `GradientMethod.rate`."""
    learner, rates = AnchorOPT(anchor_epochs=8, epochs=4, lr=0.5).start(task), []
    tune(learner, log=lambda step, values: rates.append(values["lr"]))
    expected = [0.25 * (1 + math.cos(math.pi * t / total)) for total in (8, 4) for t in range(total)]
    assert rates == pytest.approx(expected, rel=1e-6)
