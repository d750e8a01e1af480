"""Steps of prompt tuning, ours and the authors', on the text tower of CLIP RN50 and ViT-B/16 with random weights.

All start from image features: the image tower is the same for both, and its cost is a row of its own.
"""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

import prograd_fast as pf
from benchmarks import authors
from benchmarks.measure import DEVICE, Side
from prograd_fast.clip.packed.weights import Linear
from prograd_fast.ops.prompt import assemble_prompts, encode_prompts

TEMPLATE = "a photo of a {}."
N_CTX, BATCH, COCOOP_CTX = 16, 32, 4
LR, MOMENTUM, WEIGHT_DECAY = 0.002, 0.9, 5e-4  # of CoOp, CoCoOp and ProGrad
TOKENIZER = open_clip.get_tokenizer("ViT-B-16")


@functools.cache
def clip(dtype: torch.dtype = torch.float32, width: int = 512, layers: int = 12) -> CLIP:
    """The text tower of ViT-B/16; in the place of its image tower a small one, which is not run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image, text = CLIPVisionCfg(layers=1, width=64), CLIPTextCfg(width=width, heads=width // 64, layers=layers)
        return CLIP(512, image, text, quick_gelu=True).to(DEVICE, dtype).eval().requires_grad_(False)


def class_names(n: int) -> list[str]:
    """ImageNet's names as open_clip has them; beyond them the same with numbers."""
    names = list(dict.fromkeys(open_clip.IMAGENET_CLASSNAMES))
    return [names[i % len(names)] + (f" {i // len(names)}" if i >= len(names) else "") for i in range(n)]


