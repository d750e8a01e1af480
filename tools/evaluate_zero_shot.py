"""Zero-shot accuracy of the committed models on the embedded sets, as `docs/model-card.md` reports it.

    python -m tools.evaluate_zero_shot

Top-1 (%) over all classes of a set. "one" prompts with "a picture of a {}.", "six" averages the class features of six
prompts. "test" is the test split, "all" is every picture; the models saw none of them.
"""

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from prograd_fast.clip import ZeroShotTeacher, emoji_lite
from prograd_fast.data import EMBEDDED, PictureSet, load
from tools.export import PROMPTS

BATCH = 64
ROW = "| {:16} | {:7} | {:11} | {:>6} | {:>9} | {:>9} | {:>5} | {:>8} | {:>8} |"


@torch.no_grad()
def correct(name: str, pictures: PictureSet) -> dict[str, Tensor]:
    """Which of the N pictures a model classifies right, (N,) bool, with one prompt and with six."""
    model, tokenizer, preprocess = emoji_lite.load_emoji_lite(name)
    batches = np.split(np.arange(len(pictures)), range(BATCH, len(pictures), BATCH))
    features = torch.cat(
        [
            F.normalize(model.encode_image(torch.stack([preprocess(pictures.open(i)) for i in batch])), dim=-1)
            for batch in track(batches, f"{name} on {pictures.name}", console=Console(stderr=True))
        ]
    )
    labels = torch.from_numpy(pictures.labels)
    templates = {"one": PROMPTS[:1], "six": PROMPTS}
    teachers = {key: ZeroShotTeacher(model, tokenizer, pictures.class_names, texts) for key, texts in templates.items()}
    return {key: teacher.logits(features).argmax(1) == labels for key, teacher in teachers.items()}


def main() -> None:
    """Prints one row of a Markdown table per model, set and style."""
    print(ROW.format("model", "set", "style", "test n", "test, one", "test, six", "all n", "all, one", "all, six"))
    print(ROW.format(*["---"] * 9))
    for name in emoji_lite.NAMES:
        for pictures in map(load, EMBEDDED):
            right = correct(name, pictures)
            for style in dict.fromkeys(pictures.style.tolist()):
                figures: list[str] = []
                for chosen in ((pictures.style == style) & (pictures.split == "test"), pictures.style == style):
                    figures.append(str(chosen.sum()))
                    figures += [f"{100 * right[key][chosen].float().mean():.1f}" for key in ("one", "six")]
                print(ROW.format(name, pictures.name, style or "-", *figures))


if __name__ == "__main__":
    main()
