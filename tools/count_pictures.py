"""Counts the embedded pictures, as `docs/data-card.md` lists them: `python -m tools.count_pictures`."""

from collections import Counter

from prograd_fast.data import EMBEDDED, EMOJI_TASK_STYLES, load

SPLITS = ("pool", "validation", "test")


def main() -> None:
    """Prints Markdown tables: pictures per style and split, then per class and split (emoji: the task's styles)."""
    for pictures in map(load, EMBEDDED):
        styles, splits = pictures.style.tolist(), pictures.split.tolist()
        names = [pictures.class_names[label] for label in pictures.labels]
        print_table(pictures.name, "style", Counter(zip(styles, splits, strict=True)))
        task = [style in (*EMOJI_TASK_STYLES, "") for style in styles]
        in_task = [pair for pair, chosen in zip(zip(names, splits, strict=True), task, strict=True) if chosen]
        print_table(pictures.name, "class", Counter(in_task))


def print_table(set_name: str, kind: str, counts: Counter[tuple[str, str]]) -> None:
    """One row per style or class."""
    print(f"\n| {set_name}: {kind} | {' | '.join(SPLITS)} |\n|---{'|---' * len(SPLITS)}|")
    for name in dict.fromkeys(name for name, _ in counts):
        print(f"| {name or '-'} | {' | '.join(str(counts[name, split]) for split in SPLITS)} |")


if __name__ == "__main__":
    main()
