"""Make text from outside (names, paths, messages) safe to show on a terminal."""

import unicodedata

_JOINERS = "\u200c\u200d"  # parts of emojis and of words in Persian and Indic scripts
_MOST = 1000  # characters of a message


def printable(text: object) -> str:
    r"""The text in one line, in which nothing commands a terminal or turns the order of letters around.

    Control and format characters (ESC, line breaks, bidirectional overrides) and halves of surrogate pairs are written
    as escapes. All else stays as it is, brackets included.

    Example:
        >>> printable("red\x1b[2J [circle]")
        'red\\x1b[2J [circle]'
    """
    return "".join(map(_shown, str(text)))


def message_line(text: object) -> str:
    """A message in one printable line of bounded length: spaces and line breaks become one space each."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= _MOST else f"{line[: _MOST // 2]} ... {line[-_MOST // 2 :]}"


def _shown(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS
    return character.encode("unicode_escape").decode() if hidden else character
