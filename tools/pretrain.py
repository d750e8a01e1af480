"""Trains the text tower of one seed: `python -m tools.pretrain --seed 0`.

The meeting place of text and pictures is fixed: embeddings of phrases by a sentence encoder (`tools.phrases`). The text
tower learns to tell them from the phrases, without a picture; `tools.head` tells them from pictures.

The same machine type and PyTorch version give the same bytes: the number of steps is fixed and there is one thread.
"""

import argparse
import itertools
import math
import random
from collections.abc import Sequence

import open_clip
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from tools import WORK
from tools.captions import CONTEXTS
from tools.config import CONFIG
from tools.phrases import Phrases

BATCH = 256
WEIGHT_DECAY, BETAS = 0.1, (0.9, 0.98)
TEXT_STEPS, TEXT_WARMUP, TEXT_RATE, TEXT_CLIP_NORM = 700, 60, 2e-3, 1.0
TEXT_SCALE = 20.0  # of the cosines, before the softmax, in the text tower's loss
COSINE_WEIGHT = 4.0
CONTEXT_SHARE, FULL_STOP_SHARE = 0.6, 0.3  # of the phrases that stand in a sentence, and that end with "."
MAX_TOKENS = 28  # of a phrase, without the sentence around it
PARTS = 4  # of a batch of phrases, by length, so that short ones are not padded to the longest
RUNS = WORK / "runs"


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
    parts = [order[first:end] for first, end in itertools.pairwise(cuts)]
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


def text_tower(phrases: Phrases) -> open_clip.CLIP:
    """A model that is not trained yet, without an image tower, that reads the tokens of the phrases alone."""
    model = open_clip.CLIP(**CONFIG)
    vocabulary = CONFIG["text_cfg"]["vocab_size"]
    model.token_embedding = TrainedTokens(phrases.tokens, phrases.token_rows(), vocabulary)
    model.visual = nn.Identity()
    return model


def train_text(seed: int, phrases: Phrases) -> tuple[open_clip.CLIP, Tensor]:
    """The text tower, and how often it read each token of the vocabulary."""
    tokenizer, rng, model = open_clip.SimpleTokenizer(), random.Random(seed), text_tower(phrases)
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


def pretrain(seed: int) -> None:
    """Trains the tower of one seed and saves it with its counts of tokens: `work/runs/text-seedN.pt`."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    text, counts = train_text(seed, Phrases.load())
    RUNS.mkdir(parents=True, exist_ok=True)
    torch.save((text.state_dict(), counts), RUNS / f"text-seed{seed}.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    pretrain(parser.parse_args().seed)
