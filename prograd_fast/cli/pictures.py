"""The pictures of a command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prograd_fast.data import PictureSet


def open_pictures(data: str, **options: Any) -> "PictureSet":
    """`data.load`."""
    from prograd_fast.data import load

    return load(data, **options)
