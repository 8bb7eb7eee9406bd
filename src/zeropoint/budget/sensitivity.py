"""What every form of every weight costs, from one pass over a text, and how far the sum of such costs can be trusted.

A form leaves the error E = W - W' in a linear. With F the Fisher information of its outputs (fisher.py) and H the
second moment of its input, the model's output moves by

    KL = 1/2 sum over r of F_r (E H E^T)_rr

nats per token. Costs of different weights are added: a linear model. It is held against measurements: windows that had
no part in it run through the model in which all weights have one form, form by form, and their KL is set beside the
sum.

Every form is rounded as the recipe says, for the inputs of the float model. Memory holds one block: its floats, its
second moments, and its codes in every form.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import torch
from torch import Tensor

import zeropoint
from zeropoint import find
from zeropoint.budget.fisher import Fisher, fisher
from zeropoint.budget.forms import FLOAT, Form, Unit
from zeropoint.embeddings import restored_table
from zeropoint.errors import NonFiniteError, SchemeError
from zeropoint.evaluation.budgets import FormCost, Sensitivities, UniformCheck, UnitCosts
from zeropoint.evaluation.divergence import compare
from zeropoint.evaluation.size import float_name, size_of
from zeropoint.observe.activations import Activations
from zeropoint.observe.walk import Visit, observe, walk
from zeropoint.planning import schemes
from zeropoint.planning.output import planned_size, planned_tensors
from zeropoint.planning.plan import Prepared
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.qparams.affine import restore
from zeropoint.qparams.statistics import of_type
from zeropoint.rounding.linear import round_linear
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.stages import ROWS, divergence
from zeropoint.threads import a_thread_each, map_each
from zeropoint.types import Embeddings, QTensor, Scheme, SecondMoment, Stats

ACTIVATION_BYTES = 2 << 30
"""Of the activations in memory at once; what is more waits on disk."""


@dataclass(frozen=True)
class Reading:
    """The windows that are read, int64 (windows, length) each: for the Fisher information, for H, for the checks."""

    fisher: Tensor
    walk: Tensor
    checks: Tensor


def measure(
    prepared: Prepared,
    units: Sequence[Unit],
    reading: Reading,
    *,
    embeddings: Sequence[Embeddings],
    seed: int,
    progress: ProgressCallback | None = None,
) -> Sensitivities:
    """Return what every form costs. embeddings: what embedding and head may be.

    Raises: InputError, by one of its subclasses, for weights that cannot be rounded.
    """
    started_s, report = time.perf_counter(), progress or (lambda step: None)
    weights = prepared.weights
    minds = fisher(weights, reading.fisher, seed=seed, limit_bytes=ACTIVATION_BYTES, progress=progress)
    walk_through = _Walk(prepared, units, minds, reading, report)
    with torch.inference_mode():
        walk_through.run()
        tables = _table_costs(prepared, minds, reading, walk_through, embeddings)
    costs = tuple(_unit_costs(prepared, unit, walk_through.kl) for unit in units)
    least = {name: min(unit.forms, key=_size_order) for unit in units for name in unit.names}
    of_units = sum(unit.forms[0].size_bytes for unit in costs)
    smallest = _size(prepared, least, tables.forms[0].form)
    return Sensitivities(
        zeropoint=zeropoint.__version__,
        model=str(weights.checkpoint.path),
        recipe=prepared.recipe.to_dict(),
        units=costs,
        tables=tables,
        checks=tuple(_checks(costs, walk_through)),
        rest_bytes=smallest - of_units - tables.forms[0].size_bytes,
        source_bytes=size_of(weights).total_bytes,
        fisher_tokens=reading.fisher.numel(),
        tokens=reading.walk.numel(),
        check_tokens=reading.checks.numel(),
        elapsed_s=time.perf_counter() - started_s,
    )


def _size_order(form: Form) -> int:
    return 99 if form.bits is None else form.bits


def _size(prepared: Prepared, forms: Mapping[str, Form], embeddings: str) -> int:
    """Return the bytes of the whole file in which linears, by their names, have these forms."""
    plans = {name: forms[name].plan if name in forms else plan for name, plan in prepared.plans.items()}
    tables = _tables(prepared, embeddings)
    tensors = planned_tensors(prepared.weights, plans, tables, prepared.file_format, unties=False)
    return planned_size(prepared.weights, plans, tables, tensors).total_bytes


def _tables(prepared: Prepared, embeddings: str) -> dict[str, Scheme]:
    recipe = msgspec.structs.replace(prepared.recipe, embeddings=embeddings)
    return schemes.table_schemes(prepared.weights, recipe, prepared.file_format)


def _unit_costs(prepared: Prepared, unit: Unit, kl: Mapping[tuple[str, str], float]) -> UnitCosts:
    shapes = {name: prepared.weights.model.shape(f"{name}.weight") for name in unit.names}
    forms = [
        FormCost(
            form=form.name,
            bits=form.bits,
            size_bytes=sum(_linear_bytes(prepared, name, form) for name in unit.names),
            kl=sum(kl[name, form.name] for name in unit.names),
        )
        for form in unit.forms
    ]
    forms.sort(key=lambda form: form.size_bytes)
    return UnitCosts(names=unit.names, weights=sum(math.prod(shape) for shape in shapes.values()), forms=tuple(forms))


def _linear_bytes(prepared: Prepared, name: str, form: Form) -> int:
    """Return the bytes of a linear, scales and zero points included, a bias not."""
    info = prepared.weights.checkpoint.tensors[f"{name}.weight"]
    rows, cols = info.shape
    dtype = float_name(info)
    parts = {"": (dtype, info.shape)}
    if form.plan is not None:
        parts = prepared.file_format.layout(
            name, form.plan.scheme, (rows, cols), form.plan.activations, float_dtype=dtype
        )
    return sum(math.prod(shape) * getattr(torch, dtype).itemsize for dtype, shape in parts.values())


def _checks(costs: Sequence[UnitCosts], walked: _Walk) -> Iterator[UniformCheck]:
    """Yield every form that was run as a whole model; a unit that cannot have it counts with what it had there."""
    for form, measured in walked.checks.items():
        expected = 0.0
        for unit in costs:
            expected += next((cost.kl for cost in unit.forms if cost.form == form), unit.forms[-1].kl)
        yield UniformCheck(form=form, expected=expected, measured=measured)


class _Walk:
    """One pass forwards: what each form costs each linear, and how whole models in one form do.

    kl: by name and form. checks: KL of the whole model, by form. checked: what the float model's last block gives for
    the windows of the checks. head: makes logits of it.
    """

    def __init__(
        self, prepared: Prepared, units: Sequence[Unit], minds: Fisher, reading: Reading, report: ProgressCallback
    ) -> None:
        self._prepared, self._minds, self._reading, self._report = prepared, minds, reading, report
        self.ops = TorchOps(getattr(torch, prepared.recipe.calibration.dtype))
        self._forms = {name: unit.forms for unit in units for name in unit.names}
        names = dict.fromkeys(form.name for unit in units for form in unit.forms if form.plan is not None)
        self._needs = frozenset({"second_moment"}).union(
            *(schemes.needed({"": form.plan}) for unit in units for form in unit.forms)
        )
        self.kl: dict[tuple[str, str], float] = {}
        embedded = torch.cat(list(prepared.weights.embed(self.ops, reading.checks, 1)))
        self._states = dict.fromkeys((FLOAT, *names), embedded)
        self.head = prepared.weights.logits(self.ops)
        self.checks: dict[str, float] = {}

    @property
    def checked(self) -> Tensor:
        return self._states[FLOAT]

    def run(self) -> None:
        """Walk through the model."""
        weights, ops = self._prepared.weights, self.ops
        layers = weights.model.config.layers
        least_tokens = self._prepared.recipe.calibration.expert_tokens
        codes: dict[str, dict[str, QTensor]] = {}
        with Activations(limit_bytes=ACTIVATION_BYTES) as activations:
            activations.extend(weights.embed(ops, self._reading.walk, self._prepared.recipe.calibration.batch))
            blocks = partial(weights.block, ops=ops)
            for visit in walk(weights.model, blocks, activations, least_tokens=least_tokens):
                self._round(visit, codes)
                if visit.stage is weights.model.flow_of(visit.index)[-1]:
                    self._advance(visit, codes)
                    codes = {}
                    self._report(
                        Progress("sensitivity", visit.index + 1, layers, weights.model.block_name(visit.index))
                    )
        reference = self._states[FLOAT]
        self.checks = {
            form: divergence(self.head, reference, state) for form, state in self._states.items() if form != FLOAT
        }

    def _round(self, visit: Visit, codes: dict[str, dict[str, QTensor]]) -> None:
        """Round the linears of a stage in every form, and note what each costs."""
        prefix = self._prepared.weights.model.block_name(visit.index)
        named = {f"{prefix}.{local}": local for local in visit.stage.linears}
        free = [name for name in named if name in self._forms]
        if not free:
            return
        stats = observe(visit, self._needs)
        pairs = [(name, form) for name in free for form in self._forms[name]]
        first = next((form.plan for _, form in pairs if form.plan is not None), None)
        if first is not None:  # what all share is worked out once, with all threads
            rounding = find.load("rounding", first.rounding.method)
            rounding.importance(stats, first.rounding.load_options("rounding"))

        def cost(pair: tuple[str, Form]) -> tuple[float, QTensor | None]:
            return self._cost(*pair, stats)

        with a_thread_each() as pool:
            for (name, form), (kl, made) in zip(pairs, map_each(pool, cost, pairs), strict=True):
                self.kl[name, form.name] = kl
                if made is not None:
                    codes.setdefault(form.name, {})[named[name]] = made

    def _cost(self, name: str, form: Form, stats: Mapping[str, Stats]) -> tuple[float, QTensor | None]:
        if form.plan is None:
            return 0.0, None
        weight = self._prepared.weights.float_linear(name)
        try:
            made = round_linear(weight, form.plan, stats).rounded.qtensor
        except (NonFiniteError, SchemeError) as error:
            raise type(error)(f"{name}.weight: {error}") from error
        return expected_kl(weight - restore(made), self._minds.linears[name], stats), made

    def _advance(self, visit: Visit, codes: Mapping[str, Mapping[str, QTensor]]) -> None:
        """Run the windows of the checks through the block in every form."""
        block, flow = visit.block, self._prepared.weights.model.flow_of(visit.index)
        for form, state in self._states.items():
            made = {f"{local}.weight": self.ops.prepare(code) for local, code in codes.get(form, {}).items()}
            ready = replace(block, weights={**block.weights, **made})
            self._states[form] = torch.cat([ready.run(flow, x) for x in torch.split(state, 1)])
            del ready, made


def expected_kl(error: Tensor, minds: Tensor, stats: Mapping[str, Stats]) -> float:
    """Return 1/2 sum F_r (E H E^T)_rr in nats per token.

    error: E, float32 (rows, cols). minds: F, (rows,). stats: with the second moment H of the input.
    """
    H = of_type(stats, "second_moment", SecondMoment).matrix
    if not len(H):  # an expert that no token was sent to
        return 0.0
    moved = ((error @ H) * error).sum(dim=1, dtype=torch.float64)
    return float(0.5 * (minds.double() * moved).sum())


def _table_costs(
    prepared: Prepared, minds: Fisher, reading: Reading, walked: _Walk, embeddings: Sequence[Embeddings]
) -> UnitCosts:
    """Return what embedding and head cost, as what looks tokens up and as what makes logits, in every form."""
    weights = prepared.weights
    names = {name for table in weights.tables for name in (table.name, table.also) if name is not None}
    count = sum(math.prod(weights.model.shape(f"{table.name}.weight")) for table in weights.tables)
    forms = []
    for kind in embeddings:
        tables = _tables(prepared, kind)
        tensors = planned_tensors(weights, prepared.plans, tables, prepared.file_format, unties=False)
        size = sum(info.size_bytes for name, info in tensors.items() if name.rpartition(".")[0] in names)
        kl = _table_kl(prepared, minds, reading, walked, tables) if tables else 0.0
        bits = {"int4": 4, "int8": 8}.get(kind)
        forms.append(FormCost(form=kind, bits=bits, size_bytes=size, kl=kl))
    forms.sort(key=lambda form: form.size_bytes)
    return UnitCosts(names=tuple(sorted(names)), weights=count, forms=tuple(forms))


def _table_kl(
    prepared: Prepared, minds: Fisher, reading: Reading, walked: _Walk, tables: Mapping[str, Scheme]
) -> float:
    """Return the KL of the head in integers, measured, and that of the embedding, expected from what looks it up."""
    weights, ops = prepared.weights, walked.ops
    embedding, head = weights.tables[0], weights.tables[-1]
    choice = prepared.recipe.range
    rounded = restored_table(weights, embedding.name, tables[embedding.name], choice)
    tokens = reading.walk.flatten()
    drift = (rounded - weights.restored_table(embedding.name).float())[tokens] * weights.model.config.embedding_factor
    looked_up = 0.5 * float((minds.embedded.double() * drift.double().square().mean(0)).sum())
    if head.name != embedding.name:
        rounded = restored_table(weights, head.name, tables[head.name], choice)
    ends = weights.head(ops)
    key = f"{weights.model.ends.head}.weight"
    made = {**ends, key: ops.prepare(rounded)}
    total, count = 0.0, 0
    for x in torch.split(walked.checked.flatten(0, -2), ROWS):
        scores = compare(weights.model.head(ops, ends, x), weights.model.head(ops, made, x), torch.zeros(len(x)).long())
        total += float(scores.kl.sum(dtype=torch.float64))
        count += len(scores)
    return looked_up + total / count
