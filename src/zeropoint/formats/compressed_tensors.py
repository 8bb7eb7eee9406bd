"""compressed-tensors: integers of 2 to 8 bits, and inputs in 8 bits, opened by transformers and vLLM.

For every quantized linear NAME with a weight of shape (rows, cols) the file holds, in `pack-quantized`

    NAME.weight_packed      int32 (rows, ceil(cols * bits / 32))       the codes, one stream of bits per row (bits.py)
    NAME.weight_scale       scale_dtype (rows, groups)                 (1,) per tensor, (rows, 1) per channel
    NAME.weight_shape       int64 (2,)                                 rows, cols
    NAME.weight_zero_point  int32 (ceil(rows * bits / 32), groups)     asymmetric only, one stream per column;
                                                                       per tensor it is int8 (1,), not packed

and in `int-quantized`, which the package writes where weights of 8 bits meet quantized inputs (vLLM reads weight-only
int8 only packed), scales as above and

    NAME.weight             int8 (rows, cols)                          the codes
    NAME.weight_zero_point  int8 (rows, groups), (1,) per tensor       asymmetric only

What a file says about inputs is in _inputs.py, about outlier columns and scales on two levels, with which only
zeropoint opens it, in _outliers.py and _super_blocks.py, about embedding and head as integers in _tables.py.
config.json holds `quantization_config`: which linear has which scheme.

What transformers 5.23 with compressed-tensors 0.20 does with such a folder (tests/parity shows each point):

- Symmetric: scales are cast to the dtype that the model is opened in, and multiplied in it. Opened in float32, the
  weights are exactly ours, whatever the dtype of the stored scales.
- Asymmetric per channel or group: the loader expects zero points that are not packed and refuses its own format. It
  opens them when the configuration says `dequantize`, so `config` does; that path multiplies in the dtype of the
  stored scale. The weights are exactly ours with scale_dtype float32, and rounded to bfloat16 with bfloat16 scales.
  It also takes the first scheme for all layers: `config` refuses asymmetric groups beside another scheme.
- `dequantize` also forgets that inputs are rounded: `config` refuses packed zero points with quantized inputs.
- A shorter last group opens but cannot be multiplied: `supports` refuses it.
- 3, 5, 6 and 7 bits need compressed-tensors >= 0.18. vLLM has kernels for 4 and 8 bits, per channel or per group.

Importing this file does not import torch: `schemes` also serves `zeropoint inspect --headers`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, get_args

import msgspec

from zeropoint.errors import CheckpointError, InternalError, SchemeError
from zeropoint.formats import _inputs, _outliers, _scales, _super_blocks, _tables
from zeropoint.patterns import PatternError, compile_quick
from zeropoint.types import Granularity, InputScheme, PackedWeight, QParams, QTensor, Scheme, StoredArray, divisors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

NAME = "compressed_tensors"
METHOD = "compressed-tensors"
PACKED = "pack-quantized"
INT8 = "int-quantized"
MIXED = "mixed-precision"
"""What a model says whose groups have several formats; each group then names its own."""
EXPERT, EXPERTS = ".experts.", "re:.*[.]experts[.].*"
"""What the names of linears of experts have in them, and the target of a group that means all of them."""
NOTE_EXPERTS = "transformers opens no experts with zero points or quantized inputs: make them symmetric, inputs float"
NOTE_TRANSPOSED = "transformers does not open it: it looks for integers in modules of class Linear, and here has Conv1D"
HEAD_IN_TRANSFORMERS = "lm_head"
"""The module that it makes of every head, whatever the file calls it."""

LAYOUT_VERSION = "0.20.0"
"""The release of the compressed-tensors package whose layout is written here, bit for bit."""

LINEAR_CLASSES = ("Linear", "Module")
"""Targets that name a class, and mean every linear."""


def supports(scheme: Scheme, shape: tuple[int, int]) -> str | None:
    """Return None if a weight of `shape` can be stored and opened again, else the reason and what would fit."""
    rows, cols = shape
    if rows < 1 or cols < 1:
        return f"a weight of shape ({rows}, {cols}) has no values; leave it float"
    if not 2 <= scheme.bits <= 8:
        return f"codes of {scheme.bits} bits cannot be stored; use 2 to 8 bits"
    if _super_blocks.stored(scheme):
        return _super_blocks.supports(scheme, cols)
    return _supports_groups(scheme, cols) if scheme.granularity == "group" else None


def _supports_groups(scheme: Scheme, cols: int) -> str | None:
    size = scheme.group_size
    if size is None or size < 1:
        return f"granularity 'group' with group_size {size}; use one of {_sizes_that_divide(cols)}"
    if cols % size:
        return (
            f"{cols} columns do not split into groups of {size}, and the readers of {METHOD} know no shorter last "
            f"group; use a group_size of {_sizes_that_divide(cols)}, or granularity = 'channel'"
        )
    return None


def tensor_names(name: str, scheme: Scheme, inputs: InputScheme | None = None) -> tuple[str, ...]:
    """Return the names of the tensors that linear `name` is stored as, in the order of `pack`.

    inputs: how its input is rounded; None where it stays float.
    """
    if _super_blocks.stored(scheme):
        return (_super_blocks.tensor_name(name),)
    packed = format_of(scheme, inputs) == PACKED
    parts = ("weight_packed", "weight_scale", "weight_shape") if packed else ("weight", "weight_scale")
    parts = parts if scheme.symmetric else (*parts, "weight_zero_point")
    weight = tuple(f"{name}.{part}" for part in parts)
    return (*weight, *_inputs.tensor_names(name, inputs), *_outliers.tensor_names(name, inputs))


def layout(
    name: str, scheme: Scheme, shape: tuple[int, int], inputs: InputScheme | None = None, *, float_dtype: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype, as torch calls it, and the shape of each tensor that `pack` will return; `supports` said None.

    shape: (rows, cols). float_dtype: of the model's floats, in which outlier columns stay; there are none yet.
    """
    rows, cols = shape
    groups = _scales.shape_of(scheme, shape)
    stored_groups = (1,) if scheme.granularity == "tensor" else groups
    packed = format_of(scheme, inputs) == PACKED
    zero_points = ("int8", stored_groups)
    if packed and scheme.granularity != "tensor":
        zero_points = ("int32", (_words(rows, scheme), groups[1]))
    of_part: dict[str, tuple[str, tuple[int, ...]]] = {
        "weight_packed": ("int32", (rows, _words(cols, scheme))),
        "weight": ("int8", shape),
        "weight_blocks": ("uint8", _super_blocks.shape_of(shape)),
        "weight_scale": (scheme.scale_dtype, stored_groups),
        "weight_shape": ("int64", (2,)),
        "weight_zero_point": zero_points,
        "input_scale": ("float32", (1,)),
        "input_zero_point": ("int8", (1,)),
        "outlier_columns": ("int32", (0,)),
        "outlier_weight": (float_dtype, (rows, 0)),
    }
    return {part: of_part[part.rpartition(".")[2]] for part in tensor_names(name, scheme, inputs)}


