"""Trains the text tower and the projection heads of one seed: `python -m tools.pretrain --seed 0`.

The meeting place is fixed: embeddings of phrases by a sentence encoder (`tools.phrases`). The text tower learns to tell
them from the phrases, without a picture. A head learns to tell them from the frozen image features of a drawing: the
head of emoji-lite from the drawing's name, keywords and tags, that of emoji-lite-named also from its class name.

The same machine type and PyTorch version give the same bytes: the number of steps is fixed and there is one thread.
"""

import argparse
import json
import math
import random
from collections import defaultdict
from collections.abc import Sequence

import open_clip
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from prograd_fast.clip import emoji_lite
from tools import WORK, emojis
from tools.build_drawings import Drawing, load_drawings
from tools.captions import CONTEXTS
from tools.classes import CLIPART_CLASSES, EMOJI_CLASSES
from tools.config import CONFIG
from tools.emojis import Emoji
from tools.features import Features
from tools.phrases import Phrases, drawing_phrase, with_tags

BATCH = 256
WEIGHT_DECAY, BETAS = 0.1, (0.9, 0.98)
TEXT_STEPS, TEXT_WARMUP, TEXT_RATE, TEXT_CLIP_NORM = 700, 60, 2e-3, 1.0
TEXT_SCALE = 20.0  # of the cosines, before the softmax, in the text tower's loss
COSINE_WEIGHT = 4.0
CONTEXT_SHARE, FULL_STOP_SHARE = 0.6, 0.3  # of the phrases that stand in a sentence, and that end with "."
MAX_TOKENS = 28  # of a phrase, without the sentence around it
MIN_TOKEN_COUNT = 10  # every token of a class name must have occurred at least so often
PARTS = 4  # of a batch of phrases, by length, so that short ones are not padded to the longest
HEAD_STEPS, HEAD_WARMUP, HEAD_RATE = 400, 40, 1e-3
FEATURE_DROPOUT = 0.2
ICON_SHARE = 0.4  # of the drawings in a batch; the others are emojis
NEIGHBOUR_TEMPERATURE = 0.1  # how far a phrase's neighbours count as right too
START_SCALE, MAX_SCALE = 20.0, 50.0
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

    def __init__(self, ids: Tensor, rows: Tensor, vocabulary: int) -> None:
        super().__init__()
        self.ids = ids
        self.rows = nn.Parameter(rows.clone())
        self._row_of = torch.zeros(vocabulary, dtype=torch.long)
        self._row_of[ids] = torch.arange(len(ids))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (...) to embeddings (..., width)."""
        return F.embedding(self._row_of[tokens], self.rows)


def encode(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """`model.encode_text` for rows shorter than 77 tokens; unit rows (B, D)."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection, dim=-1)


def encode_by_length(model: open_clip.CLIP, rows: Sequence[list[int]]) -> tuple[Tensor, list[int]]:
    """Encodes rows of token ids in `PARTS`, the shortest first; also tells the order in which they come out."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    cuts = [len(rows) * part // PARTS for part in range(PARTS + 1)]
    parts = [order[first:end] for first, end in zip(cuts, cuts[1:], strict=False)]
    return torch.cat([encode(model, padded([rows[i] for i in part])) for part in parts]), order


def padded(rows: Sequence[list[int]]) -> Tensor:
    """Rows of different lengths as one array, zeros after their ends."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def rate(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up times a cosine to (almost) zero."""
    return min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def text_loss(features: Tensor, targets: Tensor) -> Tensor:
    """Both are unit rows (B, D). Each feature is to be as near to all targets as its own target is, and the reverse."""
    logits, wanted = TEXT_SCALE * features @ targets.T, F.softmax(TEXT_SCALE * targets @ targets.T, 1)
    near = F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)
    return near + COSINE_WEIGHT * (1 - (features * targets).sum(1)).mean()


