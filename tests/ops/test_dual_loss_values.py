"""The dual loss against PyTorch's own losses, hand values, finite differences and extreme logits."""

import math

import pytest
import torch
import torch.nn.functional as F

import prograd_fast as pf
from tests.tolerances import assert_close


def make(batch, classes, dtype=torch.float64, scale=3.0):
    g = torch.Generator().manual_seed(batch * 1000 + classes)
    student = (scale * torch.randn(batch, classes, generator=g, dtype=torch.float64)).to(dtype)
    teacher = (scale * torch.randn(batch, classes, generator=g, dtype=torch.float64)).to(dtype)
    labels = torch.randint(classes, (batch,), generator=g)
    return student, teacher, labels


# one row, one class, odd sizes, and more classes than a vector register holds
SHAPES = [(1, 1), (1, 7), (5, 2), (32, 10), (3, 1001)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_against_torch(shape, temperature, dtype):
    student, teacher, labels = make(*shape, dtype)
    task, general = pf.DualLoss(temperature)(student, teacher, labels)
    assert task.dtype == general.dtype == torch.promote_types(dtype, torch.float32)

    s, t = student.double(), teacher.double()
    expected_task = F.cross_entropy(s, labels)
    log_p, log_q = (s / temperature).log_softmax(1), (t / temperature).log_softmax(1)
    expected_general = temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    kind = torch.promote_types(dtype, torch.float32)  # the inputs are the same numbers; only the arithmetic differs
    assert_close(task, expected_task, "formula", kind, scale=torch.tensor(1.0).maximum(expected_task))
    assert_close(general, expected_general, "formula", kind, scale=torch.tensor(1.0).maximum(expected_general))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_soft_ce_is_kl_plus_entropy_with_the_same_gradient(temperature):
    student, teacher, labels = make(6, 9)
    gradients = []
    values = []
    for general in ("kl", "soft_ce"):
        z = student.clone().requires_grad_()
        _, loss = pf.DualLoss(temperature, general)(z, teacher, labels)
        (gradient,) = torch.autograd.grad(loss, z)
        gradients.append(gradient)
        values.append(loss)
    entropy = torch.distributions.Categorical(logits=teacher / temperature).entropy().mean()
    assert_close(values[1], values[0] + temperature**2 * entropy, "formula", torch.float64)
    closed_form = temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1)) / 6
    for gradient in gradients:
        assert_close(gradient, closed_form, "formula", torch.float64)


def test_gradcheck():
    student, teacher, labels = make(4, 5)
    student.requires_grad_()
    for general in ("kl", "soft_ce"):
        assert torch.autograd.gradcheck(lambda z, g=general: pf.DualLoss(1.7, g)(z, teacher, labels), student)


def test_equal_student_and_teacher_have_no_distance():
    student, _, labels = make(8, 11)
    _, general = pf.DualLoss(2.0)(student, student.clone(), labels)
    assert abs(float(general)) < 1e-15


def test_hand_value():
    """Two classes, z = (0, log 3), t = (0, 0), y = 0: p = (1/4, 3/4), q = (1/2, 1/2)."""
    z = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    task, general = pf.DualLoss()(z, torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0]))
    assert float(task) == pytest.approx(math.log(4))
    assert float(general) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("general", ["kl", "soft_ce"])
def test_extreme_logits(dtype, general):
    """±1e4 saturates the softmax, -inf excludes a class for both: values and gradients stay finite."""
    student = torch.tensor([[1e4, -1e4, 0.0, -math.inf], [-1e4, 1e4, 3.0, -math.inf]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[1e4, 0.0, -1e4, -math.inf], [0.0, 1e4, -1e4, -math.inf]], dtype=dtype)
    task, loss = pf.DualLoss(1.0, general)(student, teacher, torch.tensor([0, 2]))
    for value in (task, loss):
        (gradient,) = torch.autograd.grad(value, student, retain_graph=True)
        assert value.isfinite()
        assert gradient.isfinite().all()


BAD = [
    ({"teacher_logits": torch.zeros(4, 4)}, ValueError, "teacher_logits: expected the student's shape"),
    ({"student_logits": torch.zeros(3)}, ValueError, "student_logits: expected shape"),
    ({"labels": torch.tensor([0, 1, 3])}, ValueError, "labels: expected class indices 0 ... 2, got 0 ... 3"),
    ({"labels": torch.tensor([0, -1, 2])}, ValueError, "labels: expected class indices"),
    ({"labels": torch.tensor([0, 1])}, ValueError, "labels: expected shape"),
    ({"labels": [0, 1, 2]}, TypeError, "labels: expected a tensor, got list"),
    ({"labels": torch.zeros(3)}, TypeError, "labels: expected integer class indices"),
    ({"student_logits": torch.zeros(3, 3, dtype=torch.int64)}, TypeError, "student_logits: expected a floating-point"),
    ({"teacher_logits": torch.zeros(3, 3, requires_grad=True)}, ValueError, "detach"),
    ({"labels": torch.zeros(3, dtype=torch.int64, device="meta")}, ValueError, "devices: expected one for all"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change, error, message):
    good = {
        "student_logits": torch.zeros(3, 3),
        "teacher_logits": torch.zeros(3, 3),
        "labels": torch.tensor([0, 1, 2]),
    }
    with pytest.raises(error, match=message):
        pf.DualLoss()(**(good | change))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature: expected a number above 0"):
        pf.DualLoss(temperature)


def test_temperature_must_be_a_number():
    with pytest.raises(TypeError, match="temperature: expected a number, got str"):
        pf.DualLoss("1")


def test_bad_general():
    with pytest.raises(ValueError, match="general: expected one of kl, soft_ce, got 'mse'"):
        pf.DualLoss(general="mse")
