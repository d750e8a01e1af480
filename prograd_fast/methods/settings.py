"""The settings of a method: typed fields of a frozen dataclass, read from Python, JSON files and the command line."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from typing_extensions import Self

MOST = 1_000_000  # epochs, tokens, samples: a larger count is a typing mistake
MOST_FLOAT = 1e30  # of what a float32 tensor is multiplied by; the loss shows a rate that is too high
MOST_CHARACTERS = 10_000  # of words and names: no text tower reads as many, and a tokenizer takes long for them


@dataclass(frozen=True)
class Settings:
    """Named settings whose values have the types of their fields.

    Attributes:
        name: The owner's name on the command line and in run records.
        presets: Published settings by name.

    Raises:
        ValueError: a setting is of another type than its field, not finite, or beyond all reason (`MOST`).
    """

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for setting in fields(self):
            value, expected = getattr(self, setting.name), types[setting.name]
            if not _has_type(value, expected):
                raise ValueError(f"settings.{setting.name}: expected {_type_name(expected)}, got {_short(value)}")
            _check_size(setting.name, value)

    @classmethod
    def defaults(cls) -> list[str]:
        """The settings as "name=value". A long list is shown as its length."""
        values = {f.name: f.default for f in fields(cls)}
        long = {name: f"<{len(v)} of them>" for name, v in values.items() if isinstance(v, tuple) and len(v) > 3}
        return [f"{name}={long.get(name, repr(value))}" for name, value in values.items()]

    @classmethod
    def of(cls, settings: Mapping[str, Any], preset: str | None = None) -> "Self":
        """An instance with these settings; the others come from the preset, or else are the defaults.

        Args:
            settings: Values by name, as JSON has them: a list becomes a tuple.
            preset: A name in `presets`, or None (default).

        Raises:
            ValueError: there is no such setting or preset, or a value has another type.
        """
        if preset is not None and preset not in list(cls.presets):
            raise ValueError(f"{cls.name} has no preset {_short(preset)}; it has {', '.join(cls.presets) or 'none'}")
        names = [f.name for f in fields(cls)]
        values = {**cls.presets.get(preset or "", {}), **settings}
        for name, value in values.items():
            if name not in names:
                raise ValueError(f"{cls.name} has no setting {name}; it has {', '.join(names)}")
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def _has_type(value: object, expected: Any) -> bool:
    """Whether a value has the type that a field is annotated with."""
    if get_origin(expected) is tuple:
        return isinstance(value, tuple) and all(_has_type(item, get_args(expected)[0]) for item in value)
    if get_origin(expected) is Literal:
        return value in get_args(expected)
    if get_args(expected):  # a union
        return any(_has_type(value, one) for one in get_args(expected))
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, (int, float) if expected is float else expected)


def _type_name(expected: Any) -> str:
    """A type in a message."""
    if get_origin(expected) is Literal:
        return f"one of {', '.join(map(repr, get_args(expected)))}"
    return str(expected) if get_origin(expected) else str(expected.__name__)


def _check_size(name: str, value: object) -> None:
    """ValueError for a number or a text that no method has a use for."""
    if isinstance(value, tuple):
        for item in value:
            _check_size(name, item)
    elif isinstance(value, int) and not -MOST <= value <= MOST:
        raise ValueError(f"{name} must be at most {MOST}, got {_short(value)}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    elif isinstance(value, float) and abs(value) > MOST_FLOAT and not name.endswith("lr"):
        raise ValueError(f"{name} must be at most {MOST_FLOAT:g}, got {value}")
    elif isinstance(value, str) and len(value) > MOST_CHARACTERS:
        raise ValueError(f"{name} must have at most {MOST_CHARACTERS} characters, got {len(value)}: {_short(value)}")


def _short(value: object) -> str:
    """A value in a message, however long or deep it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of very many digits"
