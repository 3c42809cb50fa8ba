import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toco.losses.ctc import class_token_contrast_loss

CASES = [
    "default",
    "default_f64",
    "temp1_coco",
    "neg_all_local",
    "pos_all",
    "no_positive_at_all",
    "single_positive",
    "b1_ncrops4",
    "b3",
    "large_logits_f32",
]

# What plain exponentials lose in float32, as recorded (value, gradient). pos_all: the loss is 1 -
# 1/(1 + 1e-4), from rounded numbers. large_logits_f32: squares of exp(47) overflow in the backward
# pass. Ours keeps the digits: see below.
LOST_DIGITS = {"pos_all": (2e-4, 1e-3), "large_logits_f32": (5e-7, 0.07)}


def with_gradients(function, student, teacher, is_positive, temperature):
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    loss = function(student, teacher, is_positive, temperature)
    return loss.detach(), *torch.autograd.grad(loss, (student, teacher))


def by_the_book(student, teacher, is_positive, temperature):
    """The definition with plain exponentials and loops."""
    num_images, num_views = is_positive.shape
    total = torch.zeros((), dtype=student.dtype)
    for i in range(num_images):
        per_image = torch.zeros((), dtype=student.dtype)
        for g in range(2):
            similarity = [
                (teacher[g * num_images + i] @ student[v * num_images + i] / temperature).exp()
                for v in range(num_views)
            ]
            negatives = sum(
                (similarity[v] for v in range(num_views) if not is_positive[i, v]), start=total * 0
            )
            for v in range(num_views):
                if is_positive[i, v]:
                    per_image = (
                        per_image - (similarity[v] / (similarity[v] + negatives + 1e-4)).log()
                    )
            per_image = per_image - (1 / (1 + negatives + 1e-4)).log()
        total = total + per_image / 2 / (is_positive[i].sum(dtype=student.dtype) + 1e-4)
    return total / num_images


@pytest.mark.parametrize("case", CASES)
def test_every_recorded_value_and_gradient(golden_cases, case):
    cases = golden_cases("ctc_loss")
    assert set(cases) == set(CASES)
    a = cases[case]
    arguments = (a["student"], a["teacher"], a["flags"].bool(), float(a["temp"]))
    loss, grad_student, grad_teacher = with_gradients(class_token_contrast_loss, *arguments)
    value, gradient = (
        (1e-12, 1e-12)
        if a["student"].dtype == torch.float64
        else LOST_DIGITS.get(case, (5e-7, 2e-6))
    )
    torch.testing.assert_close(loss, a["loss"], rtol=value, atol=0)
    assert (grad_student - a["grad_student"]).norm() <= gradient * a["grad_student"].norm()
    assert (grad_teacher - a["grad_teacher"]).norm() <= gradient * a["grad_teacher"].norm()


@pytest.mark.parametrize("case", CASES)
def test_exactly_the_plain_formula_in_float64(golden_cases, case):
    a = golden_cases("ctc_loss")[case]
    arguments = (a["student"].double(), a["teacher"].double(), a["flags"].bool(), float(a["temp"]))
    # The plain formula itself loses digits in 1 - 1e-4 where there is no negative.
    tolerance = 1e-11 if case == "pos_all" else 1e-13
    for result, expected in zip(
        with_gradients(class_token_contrast_loss, *arguments),
        with_gradients(by_the_book, *arguments),
        strict=True,
    ):
        torch.testing.assert_close(
            result, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
        )


@pytest.mark.parametrize("case", LOST_DIGITS)
def test_float32_keeps_the_digits_that_plain_exponentials_lose(golden_cases, case):
    a = golden_cases("ctc_loss")[case]
    flags, temperature = a["flags"].bool(), float(a["temp"])
    exact = with_gradients(
        by_the_book, a["student"].double(), a["teacher"].double(), flags, temperature
    )
    ours = with_gradients(class_token_contrast_loss, a["student"], a["teacher"], flags, temperature)
    plain = with_gradients(by_the_book, a["student"], a["teacher"], flags, temperature)
    recorded = (a["loss"], a["grad_student"], a["grad_teacher"])
    for right, good, poor, official in zip(exact, ours, plain, recorded, strict=True):
        assert (good - right).norm() <= 5e-7 * right.norm()
        assert (
            poor - official
        ).norm() <= 1e-3 * official.norm()  # so the difference is the exponentials, nothing else


def test_by_hand():
    """One image, one dimension: teachers 1 and 2; views 3 (positive) and 1 (negative)."""
    student, teacher = torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    negative = [math.exp(1.0), math.exp(2.0)]
    positive = [math.exp(3.0), math.exp(6.0)]
    terms = [
        -math.log(p / (p + n + 1e-4)) + math.log(1 + n + 1e-4)
        for p, n in zip(positive, negative, strict=True)
    ]
    loss = class_token_contrast_loss(student, teacher, torch.tensor([[True, False]]), 1.0)
    assert loss.item() == pytest.approx(sum(terms) / 2 / (1 + 1e-4), rel=1e-6)


@pytest.mark.parametrize(
    "is_positive", [[True, True, False], [True, True, True], [False, False, False]]
)
def test_finite_at_a_temperature_where_the_exponentials_overflow(is_positive):
    """tau = 0.01 and outputs as long as the head can make them: logits of 100 000."""
    student = torch.full((3, 1024), 1.0)
    student[1] = -1.0
    result = with_gradients(
        class_token_contrast_loss,
        student,
        torch.full((2, 1024), 1.0),
        torch.tensor([is_positive]),
        0.01,
    )
    assert all(part.isfinite().all() for part in result)


def test_gradient_at_small_temperature_is_the_derivative():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    is_positive = torch.tensor([[True, True, False], [True, False, False]])
    assert torch.autograd.gradcheck(
        lambda s, t: class_token_contrast_loss(s, t, is_positive, 0.05), (student, teacher)
    )


@given(st.integers(0, 2**31))
def test_the_mean_over_images_and_the_order_of_views(seed):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)  # view, image, channel
    teacher = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    is_positive = torch.rand(3, 5, generator=generator) > 0.5
    loss = class_token_contrast_loss(student.flatten(0, 1), teacher.flatten(0, 1), is_positive, 0.5)
    separate = [
        class_token_contrast_loss(student[:, i], teacher[:, i], is_positive[i, None], 0.5)
        for i in range(3)
    ]
    torch.testing.assert_close(loss, torch.stack(separate).mean())
    order = torch.randperm(5, generator=generator)
    shuffled = class_token_contrast_loss(
        student[order].flatten(0, 1), teacher.flip(0).flatten(0, 1), is_positive[:, order], 0.5
    )
    torch.testing.assert_close(shuffled, loss)


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 images with 3 views, so the student needs 6 rows"):
        class_token_contrast_loss(
            torch.zeros(5, 4), torch.zeros(4, 4), torch.ones(2, 3, dtype=torch.bool), 0.5
        )
    with pytest.raises(ValueError, match="must be positive, but is 0"):
        class_token_contrast_loss(
            torch.zeros(6, 4), torch.zeros(4, 4), torch.ones(2, 3, dtype=torch.bool), 0.0
        )


def test_does_not_wait_for_the_device():
    """Tensors without data: whatever reads a value on the host, or shapes
    a tensor by one, raises.
    """
    student, teacher = (torch.zeros(n, 4, device="meta", requires_grad=True) for n in (6, 4))
    class_token_contrast_loss(
        student, teacher, torch.ones(2, 3, dtype=torch.bool, device="meta"), 0.5
    ).backward()
    assert student.grad is not None
