"""Pack codes of 2 to 8 bits densely into 32-bit words, and unpack them.

Codes are signed in memory and unsigned on disk: 2^(bits-1) is added before packing. One row is one stream of bits,
without padding between codes: code i occupies the bits [i*bits, (i+1)*bits), counted from the lowest bit of the
first word, and with 3, 5, 6 or 7 bits it may straddle two words. Only the end of a row is padded, with zero bits,
to a whole word:

    3 bits   word 0 = c0 | c1<<3 | ... | c9<<27 | (c10 & 3)<<30        word 1 = c10>>2 | c11<<1 | ...

Packing is native code, one code after the other. On a little-endian machine the bytes of the words are the same stream,
so 8 codes are always `bits` bytes; unpacking works on them by uint8 arithmetic of numpy in 8 strided passes, without
torch and without a temporary wider than the codes.

Source: the layout of `pack-quantized` in compressed-tensors >= 0.18, bit for bit (tests/parity). Before that
release no code straddled two words: 2, 4 and 8 bits are the same in both layouts, 3, 5, 6 and 7 bits are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zeropoint import _native
from zeropoint.errors import InternalError, SchemeError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

WORD_BITS = 32
WORD_BYTES = 4


def words(size: int, bits: int) -> int:
    """Return how many 32-bit words `size` codes of `bits` bits take.

    Raises: SchemeError if bits is outside 2..8.
    """
    if not 2 <= bits <= 8:
        raise SchemeError(f"codes of {bits} bits cannot be packed; bits is 2, 3, 4, 5, 6, 7 or 8")
    return -(-size * bits // WORD_BITS)


def pack(codes: Tensor, bits: int, *, dim: int = 1) -> Tensor:
    """Return the codes as a dense stream of bits in 32-bit words.

    codes: int8 (rows, cols), in [-2^(bits-1), 2^(bits-1) - 1]. bits: 2..8.
    dim: along which the words run. 1: each row is a stream; 0: each column is (zero points are stored so).
    Returns int32 (rows, words(cols, bits)), or (words(rows, bits), cols) when dim is 0; contiguous.
    Raises: SchemeError if bits is outside 2..8; InternalError if the codes are not an int8 matrix in that range.
    """
    import torch

    if codes.dtype != torch.int8 or codes.dim() != 2:
        raise InternalError(f"codes to pack are {codes.dtype} {tuple(codes.shape)}, not an int8 matrix")
    row_words = words(codes.shape[dim], bits)
    offset = 1 << (bits - 1)
    low, high = (int(v) for v in torch.aminmax(codes)) if codes.numel() else (0, 0)
    if low < -offset or high >= offset:
        # A code with one bit too many would silently change its neighbour.
        raise InternalError(f"codes to pack are in [{low}, {high}], outside {bits} bits [{-offset}, {offset - 1}]")
    streams = (codes if dim == 1 else codes.T).contiguous()
    packed = np.empty((len(streams), row_words), np.int32)
    _native.pack_codes(streams.numpy(), packed, bits)
    filled = torch.from_numpy(packed)
    return (filled if dim == 1 else filled.T).contiguous()


def unpack(packed: Tensor, bits: int, size: int, *, dim: int = 1) -> Tensor:
    """Return the codes that `pack` was given.

    packed: int32 (rows, words(size, bits)), or (words(size, bits), cols) when dim is 0. bits: 2..8.
    size: how many codes lie along `dim`. Returns int8 (rows, size) or (size, cols), contiguous.
    Raises: SchemeError if bits is outside 2..8, or if `packed` is not an int32 matrix of so many words.
    """
    import torch

    return torch.from_numpy(unpack_array(packed.numpy(), bits, size, axis=dim))


def unpack_array(packed: NDArray[np.generic], bits: int, size: int, *, axis: int = 1) -> NDArray[np.int8]:
    """Return the codes that `pack` was given, without torch.

    packed: int32 or uint32 (rows, words(size, bits)), or (words(size, bits), cols) when axis is 0. bits: 2..8.
    size: how many codes lie along `axis`. Returns int8 (rows, size) or (size, cols), contiguous.
    Raises: SchemeError if bits is outside 2..8, or if `packed` is not such a matrix of so many words.
    """
    expected = words(size, bits)
    if packed.dtype not in (np.int32, np.uint32) or packed.ndim != 2 or packed.shape[axis] != expected:
        raise SchemeError(
            f"{size} codes of {bits} bits are {expected} words of int32 along dimension {axis}; "
            f"got {packed.dtype} {packed.shape}"
        )
    streams = np.ascontiguousarray(packed if axis == 1 else packed.T)
    rows, count = len(streams), -(-size // 8)
    stream = streams.view(np.uint8).reshape(rows, expected * WORD_BYTES)
    if stream.shape[1] < count * bits:  # the last eight codes are not whole
        stream = np.pad(stream, ((0, 0), (0, count * bits - stream.shape[1])))
    eights = stream[:, : count * bits].reshape(rows, count, bits)
    # one contiguous array for each byte of eight codes: 0.5 ms where strided ones take 0.9 (1536 x 576 codes, 4 bits)
    planes = [np.ascontiguousarray(eights[:, :, byte]) for byte in range(bits)]
    codes = np.empty((rows, count, 8), dtype=np.uint8)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        value = planes[byte] >> shift
        if shift + bits > 8:
            value |= planes[byte + 1] << (8 - shift)
        value &= (1 << bits) - 1
        value -= 1 << (bits - 1)  # uint8 wraps to the bit pattern of the signed code
        codes[:, :, i] = value
    rows_of_codes = codes.reshape(rows, count * 8)[:, :size].view(np.int8)
    return np.ascontiguousarray(rows_of_codes if axis == 1 else rows_of_codes.T)
