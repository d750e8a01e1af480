"""Guards the contract of two gradients under random sequences of all that a program may do, against the slow model.

A sequence is a list of (action, seed): the seed draws the details, whatever was done before, so that any action can be
left out. A failure prints the shortest sequence that still fails: what each action did, and the call that replays it.
"""

from collections.abc import Callable
from random import Random

import pytest

from prograd_fast.ops.common import SCOPES
from tests.optim.actions import ACTIONS, NotNowError, Program
from tests.optim.model import AmbiguousError
from tests.optim.side_by_side import OPTIMIZERS, RULES

# an optimizer that steps without ever having had two gradients says so; here many do on purpose
pytestmark = pytest.mark.filterwarnings("ignore:.*backward:UserWarning")

# for each optimizer and rule, over the three scopes
SEQUENCES, MORE = 84, 1000
LENGTHS = range(3, 9)
Actions = list[tuple[str, int]]


# what programs do in one go: single actions at random seldom come in such an order
PHRASES = [
    ["enter_block", "backward", "leave_block", "backward", "step"],
    ["enter_block", "backward", "leave_block", "backward_and_update", "step"],
    ["enter_block", "backward", "enter_block", "backward", "leave_block", "backward", "leave_block", "step_on_pair"],
    ["enter_block", "backward", "leave_block", "step", "backward", "step"],
    ["enter_block", "backward", "fail_in_block", "backward", "step"],
    ["enter_block", "backward", "zero_grad", "leave_block", "backward", "step"],
    ["enter_block", "backward", "leave_block", "zero_grad", "step"],
    ["backward", "unscale", "edit_grad", "step"],
    ["backward", "step", "model_zero_grad", "backward", "step"],
    ["backward", "step", "save", "backward_and_update", "load", "backward"],
    ["backward", "step", "replace_parameter", "backward", "step"],
    ["backward", "toggle_requires_grad", "backward_and_update", "toggle_requires_grad"],
]


def draw(random: Random) -> Actions:
    """Single actions, the usual ones more often, and a phrase now and then."""
    names: list[str] = []
    weights = [weight for weight, _ in ACTIONS.values()]
    for _ in range(random.choice(LENGTHS)):
        names += random.choice(PHRASES) if random.random() < 0.15 else random.choices(list(ACTIONS), weights)
    return [(name, random.randrange(2**20)) for name in names]


def replay(optimizer: str, rule: str, scope: str, seed: int, actions: Actions, log: list[str]) -> bool:
    """Do the actions and check after each; False if it ended where roundings decide what follows."""
    s = Program(optimizer, rule, scope, seed)
    for name, details in actions:
        s.said = ""
        try:
            ACTIONS[name][1](s, Random(details))
        except NotNowError:
            continue
        except AmbiguousError:
            return False
        finally:
            log.append(f"{name}  {s.said}")
        s.check()
    return True


def shortest(fails: Callable[[Actions], bool], actions: Actions) -> Actions:
    """Leave out what the failure does not need."""
    for i in reversed(range(len(actions))):
        rest = actions[:i] + actions[i + 1 :]
        if fails(rest):
            return shortest(fails, rest)
    return actions


def check_sequences(optimizer: str, rule: str, seeds: range) -> None:
    stopped = 0
    for seed in seeds:
        scope = SCOPES[seed % 3]

        def fails(actions: Actions, scope: str = scope, seed: int = seed) -> bool:
            try:
                replay(optimizer, rule, scope, seed, actions, [])
            except Exception:
                return True
            return False

        actions = draw(Random(f"{optimizer} {rule} {seed}"))
        try:
            stopped += not replay(optimizer, rule, scope, seed, actions, [])
        except Exception:
            few, log = shortest(fails, actions), []
            try:
                replay(optimizer, rule, scope, seed, few, log)
            except Exception as error:
                told = "\n  ".join([f"replay{(optimizer, rule, scope, seed, few, [])}", *log])
                raise AssertionError(f"{type(error).__name__}: {error}\n{told}") from error
            raise
    assert stopped <= len(seeds) // 4, "too many sequences end where roundings decide"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
def test_sequences(optimizer: str, rule: str) -> None:
    check_sequences(optimizer, rule, range(SEQUENCES))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES)
def test_more_sequences(optimizer: str, rule: str) -> None:
    check_sequences(optimizer, rule, range(SEQUENCES, SEQUENCES + MORE))
