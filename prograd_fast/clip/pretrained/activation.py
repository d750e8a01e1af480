"""GELU or QuickGELU: which one a model has is not among its weights, and the wrong one costs accuracy without a word.

OpenAI trained with QuickGELU. open_clip's "ViT-B-16" has GELU and its "ViT-B-16-quickgelu" the other, and so for every
architecture of OpenAI's. Here "ViT-B-16" takes the one that its weights were trained with. Where nothing tells, it is
asked for: "-quickgelu" or "-gelu" behind the name.
"""

_QUICK, _PLAIN = "-quickgelu", "-gelu"


def split_activation(name: str, known: list[str]) -> tuple[str, bool | None]:
    """The architecture of a name, and whether the name asks for QuickGELU; None if it does not say.

    Args:
        name: such as "ViT-B-16", "ViT-B-16-quickgelu" or "ViT-B-16-gelu".
        known: all names of architectures.
    """
    for suffix in (_QUICK, _PLAIN):
        base = name.removesuffix(suffix)
        if base != name and has_both(base, known):
            return base, suffix == _QUICK
    return name, None


def has_both(architecture: str, known: list[str]) -> bool:
    """Whether open_clip knows an architecture with either activation."""
    return architecture in known and f"{architecture}{_QUICK}" in known


def choose(architecture: str, asked: bool | None, trained: bool | None, ambiguous: bool, usual: bool) -> bool:
    """Whether a model is to have QuickGELU.

    Args:
        architecture: name without an activation.
        asked: what the name asks for.
        trained: what is known of the weights.
        ambiguous: whether the architecture exists with both.
        usual: what open_clip has for the architecture.

    Raises:
        ValueError: the name asks for the other one than the weights were trained with; or nobody knows.
    """
    if asked is not None and trained is not None and asked != trained:
        right = "QuickGELU" if trained else "GELU"
        raise ValueError(f"these weights were trained with {right}; give --model {architecture}")
    if asked is None and trained is None and ambiguous:
        raise ValueError(
            "the file does not say whether its weights were trained with QuickGELU or GELU, and the wrong one costs "
            f"accuracy; give --model {architecture}{_QUICK} (OpenAI's, MetaCLIP's, DFN's weights and what was tuned "
            f"from them) or --model {architecture}{_PLAIN} (LAION's, DataComp's)"
        )
    return next(known for known in (asked, trained, usual) if known is not None)
