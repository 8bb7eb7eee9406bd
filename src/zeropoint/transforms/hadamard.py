"""Orthogonal matrices that spread an outlier over all channels: Hadamard matrices with random signs.

    Q = diag(s) (H_m x H_2 x H_2 x ...) / sqrt(n)        s_j = +1 or -1, by a seed; x: the Kronecker product

All entries of Q have the magnitude 1 / sqrt(n): a channel of magnitude a becomes
a / sqrt(n) in each. n = m 2^k with m = 1, or the smallest m for which Paley's construction gives a matrix H_m:
m = q + 1 for a prime q = 3 mod 4, or m = 2 (q + 1) for a prime q = 1 mod 4. So 576 = 36 * 16, with q = 17. Where
there is none, Q is a random orthogonal matrix: that of the QR decomposition of a normal one.

Products are made factor by factor, in float64, by one thread each: the same bits for any number of threads.
Source: Paley 1933, On orthogonal matrices; Ashkboos et al. 2024, arXiv:2404.00456, section 3, for the signs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from zeropoint.threads import a_thread_each, map_each

SLAB_VALUES = 1 << 19
"""Values that a thread has in float64 at once."""

LARGEST_FACTOR_BITS = 6
"""H_64 x H_64 is multiplied faster than H_4096, and than twelve H_2."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """An orthogonal matrix Q (size, size) = diag(signs) (F_1 x F_2 x ...). signs: (size,); all float64."""

    signs: Tensor
    factors: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """Channels."""
        return len(self.signs)

    def matrix(self) -> Tensor:
        """Return Q: float64 (size, size)."""
        return self._times(torch.eye(self.size, dtype=torch.float64))

    def rotate(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """Return x diag(gain) Q: float32, of the shape (..., size) of x, any float dtype. gain: (size,)."""
        return _by_rows(x, lambda rows: self._times(rows if gain is None else rows * gain.double()))

    def undo(self, x: Tensor) -> Tensor:
        """Return x Q^T: float32, of the shape (..., size) of x."""
        return _by_rows(x, lambda rows: _times_factors(rows, [f.T for f in self.factors]) * self.signs)

    def _times(self, rows: Tensor) -> Tensor:
        return _times_factors(rows * self.signs, self.factors)


@lru_cache(maxsize=8)
def rotation(size: int, seed: int) -> Rotation:
    """Return the rotation of `size` channels that belongs to a seed."""
    random = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (size,), generator=random).double() * 2 - 1
    found = hadamard_factors(size)
    if found is not None:
        return Rotation(signs, tuple(factor / len(factor) ** 0.5 for factor in found))
    with a_thread_each() as pool:
        normal = torch.randn(size, size, generator=random, dtype=torch.float64)
        return Rotation(signs, tuple(map_each(pool, lambda x: torch.linalg.qr(x).Q, [normal])))


def hadamard_factors(size: int) -> tuple[Tensor, ...] | None:
    """Return Hadamard matrices whose Kronecker product is one of order `size`, or None where no construction fits.

    Float64, with entries +1 and -1.
    """
    bits = (size & -size).bit_length() - 1
    for twos in range(bits, -1, -1):
        first = paley(size >> twos)
        if first is not None:
            whole, rest = divmod(twos, LARGEST_FACTOR_BITS)
            factors = (first, *[_sylvester(LARGEST_FACTOR_BITS)] * whole, _sylvester(rest))
            return tuple(factor for factor in factors if len(factor) > 1) or (first,)
    return None


def paley(order: int) -> Tensor | None:
    """Return the Hadamard matrix of this order by Paley's constructions over primes, (1) for order 1, or None."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if order % 4:
        return None
    if _is_prime(order - 1):  # construction I: order - 1 = 3 mod 4
        return _bordered(order - 1, -1.0) + torch.eye(order, dtype=torch.float64)
    prime = order // 2 - 1
    if prime % 4 == 1 and _is_prime(prime):  # construction II
        whole, diagonal = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
        conference = _bordered(prime, 1.0)
        eye = torch.eye(prime + 1, dtype=torch.float64)
        return torch.kron(conference, whole.double()) + torch.kron(eye, diagonal.double())
    return None


def _bordered(prime: int, left: float) -> Tensor:
    """Return [[0, 1], [left, X]] with X_ij = 1 where j - i is a square modulo the prime, -1 where not, X_ii = 0."""
    character = torch.full((prime,), -1.0, dtype=torch.float64)
    character[[i * i % prime for i in range(1, prime)]] = 1.0
    character[0] = 0.0
    places = torch.arange(prime)
    matrix = torch.ones(prime + 1, prime + 1, dtype=torch.float64)
    matrix[0, 0], matrix[1:, 0] = 0.0, left
    matrix[1:, 1:] = character[(places[None, :] - places[:, None]) % prime]
    return matrix


def _sylvester(bits: int) -> Tensor:
    """Return the Hadamard matrix of order 2^bits."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(bits):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _times_factors(rows: Tensor, factors: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Return rows (F_1 x F_2 x ...): float64 (n, size)."""
    n, size = rows.shape
    for factor in factors:
        # the axis of this factor is the first, and comes back as the last
        split = rows.reshape(n, len(factor), -1).transpose(1, 2)
        rows = (split.reshape(-1, len(factor)) @ factor).reshape(n, size)
    return rows


def _by_rows(x: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    """Return step(rows) of all rows of x, which are (..., size), in float64 a slab at a time."""
    rows = x.reshape(-1, x.shape[-1])
    found = torch.empty(rows.shape, dtype=torch.float32)
    slab = max(1, SLAB_VALUES // x.shape[-1])

    def one(start: int) -> None:
        found[start : start + slab] = step(rows[start : start + slab].double())

    with a_thread_each() as pool:
        map_each(pool, one, range(0, len(rows), slab))
    return found.view(x.shape)