def table_layout(
    name: str, scheme: Scheme, shape: tuple[int, int], also: str | None = None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype and the shape of each tensor that `pack_table` will return; `supports_table` said None."""
    groups = _scales.shape_of(scheme, shape)
    of_part: dict[str, tuple[str, tuple[int, ...]]] = {
        "weight_packed": ("int32", (shape[0], _words(shape[1], scheme))),
        "weight": ("int8", shape),
        "weight_scale": (scheme.scale_dtype, groups),
    }
    return {part: of_part[part.rpartition(".")[2]] for part in table_tensor_names(name, scheme, also)}


def _words(count: int, scheme: Scheme) -> int:
    """Return how many integers of 32 bits hold so many codes."""
    return -(-count * scheme.bits // 32)


def format_of(scheme: Scheme, inputs: InputScheme | None) -> str:
    """Return which of the package's formats has the layout of such a linear."""
    return INT8 if inputs is not None and scheme.bits == 8 else PACKED


def pack(name: str, q: QTensor) -> dict[str, Tensor]:
    """Return the tensors of one quantized weight under the names that the file gives them.

    name: the linear, such as "model.layers.0.self_attn.q_proj". The tensors are contiguous and share no memory with q.
    Raises: SchemeError, with the name, if `supports` gives a reason; InternalError if codes or parameters break the
        promises of QTensor (out of range, wrong shape, a scale that its scale_dtype would change).
    """
    import torch

    from zeropoint.formats import bits

    reason = supports(q.scheme, q.shape)
    if reason:
        raise SchemeError(f"{name}: {reason}")
    if _super_blocks.stored(q.scheme):
        return {_super_blocks.tensor_name(name): _super_blocks.to_store(name, q)}
    if q.scheme.symmetric != (q.qparams.zero_point is None):
        raise InternalError(f"{name}: zero points belong to an asymmetric weight, and only to one")
    inputs = None if q.input is None else q.input.scheme
    packed = format_of(q.scheme, inputs) == PACKED
    parts = [bits.pack(q.codes, q.scheme.bits) if packed else q.codes.clone(), _scales.to_store(name, q)]
    if packed:
        parts.append(torch.tensor(q.shape, dtype=torch.int64))
    if q.qparams.zero_point is not None:
        parts.append(_zero_point_to_store(name, q.qparams.zero_point, q, packed=packed))
    if q.input is not None:
        parts += _inputs.to_store(q.input)
    parts += _outliers.to_store(name, q)
    return dict(zip(tensor_names(name, q.scheme, inputs), parts, strict=True))


def unpack(name: str, tensors: Mapping[str, Tensor], scheme: Scheme, inputs: InputScheme | None = None) -> QTensor:
    """Return the quantized weight of linear `name` from the tensors of a file.

    tensors: at least those of `tensor_names`. scheme, inputs: as `schemes` and `input_schemes` read them; the result
    carries the scale_dtype that the file really has.
    Raises: CheckpointError as `read_packed`.
    """
    import numpy as np
    import torch

    from zeropoint.formats import bits

    stored = {part: _as_array(tensor) for part, tensor in tensors.items()}
    if _super_blocks.stored(scheme):
        _require_parts(name, stored, scheme, inputs)
        return _super_blocks.unpack(name, stored, scheme)
    packed = read_packed(name, stored, scheme, inputs)
    codes = bits.unpack_array(packed.words, scheme.bits, packed.shape[1])
    zero_point = None if packed.zero_point is None else torch.from_numpy(packed.zero_point.astype(np.int32))
    qparams = QParams(torch.from_numpy(packed.scale), zero_point)
    outliers = tensors[f"{name}.outlier_weight"] if packed.outliers is not None else None
    return QTensor(torch.from_numpy(codes), qparams, packed.scheme, packed.input, outliers)


table_tensor_names = _tables.tensor_names
pack_table = _tables.to_store
read_table = _tables.read


def supports_table(scheme: Scheme, shape: tuple[int, int]) -> str | None:
    """Return None if an embedding or a head of `shape` can be stored and read again, else the reason."""
    return supports(scheme, shape) or _tables.supports(scheme)


def unpack_table(name: str, stored: Mapping[str, StoredArray], scheme: Scheme, cols: int) -> QTensor:
    """Return an embedding or a head, or some of its rows, as `read_table` takes them."""
    import torch

    from zeropoint.formats import bits

    packed = _tables.read(name, stored, scheme, cols)
    codes = torch.from_numpy(bits.unpack_array(packed.words, scheme.bits, cols))
    return QTensor(codes, QParams(torch.from_numpy(packed.scale), None), packed.scheme)


def read_packed(
    name: str, stored: Mapping[str, StoredArray], scheme: Scheme, inputs: InputScheme | None = None
) -> PackedWeight:
    """Return the weight of linear `name` as it is packed, without torch; packed words are the file's own array.

    stored: at least the tensors of `tensor_names`. scheme, inputs: as `schemes` and `input_schemes` read them; the
    result carries the scale_dtype that the file really has. Packed weights may have zero points that are int8 and not
    packed, as old releases wrote them.
    Raises: CheckpointError, with the tensor's name, if one is missing or has not the dtype, shape or range it must.
    """
    _require_parts(name, stored, scheme, inputs)
    if _super_blocks.stored(scheme):
        return _super_blocks.read(name, stored, scheme)
    read_words = _read_words if format_of(scheme, inputs) == PACKED else _read_bytes
    words, (rows, cols) = read_words(name, stored, scheme)
    scale, scale_dtype = _scales.read(f"{name}.weight_scale", stored[f"{name}.weight_scale"], scheme, (rows, cols))
    zero_point = None if scheme.symmetric else _read_zero_point(name, stored, scheme, (rows, cols))
    stored_scheme = replace(scheme, scale_dtype=scale_dtype)
    columns, outliers = _outliers.read(name, stored, inputs, (rows, cols))
    rounding = _inputs.read(name, stored, inputs)
    rounding = None if rounding is None else replace(rounding, outliers=columns)
    return PackedWeight(words, scale, zero_point, (rows, cols), stored_scheme, rounding, outliers)


def config(
    layers: Mapping[str, Scheme | None],
    inputs: Mapping[str, InputScheme | None] | None = None,
    tables: Mapping[str, Scheme] | None = None,
    *,
    head: str = "lm_head",
    part: str | None = None,
) -> dict[str, Any]:
    """Return the `quantization_config` of config.json, as the compressed-tensors package would write it or refuse it.

    layers: every linear of the model by its full name; None for one that stays float. The head stays float unless it
    is given a scheme. One scheme is written for the class Linear. Several schemes are written by the names of their
    layers: vLLM looks for the class of its fused linears (q, k, v in one) before it looks for the names of their
    parts, so that a group for "Linear" would take layers of the other groups.
    inputs: how the input of each quantized linear is rounded; None, or no entry, where it stays float.
    tables: embedding and head that are integers, by all their full names, also the second name of a tied one.
    head: the full name of the head. part: of the model, in which all layers are; None for the whole.
    Raises: SchemeError if no layer and no table has a scheme, or if a layer with packed zero points stands beside
        another scheme, or has quantized inputs.
    """
    groups: dict[tuple[Scheme, InputScheme | None], list[str]] = {}
    for name, scheme in layers.items():
        if scheme is not None:
            groups.setdefault((_as_stored(scheme), (inputs or {}).get(name)), []).append(name)
    if not groups and not tables:
        raise SchemeError(f"none of the {len(layers)} layers is quantized; a {METHOD} model needs at least one")
    zero_points_packed = [key for key in groups if _packs_zero_points(*key)]
    for scheme, rounded in zero_points_packed[:1]:
        if rounded is not None:
            raise SchemeError(
                f"{scheme.label()} weights with {rounded.label()} inputs: transformers opens such weights, but leaves "
                "the inputs float then; make the weights symmetric, or write activations = 'float'"
            )
        if len(groups) > 1:
            raise SchemeError(
                f"{' and '.join(_label(*key) for key in groups)} in one model: transformers opens "
                f"{scheme.label()} only where it is the one scheme of all quantized layers; "
                "make every scheme symmetric, or use one scheme"
            )
    _require_equal_experts(layers, inputs or {})
    targets = {key: _targets(names, alone=len(groups) == 1, part=part) for key, names in groups.items()}
    written = [_group(*key, targets[key], _declared_format(*key)) for key in groups]
    for scheme in dict.fromkeys((tables or {}).values()):
        names = [name for name, its in (tables or {}).items() if its == scheme]
        names += [HEAD_IN_TRANSFORMERS] if head in names and head != HEAD_IN_TRANSFORMERS else []
        declared = _tables.declared_format(scheme, int8=INT8, beside_zero_points=bool(zero_points_packed))
        written.append(_group(scheme, None, names, declared))
    formats = {group["format"] for group in written}
    ignore = [name for name, scheme in layers.items() if scheme is None]
    if head not in layers and head not in (tables or {}):
        ignore += dict.fromkeys((head, HEAD_IN_TRANSFORMERS))
    return {
        "config_groups": {f"group_{i}": group for i, group in enumerate(written)},
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "global_compression_ratio": None,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "moe_sparsity_config": None,
        "quant_method": METHOD,
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": LAYOUT_VERSION,
        **({"dequantize": True} if zero_points_packed else {}),
    }


def _targets(names: list[str], *, alone: bool, part: str | None) -> list[str]:
    """Return what a group says of its layers: their class, or beside other groups their names.

    All experts are one pattern: by it transformers finds the group that it unpacks them with. Of a part of the model
    the class would say too much, and names too little: what stands before the part is not called alike everywhere.
    """
    if part is not None and alone:
        return [f"re:.*{part}[.].*[.]({'|'.join(sorted({name.rpartition('.')[2] for name in names}))})$"]
    if part is not None:
        local = {name.partition(f"{part}.")[2].removeprefix("model.").replace(".", "[.]") for name in names}
        return [f"re:.*{part}[.].*{name}$" for name in sorted(local)]
    if alone:
        return ["Linear"]
    others = [name for name in names if EXPERT not in name]
    return others if len(others) == len(names) else [*others, EXPERTS]


def _require_equal_experts(layers: Mapping[str, Scheme | None], inputs: Mapping[str, InputScheme | None]) -> None:
    """Raise SchemeError if not all experts have one scheme: transformers unpacks all by that of one."""
    found = {(scheme, inputs.get(name)): name for name, scheme in layers.items() if EXPERT in name}
    if len(found) > 1:
        one, other, *_ = found.values()
        raise SchemeError(
            f"{one} and {other} are quantized in different ways: whoever opens the model stacks the experts, and takes "
            "all for alike; let no rule tell experts apart"
        )


def note(quantization_config: Mapping[str, Any], *, experts: bool = False, transposed: bool = False) -> str | None:
    """Return what has to be said about who can open a model that `config` describes so; None where all readers can.

    experts: whether the model has any. transposed: whether float files of it have the weights transposed.
    """
    declared = quantization_config.get("format")
    groups = quantization_config["config_groups"].values()
    formats = {tuple(group["targets"]): group.get("format", declared) for group in groups}
    extensions = {_outliers.FORMAT: _outliers.NOTE, _super_blocks.FORMAT: _super_blocks.NOTE}
    notes = [text for name, text in extensions.items() if name in formats.values()]
    if experts and any(not group["weights"]["symmetric"] or group["input_activations"] for group in groups):
        notes.append(NOTE_EXPERTS)
    if transposed:
        notes.append(NOTE_TRANSPOSED)
    return "; ".join((*notes, *_tables.notes(formats))) or None


def schemes(quantization_config: Mapping[str, Any], layer_names: Iterable[str]) -> dict[str, Scheme | None]:
    """Return the scheme of each linear, or None where it stays float: the inverse of `config`.

    layer_names: full names of linears. Patterns are resolved as the package does it: what is ignored stays float; an
    exact name comes before a regular expression ("re:..."), and that before the class Linear. The configuration holds
    neither `narrow` nor the dtype of the scales: schemes come back with the defaults, and `unpack` finds the dtype.
    Raises: CheckpointError naming the entry that is not supported: other formats, quantized activations or KV cache,
        float or block-wise weights, act-order with regrouped columns, online transforms, sparsity.
    """
    return {name: None if group is None else group[0] for name, group in _resolve(quantization_config, layer_names)}


def input_schemes(quantization_config: Mapping[str, Any], layer_names: Iterable[str]) -> dict[str, InputScheme | None]:
    """Return how the input of each linear is rounded, or None where it stays float; resolved and refused as `schemes`.

    Where the weights stay float the input does.
    """
    return {name: None if group is None else group[1] for name, group in _resolve(quantization_config, layer_names)}


def table_schemes(quantization_config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Scheme | None]:
    """Return the scheme of embedding and head, by their full names, or None where one is float: as `config` wrote them.

    Raises: CheckpointError naming the entry that is not supported.
    """
    stored = _parse(quantization_config)
    found: dict[str, Scheme | None] = dict.fromkeys(names)
    for group_name, group in stored.config_groups.items():
        if _tables.hold(group.targets) and group.weights is not None:
            scheme = _table_scheme(f"quantization_config, group {group_name!r}", group, stored.format)
            ignored = stored.ignore or ()
            found |= {name: scheme for name in group.targets if name in found and name not in ignored}
    return found


def _resolve(
    quantization_config: Mapping[str, Any], layer_names: Iterable[str]
) -> Iterator[tuple[str, tuple[Scheme, InputScheme | None] | None]]:
    """Yield the schemes of each linear by name, of its weights and of its input, or None where both are float."""
    stored = _parse(quantization_config)
    of_target: dict[str, tuple[Scheme, InputScheme | None] | None] = {}
    for group_name, group in stored.config_groups.items():
        if _tables.hold(group.targets):
            continue
        found = _schemes_of(f"quantization_config, group {group_name!r}", group, stored.format)
        of_target |= dict.fromkeys(group.targets, found)
    matchers = _matchers({*of_target, *(stored.ignore or ())})
    # The package sorts patterns, so that which of two matching ones wins does not depend on the order of the file.
    ordered = sorted(of_target, key=lambda target: ("re:" in target, target))
    for name in layer_names:
        ignored = any(matchers[target](name) or target in LINEAR_CLASSES for target in stored.ignore or ())
        matching = [target for target in ordered if matchers[target](name)]
        matching += [target for target in ordered if target in LINEAR_CLASSES]
        yield name, of_target[matching[0]] if matching and not ignored else None


# What is read of a foreign quantization_config; keys that are not listed do not change what the tensors mean.


class _Weights(_inputs.Arguments, frozen=True):
    actorder: bool | str | None = None
    super_size: int | None = None


class _Group(msgspec.Struct, frozen=True):
    targets: list[str]
    weights: _Weights | None = None
    input_activations: _inputs.Stored | None = None
    output_activations: dict[str, Any] | None = None
    format: str | None = None


class _Config(msgspec.Struct, frozen=True):
    config_groups: dict[str, _Group]
    quant_method: str = METHOD
    format: str | None = None
    quantization_status: str | None = None
    ignore: list[str] | None = None
    kv_cache_scheme: dict[str, Any] | None = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None


def _parse(quantization_config: Mapping[str, Any]) -> _Config:
    """Return the configuration with types, or raise CheckpointError for what concerns the model as a whole."""
    method = quantization_config.get("quant_method", METHOD)
    if method != METHOD:
        raise CheckpointError(f"quantization_config: quant_method {method!r} is not supported; only {METHOD!r} is")
    try:
        stored = msgspec.convert(dict(quantization_config), _Config)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"quantization_config cannot be understood: {error}") from error
    if stored.quantization_status != "compressed":
        raise CheckpointError(
            f"quantization_config: quantization_status {stored.quantization_status!r} is not supported; "
            "only 'compressed' is, where the file holds integers"
        )
    if stored.kv_cache_scheme is not None:
        raise CheckpointError("quantization_config: a quantized KV cache (kv_cache_scheme) is not supported")
    if (stored.transform_config or {}).get("config_groups"):
        raise CheckpointError("quantization_config: transforms at run time (transform_config) are not supported")
    if (stored.sparsity_config or {}).get("format", "dense") != "dense":
        raise CheckpointError("quantization_config: sparse weights (sparsity_config) are not supported")
    return stored


