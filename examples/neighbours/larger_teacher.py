"""Another model as ProGrad's teacher: emoji-lite-named teaches emoji-lite. After EVA, a backbone that teaches others.

`python -m examples.neighbours.larger_teacher` takes less than a minute on a CPU core and downloads nothing. The student
learns half of the classes of emoji (base) from 16 pictures each and is tested on both halves: without a projection,
projected on its own zero-shot logits, and on those of the teacher. With photos the same is
`prograd-fast train --model ViT-B-16 ... --teacher-model EVA02-L-14 --teacher-pretrained merged2b_s4b_b131k`.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from examples.neighbours.counts import at_least
from prograd_fast import data
from prograd_fast.methods import CoOp, Method, ProGradCoOp, ZeroShot
from prograd_fast.training import encode_pictures, load_model, make_plan, run_method, teacher_of

STUDENT, TEACHER = "emoji-lite", "emoji-lite-named"
PLAIN, OWN, TAUGHT = "CoOp", "ProGrad, own teacher", f"ProGrad, taught by {TEACHER}"
UNTOUCHED = {name: f"{name}, untouched" for name in (STUDENT, TEACHER)}
CONFLICTS = "conflicts"
PARTS = {"base": "#0072B2", "new": "#E69F00", "harmonic mean": "#009E73"}


def measure(seeds: int, shots: int, epochs: int) -> dict[str, dict[str, float]]:
    """Accuracy of each way on each part, and steps whose gradients conflict, in per cent; means over the seeds.

    Each seed draws shots and halves anew.
    """
    pictures = data.load("emoji")
    student, teacher = (load_model(name, device="cpu") for name in (STUDENT, TEACHER))
    ways: dict[str, Method] = {
        UNTOUCHED[STUDENT]: ZeroShot(),
        UNTOUCHED[TEACHER]: ZeroShot(),
        PLAIN: CoOp(epochs=epochs, lambda_=None),
        OWN: ProGradCoOp(epochs=epochs),
        TAUGHT: ProGradCoOp(epochs=epochs),
    }
    sums = {way: dict.fromkeys([*PARTS, CONFLICTS], 0.0) for way in ways}
    for seed in range(seeds):
        plan = make_plan(pictures, shots, seed, partition=seed)
        features = {clip.name: encode_pictures(clip, pictures, plan.rows) for clip in (student, teacher)}
        teaching = teacher_of(teacher, pictures, plan.train.rows)
        for way, method in ways.items():
            clip = teacher if way == UNTOUCHED[TEACHER] else student
            shown = teaching if way == TAUGHT else None
            run = run_method(method, clip, features[clip.name], plan, teacher=shown)
            for part in PARTS:
                sums[way][part] += 100 * run.accuracy[part] / seeds
            if run.history is not None:
                sums[way][CONFLICTS] += 100 * run.history.conflict_rate / seeds
    return sums


def draw(right: dict[str, dict[str, float]], out: Path) -> None:
    """Bars of base, new and harmonic mean for each way."""
    figure = Figure(figsize=(8.4, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for side, (part, colour) in enumerate(PARTS.items()):
        places = [i + 0.26 * (side - 1) for i in range(len(right))]
        values = [of[part] for of in right.values()]
        axes.bar(places, values, 0.25, color=colour, label=part)
        for place, value in zip(places, values, strict=True):
            axes.text(place, value + 0.6, f"{value:.1f}", ha="center", fontsize=7)
    axes.set_xticks(range(len(right)), [way.replace(", ", ",\n").replace("taught by ", "taught by\n") for way in right])
    axes.tick_params(axis="x", labelsize=8, length=0)
    axes.set(ylabel="right classes, %", ylim=(0, 1.2 * max(of[part] for of in right.values() for part in PARTS)))
    axes.set_title("emoji-lite learns half of the classes, and keeps to one of two teachers", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


def sentences(right: dict[str, dict[str, float]], shots: int, seeds: int) -> list[str]:
    """Three of them, from the numbers."""

    def both(way: str) -> str:
        return f"{right[way]['base']:.1f} and {right[way]['new']:.1f} %"

    gain = right[TAUGHT]["harmonic mean"] - right[OWN]["harmonic mean"]
    verdict = f"{abs(gain):.1f} points {'more' if gain > 0 else 'less'} than with its own zero-shot logits"
    return [
        f"Untouched, {STUDENT} is right for {both(UNTOUCHED[STUDENT])} of base and new classes, {TEACHER} for "
        f"{both(UNTOUCHED[TEACHER])} (means of {seeds} draws of {shots} pictures per class).",
        f"Tuned without a projection the student is right for {both(PLAIN)}, projected on its own zero-shot logits for "
        f"{both(OWN)}.",
        f"Projected on the logits of {TEACHER} it is right for {both(TAUGHT)}: in the harmonic mean {verdict}; these "
        f"conflict with the labels in {right[TAUGHT][CONFLICTS]:.0f} % of the steps, its own in "
        f"{right[OWN][CONFLICTS]:.0f} %.",
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="A prompt of emoji-lite that keeps to what emoji-lite-named says.")
    parser.add_argument("--shots", type=at_least(1), default=16, help="pictures of each class (default: 16)")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="draws of shots and classes (default: 3)")
    parser.add_argument("--epochs", type=at_least(1), default=100, help="steps of each training (default: 100)")
    parser.add_argument("--out", type=Path, default=Path("larger_teacher.png"), help="the picture to write")
    options = parser.parse_args()
    right = measure(options.seeds, options.shots, options.epochs)
    draw(right, options.out)
    print(*sentences(right, options.shots, options.seeds), sep="\n")


if __name__ == "__main__":
    main()
