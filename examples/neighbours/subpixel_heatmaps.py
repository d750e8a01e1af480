"""Decode landmarks from heat maps to fractions of a pixel: which decoder, σ, τ and resolution?

`python -m examples.neighbours.subpixel_heatmaps` takes less than a minute on two CPU cores and downloads nothing. First
maps that are exactly Gaussian, with and without noise, at random positions; then those of small networks, trained on
rendered faces whose landmarks are known to a fraction of a pixel, at two resolutions.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.neighbours.counts import at_least
from examples.neighbours.rendered_faces import N_LANDMARKS, SIDE, render
from prograd_fast.functional import local_soft_argmax
from prograd_fast.neighbours import subpixel_heatmaps as sh

Decoder = Callable[[Tensor], Tensor]
DECODERS: dict[str, Decoder] = {
    "integer": sh.integer_argmax,
    "quarter offset": sh.quarter_offset,
    "local soft-argmax": local_soft_argmax,
    "log-parabola": sh.log_parabola,
}
COLOURS = dict(zip(DECODERS, ("#999999", "#E69F00", "#0072B2", "#009E73"), strict=True))
SIGMAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
TAUS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
FLOOR = 1e-4  # errors below are drawn there
NOISE = 0.02  # of the values of a noisy map, whose peak is 1
SIDES = (8, 16)  # of the maps of trained networks
TRAINED_SIGMA = 1.5  # pixels of the map


def distance(found: Tensor, points: Tensor) -> float:
    """Mean distance in pixels."""
    return (found - points).norm(dim=-1).mean().item()


def by_sigma(count: int) -> dict[str, list[list[float]]]:
    """Errors in pixels of the map, by decoder; over SIGMAS, for clean and for noisy maps."""
    g = torch.Generator().manual_seed(0)
    points = 8 + 16 * torch.rand(1, count, 2, generator=g)
    noise = NOISE * torch.randn(1, count, 32, 32, generator=g)
    found: dict[str, list[list[float]]] = {name: [[], []] for name in DECODERS}
    for sigma in SIGMAS:
        clean = sh.gaussian_maps(points, (32, 32), sigma)
        for name, decode in DECODERS.items():
            for k, maps in enumerate((clean, clean + noise)):
                found[name][k].append(distance(decode(maps), points))
    return found


def by_tau(count: int) -> dict[float, list[float]]:
    """Errors of the local soft-argmax on noisy maps in pixels of the map, by σ; over TAUS."""
    g = torch.Generator().manual_seed(1)
    points = 8 + 16 * torch.rand(1, count, 2, generator=g)
    noise = NOISE * torch.randn(1, count, 32, 32, generator=g)
    return {
        sigma: [
            distance(local_soft_argmax(sh.gaussian_maps(points, (32, 32), sigma) + noise, temperature=tau), points)
            for tau in TAUS
        ]
        for sigma in (1.0, 2.0, 3.0)
    }


def to_map(points: Tensor, stride: int) -> Tensor:
    """From pixels of a picture to pixels of a map, whose pixels are `stride` times as large."""
    return (points + 0.5) / stride - 0.5


def network(side: int) -> nn.Module:
    """(B, 3, 64, 64) → (B, 33, side, side), for a side of 8, 16, 32 or 64."""

    def block(layer: nn.Module, width: int) -> list[nn.Module]:
        return [layer, nn.BatchNorm2d(width), nn.ReLU()]

    layers = block(nn.Conv2d(3, 24, 3, 2, 1), 24) + block(nn.Conv2d(24, 48, 3, 2, 1), 48)
    layers += block(nn.Conv2d(48, 64, 3, 2, 1), 64) + block(nn.Conv2d(64, 64, 3, 1, 1), 64)
    width = 64
    while side > 8:
        layers += block(nn.ConvTranspose2d(width, width * 3 // 4, 4, 2, 1), width * 3 // 4)
        width, side = width * 3 // 4, side // 2
    return nn.Sequential(*layers, nn.Conv2d(width, N_LANDMARKS, 1))


def trained(pictures: Tensor, points: Tensor, side: int, epochs: int) -> nn.Module:
    """A network after so many epochs of the loss whose target maps are never stored."""
    torch.manual_seed(0)
    model, batch = network(side), 12
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, epochs * (len(pictures) // batch))
    for _ in range(epochs):
        for rows in torch.randperm(len(pictures))[: len(pictures) // batch * batch].split(batch):
            loss = sh.heatmap_loss(model(pictures[rows] * 4 - 2), to_map(points[rows], SIDE // side), TRAINED_SIGMA)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def sentences(
    sigmas: dict[str, list[list[float]]], taus: dict[float, list[float]], faces: dict[int, dict[str, float]]
) -> list[str]:
    """Three sentences about errors: on made maps by σ and by τ, and on faces by side of the map."""
    at = SIGMAS.index(TRAINED_SIGMA)
    clean, noisy = ({name: e[k][at] for name, e in sigmas.items()} for k in (0, 1))
    tau = {sigma: TAUS[min(range(len(TAUS)), key=errors.__getitem__)] for sigma, errors in taus.items()}
    best = {side: min(errors, key=errors.__getitem__) for side, errors in faces.items()}
    return [
        f"At σ = {TRAINED_SIGMA:g} the mean error in pixels of clean (noisy) maps is "
        + ", ".join(f"{clean[name]:.3f} ({noisy[name]:.3f}) for {name}" for name in DECODERS)
        + ".",
        "Of the τ that were tried, the best for the local soft-argmax on noisy maps is "
        + ", ".join(f"{best_tau:g} at σ = {sigma:g}" for sigma, best_tau in tau.items())
        + f"; τ = {TAUS[0]:g} makes {taus[2.0][0] / min(taus[2.0]):.1f} times the least error at σ = 2.",
        "On faces, in pixels of the picture, integer decoding errs by "
        + ", ".join(
            f"{errors['integer']:.2f} on maps of {side}×{side} against {errors[best[side]]:.2f} with {best[side]}"
            for side, errors in faces.items()
        )
        + ".",
    ]


def draw(
    path: Path,
    sigmas: dict[str, list[list[float]]],
    taus: dict[float, list[float]],
    faces: dict[int, dict[str, float]],
    example: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """A map with what the decoders find; errors against σ, τ and resolution."""
    figure = Figure(figsize=(15, 4.2), dpi=120, layout="constrained")
    face, sigma_panel, tau_panel, bars = figure.subplots(1, 4, width_ratios=(1, 1.15, 1, 1.15))
    picture, heat, found, truth = example
    side = heat.shape[-1]
    face.imshow(heat.numpy(), cmap="Greys", interpolation="nearest", extent=(-0.5, SIDE - 0.5, SIDE - 0.5, -0.5))
    face.imshow(picture.permute(1, 2, 0).numpy(), alpha=0.55, interpolation="bicubic")
    for name, point in zip(DECODERS, found.tolist(), strict=True):
        face.plot(*point, "o", color=COLOURS[name], markeredgecolor="white", markersize=7, label=name)
    face.plot(*truth.tolist(), "x", color="black", markersize=9, label="true")
    x, y = truth.tolist()
    face.set(
        xlim=(x - 12, x + 12), ylim=(y + 12, y - 12), xticks=[], yticks=[], title=f"one landmark, map of {side}×{side}"
    )
    face.legend(fontsize=7, loc="upper left")
    for name, (clean, noisy) in sigmas.items():
        sigma_panel.plot(SIGMAS, noisy, color=COLOURS[name], label=name)
        sigma_panel.plot(SIGMAS, [max(e, FLOOR) for e in clean], "--", color=COLOURS[name])
    sigma_panel.set(yscale="log", xlabel="σ, pixels of the map", ylabel="mean error, pixels of the map")
    sigma_panel.set_title(f"made maps: clean (dashed), noise {NOISE:g}")
    for (sigma, errors), shade in zip(taus.items(), ("#9ecae1", "#4292c6", "#08306b"), strict=True):
        tau_panel.plot(TAUS, errors, "o-", color=shade, label=f"σ = {sigma:g}")
    tau_panel.set(xscale="log", yscale="log", xlabel="τ", title="local soft-argmax, noisy maps")
    tau_panel.legend(fontsize=8)
    width = 0.8 / len(DECODERS)
    for k, name in enumerate(DECODERS):
        places = [i + (k - 1.5) * width for i in range(len(faces))]
        bars.bar(places, [errors[name] for errors in faces.values()], width, color=COLOURS[name], label=name)
    bars.set_xticks(range(len(faces)), [f"{side}×{side}" for side in faces])
    bars.set(xlabel="map of the trained network", ylabel="mean error, pixels of the picture", title="rendered faces")
    bars.legend(fontsize=7)
    for ax in (sigma_panel, tau_panel, bars):
        ax.grid(alpha=0.3)
    figure.savefig(path)


def compare(n_pictures: int, epochs: int, count: int, path: Path) -> list[str]:
    """Measure, draw, and say what came out."""
    pictures, points, _ = render(n_pictures, 1, 0.0)
    test, truth, _ = render(max(8, n_pictures // 4), 2, 0.0)
    faces: dict[int, dict[str, float]] = {}
    for side in SIDES:
        maps = trained(pictures, points, side, epochs)(test * 4 - 2).detach()
        found = {name: (decode(maps) + 0.5) * SIDE / side - 0.5 for name, decode in DECODERS.items()}
        faces[side] = {name: distance(p, truth) for name, p in found.items()}
        if side == SIDES[-1]:  # the tip of the nose of the first face
            example = test[0], maps[0, 24], torch.stack([p[0, 24] for p in found.values()]), truth[0, 24]
    sigmas, taus = by_sigma(count), by_tau(count)
    draw(path, sigmas, taus, faces, example)
    return sentences(sigmas, taus, faces)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Decoders of heat maps against σ, τ and resolution.")
    parser.add_argument("--pictures", type=at_least(32), default=600, help="training pictures (default: 600)")
    parser.add_argument("--epochs", type=at_least(1), default=12, help="epochs (default: 12)")
    parser.add_argument("--maps", type=at_least(1), default=2000, help="made maps (default: 2000)")
    parser.add_argument("--out", type=Path, default=Path("subpixel_heatmaps.png"), help="the picture to write")
    options = parser.parse_args()
    print(*compare(options.pictures, options.epochs, options.maps, options.out), sep="\n")


if __name__ == "__main__":
    main()