def _schemes_of(where: str, group: _Group, default_format: str | None) -> tuple[Scheme, InputScheme | None] | None:
    """Return the schemes of one config group, None if its weights are float; raise CheckpointError if not supported."""
    inputs = _inputs.from_config(where, group.input_activations)
    if group.output_activations is not None:
        raise CheckpointError(f"{where}: quantized outputs (output_activations) are not supported; inputs are")
    if group.weights is None:
        if inputs is not None:
            raise CheckpointError(f"{where}: quantized inputs of float weights are not supported")
        return None
    scheme = _scheme(where, group.weights)
    found, expected = group.format or default_format, _declared_format(scheme, inputs)
    if found != expected:
        raise CheckpointError(
            f"{where}: format {found!r} is not supported for {_label(scheme, inputs)}; only {expected!r} is"
        )
    return scheme, inputs


def _table_scheme(where: str, group: _Group, default_format: str | None) -> Scheme:
    """Return the scheme of a config group of embedding and head; raise CheckpointError if it is not supported."""
    assert group.weights is not None
    scheme = _scheme(where, group.weights)
    reason = _tables.supports(scheme)
    if reason is None and (group.input_activations is not None or group.output_activations is not None):
        reason = "rounded inputs or outputs of an embedding or a head are not supported"
    allowed = {_tables.FORMAT, _tables.declared_format(scheme, int8=INT8, beside_zero_points=False)}
    if reason is None and (group.format or default_format) not in allowed:
        reason = (
            f"format {group.format or default_format!r} is not supported for an embedding or a head in "
            f"{scheme.label()}; only {' or '.join(sorted(map(repr, allowed)))} is"
        )
    if reason is not None:
        raise CheckpointError(f"{where}: {reason}")
    return scheme


