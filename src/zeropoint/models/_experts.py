"""Mixture of experts in the place of an MLP: a router sends each token to a few of many gated MLPs.

    routes = top k of softmax(router(h))         x = x + sum over e of routes[e] * down_e(silu(gate_e(h)) * up_e(h))

Every expert is two stages of its own, which read the tokens that are sent to it: so its statistics are its own, too.
The router stays float. A checkpoint may have the experts of a block stacked, as transformers 5 holds them in memory:

    mlp.experts.gate_up_proj (experts, 2 * intermediate, hidden)
    mlp.experts.down_proj (experts, hidden, intermediate)

Source: Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2021, arXiv:2101.03961.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from zeropoint.checkpoint.reader import TensorInfo, rows_of
from zeropoint.errors import ArchitectureError
from zeropoint.models._values import whole
from zeropoint.models.parts import Array, Block, Config, Flow, Stage, State, branch

MAX_EXPERTS = 4096
STACKED = re.compile(r"(.*)\.mlp\.(gate\.weight|experts\.(?:gate_up_proj|down_proj))")


@dataclass(frozen=True)
class Names:
    """What the linears of a mixture are called. expert: of one of them, with {} for its number."""

    router: str
    expert: str
    gate: str
    up: str
    down: str

    def of(self, expert: int) -> tuple[str, str, str]:
        """Return the local names of an expert's gate, up and down."""
        prefix = self.expert.format(expert)
        return f"{prefix}.{self.gate}", f"{prefix}.{self.up}", f"{prefix}.{self.down}"


@lru_cache
def stages(names: Names, count: int, read: Callable[[Block, State], Array]) -> Flow:
    """Return the stages of a router and its `count` experts. read: makes what they read of the state before them."""
    router = Stage((names.router,), None, read, partial(_route, read=read), router=True)
    experts = (stage for index in range(count) for stage in _expert(names, index, last=index == count - 1))
    return (router, *experts)


def _expert(names: Names, index: int, *, last: bool) -> Flow:
    gate, up, down = names.of(index)

    def sent(block: Block, state: State) -> Array:
        return block.ops.sent(state.read, state.routes, index)

    def of_all(block: Block, state: State) -> Array:
        """Return what `down` would read if all tokens were sent here."""
        outputs = block.linear(gate, state.read), block.linear(up, state.read)
        return block.ops.gated(*outputs, block.config.activation)

    return (
        Stage((gate, up), None, sent, _gate, expert=index, of_all=_read),
        Stage((down,), up, branch, partial(_add, index=index, last=last), expert=index, of_all=of_all),
    )


def _read(block: Block, state: State) -> Array:
    return state.read


def _route(block: Block, state: State, outputs: tuple[Array, ...], *, read: Callable[[Block, State], Array]) -> State:
    config = block.config
    routes = block.ops.route(outputs[0], config.experts_per_token, normalized=config.normalized_routes)
    return replace(state, read=read(block, state), routes=routes)


def _gate(block: Block, state: State, outputs: tuple[Array, ...]) -> State:
    gate_output, up_output = outputs
    return replace(state, y=block.ops.gated(gate_output, up_output, block.config.activation))


def _add(block: Block, state: State, outputs: tuple[Array, ...], *, index: int, last: bool) -> State:
    """Leave an expert by adding what it made for its tokens, weighed; the last one adds all of it to the stream."""
    total = block.ops.add_sent(state.waiting, outputs[0], state.routes, index)
    if not last:
        return replace(state, y=None, waiting=total)
    return replace(state, x=block.ops.add(state.x, total), y=None, waiting=None, read=None, routes=None)


def read_experts(config: Mapping[str, Any], read: Config, count: int, *, normalized: bool) -> Config:
    """Return the config of a model with `count` experts. Raises: ArchitectureError."""
    per_token = whole(config, "num_experts_per_tok")
    if per_token > count:
        raise ArchitectureError(
            f"config.json: num_experts_per_tok is {per_token}, and there are {count} experts; it must not be more"
        )
    return replace(read, experts=count, experts_per_token=per_token, normalized_routes=normalized, mlp_bias=False)


def listed(
    tensors: Mapping[str, TensorInfo], names: Names, config: Config, intermediate_size: int
) -> Mapping[str, TensorInfo]:
    """Return the tensors with those of stacked experts taken apart, under the names of their linears.

    intermediate_size: of an expert. Stacks of another shape stay as they are.
    """
    stacks = {
        "experts.gate_up_proj": (config.experts, 2 * intermediate_size, config.hidden_size),
        "experts.down_proj": (config.experts, config.hidden_size, intermediate_size),
    }
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        match = STACKED.fullmatch(name)
        block, part = match.groups() if match is not None else ("", "")
        if part == "gate.weight" and f"{block}.mlp.experts.gate_up_proj" in tensors:
            found |= _called(f"{block}.{names.router}.weight", info)
        elif info.shape == stacks.get(part):
            for expert in range(config.experts):
                found |= _of_expert(info, part, block, names.of(expert), expert)
        else:
            found[name] = info
    return found if len(found) != len(tensors) else tensors


def _of_expert(
    info: TensorInfo, part: str, block: str, linears: tuple[str, str, str], expert: int
) -> dict[str, TensorInfo]:
    """Return the weights of one expert, which lie in one piece in what `info` says of all."""
    gate, up, down = (f"{block}.{name}.weight" for name in linears)
    one = rows_of(info, (expert, expert + 1))
    one = replace(one, shape=one.shape[1:])
    if part == "experts.down_proj":
        return _called(down, one)
    half = one.shape[0] // 2
    return _called(gate, rows_of(one, (0, half))) | _called(up, rows_of(one, (half, 2 * half)))


def _called(name: str, info: TensorInfo) -> dict[str, TensorInfo]:
    return {name: replace(info, name=name)}
