"""The mixed-precision decomposition of LLM.int8, literally, in float64, with the columns fixed by calibration.

    O = { j : max over the calibration tokens of |x_j| >= threshold }
    y = S_x S_w sum over j not in O of q_x[j] q_w[j]  +  sum over j in O of x[j] w[j]

with q_x = round(x / S_x), S_x = max over j not in O of |x_j| / 127.5 for each token, and the same for each row of W.
Source: Dettmers et al. 2022, arXiv:2208.07339, eq. 8.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference.integer_linear import Floats, token_codes


def columns_of(seen: NDArray[np.float32], threshold: float) -> list[int]:
    """Return O. seen: (tokens, cols), of the calibration."""
    return [j for j in range(seen.shape[1]) if any(abs(value) >= threshold for value in seen[:, j])]


def outlier_linear(x: NDArray[np.float32], weight: NDArray[np.float32], columns: list[int]) -> Floats:
    """Return y (tokens, rows). x: (tokens, cols). weight: (rows, cols)."""
    others = [j for j in range(x.shape[1]) if j not in columns]
    y = x[:, columns].astype(np.float64) @ weight[:, columns].astype(np.float64).T
    if others:
        q_x, s_x = token_codes(x[:, others])
        q_w, s_w = token_codes(weight[:, others])
        y = y + (q_x @ q_w.T) * s_x * s_w.T
    return y
