"""The texts that the text tower reads while it is aligned: captions made from Unicode's names and keywords."""

import random
from collections.abc import Iterator

from tools.emojis import Emoji

TEMPLATES = (
    "an emoji of a {}",
    "a {} emoji",
    "a picture of a {}",
    "a drawing of a {}",
    "an icon of a {}",
    "{}",
    "a photo of a {}",
    "a sketch of a {}",
    "a cartoon {}",
    "a small image of a {}",
)


def caption(emoji: Emoji, named: bool, rng: random.Random) -> str:
    """Draws one caption.

    35 % are the name, 45 % the name and one to three keywords, 20 % one keyword alone. With `named`, 45 % of the
    captions of an emoji that has a class tell the class name instead: alone (20 %) or after the emoji's name (25 %).
    """
    template = rng.choice(TEMPLATES)
    if named and emoji.class_name:
        p = rng.random()
        if p < 0.20:
            return template.format(emoji.class_name)
        if p < 0.45:
            return f"{template.format(emoji.name)}, a kind of {emoji.class_name}"
    keywords = emoji.keywords or (emoji.name,)
    p = rng.random()
    if p < 0.35:
        return template.format(emoji.name)
    if p < 0.80:
        chosen = rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))
        return ", ".join([template.format(emoji.name), *chosen])
    return template.format(rng.choice(keywords))


def phrases(emoji: Emoji, named: bool) -> Iterator[str]:
    """All phrases that its captions are made of, for counting the vocabulary."""
    yield from TEMPLATES
    yield f"{emoji.name}, {', '.join((*emoji.keywords, 'a kind of'))}"
    yield from (emoji.name, *emoji.keywords)
    if named and emoji.class_name:
        yield emoji.class_name