def _scheme(where: str, weights: _Weights) -> Scheme:
    """Return the scheme of the weights of a config group; raise CheckpointError if it is not supported."""
    if weights.type != "int" or weights.dynamic:
        raise CheckpointError(f"{where}: weights of type {weights.type!r}, dynamic {weights.dynamic}; only int, static")
    if weights.actorder in ("group", "dynamic", True):
        raise CheckpointError(f"{where}: actorder {weights.actorder!r} regroups columns (g_idx) and is not supported")
    strategy = weights.strategy or _implied_strategy(weights.group_size)
    if strategy not in get_args(Granularity):
        raise CheckpointError(
            f"{where}: strategy {strategy!r} is not supported; only {', '.join(get_args(Granularity))} are"
        )
    scheme = Scheme(
        bits=weights.num_bits,
        symmetric=weights.symmetric,
        granularity=cast(Granularity, strategy),
        group_size=weights.group_size if strategy == "group" else None,
        super_size=weights.super_size,
    )
    if _super_blocks.stored(scheme):
        scheme = replace(scheme, scale_dtype=_super_blocks.SCHEME.scale_dtype)
    # Only the columns are unknown here; one whole group of them finds what is wrong with the scheme itself.
    reason = supports(scheme, (1, scheme.super_size or scheme.group_size or 1))
    if reason:
        raise CheckpointError(f"{where}: {reason}")
    return scheme


