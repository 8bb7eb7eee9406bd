"""How far one next-token distribution is from another: per token KL(reference || quantized), agreement, both losses.

With l and m the logits of the reference and of the quantized model, p = softmax(l) and d = m - l, everything follows
from two sums over the vocabulary, because log sum e^m = log sum e^l + log E_p[e^d]:

    mean = E_p[d]           KL = log E_p[e^(d - mean)] = log(1 + E_p[phi(d - mean)])           phi(x) = e^x - 1 - x >= 0

    loss of the quantized model = loss of the reference + mean + KL - d[target]

The textbook's sum of p (log p - log q) is a small difference of large numbers: in float32 it leaves an error of about
1e-6 of either sign, more than the whole KL of a good 8-bit model's easy tokens. Here no term is negative and nothing
cancels, so the small ones keep their digits, and the difference of the losses, which the verdict rests on, its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from zeropoint.errors import NonFiniteError

BLOCK_VALUES = 1 << 21
"""Logits of one model that are worked on at once, in five buffers of 8 MB.

Smaller blocks fit the cache but pay more barriers between the threads: 2^18 values took the same time with one thread,
and on a busy machine 1.4 times the time with two.
"""

LARGEST_RISE = 40.0
"""Nats that d may exceed its mean by in float32.

Where p underflows, below e^-87, the term p e^d is lost. Up to this rise the lost terms are less than e^-47 of the sum
for each token of the vocabulary; above, as only a ruined model has it, the row is computed in float64.
"""


@dataclass(frozen=True)
class TokenScores:
    """What each predicted token says about the quantized model.

    kl: float32 (tokens,), nats, >= 0: KL(reference || quantized) of the predicted distributions.
    nll_reference, nll_quantized: float32 (tokens,), nats: -log of the probability given to the token that follows.
    agrees: bool (tokens,): both models find the same token likeliest, the first one where several are equal.
    """

    kl: Tensor
    nll_reference: Tensor
    nll_quantized: Tensor
    agrees: Tensor

    def __len__(self) -> int:
        return len(self.kl)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return the scores of several chunks of tokens as one, in their order."""
        return cls(
            torch.cat([part.kl for part in parts]),
            torch.cat([part.nll_reference for part in parts]),
            torch.cat([part.nll_quantized for part in parts]),
            torch.cat([part.agrees for part in parts]),
        )


def compare(logits_reference: Tensor, logits_quantized: Tensor, targets: Tensor) -> TokenScores:
    """Return the scores of every token.

    logits_reference, logits_quantized: float32, bfloat16 or float16 (tokens, vocabulary), tokens >= 1; left as they
    are. targets: int64 (tokens,), the token that follows each position. Works on some rows at a time, so that the
    memory needed besides the logits is about 50 MB, whatever the number of tokens.

    Against float64 on the same float32 logits kl is right to 1e-3 of itself down to 1e-9 and to 2e-6 of itself above
    1e-4, the losses to 3e-6 or 1e-7 of themselves, whichever is more. Logits offset by a constant change neither.
    Raises: NonFiniteError, naming the position in this chunk, if a logit of either model is NaN or infinite.
    """
    rows = max(1, BLOCK_VALUES // logits_reference.shape[1])
    with torch.inference_mode():
        parts = [
            _compare_rows(reference.float(), quantized.float(), following)
            for reference, quantized, following in zip(
                torch.split(logits_reference, rows),
                torch.split(logits_quantized, rows),
                torch.split(targets, rows),
                strict=True,
            )
        ]
        scores = TokenScores.join(parts)
        _require_finite(scores, logits_reference)
    return scores


def _compare_rows(l: Tensor, m: Tensor, targets: Tensor) -> TokenScores:  # noqa: E741 - the module's symbol
    top = _argmax(l)
    p = torch.softmax(l, dim=-1)
    total = p.sum(dim=-1).double()  # the kernel's own sum is off by 2e-5 for 49,152 values, this one by 1e-7
    d = m - l
    d -= _pick(d, top).unsqueeze(-1)  # an offset of all logits would only cost digits
    d_target = _pick(d, targets)
    product = p * d
    mean = product.sum(dim=-1).double() / total
    d -= mean.float().unsqueeze(-1)
    ruined = d.amax(dim=-1) > LARGEST_RISE
    phi = torch.expm1(d, out=product).sub_(d)
    kl = torch.log1p(phi.mul_(p).sum(dim=-1).double().clamp_(min=0.0) / total)  # expm1 may be an ulp too low
    # log sum e^l is taken from the largest term: the target's own probability may underflow
    nll_reference = _pick(l, top).double() - _pick(l, targets).double() - torch.log(_pick(p, top).double() / total)
    nll_quantized = (nll_reference + mean + kl - d_target.double()).clamp_(min=0.0)  # d is rounded: half a step too low
    if bool(ruined.any()):
        kl[ruined], nll_quantized[ruined] = _in_float64(l[ruined], m[ruined], targets[ruined])
    return TokenScores(kl.float(), nll_reference.float(), nll_quantized.float(), top == _argmax(m))


def _in_float64(l: Tensor, m: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:  # noqa: E741 - the module's symbol
    """Return KL and the loss of the quantized model by their definitions: float64 (tokens,) each."""
    log_p, log_q = torch.log_softmax(l.double(), dim=-1), torch.log_softmax(m.double(), dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1), -_pick(log_q, targets)


def _pick(values: Tensor, columns: Tensor) -> Tensor:
    """Return one value of each row: (tokens,) of (tokens, vocabulary)."""
    return values.gather(1, columns.unsqueeze(1)).squeeze(1)


def _argmax(values: Tensor) -> Tensor:
    # numpy's argmax is vectorized and torch's on the CPU is not: 6 against 50 microseconds for 49,152 values
    return torch.from_numpy(values.numpy().argmax(axis=-1)) if values.device.type == "cpu" else values.argmax(dim=-1)


def _require_finite(scores: TokenScores, logits_reference: Tensor) -> None:
    finite = torch.isfinite(scores.kl) & torch.isfinite(scores.nll_reference) & torch.isfinite(scores.nll_quantized)
    if not bool(finite.all()):
        position = int((~finite).nonzero()[0])
        which = "quantized" if bool(torch.isfinite(logits_reference[position]).all()) else "reference"
        raise NonFiniteError(
            f"the {which} model's logits at position {position} of {len(scores)} hold NaN or infinity, "
            "so that nothing can be said about it; `zeropoint inspect` finds weights that are not finite"
        )
