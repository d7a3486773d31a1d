"""Squared errors in one pass: torch's sum and gradient."""

from __future__ import annotations

import pytest
import torch

from distill.squared_error import squared_error


@pytest.mark.parametrize("of_student", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_teacher", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("some", [False, True])
def test_sum_and_gradient_are_torchs(of_student: torch.dtype, of_teacher: torch.dtype, some: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 4, generator=generator).to(kind) for kind in (of_student, of_teacher))
    counted = (torch.rand(2, 1, 4, 4, generator=generator) > 0.5).float() if some else None
    before, results = student.clone(), []
    for function in (squared_error, lambda s, t, c: ((s.float() - t.float()) * (1 if c is None else c)).square().sum()):
        given = student.clone().requires_grad_()
        error = function(given, teacher, counted)
        (3 * error).backward()
        results.append((error.detach(), given.grad))
    (mine, slope), (theirs, expected) = results
    torch.testing.assert_close(mine, theirs)
    assert slope is not None
    assert expected is not None
    assert slope.dtype == of_student
    torch.testing.assert_close(slope, expected, rtol=1e-2 if of_student == torch.bfloat16 else 1e-6, atol=1e-5)
    assert torch.equal(student, before)