def _implied_strategy(group_size: int | None) -> str:
    """Return the strategy that the package assumes when the file names none."""
    if group_size is None:
        return "tensor"
    return "channel" if group_size == -1 else "group"


def _matchers(targets: Collection[str]) -> dict[str, Callable[[str], object]]:
    """Return for each target, a name or "re:" and a regular expression for the start of a name, what says if it is one.

    Raises: CheckpointError for a pattern that is none or could take for ever.
    """
    try:
        compiled = compile_quick(targets)
    except PatternError as error:
        raise CheckpointError(f"quantization_config: {error}") from error
    return {target: compiled[target].match if target in compiled else target.__eq__ for target in targets}


def _as_stored(scheme: Scheme) -> Scheme:
    """Return the scheme without what the configuration cannot say, so that equal entries become one group."""
    size = scheme.group_size if scheme.granularity == "group" else None
    return Scheme(scheme.bits, scheme.symmetric, scheme.granularity, size, super_size=scheme.super_size)


def _packs_zero_points(scheme: Scheme, inputs: InputScheme | None) -> bool:
    if _super_blocks.stored(scheme):
        return False
    return not scheme.symmetric and scheme.granularity != "tensor" and format_of(scheme, inputs) == PACKED


def _declared_format(scheme: Scheme, inputs: InputScheme | None) -> str:
    if _super_blocks.stored(scheme):
        return _super_blocks.FORMAT
    return _outliers.FORMAT if _outliers.stored(inputs) else format_of(scheme, inputs)


