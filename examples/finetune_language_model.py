"""Teach a language model a new text with and without the projection, and ask what it still knows of the old one.

`python examples/finetune_language_model.py` takes less than two minutes on two CPU cores and downloads nothing: the
model is a tiny Llama built from a config, the texts come from two grammars. Both grammars let each word be followed by
four others, with unequal probabilities. The new one shares the words; after the words of one topic, and only after
them, other words follow. Nearly all of what is written in the new text is on that topic.
"""

import argparse
import copy
import math
from collections.abc import Callable
from typing import Any

import peft
import torch
import transformers
from torch import Tensor

import prograd_fast as pf
from prograd_fast.integrations.peft import AdapterDualLoss

WORDS, TOPIC, LENGTH, BATCH = 128, 32, 32, 16
FOLLOWERS = torch.tensor([0.55, 0.25, 0.15, 0.05])


def grammars(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """The words that may follow each word, (WORDS, 4), in the old and the new text."""
    old = torch.stack([torch.randperm(WORDS, generator=g)[:4] for _ in range(WORDS)])
    new = old.clone()
    new[:TOPIC] = torch.stack([torch.randperm(TOPIC, generator=g)[:4] for _ in range(TOPIC)])
    return old, new


def text(grammar: Tensor, starts: int, g: torch.Generator) -> Tensor:
    """(BATCH, LENGTH) words; the first is one of `starts`."""
    words = [torch.randint(starts, (BATCH,), generator=g)]
    while len(words) < LENGTH:
        follower = torch.multinomial(FOLLOWERS, BATCH, replacement=True, generator=g)
        words.append(grammar[words[-1], follower])
    return torch.stack(words, 1)


@torch.no_grad()
def perplexity(model: Any, batches: list[Tensor]) -> float:
    """Exp of the mean cross-entropy of the next word."""
    return math.exp(sum(model(ids, labels=ids).loss.item() for ids in batches) / len(batches))


def pretrained(steps: int, draw: Callable[[], Tensor]) -> Any:
    """A model that knows the old text."""
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        ids = draw()
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    return model


def fine_tuned(model: Any, batches: list[Tensor], project: bool) -> Any:
    """A copy of the model with LoRA in all its layers, trained on the new text."""
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    torch.manual_seed(1)
    tuned = peft.get_peft_model(copy.deepcopy(model), lora)
    criterion = AdapterDualLoss(tuned)
    optimizer = pf.ProGradAdamW([p for p in tuned.parameters() if p.requires_grad], lr=5e-3, weight_decay=0)
    for ids in batches:
        task, general = criterion(ids, input_ids=ids)
        optimizer.zero_grad()
        optimizer.backward(task, general if project else None)
        optimizer.step()
    return tuned


def compare(pretraining: int, steps: int, evaluation: int = 8) -> dict[str, tuple[float, float]]:
    """Perplexities on the old and the new text, by model."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    old, new = grammars(g)
    model = pretrained(pretraining, lambda: text(old, WORDS, g))
    held_out = [[text(old, WORDS, g) for _ in range(evaluation)], [text(new, TOPIC, g) for _ in range(evaluation)]]
    batches = [text(new, TOPIC, g) for _ in range(steps)]
    models = {
        "before fine-tuning": model,
        "fine-tuned": fine_tuned(model, batches, project=False),
        "fine-tuned, projected": fine_tuned(model, batches, project=True),
    }
    return {name: (perplexity(m, held_out[0]), perplexity(m, held_out[1])) for name, m in models.items()}


def sentence(table: dict[str, tuple[float, float]]) -> str:
    """The comparison in words, whatever it is."""
    (plain_old, plain_new), (kept_old, kept_new) = table["fine-tuned"], table["fine-tuned, projected"]

    def change(plain: float, kept: float) -> str:
        share = kept / plain - 1
        return f"{abs(share):.1%} {'lower' if share < 0 else 'higher'}"

    return (
        f"With the projection the perplexity on the old text is {change(plain_old, kept_old)} than without, "
        f"and on the new text it is {change(plain_new, kept_new)}."
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Fine-tune a tiny language model with and without the projection.")
    parser.add_argument("--pretraining", type=int, default=300, help="steps on the old text (default: 300)")
    parser.add_argument("--steps", type=int, default=100, help="steps on the new text (default: 100)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a model has no work for more: they would wait for each other
    table = compare(options.pretraining, options.steps)
    print(f"{'perplexity':24}{'old text':>10}{'new text':>10}")
    for name, (on_old, on_new) in table.items():
        print(f"{name:24}{on_old:10.2f}{on_new:10.2f}")
    print(sentence(table))


if __name__ == "__main__":
    main()
