"""A graph as ONNX has it, before it is a file: nodes, the tensors that the weights are stored as, small constants.

An array of the graph is its name. Nothing here needs the onnx package, and no weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Attribute: TypeAlias = int | float | str | tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One operation. inputs, outputs: names of arrays. domain: "" for what ONNX itself defines."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    domain: str


@dataclass(frozen=True)
class Stored:
    """A tensor beside the graph.

    name: in the graph. dtype: ONNX's name of it, such as "UINT8". source: the linear or table of integers, or the
    float tensor, that it is of. part: which input of MatMulNBits; "" for floats.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str
    part: str = ""


@dataclass(frozen=True)
class Port:
    """What the graph is given, or gives. shape: lengths, or names of those that are known when it runs."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass
class Graph:
    """What is recorded. stored: by name, in the order in which the graph needs them. constants: by name.

    scope: what the names of arrays begin with that are made next.
    """

    nodes: list[Node] = field(default_factory=list)
    stored: dict[str, Stored] = field(default_factory=dict)
    constants: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    scope: str = ""

    def node(self, op: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Attribute) -> str:
        """Append a node of one output and return the name of that. name: of it, if it is to have a certain one."""
        name = name or f"{self.scope}{op}.{len(self.nodes)}"
        self.nodes.append(Node(op, inputs, (name,), attributes, domain))
        return name

    def parts(self, op: str, *inputs: str, count: int, **attributes: Attribute) -> tuple[str, ...]:
        """Append a node of several outputs and return their names."""
        names = tuple(f"{self.scope}{op}.{len(self.nodes)}.{index}" for index in range(count))
        self.nodes.append(Node(op, inputs, names, attributes, ""))
        return names

    def given(self, name: str, dtype: str, *shape: int | str) -> str:
        """Add an input of the graph and return its name."""
        self.inputs.append(Port(name, dtype, shape))
        return name

    def gives(self, name: str, *shape: int | str) -> None:
        """Say that an array of float32 is an output of the graph."""
        self.outputs.append(Port(name, "FLOAT", shape))

    def store(self, tensor: Stored) -> str:
        """Add a tensor, once, and return its name."""
        self.stored.setdefault(tensor.name, tensor)
        return tensor.name

    def constant(self, values: NDArray[np.generic]) -> str:
        """Return the name of a small constant; equal ones are one."""
        for name, known in self.constants.items():
            if known.dtype == values.dtype and np.array_equal(known, values):
                return name
        self.constants[f"constant.{len(self.constants)}"] = values
        return next(reversed(self.constants))

    def integers(self, *values: int) -> str:
        """Return a constant: int64 (n,)."""
        return self.constant(np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """Return a constant: int64, a scalar."""
        return self.constant(np.array(value, np.int64))

    def number(self, value: float) -> str:
        """Return a constant: float32, a scalar."""
        return self.constant(np.array(value, np.float32))

    def byte(self, value: int) -> str:
        """Return a constant: uint8, a scalar."""
        return self.constant(np.array(value, np.uint8))