def _label(scheme: Scheme, inputs: InputScheme | None) -> str:
    return scheme.label() if inputs is None else f"{scheme.label()} with {inputs.label()} inputs"


def _group(scheme: Scheme, inputs: InputScheme | None, targets: list[str], declared: str) -> dict[str, Any]:
    return {
        "format": declared,
        "input_activations": _inputs.to_config(inputs),
        "output_activations": None,
        "targets": targets,
        "weights": {
            "dynamic": False,
            "group_size": scheme.group_size,
            "num_bits": scheme.bits,
            "strategy": scheme.granularity,
            "symmetric": scheme.symmetric,
            "type": "int",
            **({} if scheme.super_size is None else {"super_size": scheme.super_size}),
        },
    }


def _require_parts(name: str, stored: Mapping[str, StoredArray], scheme: Scheme, inputs: InputScheme | None) -> None:
    missing = [part for part in tensor_names(name, scheme, inputs) if part not in stored]
    if missing:
        raise CheckpointError(f"{name}: {', '.join(missing)} missing from the file of a {scheme.label()} weight")


def _sizes_that_divide(cols: int) -> str:
    """Return the group sizes of 8 and more that divide `cols`, the smaller ones only where there are no others."""
    sizes = divisors(cols)
    return ", ".join(str(size) for size in ([s for s in sizes if s >= 8] or sizes))


