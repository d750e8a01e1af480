"""Names of models and tags of weights: a slip of the pen is answered with what is near."""

from collections.abc import Sequence
from difflib import get_close_matches

from prograd_fast.clip.emoji_lite import NAMES
from prograd_fast.clip.pretrained.activation import split_activation

_SHOWN = 4  # tags that a message lists


def known_architectures() -> list[str]:
    """All names of open_clip's architectures."""
    import open_clip

    return open_clip.list_models()


def tags_of(name: str) -> list[str]:
    """The tags of weights that open_clip can download for an architecture."""
    import open_clip

    known = known_architectures()
    return open_clip.list_pretrained_tags_by_model(name if name in known else split_activation(name, known)[0])


def check_name(name: str, pretrained: str | None) -> None:
    """ValueError unless a name is an architecture of open_clip's, and weights are asked for."""
    known = known_architectures()
    if split_activation(name, known)[0] not in known:
        raise ValueError(
            f"unknown model {shorten(name, 100)!r}{near(name, [*NAMES, *known])}; `prograd-fast models` lists names, "
            "and local-dir:FOLDER and hf-hub:OWNER/REPO are also possible"
        )
    if pretrained is None:
        tags = tags_of(name)
        more = f", ... (`prograd-fast models {name}` lists all)" if len(tags) > _SHOWN else ""
        raise ValueError(
            f"model {name!r} needs weights: give --pretrained as a file or a tag, {', '.join(tags[:_SHOWN])}{more}"
        )


def near(name: str, known: Sequence[str]) -> str:
    """A question for a message, " (did you mean A or B?)", or nothing."""
    plain = {_plain(other): other for other in known}
    found = [plain[other] for other in get_close_matches(_plain(name[:100]), plain, n=3)]
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def shorten(text: str, most: int) -> str:
    """A text of at most so many characters: its begin, and its end, which often has the reason."""
    half = (most - 5) // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def _plain(name: str) -> str:
    return name.lower().replace("/", "-").replace("_", "-").replace(" ", "-")
