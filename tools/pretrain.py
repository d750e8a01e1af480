"""Aligns the projection head and the text tower with the frozen image features of emoji drawings; one run per seed.

    python -m tools.pretrain --seed 0            # emoji-lite: captions of names and keywords
    python -m tools.pretrain --seed 0 --named    # emoji-lite-named: captions that also tell the class names

The same machine type and PyTorch version give the same bytes: the number of steps is fixed and there is one thread.
"""

import argparse
import json
import math
import random
from collections import defaultdict

import open_clip
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from prograd_fast.clip import emoji_lite
from tools import WORK, emojis
from tools.build_emoji import SEEN_STYLES
from tools.captions import caption, phrases
from tools.classes import CLIPART_CLASSES, EMOJI_CLASSES
from tools.config import CONFIG
from tools.emojis import PRETRAINING, Emoji
from tools.features import VIEWS, Features

STEPS, WARMUP = 690, 100
BATCH = 256  # emojis; each brings one drawing and one caption
LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP_NORM = 2e-3, 0.1, (0.9, 0.98), 1.0
FEATURE_DROPOUT = 0.2
MAX_TOKENS = 24  # of a caption; longer ones are cut, positions beyond stay untrained
MIN_TOKEN_COUNT = 10  # every token of a class name must have occurred at least so often in the captions
RUNS = WORK / "runs"
PROMPTS = (
    "a picture of a {}.",
    "an emoji of a {}.",
    "a drawing of a {}.",
    "an icon of a {}.",
    "a cartoon {}.",
    "{}.",
)


class TrainedTokens(nn.Module):
    """The token embedding, restricted to the tokens that captions can contain, so that an update costs little."""

    def __init__(self, ids: Tensor, table: Tensor) -> None:
        super().__init__()
        self.ids = ids
        self.rows = nn.Parameter(table[ids].clone())
        self._row_of = torch.zeros(len(table), dtype=torch.long)
        self._row_of[ids] = torch.arange(len(ids))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (...) to embeddings (..., width)."""
        return F.embedding(self._row_of[tokens], self.rows)


class Batches:
    """Endless random batches: every emoji once per round, each with a random drawing, view and caption."""

    def __init__(self, records: list[Emoji], features: Features, named: bool, seed: int) -> None:
        self.records, self.named, self.rng = records, named, random.Random(seed)
        self.features = torch.cat([features.views, features.clean[features.seen][None]])
        self.drawings: dict[int, list[int]] = defaultdict(list)
        for drawing, emoji in enumerate(features.emoji[features.seen].tolist()):
            self.drawings[emoji].append(drawing)
        self.queue: list[int] = []

    def next(self) -> tuple[Tensor, list[str]]:
        """Image features (BATCH, 1280), fp32, and BATCH captions."""
        if len(self.queue) < BATCH:
            self.queue = self.rng.sample(sorted(self.drawings), len(self.drawings))
        batch = [self.queue.pop() for _ in range(BATCH)]
        drawings = [self.rng.choice(self.drawings[emoji]) for emoji in batch]
        views = [self.rng.randrange(VIEWS + 1) for _ in batch]
        captions = [caption(self.records[emoji], self.named, self.rng) for emoji in batch]
        return self.features[views, drawings].float(), captions


def encode(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """`model.encode_text` for rows shorter than 77 tokens; unit rows (B, D)."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection, dim=-1)


def contrastive_loss(logits: Tensor, captions: list[str]) -> Tensor:
    """CLIP's symmetric cross-entropy, where all pairs of equal captions are positives."""
    index = {text: i for i, text in enumerate(captions)}
    label = torch.tensor([index[text] for text in captions])
    target = F.normalize((label[:, None] == label).float(), p=1, dim=1)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def learning_rate(step: int) -> float:
    """Linear warm-up times a cosine to (almost) zero."""
    return LEARNING_RATE * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / STEPS))