def head_loss(features: Tensor, targets: Tensor, bank: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss, equal targets being positives of each other, and a softmax over a bank of phrases (P, D).

    In the second the right answer is spread over the phrases near the target, so that a dolphin is rather a whale than
    a hammer.
    """
    logits, likeness = scale * features @ targets.T, targets @ targets.T
    positives = F.normalize((likeness > 0.999).float(), p=1, dim=1)
    in_batch = (F.cross_entropy(logits, positives) + F.cross_entropy(logits.T, positives)) / 2
    return in_batch + F.cross_entropy(scale * features @ bank.T, F.softmax(targets @ bank.T / NEIGHBOUR_TEMPERATURE, 1))


def train_text(seed: int, phrases: Phrases) -> tuple[open_clip.CLIP, Tensor]:
    """The text tower, and how often it read each token of the vocabulary."""
    tokenizer, rng = open_clip.SimpleTokenizer(), random.Random(seed)
    model = open_clip.CLIP(**CONFIG)
    model.token_embedding = TrainedTokens(phrases.tokens, phrases.token_rows(), tokenizer.vocab_size)
    model.visual = nn.Identity()
    bodies = [tokenizer.encode(text)[:MAX_TOKENS] for text in phrases.texts]
    contexts = [[tokenizer.encode(side) for side in context.split("{}")] for context in CONTEXTS]
    targets, weights = phrases.targets, phrases.weights()
    parameters = [tensor for name, tensor in model.named_parameters() if name != "logit_scale"]
    optimizer = torch.optim.AdamW(parameters, lr=TEXT_RATE, weight_decay=WEIGHT_DECAY, betas=BETAS)
    counts = torch.zeros(tokenizer.vocab_size, dtype=torch.long)
    for step in track(range(TEXT_STEPS), f"text tower, seed {seed}"):
        optimizer.param_groups[0]["lr"] = TEXT_RATE * rate(step, TEXT_STEPS, TEXT_WARMUP)
        drawn = rng.choices(range(len(bodies)), weights, k=BATCH)
        rows = []
        for i in drawn:
            before, after = rng.choice(contexts) if rng.random() < CONTEXT_SHARE else ([], [])
            stop = tokenizer.encode(".") if rng.random() < FULL_STOP_SHARE else []
            rows.append([tokenizer.sot_token_id, *before, *bodies[i], *after, *stop, tokenizer.eot_token_id])
        counts += torch.bincount(torch.tensor([token for row in rows for token in row]), minlength=len(counts))
        features, order = encode_by_length(model, rows)
        loss = text_loss(features, targets[[drawn[i] for i in order]])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, TEXT_CLIP_NORM)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"seed {seed}, text step {step + 1}: loss {loss.item():.3f}", flush=True)
    return model, counts


class Batches:
    """Endless random batches of drawings, each with the index of one of the phrases that tell what it shows."""

    def __init__(
        self, shown: list[Drawing], records: list[Emoji], features: Features, phrases: Phrases, named: bool, seed: int
    ) -> None:
        self.shown, self.records, self.features, self.index = shown, records, features, phrases.index
        self.named, self.rng = named, random.Random(seed)
        self.drawings: dict[int, list[int]] = defaultdict(list)
        for row, drawing in enumerate(shown):
            if drawing.emoji is not None:
                self.drawings[drawing.emoji].append(row)
        self.n_emojis = features.emojis.shape[1]
        self.emoji_queue: list[int] = []
        self.icon_queue: list[int] = []

    def bank(self) -> list[int]:
        """The phrases that name any drawing."""
        names = {self.index[drawing.name] for drawing in self.shown}
        keywords = {self.index[with_tags(self.records[i].name, self.records[i].keywords)] for i in self.drawings}
        return sorted(names | keywords)

    def next(self) -> tuple[Tensor, list[int]]:
        """Features (BATCH, 1280), fp32, and BATCH indices of phrases: every emoji once per round, every icon too."""
        n_icons = int(BATCH * ICON_SHARE)
        if len(self.emoji_queue) < BATCH - n_icons:
            self.emoji_queue += self.rng.sample(sorted(self.drawings), len(self.drawings))
        if len(self.icon_queue) < n_icons:
            icons = range(self.n_emojis, len(self.shown))
            self.icon_queue += self.rng.sample(icons, len(icons))
        features, said = [], []
        for _ in range(BATCH - n_icons):
            emoji = self.emoji_queue.pop(0)
            row = self.rng.choice(self.drawings[emoji])
            features.append(self.features.emojis[self.rng.randrange(len(self.features.emojis)), row])
            said.append(self.index[self._of_emoji(self.records[emoji])])
        for _ in range(n_icons):
            row = self.icon_queue.pop(0)
            features.append(
                self.features.icons[self.rng.randrange(len(self.features.icons)), row - self.n_emojis]
            )
            drawing = self.shown[row]
            said.append(self.index[drawing.name if self.rng.random() < 0.5 else drawing_phrase(drawing)])
        return torch.stack(features).float(), said

    def _of_emoji(self, emoji: Emoji) -> str:
        """30 % the name, 55 % with all keywords, 15 % one keyword; of `named`, 45 % the class name instead."""
        if self.named and emoji.class_name and self.rng.random() < 0.45:
            return emoji.class_name
        p = self.rng.random()
        if p < 0.3:
            return emoji.name
        return with_tags(emoji.name, emoji.keywords) if p < 0.85 else self.rng.choice(emoji.keywords or (emoji.name,))


def train_head(batches: Batches, targets: Tensor, what: str) -> tuple[nn.Module, Tensor]:
    """The projection head, and the logarithm of the scale of its logits."""
    head = open_clip.CLIP(**CONFIG).visual.head
    log_scale = nn.Parameter(torch.tensor(math.log(START_SCALE)))
    groups = [{"params": list(head.parameters())}, {"params": [log_scale], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=HEAD_RATE, weight_decay=WEIGHT_DECAY, betas=BETAS)
    bank = targets[batches.bank()]
    for step in track(range(HEAD_STEPS), what):
        for group in optimizer.param_groups:
            group["lr"] = HEAD_RATE * rate(step, HEAD_STEPS, HEAD_WARMUP)
        images, said = batches.next()
        features = F.normalize(head(F.dropout(images, FEATURE_DROPOUT)), dim=-1)
        loss = head_loss(features, targets[said], bank, log_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log_scale.data.clamp_(0, math.log(MAX_SCALE))
    return head, log_scale.data


def pretrain(seed: int) -> None:
    """Trains and saves one run of each model: `work/runs/NAME-seedN.pt` and its figures beside it."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    phrases = Phrases.load()
    text, counts = train_text(seed, phrases)
    RUNS.mkdir(parents=True, exist_ok=True)
    torch.save((text.state_dict(), counts), RUNS / f"text-seed{seed}.pt")
    train_heads(seed, phrases, text, counts)


def train_heads(seed: int, phrases: Phrases, text: open_clip.CLIP, counts: Tensor) -> None:
    """Trains both models' heads and saves the runs."""
    records, features, shown = emojis.load(), Features.load(), load_drawings()[1]
    tokens, trained = text.token_embedding, counts[phrases.tokens] > 0
    tower = {
        key: tensor
        for key, tensor in text.state_dict().items()
        if not key.startswith("token_embedding") and key != "logit_scale"
    }
    tower |= {"token_embedding.ids": tokens.ids[trained], "token_embedding.rows": tokens.rows.data[trained]}
    for name in emoji_lite.NAMES:
        torch.manual_seed(seed)
        named = name.endswith("named")
        batches = Batches(shown, records, features, phrases, named, seed)
        head, log_scale = train_head(batches, phrases.targets, f"{name}, seed {seed}")
        weights = {f"visual.head.{key}": tensor for key, tensor in head.state_dict().items()}
        report = {
            "named": named,
            "seed": seed,
            "selection": selection_accuracy(text, head, records, features),
            "rare": rare_class_names(open_clip.SimpleTokenizer(), counts),
        }
        torch.save({**tower, **weights, "logit_scale": log_scale}, RUNS / f"{name}-seed{seed}.pt")
        (RUNS / f"{name}-seed{seed}.json").write_text(json.dumps(report, indent=1))
        print(json.dumps(report), flush=True)


@torch.no_grad()
def selection_accuracy(text: open_clip.CLIP, head: nn.Module, records: list[Emoji], features: Features) -> float:
    """The measure that chooses between seeds: zero-shot top-1 accuracy (%) on pool and validation, never on test.

    Six averaged prompts, all 44 classes, held-out emojis in the four styles that pretraining sees.
    """
    tokenizer, class_names = open_clip.SimpleTokenizer(), list(EMOJI_CLASSES)
    texts = [tokenizer([prompt.format(name) for name in class_names]) for prompt in PROMPTS]
    class_features = F.normalize(torch.stack([encode(text, tokens) for tokens in texts]).sum(0), dim=-1)
    labels = torch.tensor([class_names.index(records[i].class_name) for i in features.held_out_emoji])
    predicted = (head(features.held_out.float()) @ class_features.T).argmax(1)
    return 100 * float((predicted == labels).float().mean())


def rare_class_names(tokenizer: open_clip.SimpleTokenizer, counts: Tensor) -> dict[str, int]:
    """Class names of either benchmark with a token that the phrases contained too seldom, and how often."""
    rarest = {name: int(counts[tokenizer.encode(name)].min()) for name in (*EMOJI_CLASSES, *CLIPART_CLASSES)}
    return {name: count for name, count in rarest.items() if count < MIN_TOKEN_COUNT}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    pretrain(parser.parse_args().seed)
