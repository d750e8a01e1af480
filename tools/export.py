"""Writes both models to the assets: the heads, and of the text towers the better one, as fp16 safetensors."""

import json

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from tools import ASSETS, emojis
from tools.classes import CLIPART_CLASSES, EMOJI_CLASSES
from tools.config import CONFIG
from tools.features import Features
from tools.head import fit_heads, fit_scale
from tools.phrases import Phrases
from tools.pretrain import RUNS, encode, text_tower

MIN_TOKEN_COUNT = 10  # every token of a class name must have occurred at least so often
PROMPTS = (
    "a picture of a {}.",
    "an emoji of a {}.",
    "a drawing of a {}.",
    "an icon of a {}.",
    "a cartoon {}.",
    "{}.",
)


def export() -> None:
    """Writes each model with the text tower of the seed for which `selection` is highest."""
    torch.set_num_threads(1)
    features, records, heads, phrases = Features.load(), emojis.load(), fit_heads(), Phrases.load()
    labels = torch.tensor([list(EMOJI_CLASSES).index(records[i].class_name) for i in features.held_out_emoji])
    for name, head in heads.items():
        pictures = F.normalize(F.linear(features.held_out.float(), **head), dim=-1)
        reports = []
        for path in sorted(RUNS.glob("text-seed*.pt")):
            state, counts = torch.load(path, weights_only=True)
            cosines = pictures @ class_features(state, phrases).T
            reports.append({"seed": int(path.stem.removeprefix("text-seed")), "selection": selection(cosines, labels)})
            print(f"{name}: {reports[-1]}")
            if rare := rare_class_names(counts):
                raise ValueError(f"{path}: class names with a hardly trained token: {rare}; rename them")
        chosen = max(reports, key=lambda report: report["selection"])
        write(name, head, chosen, phrases.tokens)


def class_features(state: dict[str, Tensor], phrases: Phrases) -> Tensor:
    """(44, D) unit rows of the emoji classes by a text tower: the mean over six prompts."""
    model, tokenizer = text_tower(phrases), open_clip.SimpleTokenizer()
    model.load_state_dict(state)
    texts = [tokenizer([prompt.format(name) for name in EMOJI_CLASSES]) for prompt in PROMPTS]
    with torch.no_grad():
        return F.normalize(torch.stack([encode(model, tokens) for tokens in texts]).sum(0), dim=-1)


def selection(cosines: Tensor, labels: Tensor) -> float:
    """What chooses between seeds: zero-shot top-1 accuracy (%) on pool and validation pictures, never on test ones.

    Six averaged prompts, all 44 classes, held-out emojis in the four styles of pretraining.
    """
    return 100 * float((cosines.argmax(1) == labels).float().mean())


def rare_class_names(counts: Tensor) -> dict[str, int]:
    """Class names of either set with a token that the phrases contained too seldom, and how often."""
    tokenizer = open_clip.SimpleTokenizer()
    rarest = {name: int(counts[tokenizer.encode(name)].min()) for name in (*EMOJI_CLASSES, *CLIPART_CLASSES)}
    return {name: count for name, count in rarest.items() if count < MIN_TOKEN_COUNT}


def write(name: str, head: dict[str, Tensor], report: dict[str, float], ids: Tensor) -> None:
    """Writes a model's weights and its architecture; of the tokens those that the text tower has read."""
    state, counts = torch.load(RUNS / f"text-seed{report['seed']}.pt", weights_only=True)
    read = counts[ids] > 0
    weights = {key: value for key, value in state.items() if key not in ("token_embedding.rows", "logit_scale")}
    weights |= {"token_embedding.ids": ids[read], "token_embedding.rows": state["token_embedding.rows"][read]}
    weights |= {f"visual.head.proj.{key}": value for key, value in head.items()}
    weights["logit_scale"] = torch.tensor(fit_scale(head)).log()
    stored = {
        key: (value.half() if value.is_floating_point() else value.int()).contiguous() for key, value in weights.items()
    }
    # one key, as the order of several is not fixed
    (ASSETS / f"{name}.safetensors").write_bytes(save(stored, {"report": json.dumps(report)}))
    (ASSETS / f"{name}.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


if __name__ == "__main__":
    export()
