"""Whole prompt-tuning trajectories against the authors' released code (golden/prompt_*, see golden/README.md)."""

import numpy as np
import pytest
import torch

from tests.golden.trajectories import CASES, Run, check_trajectory
from tests.ops.support import BACKENDS, running_on
from tests.paths import GOLDEN

# float64: the formulas are the authors'. float32: what users run.
DTYPES = [torch.float64, torch.float32]


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def run(request, case):
    return Run(case, request.param)


def test_prompts(run):
    """The same words at the same places, and the same start of the context."""
    token_ids = run.net.encoder.token_ids
    length = token_ids.shape[1]
    expected = torch.from_numpy(run.arrays["tokenized_prompts"])
    assert torch.equal(token_ids, expected[:, :length])
    assert length == 1 + int(expected.argmax(1).max())  # cut behind the longest prompt's end of text
    run.close(run.net.prompt.ctx, "ctx0")


def test_first_step(run):
    """Features, logits and the two gradients before anything has moved."""
    ctx = run.net.prompt.ctx
    run.close(run.net.encoder(run.net.prompt.ctx[None])[0], "text_features0")
    run.close(run.teacher.class_features, "text_features_zs")
    features = run.net.image_features(run.images[0])
    student, teacher = run.net.logits(features), run.teacher.logits(features)
    run.close(student, "first_logits")
    run.close(teacher, "first_teacher_logits")
    task, general = run.criterion(student, teacher, run.labels[0])
    run.close(torch.autograd.grad(task, ctx, retain_graph=True)[0], "first_grad_xe")
    # A student that starts as the teacher has no general gradient but rounding: judged by the task gradient's size.
    scale = run.arrays["first_grad_xe" if run.starts_as_teacher else "first_grad_kl"]
    run.close(torch.autograd.grad(general, ctx)[0], "first_grad_kl", scale=scale)


@pytest.mark.parametrize("backend", BACKENDS)  # Triton: tests/gpu/triton/interpreted/golden.py
def test_trajectory(run, backend):
    with running_on(backend):
        check_trajectory(run)


def test_golden_files_hold_both_cases():
    """The parity above means little unless some steps were projected and some were not."""
    cosines = np.concatenate([np.load(GOLDEN / f"prompt_{case}.npz")["cosine"] for case in CASES])
    assert cosines.min() < 0 < cosines.max()
