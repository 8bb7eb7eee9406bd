"""The Fisher information of a linear's outputs by its definition: a gradient for every label and every token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def fisher(logits_of: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    """Return F_r = 1/T sum over t, s, v of p_s(v) (d log p_s(v) / d z_tr)^2, float64 (rows,).

    outputs: z, (T, rows). logits_of: returns the logits (T, vocabulary) that follow from z.
    """
    z = outputs.clone().requires_grad_()
    log_p = torch.log_softmax(logits_of(z), dim=-1)
    total = torch.zeros(outputs.shape[1], dtype=torch.float64)
    for s in range(log_p.shape[0]):
        for v in range(log_p.shape[1]):
            (gradient,) = torch.autograd.grad(log_p[s, v], z, retain_graph=True)
            total += log_p[s, v].exp().detach() * gradient.double().square().sum(0)
    return total / len(outputs)