def _zero_point_to_store(name: str, zero_point: Tensor, q: QTensor, *, packed: bool) -> Tensor:
    import torch

    from zeropoint.formats import bits

    shape = _scales.shape_of(q.scheme, q.shape)
    outside = (zero_point < q.scheme.q_min) | (zero_point > q.scheme.q_max)
    if tuple(zero_point.shape) != shape or bool(outside.any()):
        raise InternalError(
            f"{name}: zero points {tuple(zero_point.shape)} are not {shape} in [{q.scheme.q_min}, {q.scheme.q_max}]"
        )
    codes = zero_point.to(torch.int8)
    if q.scheme.granularity == "tensor":
        return codes.reshape(1)
    return bits.pack(codes, q.scheme.bits, dim=0) if packed else codes.contiguous()


def _as_array(tensor: Tensor) -> StoredArray:
    """Return a torch tensor as it would be read without torch."""
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_floating_point() and dtype not in ("float64", "float32", "float16"):  # numpy has no other
        tensor = tensor.view({1: torch.uint8, 2: torch.uint16}[tensor.element_size()])
    return StoredArray(tensor.numpy(), dtype)


def _read_words(
    name: str, stored: Mapping[str, StoredArray], scheme: Scheme
) -> tuple[NDArray[np.uint32], tuple[int, int]]:
    """Return the words of a packed weight, and its shape."""
    import numpy as np

    from zeropoint.formats import bits

    rows, cols = _shape(f"{name}.weight_shape", stored[f"{name}.weight_shape"])
    _require_supported(name, scheme, (rows, cols))
    packed = stored[f"{name}.weight_packed"]
    width = bits.words(cols, scheme.bits)
    if packed.dtype != "int32" or packed.values.shape != (rows, width):
        raise CheckpointError(
            f"{name}.weight_packed is {packed.dtype} {packed.values.shape}; {cols} columns of {scheme.bits} bits are "
            f"int32 ({rows}, {width})" + _hint_of_old_layout(packed, scheme.bits, cols)
        )
    return np.ascontiguousarray(packed.values).view(np.uint32), (rows, cols)


