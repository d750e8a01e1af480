"""Pictures: the embedded sets and folders of a user's own, splits and few-shot sampling."""

from pathlib import Path
from typing import Any

from prograd_fast.data.content_split import TEST_SHARE
from prograd_fast.data.embedded import EMBEDDED, EMOJI_TASK_STYLES, EMOJI_UNSEEN_STYLES, load_embedded
from prograd_fast.data.folder import load_folder, with_fold
from prograd_fast.data.pictures import PictureSet

__all__ = [
    "EMBEDDED",
    "EMOJI_TASK_STYLES",
    "EMOJI_UNSEEN_STYLES",
    "PictureSet",
    "load",
    "load_embedded",
    "load_folder",
    "with_fold",
]


def load(
    name_or_path: str | Path, test_share: float = TEST_SHARE, fold: tuple[int, int] | None = None, **options: Any
) -> PictureSet:
    """Load an embedded set by its name ("emoji" or "clipart"), or a folder of pictures by its path.

    Args:
        name_or_path: The name or the path.
        test_share: As in `load_folder`; an embedded set has its own split.
        fold: Likewise.
        options: More of `load_folder`; they change nothing for an embedded set.

    Raises:
        ValueError: it is neither, the folder is not laid out as `load_folder` expects, or a share or a fold is given
            for a set with a split of its own.
    """
    if name_or_path in EMBEDDED:
        if fold is not None or test_share != TEST_SHARE:
            raise ValueError(f"the set {name_or_path!r} has its own split; a test share or folds are for folders")
        return load_embedded(str(name_or_path))
    if not Path(name_or_path).is_dir():
        raise ValueError(
            f"no picture set or folder {str(name_or_path)!r}: expected {', '.join(EMBEDDED)} or a folder's path"
        )
    return load_folder(Path(name_or_path), test_share, fold, **options)
