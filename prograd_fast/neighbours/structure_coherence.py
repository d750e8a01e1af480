"""Landmarks that keep their structure: a head of graph convolutions, and a loss on each point's place among others.

Lin et al., Structure-Coherent Deep Feature Learning for Robust Face Alignment (TIP 2021, arXiv:2006.11697);
`BeierZhu/Sturcture-Coherency-Face-Alignment` at 97513e9. N landmarks are regressed from a feature map: `MapToNode`
gives each landmark some channels of it, `GraphNet` lets landmarks talk along the edges of a graph, `structure_loss`
asks for the points and for their offsets from their neighbours.

A graph is a (2, E) tensor of edges (row, column): a row listens to its columns. `graph_from_points` builds the
authors' from training landmarks.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from prograd_fast.ops import differences
from prograd_fast.ops.checks import check_floating
from prograd_fast.ops.edges import edge_softmax_sum

# ---- graphs


def graph_from_points(points: Tensor, k: int = 3) -> Tensor:
    """The k landmarks that move most alike with each landmark, by ½(|corr x| + |corr y|) over the training set.

    Args:
        points: (S, N, 2) landmarks of S > 1 training pictures.
        k: neighbours of each landmark, 1 ... N - 1 (default: 3, the authors').

    Returns:
        (2, N·k) int64 directed edges without loops, by row; row n lists the neighbours of landmark n.

    Raises:
        ValueError: the shape is another, or there are not k other landmarks.
    """
    if points.dim() != 3 or points.shape[2] != 2 or len(points) < 2:
        raise ValueError(f"points: expected shape (pictures > 1, landmarks, 2), got {tuple(points.shape)}.")
    n = points.shape[1]
    if not 0 < k < n:
        raise ValueError(f"k: expected 1 ... {n - 1} neighbours among {n} landmarks, got {k}.")
    x, y = (torch.corrcoef(points[:, :, axis].T.double()).abs() for axis in (0, 1))
    alike = (x + y).nan_to_num(0.0).fill_diagonal_(-1.0)  # a point that never moves is like none
    columns = alike.topk(k, dim=1).indices.sort(dim=1).values
    return torch.stack([torch.arange(n, device=points.device).repeat_interleave(k), columns.flatten()])


def with_loops_both_ways(edges: Tensor) -> Tensor:
    """The graph that convolutions use: each edge in both directions, and each landmark with itself; sorted by row."""
    n = int(edges.max()) + 1
    loops = torch.arange(n, device=edges.device).expand(2, n)
    return torch.cat([edges, edges.flip(0), loops], 1).unique(dim=1)


# ---- graph convolution


def edge_softmax_conv(
    x: Tensor, weight: Tensor, bias: Tensor, logits: Tensor, edges: Tensor, transposed: bool = False
) -> Tensor:
    """Graph convolution with one matrix for a landmark itself and one for its neighbours.

        A = softmax of the logits over each row's edges
        y = (A∘I)(x W₀) + (A∘(1 - I))(x W₁) + b

    Args:
        x: (B, N, I) features of the landmarks.
        weight: (2, I, O), W₀ and W₁.
        bias: b, (O,).
        logits: (E,), or (B, E) for a graph of each picture's own.
        edges: (2, E) int64.
        transposed: use Aᵀ: a landmark sends weight 1 instead of receiving it (default: False).

    Returns:
        (B, N, O).
    """
    return edge_softmax_sum(x @ weight[0], x @ weight[1], logits, edges[0], edges[1], transposed) + bias


class EdgeSoftmaxConv(nn.Module):
    """`edge_softmax_conv` with its parameters: W (2, I, O), b (O,), and a logit e for each edge unless it is given one.

    Args:
        inputs: I.
        outputs: O.
        n_edges: E of a static graph; 0: the logits come with each call (a dynamic graph).
    """

    def __init__(self, inputs: int, outputs: int, n_edges: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(2, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-(outputs**-0.5), outputs**-0.5))
        self.e = nn.Parameter(torch.ones(n_edges)) if n_edges else None
        nn.init.xavier_uniform_(self.W, gain=1.414)  # of the whole tensor, as the authors

    def forward(self, x: Tensor, edges: Tensor, logits: Tensor | None = None) -> Tensor:
        """(B, N, I) → (B, N, O); logits (B, E) for a dynamic graph, which is used transposed, as the authors do."""
        if self.e is not None and logits is not None:
            raise ValueError("logits: expected None, since the graph has logits of its own. Use dynamic=True.")
        if self.e is not None:
            return edge_softmax_conv(x, self.W, self.bias, self.e, edges)
        if logits is None:
            raise ValueError("logits: expected (B, E) for a graph without logits of its own, got None.")
        return edge_softmax_conv(x, self.W, self.bias, logits, edges, transposed=True)


class _Block(nn.Module):
    """Convolution, BatchNorm over the channels, ReLU."""

    def __init__(self, inputs: int, outputs: int, n_edges: int) -> None:
        super().__init__()
        self.conv, self.norm = EdgeSoftmaxConv(inputs, outputs, n_edges), nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor, edges: Tensor, logits: Tensor | None) -> Tensor:
        y: Tensor = self.norm(self.conv(x, edges, logits).transpose(1, 2)).relu()
        return y.transpose(1, 2)


class GraphNet(nn.Module):
    """Residual graph network: features of the landmarks to their coordinates.

    Args:
        inputs: channels of a landmark.
        edges: (2, E) int64 with loops, see `with_loops_both_ways`.
        hidden: channels between (default: 128, the authors').
        blocks: residual pairs of convolutions (default: 4).
        dynamic: the edges' logits come with each picture, from `EdgeLogits`, and serve all layers; False (default):
            each layer has logits of its own.

    Raises:
        ValueError: edges of another shape, or a landmark without a loop.
    """

    edges: Tensor

    def __init__(
        self, inputs: int, edges: Tensor, hidden: int = 128, blocks: int = 4, *, dynamic: bool = False
    ) -> None:
        super().__init__()
        if edges.dim() != 2 or len(edges) != 2 or edges.is_floating_point():
            raise ValueError(f"edges: expected integers (2, edges), got {edges.dtype} {tuple(edges.shape)}.")
        n = int(edges.max()) + 1
        if set(edges[0][edges[0] == edges[1]].tolist()) != set(range(n)):
            raise ValueError(f"edges: expected a loop at each of {n} landmarks. Use with_loops_both_ways(edges).")
        self.register_buffer("edges", edges.long())
        self.n_landmarks = n
        n_edges = 0 if dynamic else edges.shape[1]
        self.first = _Block(inputs, hidden, n_edges)
        self.pairs = nn.ModuleList(
            nn.ModuleList(_Block(hidden, hidden, n_edges) for _ in range(2)) for _ in range(blocks)
        )
        self.last = EdgeSoftmaxConv(hidden, 2, n_edges)

    def forward(self, x: Tensor, logits: Tensor | None = None) -> Tensor:
        """Coordinates (B, N, 2) of features (B, N, I); `logits` (B, E) where the graph is dynamic.

        Raises:
            ValueError: the landmarks are not those of the graph; logits lack, or are not wanted.
        """
        if x.dim() != 3 or x.shape[1] != self.n_landmarks:
            raise ValueError(f"x: expected (B, {self.n_landmarks} landmarks of the graph, I), got {tuple(x.shape)}.")
        x = self.first(x, self.edges, logits)
        for pair in self.pairs:
            first, second = pair.children()
            x = x + second(first(x, self.edges, logits), self.edges, logits)
        return self.last(x, self.edges, logits)


class EdgeLogits(nn.Module):
    """The dynamic graph: a logit for each edge from a feature map, through its global average.

    Args:
        channels: C of the map.
        n_edges: E.
    """

    def __init__(self, channels: int, n_edges: int) -> None:
        super().__init__()
        half = channels // 2
        self.layers = nn.Sequential(
            nn.Linear(channels, half), nn.ReLU(), nn.BatchNorm1d(half), nn.Linear(half, n_edges)
        )

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w) → (B, E)."""
        logits: Tensor = self.layers(feature_map.mean((2, 3)))
        return logits


class MapToNode(nn.Module):
    """Landmark n owns `channels` channels of a map: (B, C, h, w) → (B, N, channels·h·w).

    Args:
        inputs: C, channels of the trunk's last map.
        n_landmarks: N.
        channels: of each landmark (default: 4, the authors').
        hidden: channels between the two convolutions (default: 256).
    """

    def __init__(self, inputs: int, n_landmarks: int, channels: int = 4, hidden: int = 256) -> None:
        super().__init__()
        self.n_landmarks = n_landmarks
        widths = (inputs, hidden, channels * n_landmarks)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w) → (B, N, channels·h·w)."""
        y: Tensor = self.layers(feature_map)
        return y.reshape(len(y), self.n_landmarks, -1)


# ---- loss and measures


def offsets(points: Tensor, edges: Tensor) -> Tensor:
    """L·p: the mean of each landmark's neighbours minus the landmark.

    Args:
        points: p, (B, N, 2).
        edges: (2, E) directed edges without loops, at least one for each landmark, as `graph_from_points` gives.

    Returns:
        (B, N, 2).

    Raises:
        ValueError: the edges are not such (on a GPU nobody waits to look).
    """
    _check_neighbours(points, edges)
    return differences.neighbour_offsets(points, *edges)


def structure_loss(
    prediction: Tensor,
    target: Tensor,
    edges: Tensor,
    curvature: float = 0.5,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Soft Wing loss of the landmarks, and of their offsets from their neighbours; the authors add both.

    Args:
        prediction: (B, N, 2), pixels.
        target: the same shape; fixed.
        edges: (2, E), see `offsets`.
        curvature: of the logarithm, see `prograd_fast.functional.soft_wing` (default: 0.5, the authors' configuration;
            their class has 2).
        reduction: "mean" (default) over all B·N·2 numbers, as the authors; "batchmean": their sum over B, as
            `soft_wing` and mmpose, which is 2N times as much.

    Returns:
        Two 0-d losses: of points, of offsets; NaN for an empty batch, as torch's mean of nothing.

    Raises:
        TypeError: something is not floating point.
        ValueError: shapes do not fit, the reduction is unknown, or (on a CPU) a landmark has no neighbour.
    """
    check_floating("prediction", prediction)
    if prediction.dim() != 3 or prediction.shape[2] != 2:
        raise ValueError(f"prediction: expected shape (batch, landmarks, 2), got {tuple(prediction.shape)}.")
    _check_neighbours(prediction, edges)
    first, second = edges
    return differences.structure_loss(prediction, target, first, second, epsilon=curvature, reduction=reduction)


def _check_neighbours(points: Tensor, edges: Tensor) -> None:
    """ValueError for a landmark without neighbours: its offset would be its place. A GPU is not waited for."""
    if edges.dim() != 2 or len(edges) != 2:
        raise ValueError(f"edges: expected shape (2, edges), got {tuple(edges.shape)}.")
    if not edges.is_cpu or torch.compiler.is_compiling():
        return
    lonely = set(range(points.shape[1])) - set(edges[0].tolist())
    if lonely:
        raise ValueError(
            f"edges: expected a neighbour for each of {points.shape[1]} landmarks, got none for landmark "
            f"{min(lonely)}. Use graph_from_points(points)."
        )


def nme(prediction: Tensor, target: Tensor, size: Tensor) -> Tensor:
    """Normalised mean error of each picture: the mean distance of its landmarks over its `size` (B,); (B,).

    The failure rate is the share of pictures whose error is above 0.1 (WFLW, COFW) or 0.08 (300W). ValueError where
    shapes do not fit.
    """
    if prediction.dim() != 3 or prediction.shape != target.shape or size.shape != prediction.shape[:1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (prediction, target, size))
        raise ValueError(f"expected two (B, N, 2) and size (B,), got {shapes}.")
    return (prediction - target).norm(dim=2).mean(1) / size
