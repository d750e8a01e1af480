"""The picture sets of the package prograd-fast-demo. `docs/data-card.md` names their sources."""

import json
import zipfile

import numpy as np

from prograd_fast.data.pictures import PictureSet
from prograd_fast.files.demo import demo_file

# OpenMoji's drawings have a file of their own, because their licence (CC BY-SA 4.0) is passed on.
EMBEDDED = {"emoji": ("emoji.zip", "emoji-openmoji.zip"), "clipart": ("clipart.zip",)}
# The emoji styles of the few-shot task. The model also saw noto-v1; it never saw the two unseen styles.
EMOJI_TASK_STYLES = ("noto", "twemoji", "fluent-flat")
EMOJI_UNSEEN_STYLES = ("openmoji", "fluent-hc")


def load_embedded(name: str) -> PictureSet:
    """Load an embedded set of 64 by 64 pixel drawings.

    Args:
        name: "emoji", 44 classes in six styles, all of emojis that the embedded models never saw; the split is by
            emoji, the same in every style, variants of one emoji together. Or "clipart", 26 classes of clip art.

    Raises:
        ValueError: there is no embedded set of that name.
        ModuleNotFoundError: the package prograd-fast-demo is not installed.
    """
    if name not in EMBEDDED:
        raise ValueError(f"no embedded picture set {name!r}: expected one of {', '.join(EMBEDDED)}")
    class_names: list[str] = []
    entries: list[dict[str, str | int]] = []
    source: list[bytes] = []
    for file in EMBEDDED[name]:
        with zipfile.ZipFile(demo_file(file, wanted_by=name)) as archive:
            metadata = json.loads(archive.read("pictures.json"))
            class_names = metadata["class_names"]  # the same in every file of a set
            entries += metadata["pictures"]
            source += [archive.read(entry["file"]) for entry in metadata["pictures"]]
    return PictureSet(
        name=name,
        class_names=tuple(class_names),
        labels=np.array([entry["label"] for entry in entries], dtype=np.int64),
        split=np.array([entry["split"] for entry in entries]),
        style=np.array([entry["style"] for entry in entries]),
        source=source,
    )
