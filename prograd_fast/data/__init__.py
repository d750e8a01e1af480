"""Pictures: the embedded sets and folders of a user's own, splits and few-shot sampling."""

from pathlib import Path

from prograd_fast.data.embedded import EMBEDDED, EMOJI_TASK_STYLES, EMOJI_UNSEEN_STYLES, load_embedded
from prograd_fast.data.folder import load_folder
from prograd_fast.data.pictures import PictureSet

__all__ = [
    "EMBEDDED",
    "EMOJI_TASK_STYLES",
    "EMOJI_UNSEEN_STYLES",
    "PictureSet",
    "load",
    "load_embedded",
    "load_folder",
]


def load(
    name_or_path: str | Path, test_share: float = 0.4, fold: tuple[int, int] | None = None, whole: bool = False
) -> PictureSet:
    """Load an embedded set by its name ("emoji" or "clipart"), or a folder of pictures by its path.

    `whole` is for folders, see `load_folder`; an embedded set is the same with it.

    Raises:
        ValueError: it is neither, or the folder is not laid out as `load_folder` expects.
    """
    if name_or_path in EMBEDDED:
        if (test_share, fold) != (0.4, None):
            raise ValueError(f"{name_or_path} has a split of its own")
        return load_embedded(str(name_or_path))
    if not Path(name_or_path).is_dir():
        raise ValueError(
            f"no picture set or folder {str(name_or_path)!r}: expected {', '.join(EMBEDDED)} or a folder's path"
        )
    return load_folder(Path(name_or_path), test_share, fold, whole)