def _pictures(batch: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = F.normalize(torch.randn(batch, 512, generator=generator), dim=-1)
    return features.to(DEVICE, dtype), torch.randint(0, classes, (batch,), generator=generator).to(DEVICE)


def net_of(classes: int, n_ctx: int = N_CTX, max_memory: float | None = None, **model: Any) -> pf.clip.PromptedCLIP:
    """A prompted model that starts a little beside the teacher's words, where both gradients have a direction."""
    words = "a photo of a"
    net = pf.clip.PromptedCLIP(
        clip(**model), TOKENIZER, class_names(classes), n_ctx, ctx_init=words, max_memory=max_memory
    )
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        net.prompt.ctx += 0.01 * torch.randn(net.prompt.ctx.shape, generator=generator).to(DEVICE)
    return net


# ---- ProGrad


def our_step(classes: int, both: bool = True, **options: Any) -> Side:
    """Class features, both losses, one backward, projection and update; without `both` the task loss alone."""
    net = net_of(classes, **options)
    dtype = net.tower.dtype
    images, labels = _pictures(BATCH, classes, dtype)
    teacher = pf.clip.ZeroShotTeacher(net.model, TOKENIZER, net.class_names, TEMPLATE).logits(images)
    criterion = pf.DualLoss()
    optimizer = pf.ProGradSGD([net.prompt.ctx], lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def step() -> None:
        task, general = criterion(net.logits(images), teacher, labels)
        optimizer.backward_and_update(task, general if both else None)

    return step


def authors_step(classes: int, **model: Any) -> Side:
    """77 tokens for every class, two backward passes, a branch on the host."""
    net = net_of(classes, **model)
    images, labels = _pictures(BATCH, classes, net.tower.dtype)
    teacher = pf.clip.ZeroShotTeacher(net.model, TOKENIZER, net.class_names, TEMPLATE).logits(images)
    ctx = nn.Parameter(net.prompt.ctx.detach().clone())
    encode = _authors_encoder(net)
    optimizer = torch.optim.SGD([ctx], lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def losses() -> tuple[Tensor, Tensor]:
        features = encode(ctx)
        features = features / features.norm(dim=-1, keepdim=True)
        return authors.losses(net.model.logit_scale.exp() * images @ features.T, teacher, labels)

    return lambda: authors.step(optimizer, ctx, losses)


def _authors_encoder(net: pf.clip.PromptedCLIP) -> Callable[[Tensor], Tensor]:
    """(M, d) context to (C, D) features by `prograd_fast.reference`, the authors' formulation."""
    prefix = " ".join(["X"] * net.n_ctx)
    token_ids = TOKENIZER([f"{prefix} {name}." for name in net.class_names]).to(DEVICE)
    lengths = [len(TOKENIZER.encode(name)) for name in net.class_names]
    embeddings = net.model.token_embedding(token_ids).detach()
    return lambda ctx: encode_prompts(net.model, assemble_prompts(embeddings, ctx, lengths), token_ids)


def gradients(classes: int, **model: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Task and general gradient of the context by the two ways, for one step."""
    net = net_of(classes, **model)
    images, labels = _pictures(BATCH, classes, net.tower.dtype)
    teacher = pf.clip.ZeroShotTeacher(net.model, TOKENIZER, net.class_names, TEMPLATE).logits(images)
    ctx, encode = net.prompt.ctx, _authors_encoder(net)
    found = []
    for features in (net.class_features(), F.normalize(encode(ctx), dim=-1)):
        losses = authors.losses(net.logits(images, features), teacher, labels)
        a, b = (torch.autograd.grad(loss, ctx, retain_graph=True)[0] for loss in losses)
        found.append((a, b))
    return found[0], found[1]


# ---- CoCoOp


def our_cocoop(classes: int, batch: int, **model: Any) -> Side:
    """All images at once: one prefix each, one loss, one backward."""
    return _cocoop(classes, batch, together=True, **model)


def authors_cocoop(classes: int, batch: int, **model: Any) -> Side:
    """A loop over the images, each with a backward of its own: the graphs of eight take more than 24 GB."""
    return _cocoop(classes, batch, together=False, **model)


def _cocoop(classes: int, batch: int, together: bool, **model: Any) -> Side:
    net = net_of(classes, COCOOP_CTX, **model)
    images, labels = _pictures(batch, classes, net.tower.dtype)
    scale = net.model.logit_scale.exp()
    d = net.tower.width
    with torch.random.fork_rng():
        torch.manual_seed(3)
        meta = nn.Sequential(nn.Linear(512, 512 // 16), nn.ReLU(), nn.Linear(512 // 16, d)).to(DEVICE, net.tower.dtype)
    params = [net.prompt.ctx, *meta.parameters()]
    optimizer = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    encode = _authors_encoder(net)

    def step() -> None:
        optimizer.zero_grad()
        if together:
            features = net.class_features(net.prompt.ctx + meta(images)[:, None])
            F.cross_entropy(scale * torch.einsum("bd,bcd->bc", images, features), labels).backward()
        else:
            for x, label in zip(images, labels, strict=True):
                features = F.normalize(encode(net.prompt.ctx + meta(x)), dim=-1)
                (F.cross_entropy(scale * x @ features.T, label) / batch).backward()
        optimizer.step()

    return step


# ---- the arithmetic that cannot be saved


def products(net: pf.clip.PromptedCLIP, cotangents: int) -> Counter[tuple[int, int, int]]:
    """The matrix products of one step as (rows, columns in, columns out), and how often each is done.

    The weights are frozen, so a backward has as many products as a forward, with as many rows for each cotangent. In
    the first block the suffixes' queries, keys and values are constants; in the last, all but keys and values is done
    for the ends of text alone.
    """
    packing = net.encoder._packing
    assert packing is not None
    prefix, rows, ends = (
        len(packing.prefix.token_ids),
        len(packing.prefix.token_ids) + len(packing.suffixes.token_ids),
        len(net.class_names),
    )
    d, layers = net.tower.width, net.tower.n_layers
    hidden = net.tower.text.transformer.resblocks[0].mlp.c_fc.out_features
    forward = [(ends, d, net.tower.text.text_projection.shape[1])]
    for i in range(layers):
        last = i == layers - 1
        forward += [(rows, d, 2 * d), (ends, d, d)] if last else [(rows if i else prefix, d, 3 * d)]
        forward += [(ends if last else rows, *shape) for shape in ((d, d), (d, hidden), (hidden, d))]
    return Counter(forward + [(cotangents * height, out, into) for height, into, out in forward])


def product(rows: int, columns_in: int, columns_out: int, dtype: torch.dtype, packed: bool) -> Side:
    """One of them alone: by the product that the encoder uses, or by torch.nn.functional.linear."""
    x, weight = torch.randn(rows, columns_in), torch.randn(columns_out, columns_in)
    x, weight = x.to(DEVICE, dtype), weight.to(DEVICE, dtype)
    return functools.partial(Linear(weight, None), x) if packed else functools.partial(F.linear, x, weight)