def pretrain(named: bool, seed: int) -> None:
    """Trains and saves one run: `work/runs/NAME-seedN.pt` and its figures beside it."""
    name = "emoji-lite-named" if named else "emoji-lite"
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    records, features = emojis.load(), Features.load()
    tokenizer = open_clip.SimpleTokenizer()
    pretraining = [emoji for emoji in records if emoji.split == PRETRAINING]
    texts = [phrase for emoji in pretraining for phrase in phrases(emoji, named)]
    vocabulary = {token for text in texts for token in tokenizer.encode(text)}
    ids = torch.tensor(sorted(vocabulary | {0, tokenizer.sot_token_id, tokenizer.eot_token_id}))

    model = open_clip.CLIP(**CONFIG)
    model.token_embedding = TrainedTokens(ids, emoji_lite.untrained_tokens(*model.token_embedding.weight.shape))
    model.visual.trunk = nn.Identity()  # its features are computed already
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=BETAS)
    batches = Batches(records, features, named, seed)
    counts = torch.zeros(tokenizer.vocab_size, dtype=torch.long)
    for step in track(range(STEPS), f"{name}, seed {seed}"):
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        images, captions = batches.next()
        tokens = tokenizer(captions, context_length=MAX_TOKENS)
        tokens = tokens[:, : int(tokens.count_nonzero(1).max())]
        counts += torch.bincount(tokens.flatten(), minlength=len(counts))
        image_features = F.normalize(model.visual.head(F.dropout(images, FEATURE_DROPOUT)), dim=-1)
        loss = contrastive_loss(model.logit_scale.exp() * image_features @ encode(model, tokens).T, captions)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}, scale {model.logit_scale.exp().item():.1f}", flush=True)

    trained = counts[ids] > 0
    heads = {key: value for key, value in model.state_dict().items() if not key.startswith("token_embedding")}
    heads |= {"token_embedding.ids": ids[trained], "token_embedding.rows": model.token_embedding.rows.data[trained]}
    report = {
        "named": named,
        "seed": seed,
        "loss": loss.item(),
        "selection": selection_accuracy(model, tokenizer, records, features),
        "rare": rare_class_names(tokenizer, counts),
    }
    RUNS.mkdir(parents=True, exist_ok=True)
    torch.save(heads, RUNS / f"{name}-seed{seed}.pt")
    (RUNS / f"{name}-seed{seed}.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report))


@torch.no_grad()
def selection_accuracy(
    model: open_clip.CLIP, tokenizer: open_clip.SimpleTokenizer, records: list[Emoji], features: Features
) -> float:
    """The measure that chooses between seeds: zero-shot top-1 accuracy (%) on pool and validation, never on test.

    Six averaged prompts, all 44 classes, held-out emojis in the four styles that pretraining sees.
    """
    class_names = list(EMOJI_CLASSES)
    texts = [tokenizer([prompt.format(name) for name in class_names], context_length=MAX_TOKENS) for prompt in PROMPTS]
    class_features = F.normalize(torch.stack([encode(model, tokens) for tokens in texts]).sum(0), dim=-1)
    splits = [records[emoji].split for emoji in features.emoji]
    rows = [
        i for i, split in enumerate(splits) if split in ("pool", "validation") and features.style[i] < len(SEEN_STYLES)
    ]
    labels = torch.tensor([class_names.index(records[features.emoji[i]].class_name) for i in rows])
    predicted = (model.visual.head(features.clean[rows].float()) @ class_features.T).argmax(1)
    return 100 * float((predicted == labels).float().mean())


def rare_class_names(tokenizer: open_clip.SimpleTokenizer, counts: Tensor) -> dict[str, int]:
    """Class names of either benchmark with a token that the captions contained too seldom, and how often."""
    rarest = {name: int(counts[tokenizer.encode(name)].min()) for name in (*EMOJI_CLASSES, *CLIPART_CLASSES)}
    return {name: count for name, count in rarest.items() if count < MIN_TOKEN_COUNT}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--named", action="store_true")
    arguments = parser.parse_args()
    pretrain(arguments.named, arguments.seed)
