"""A trial: what would the output of a block lose if it were quantized now? What a search of strengths asks.

    e = mean over tokens of |y'_t - y_t|^2 / |y_t|^2

with y the output of the float block, y' that of the block whose weights are rounded to nearest in the recipe's schemes
and whose inputs are rounded as the model will round them. Each token counts by itself, because the norm that reads the
output divides by the token's own size; without that the first token of a text, hundreds of times larger than any other,
would decide alone. Ranges are those of min-max: a trial must be cheap, and it compares blocks, not roundings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zeropoint.errors import NonFiniteError, SchemeError
from zeropoint.models.parts import Block, FloatBlock, Flow, Ops, Stage, State
from zeropoint.observe.activations import Activations
from zeropoint.qparams.affine import dequantize, quantize
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.inputs import input_params, round_input
from zeropoint.qparams.outliers import columns_from, zeroed
from zeropoint.threads import a_thread_each, map_each
from zeropoint.types import InputParams, InputScheme, Scheme

WINDOWS = 4
"""Windows of the calibration text that a trial runs over."""


class Trial:
    """Quantizes blocks for a moment and compares their outputs with that of the float block.

    block: the float one. inputs: (batch, time, hidden) each. schemes: of each linear by local name, None where it stays
    float. input_schemes: likewise of what each linear reads.
    """

    def __init__(
        self,
        block: FloatBlock,
        flow: Flow,
        ops: Ops,
        inputs: Sequence[Tensor],
        schemes: Mapping[str, Scheme | None],
        input_schemes: Mapping[str, InputScheme | None],
    ) -> None:
        self._flow, self._ops, self._inputs = flow, ops, inputs
        self._schemes, self._input_schemes = schemes, input_schemes
        self._prepared: dict[str, tuple[Tensor, Any]] = {}
        whole = block.prepare(ops, flow)
        self._expected = [whole.run(flow, x) for x in inputs]

    def error(self, block: FloatBlock) -> float:
        """Return the mean squared relative error of a token's output, from 0; the same for any number of threads."""
        with a_thread_each() as pool:
            outputs = self._run(self._quantized(block, pool), pool)
            sums = map_each(pool, _relative_squares, zip(outputs, self._expected, strict=True))
        return sum(sums) / sum(x.shape[0] * x.shape[1] for x in self._inputs)

    def _run(self, block: Block, pool: ThreadPoolExecutor) -> list[Tensor]:
        """Run stage by stage, so that a static scale can be that of all the inputs."""
        states = [State(x) for x in self._inputs]
        for stage in self._flow:
            inputs = map_each(pool, partial(stage.enter, block), states)
            params = {name: _params(inputs, self._input_schemes[name]) for name in stage.linears}
            states = map_each(pool, partial(_finish, block, stage, params), zip(states, inputs, strict=True))
        return [state.x for state in states]

    def _quantized(self, block: FloatBlock, pool: ThreadPoolExecutor) -> Block:
        """Return the block as it would be; weights that the last one had too are not rounded again."""
        weights = dict(block.tensors)
        fresh = [
            name
            for name in self._schemes
            if name not in self._prepared or self._prepared[name][0] is not weights[f"{name}.weight"]
        ]
        restored = map_each(pool, lambda name: self._restored(block.name, name, weights[f"{name}.weight"]), fresh)
        for name, weight in zip(fresh, restored, strict=True):
            self._prepared[name] = (weights[f"{name}.weight"], self._ops.prepare(weight))
        weights |= {f"{name}.weight": prepared for name, (_, prepared) in self._prepared.items()}
        return Block(block.config, self._ops, weights)

    def _restored(self, prefix: str, name: str, weight: Tensor) -> Tensor:
        scheme = self._schemes[name]
        if scheme is None:
            return weight
        scheme = scheme.one_level()  # what strengths are compared by is the same, in a tenth of the time
        try:
            qparams = choose_qparams(weight, scheme, "minmax")
        except (NonFiniteError, SchemeError) as error:
            raise type(error)(f"{prefix}.{name}.weight: {error}") from error
        return dequantize(quantize(weight, qparams, scheme), qparams, scheme)


def trial_inputs(activations: Activations, *, seed: int) -> list[Tensor]:
    """Return about WINDOWS windows, or all if there are fewer, from as many batches as possible, drawn by `seed`.

    (windows, time, hidden) each. They are copies, and stay while the walk goes on.
    """
    random = torch.Generator().manual_seed(seed)
    chosen = sorted(torch.randperm(len(activations), generator=random)[:WINDOWS].tolist())
    each = -(-WINDOWS // len(chosen))
    return [activations[index].x[:each].clone() for index in chosen]


def _params(inputs: Sequence[Tensor], scheme: InputScheme | None) -> InputParams | None:
    """Return how inputs are rounded: by a static scheme as the range of all of them wants.

    Outlier columns of the inputs stay float here, those of the weights do not.
    """
    if scheme is None:
        return None
    columns: tuple[int, ...] = ()
    if scheme.outlier_threshold is not None:
        largest = torch.stack([x.abs().amax((0, 1)) for x in inputs]).amax(0)
        columns = columns_from(largest, scheme.outlier_threshold)
    if scheme.dynamic:
        return InputParams(scheme, outliers=columns)
    others = [zeroed(x, columns) for x in inputs]
    low, high = min(float(x.min()) for x in others), max(float(x.max()) for x in others)
    return replace(input_params(min(low, 0.0), max(high, 0.0), scheme), outliers=columns)


def _finish(block: Block, stage: Stage, params: Mapping[str, InputParams | None], at: tuple[State, Tensor]) -> State:
    """Run one stage from its input on, each linear with that input rounded its own way."""
    state, x = at
    rounded = {found: x if found is None else round_input(x, found) for found in set(params.values())}
    return stage.leave(block, state, tuple(block.linear(name, rounded[params[name]]) for name in stage.linears))


def _relative_squares(pair: tuple[Tensor, Tensor]) -> float:
    """Return the sum over tokens of |y' - y|^2 / |y|^2. pair: y', y (windows, time, hidden)."""
    y, expected = pair
    noise = (y - expected).square().sum(-1, dtype=torch.float64)
    signal = expected.square().sum(-1, dtype=torch.float64)
    return float((noise / torch.where(signal > 0, signal, 1.0)).sum())
