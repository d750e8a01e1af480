"""Guards retrieval and self-training: the greedy choice by hand, losses against formulas, what the projection keeps."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import prograd_fast as pf
from examples.neighbours import rest as example
from prograd_fast.neighbours.rest import caption_loss, diverse_captions, original_loss, self_train
from tests.ops.support import normal
from tests.tolerances import assert_close


def test_wrong_shapes() -> None:
    for loss in (caption_loss, lambda x, t: original_loss(x, x, t)):
        with pytest.raises(ValueError, match=r"logits \(B, L, V\) of tokens \(B, L\), got \(2, 3, 4\), \(2, 4\)"):
            loss(torch.zeros(2, 3, 4), torch.zeros(2, 4).long())


def chosen_by_hand(clip: Tensor, captions: Tensor, count: int, mu: float) -> list[int]:
    chosen: list[int] = []
    for _ in range(count):
        values = {
            i: float(clip @ captions[i]) - mu * max((float(captions[i] @ captions[j]) for j in chosen), default=0.0)
            for i in range(len(captions))
            if i not in chosen
        }
        chosen.append(max(values, key=lambda i: values[i]))
    return chosen


@pytest.mark.parametrize("mu", [0.0, 0.5, 3.0])
def test_retrieval_is_greedy(mu: float) -> None:
    clips, captions = (F.normalize(normal(n, 6, seed=n).double(), dim=-1) for n in (5, 9))
    found = diverse_captions(clips, captions, 9, mu)
    assert found.tolist() == [chosen_by_hand(clip, captions, 9, mu) for clip in clips]
    assert torch.equal(diverse_captions(clips, captions, 3, mu), found[:, :3])
    if mu == 0:
        assert torch.equal(found, (clips @ captions.T).argsort(1, descending=True))


def test_diversity_leaves_out_a_second_of_the_same() -> None:
    captions = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.1001], [0.3, 1.0]]), dim=-1)
    clip = torch.tensor([[1.0, 0.0]])
    assert diverse_captions(clip, captions, 2, mu=0.0)[0].tolist() == [0, 1]
    assert diverse_captions(clip, captions, 2, mu=2.0)[0].tolist() == [0, 2]


def test_what_cannot_be_retrieved_is_refused() -> None:
    for clips, captions, count, mu in (((2, 3), (4, 5), 1, 0), ((2, 3), (4, 3), 5, 0), ((2, 3), (4, 3), 1, -1)):
        with pytest.raises(ValueError, match=r"expected features of one width, 1 to 4 captions and mu of 0 or more"):
            diverse_captions(torch.ones(clips), torch.ones(captions), count, mu)


def test_losses_are_the_formulas() -> None:
    logits, original = normal(2, 3, 5).double().requires_grad_(), normal(2, 3, 5, seed=1).double().requires_grad_()
    tokens = torch.tensor([[1, 4, 0], [2, -1, -1]])
    counted = [(0, 0), (0, 1), (0, 2), (1, 0)]
    log_q, p = logits.detach().log_softmax(-1), original.detach().softmax(-1)
    expected = -sum(log_q[b, i, tokens[b, i]] for b, i in counted) / 4
    assert_close(caption_loss(logits, tokens).detach(), expected, "formula", torch.float64)
    expected = -sum((p[b, i] * log_q[b, i]).sum() for b, i in counted) / 4
    loss = original_loss(logits, original, tokens)
    assert_close(loss.detach(), expected, "formula", torch.float64)
    loss.backward()
    assert original.grad is None
    expected_gradient = torch.zeros_like(p)
    for b, i in counted:
        expected_gradient[b, i] = (log_q[b, i].exp() - p[b, i]) / 4
    assert_close(logits.grad, expected_gradient, "formula", torch.float64)


class Table(torch.nn.Module):
    """A captioner whose clips are indices, and which knows a row of logits for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(normal(4, 2, 5).double())

    def forward(self, clips: Tensor, tokens: Tensor) -> Tensor:
        return self.logits[clips]


def test_a_step_is_that_of_the_two_losses() -> None:
    clips, captions = torch.arange(4), torch.randint(5, (4, 3, 2), generator=torch.Generator().manual_seed(5))
    for project in (False, True):
        student, by_hand, original = Table(), Table(), Table()
        original.logits.data.add_(normal(4, 2, 5, seed=3).double())
        optimizers = [pf.ProGradAdamW(one.parameters(), lr=0.1) for one in (student, by_hand)]
        args = (student, original, optimizers[0], clips, captions, 3, torch.Generator().manual_seed(2))
        losses = self_train(*args, project=project, batch=4)
        g = torch.Generator().manual_seed(2)
        for step in range(3):
            rows = torch.randint(4, (4,), generator=g)
            tokens = captions[rows, torch.randint(3, (4,), generator=g)]
            logits = by_hand.logits[rows]
            task = F.cross_entropy(logits.transpose(1, 2), tokens)
            said = original.logits[rows].detach().softmax(-1).transpose(1, 2)
            optimizers[1].zero_grad()
            general = F.cross_entropy(logits.transpose(1, 2), said) if project else None
            optimizers[1].backward(task, general)
            optimizers[1].step()
            assert losses[step] == pytest.approx(task.item(), rel=1e-9)
        assert_close(student.logits.detach(), by_hand.logits.detach(), "trajectory", torch.float64)


def test_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(of: example.Clips, count: int, mu: float) -> Tensor:
        return of.tokens[:, None].expand(-1, count, -1)  # the truth, without loading the model

    monkeypatch.setattr(example, "retrieved", first)
    told = example.compare(8, 2, 2, 2, 0.1, tmp_path / "rest.png", width=4)
    assert len(told) == 3
    assert "100.0 % of the 2 captions retrieved for each clip have its name" in told[0]
    assert (tmp_path / "rest.png").stat().st_size > 10_000