def _read_bytes(
    name: str, stored: Mapping[str, StoredArray], scheme: Scheme
) -> tuple[NDArray[np.uint32], tuple[int, int]]:
    """Return the words of a weight whose codes are bytes, and its shape: 128 added, rows filled up to whole words."""
    import numpy as np

    codes = stored[f"{name}.weight"]
    if codes.dtype != "int8" or codes.values.ndim != 2:
        raise CheckpointError(f"{name}.weight is {codes.dtype} {codes.values.shape}; it must be int8 (rows, columns)")
    rows, cols = codes.values.shape
    _require_supported(name, scheme, (rows, cols))
    unsigned = np.zeros((rows, -(-cols // 4) * 4), np.uint8)
    np.bitwise_xor(codes.values.view(np.uint8), 0x80, out=unsigned[:, :cols])
    return unsigned.view("<u4"), (rows, cols)


def _require_supported(name: str, scheme: Scheme, shape: tuple[int, int]) -> None:
    reason = supports(scheme, shape)
    if reason:
        raise CheckpointError(f"{name}: {reason}")


def _shape(name: str, stored: StoredArray) -> tuple[int, int]:
    if not stored.dtype.startswith(("int", "uint")) or stored.values.size != 2:
        raise CheckpointError(f"{name} is {stored.dtype} {stored.values.shape}; it must be two integers: rows, columns")
    rows, cols = (int(v) for v in stored.values.reshape(2))
    if max(rows, cols) >= 1 << 31:
        raise CheckpointError(f"{name} says ({rows}, {cols}); no weight is so large")
    return rows, cols


def _read_zero_point(
    name: str, tensors: Mapping[str, StoredArray], scheme: Scheme, shape: tuple[int, int]
) -> NDArray[np.int8]:
    import numpy as np

    from zeropoint.formats import bits

    stored = tensors[f"{name}.weight_zero_point"]
    rows, groups = _scales.shape_of(scheme, shape)
    if stored.dtype == "int8" and stored.values.size == rows * groups:
        zero_point = stored.values.astype(np.int8).reshape(rows, groups)
    elif stored.dtype == "int32" and stored.values.shape == (bits.words(rows, scheme.bits), groups):
        zero_point = bits.unpack_array(stored.values, scheme.bits, rows, axis=0)
    else:
        raise CheckpointError(
            f"{name}.weight_zero_point is {stored.dtype} {stored.values.shape}; it must be int32 "
            f"({bits.words(rows, scheme.bits)}, {groups}), or int8 ({rows}, {groups})"
        )
    if ((zero_point < scheme.q_min) | (zero_point > scheme.q_max)).any():
        raise CheckpointError(f"{name}.weight_zero_point holds values outside [{scheme.q_min}, {scheme.q_max}]")
    return zero_point


def _hint_of_old_layout(packed: StoredArray, bits: int, cols: int) -> str:
    """Return a hint if the width is that of the releases in which no code straddled two words, else ""."""
    if 32 % bits and packed.values.ndim == 2 and packed.values.shape[1] == -(-cols // (32 // bits)):
        return "; compressed-tensors before 0.18 wrote 3, 5, 6 and 7 bits so, without codes that straddle two words"
    return ""
