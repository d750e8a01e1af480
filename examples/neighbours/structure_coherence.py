"""Find the landmarks of half hidden faces with a graph of landmarks, and with a fully connected head.

`python -m examples.neighbours.structure_coherence` takes about two minutes on two CPU cores and downloads nothing: the
faces are rendered, so that every landmark is known, also where an emoji hides it. All heads are trained on the same
pictures with the same trunk and the Soft Wing loss; the graph is that of the training landmarks' correlations. Graphs,
and the second fully connected head, are also asked for the offsets of landmarks from their neighbours.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.neighbours.counts import at_least
from examples.neighbours.rendered_faces import N_LANDMARKS, SIDE, render
from prograd_fast.neighbours import structure_coherence as sc

FAILURE = 0.1  # of the distance between the outer corners of the eyes, as on WFLW
COLOURS = {
    "fully connected": "#D55E00",
    "fully connected, offsets": "#CC79A7",
    "static graph": "#0072B2",
    "dynamic graph": "#009E73",
}


class Landmarker(nn.Module):
    """A small trunk, which makes (B, 64, 8, 8) of (B, 3, 64, 64), and one of three heads; in units of the picture."""

    def __init__(self, head: str, edges: Tensor) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 48), (48, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        both = sc.with_loops_both_ways(edges)
        self.logits = sc.EdgeLogits(64, both.shape[1]) if head == "dynamic graph" else None
        self.head: nn.Module
        if head.startswith("fully"):
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU())
            self.head.append(nn.Linear(128, N_LANDMARKS * 2)).append(nn.Unflatten(1, (N_LANDMARKS, 2)))
        else:
            self.head = sc.GraphNet(4 * 8 * 8, both, hidden=64, blocks=2, dynamic=head == "dynamic graph")
            self.to_nodes = sc.MapToNode(64, N_LANDMARKS, hidden=64)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pixels (B, 33, 2)."""
        features = self.trunk(pictures * 4 - 2)
        if isinstance(self.head, sc.GraphNet):
            own = () if self.logits is None else (self.logits(features),)
            return self.head(self.to_nodes(features), *own) * SIDE / 4 + SIDE / 2
        return self.head(features) * SIDE / 4 + SIDE / 2


def trained(head: str, pictures: Tensor, points: Tensor, edges: Tensor, epochs: int) -> Landmarker:
    """A landmarker after so many epochs; all heads but the first are also asked for the offsets."""
    torch.manual_seed(0)
    model, batch = Landmarker(head, edges), 32
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * (len(pictures) // batch))
    for _ in range(epochs):
        for rows in torch.randperm(len(pictures))[: len(pictures) // batch * batch].split(batch):
            task, offsets = sc.structure_loss(model(pictures[rows]), points[rows], edges)
            loss = task if head == "fully connected" else task + offsets
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def sentences(errors: dict[str, Tensor], hidden: Tensor) -> list[str]:
    """Three sentences about the errors (NME of each test face) and where an emoji is in front."""
    plain = errors["fully connected"]
    means = {name: e.mean().item() for name, e in errors.items()}
    best, graph = min(means, key=means.__getitem__), min(("static graph", "dynamic graph"), key=means.__getitem__)

    def failures(e: Tensor) -> str:
        return f"{(e > FAILURE).double().mean():.1%}"

    rates = ", ".join(f"{failures(e)} for {name}" for name, e in errors.items())
    without, behind = ({name: e[rows].mean().item() for name, e in errors.items()} for rows in (~hidden, hidden))
    saved = {part: 1 - e[graph] / e["fully connected"] for part, e in (("open", without), ("half hidden", behind))}
    change = [f"{abs(s):.0%} {'lower' if s > 0 else 'higher'} on {part} faces" for part, s in saved.items()]
    return [
        f"The lowest mean error has {best}, {means[best]:.2%} of the eyes' distance; the fully connected head has "
        f"{plain.mean():.2%}, and {means['fully connected, offsets']:.2%} where it is asked for the offsets, too.",
        f"An error above {FAILURE:.0%} is a failure: {rates}.",
        f"Against the fully connected head, the error of the {graph} is {' and '.join(change)}.",
    ]


def draw(path: Path, pictures: Tensor, points: Tensor, found: dict[str, Tensor], errors: dict[str, Tensor]) -> None:
    """Four half hidden faces with what each head finds, and how many faces have at most each error."""
    figure = Figure(figsize=(13, 7.6), dpi=120, layout="constrained")
    faces, curve = figure.subfigures(1, 2, width_ratios=(1.35, 1))
    faces.suptitle("white: true landmarks; colour: found")
    for axes, head in zip(faces.subplots(len(found), 4), found, strict=True):
        for k, ax in enumerate(axes):
            ax.imshow(pictures[k].permute(1, 2, 0).numpy(), interpolation="bicubic")
            for (x, y), (u, v) in zip(points[k].tolist(), found[head][k].tolist(), strict=True):
                ax.plot((x, u), (y, v), "-", color=COLOURS[head], linewidth=1.2)
            ax.plot(
                *points[k].T.tolist(), "o", color="white", markeredgecolor="black", markersize=3, markeredgewidth=0.4
            )
            ax.plot(*found[head][k].T.tolist(), "o", color=COLOURS[head], markersize=3)
            ax.set(xlim=(-0.5, SIDE - 0.5), ylim=(SIDE - 0.5, -0.5), xticks=[], yticks=[])
        axes[0].set_ylabel(head, color=COLOURS[head])
    ax = curve.subplots()
    for head, e in errors.items():
        label = f"{head}: {e.mean():.2%} mean, {(e > FAILURE).double().mean():.1%} failures"
        share = [100 * (k + 1) / len(e) for k in range(len(e))]
        ax.plot((100 * e.sort().values).tolist(), share, color=COLOURS[head], label=label)
    ax.axvline(100 * FAILURE, color="grey", linestyle=":")
    ax.set(
        xlim=(0, 20), ylim=(0, 101), xlabel="error, % of the eyes' distance", ylabel="faces with this error at most, %"
    )
    ax.legend(loc="lower right", fontsize=8)
    ax.grid(alpha=0.3)
    figure.savefig(path)


def compare(n_pictures: int, epochs: int, path: Path) -> list[str]:
    """Train the heads, draw, and say what came out."""
    pictures, points, _ = render(n_pictures, 1, 0.5)
    edges = sc.graph_from_points(points)
    # the first four are hidden, for the drawing
    parts = [render(n_pictures // 4, seed, share) for seed, share in ((2, 1.0), (3, 0.0))]
    test, truth, sizes = (torch.cat(both) for both in zip(*parts, strict=True))
    hidden = torch.arange(len(test)) < len(parts[0][0])
    found: dict[str, Tensor] = {}
    for head in COLOURS:
        found[head] = trained(head, pictures, points, edges, epochs)(test).detach()
    errors = {head: sc.nme(p, truth, sizes) for head, p in found.items()}
    draw(path, test, truth, found, errors)
    return sentences(errors, hidden)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Landmarks of half hidden faces with and without a graph.")
    parser.add_argument("--pictures", type=at_least(32), default=1200, help="training pictures (default: 1200)")
    parser.add_argument("--epochs", type=at_least(1), default=22, help="epochs (default: 22)")
    parser.add_argument("--out", type=Path, default=Path("structure_coherence.png"), help="the picture to write")
    options = parser.parse_args()
    print(*compare(options.pictures, options.epochs, options.out), sep="\n")


if __name__ == "__main__":
    main()
