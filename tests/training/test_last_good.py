"""The copy of the last state whose loss was finite."""

import torch

from prograd_fast.training.last_good import LastGood

FINITE = torch.tensor(True)


def test_it_is_the_state_before_the_last_finite_loss_and_never_a_later_one():
    state = [torch.zeros(3), torch.zeros(())]
    kept = LastGood(state)
    for step, finite in enumerate([True, True, True, False, True, False]):
        for tensor in state:
            tensor.fill_(step if finite else torch.nan)
        kept.step_begins()
        kept.step_ended(torch.tensor(finite))
        expected = min(step, 2)
        assert all((tensor == expected).all() for tensor in kept.tensors)
        assert bool(kept.healthy) == (step < 3)


def test_it_is_the_start_where_the_first_loss_is_not_finite():
    kept = LastGood(state := [torch.ones(2)])
    kept.step_begins()
    state[0].fill_(torch.nan)
    kept.step_ended(~FINITE)
    assert kept.tensors[0].tolist() == [1, 1]


def test_it_goes_on_from_what_was_kept():
    kept = LastGood(state := [torch.ones(2)])
    kept.restore([torch.full((2,), 7.0)])
    assert kept.tensors[0].tolist() == [7, 7]
    kept.step_begins()
    kept.step_ended(FINITE)
    assert kept.tensors[0].tolist() == state[0].tolist()
