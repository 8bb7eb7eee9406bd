"""A recipe says how a model is quantized: the scheme of its weights, how ranges and codes are found, on which tokens.

    rounding = "gptq"                    # or a table: [rounding] method = "gptq", damping = 0.01
    kv_cache = "int8"                    # keys and values at run time; or "float16", the default
    embeddings = "int8"                  # embedding and head in the file; or "int4"; or "stored", the default: floats

    [weights]                            # every linear of the decoder blocks
    bits = 4

    [activations]                        # what those linears read is rounded too; "float", the default, leaves it
    dynamic = true                       # false: one scale for all tokens, from calibration, by activation_range
                                         # static_error_limit = 0.01 and massive_inputs = "dynamic" name its exceptions
    outlier_threshold = 6.0              # columns that reach it stay float; or "none", the default

    bias_correction = true               # biases take back what rounding changes in the mean; or false, the default

    [fallback]                           # every linear that the format cannot store by its scheme, for its columns; all
    group_size = 32                      # keys as in weights. Without this table such a linear is an error

    [[rules]]                            # exceptions; of the rules that match a layer the last one counts
    layers = "*.down_proj"               # full layer names: a glob, "re:" and a regular expression, or a list of them
    weights = { bits = 8 }               # overrides only the keys that it gives; or: keep_float = true

    [[transforms]]                       # rewrite the float blocks first, one after the other; or: ["smoothquant"]
    method = "smoothquant"

    refine = ["descent", "learned"]      # better codes and scales afterwards, one after the other; tables too

Recipes are data. A key that is not known, a value that is not allowed and a method that has no file are errors that
name the place, before any model is opened. The options of a method are described by the `Options` of its file; as that
file may import torch, they are checked by `Recipe.check`, when the recipe is about to be used.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import msgspec

from zeropoint import documents, find, toml
from zeropoint.errors import RecipeError
from zeropoint.patterns import PatternError, compile_quick
from zeropoint.toml import Place
from zeropoint.types import Embeddings, InputScheme, KVCache, MassiveInputs, Scheme

MAX_RECIPE_BYTES = 1 << 18

ChoiceKind: TypeAlias = Literal["qparams.ranges", "qparams.input_ranges", "rounding", "transforms", "refine"]
"""The folders that a recipe chooses methods from."""

_FOLDERS: dict[str, ChoiceKind] = {
    "range": "qparams.ranges",
    "rounding": "rounding",
    "activation_range": "qparams.input_ranges",
}
_LISTS = ("rules", "transforms", "refine")
_METHODS: tuple[Literal["transforms", "refine"], ...] = ("transforms", "refine")
"""The lists of methods; an item may be a name alone."""
_SCHEME_LIMITS = {
    "bits": Annotated[int, msgspec.Meta(ge=2, le=8)],
    "group_size": Annotated[int, msgspec.Meta(ge=1)],
    "scale_bits": Annotated[int, msgspec.Meta(ge=2, le=24)],
    "super_size": Annotated[int, msgspec.Meta(ge=1)] | Literal["none"],
}
_INPUT_LIMITS = {
    "bits": Annotated[int, msgspec.Meta(ge=8, le=8)],
    "outlier_threshold": Annotated[float, msgspec.Meta(gt=0, le=1e6)] | Literal["none"],
}
_FLOAT: Literal["float"] = "float"
_NO_LIMIT: Literal["none"] = "none"
_ErrorLimit: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)] | Literal["none"]
_PLAIN: dict[str, Any] = {
    "kv_cache": KVCache,
    "embeddings": Embeddings,
    "static_error_limit": _ErrorLimit,
    "massive_inputs": MassiveInputs,
    "bias_correction": bool,
}
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class Choice(msgspec.Struct, frozen=True):
    """A method, which is the name of a file, and the options given for it; the others keep their defaults."""

    method: str
    options: dict[str, Any] = {}

    def load_options(self, kind: ChoiceKind) -> msgspec.Struct:
        """Import the method's file and return its `Options` with the values of this choice.

        Raises: RecipeError for a method that has no file, an option that it does not have or a value it does not allow.
        """
        key = next((key for key, folder in _FOLDERS.items() if folder == kind), kind)
        return _load_options(kind, self, Place("recipe", (key,)))


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tokens that statistics are taken from.

    tokens: those of a text, or random ones, which need none. samples: windows of `length` tokens, drawn with `seed`.
    batch: windows that run through a block together. held_out: more windows, that no method learns from, to say what
    each stage of the work is worth; 0: it is not said. expert_tokens: an expert that is sent fewer takes its statistics
    from all tokens. dtype: of the forward passes; statistics are accumulated in float32 in any case.
    """

    tokens: Literal["text", "random"] = "text"
    samples: _Count = 128
    length: _Count = 512
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    batch: _Count = 4
    held_out: Annotated[int, msgspec.Meta(ge=0)] = 4
    expert_tokens: Annotated[int, msgspec.Meta(ge=0)] = 256
    dtype: Literal["float32", "bfloat16"] = "float32"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An exception for the layers that match one of the patterns.

    layers: globs, or regular expressions after "re:", that cover the whole name of a layer. keep_float: leave them as
    they are. The others: the keys that differ from the recipe's own; activations may be "float". A rule that gives
    nothing but layers puts them back to the recipe's own plan.
    """

    layers: tuple[str, ...]
    keep_float: bool = False
    weights: dict[str, Any] = {}
    range: dict[str, Any] = {}
    rounding: dict[str, Any] = {}
    activations: dict[str, Any] | Literal["float"] = {}
    activation_range: dict[str, Any] = {}

    def matches(self, layer: str) -> bool:
        """Say whether one of the patterns covers the full name of the layer."""
        return any(
            re.fullmatch(pattern[3:], layer) is not None if pattern.startswith("re:") else fnmatchcase(layer, pattern)
            for pattern in self.layers
        )


_MINMAX = Choice("minmax")


@dataclass(frozen=True)
class LayerPlan:
    """What a recipe says about one layer.

    activations: how its input is rounded when the model runs, None where it stays float. activation_range: the rule
    that finds the range of a static scheme. The others: as in Recipe; None for no limit.
    """

    scheme: Scheme
    range: Choice
    rounding: Choice
    activations: InputScheme | None = None
    activation_range: Choice = _MINMAX
    static_error_limit: float | None = None
    massive_inputs: MassiveInputs = "static"
    bias_correction: bool = False


_DEFAULT = LayerPlan(Scheme(), Choice("mse"), Choice("gptq"))


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that decides how a model is quantized; the module's docstring shows the keys.

    format: the file in formats/ that writes the result. fallback: the scheme of linears that the format cannot store by
    the one that they were to have; None: they are refused. activations: None, "float" in a file, leaves them float.
    transforms: of every block, in their order. refine: what makes better codes and scales of the rounded ones, in their
    order: of each layer, of each block, of the whole model. kv_cache: what the runtime rounds keys and values to unless
    it is asked otherwise; the output's config.json says so, and no tensor changes. embeddings: what the file holds of
    embedding and head, "stored" for the floats of the source, or integers, rounded to nearest in ranges by `range`:
    "int8" with a scale for each row, "int4" with one for 64 columns. static_error_limit: the squared relative error of
    a layer's output above which an input that should be static stays dynamic, 0 to 1, or "none".
    massive_inputs: "dynamic" leaves inputs with massive activations dynamic, too. bias_correction: of the layers that
    have a bias. The values are checked and brought
    to one form however a recipe is made, so that two recipes that mean the same are equal.
    Raises: RecipeError naming the key, what was got and what is allowed.
    """

    name: str = "custom"
    description: str = ""
    format: str = "compressed_tensors"
    weights: Scheme = _DEFAULT.scheme
    fallback: Scheme | None = None
    range: Choice = _DEFAULT.range
    rounding: Choice = _DEFAULT.rounding
    activations: InputScheme | None = None
    activation_range: Choice = _DEFAULT.activation_range
    rules: tuple[Rule, ...] = ()
    transforms: tuple[Choice, ...] = ()
    refine: tuple[Choice, ...] = ()
    calibration: Calibration = Calibration()
    kv_cache: KVCache = "float16"
    embeddings: Embeddings = "stored"
    static_error_limit: float | Literal["none"] = _NO_LIMIT
    massive_inputs: MassiveInputs = "static"
    bias_correction: bool = False

    def __post_init__(self) -> None:
        for key, value in _read_recipe(self.to_dict(), Place("recipe")).items():
            msgspec.structs.force_setattr(self, key, value)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, source: str = "recipe") -> Self:
        """Return the recipe that a parsed TOML document stands for. source: what a message names as its place."""
        return cls(**_read_recipe(table, Place(source)))

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as a TOML document, every value spelled out; `from_dict` returns an equal recipe."""
        table = {key: _plain(getattr(self, key)) for key in self.__struct_fields__}
        if self.fallback is None:
            del table["fallback"]
        return table | {"activations": _FLOAT if self.activations is None else table["activations"]}

    def to_toml(self) -> str:
        """Return the recipe as TOML text, for the record."""
        return toml.write(self.to_dict())

    def plan(self, rule: Rule | None = None) -> LayerPlan:
        """Return the plan of the layers that `rule` decides about, by default of those that no rule matches."""
        if rule is None:
            return LayerPlan(
                self.weights,
                self.range,
                self.rounding,
                self.activations,
                self.activation_range,
                None if isinstance(self.static_error_limit, str) else self.static_error_limit,
                self.massive_inputs,
                self.bias_correction,
            )
        return _merge(self.plan(), rule, Place(f"recipe {self.name}"))

    def check(self) -> None:
        """Check the options of every method that the recipe names; this imports the methods' files.

        Raises: RecipeError naming the key, what was got and what is allowed.
        """
        place = Place(f"recipe {self.name}")
        plans = [(place, self.plan())]
        plans += [
            (place.at("rules", str(i)), self.plan(rule)) for i, rule in enumerate(self.rules) if not rule.keep_float
        ]
        for where, plan in plans:
            for key, folder in _FOLDERS.items():
                _load_options(folder, getattr(plan, key), where.at(key))
        for kind in _METHODS:
            for index, choice in enumerate(getattr(self, kind)):
                _load_options(kind, choice, place.at(kind, str(index)))


def resolve(recipe: Recipe, layer_names: Iterable[str]) -> dict[str, LayerPlan | None]:
    """Return the plan of every layer, in the order given; None for a layer that stays float.

    The last rule that matches a layer decides about it.
    Raises: RecipeError if a rule matches none of the layers.
    """
    layers = tuple(layer_names)
    plans: dict[str, LayerPlan | None] = dict.fromkeys(layers, recipe.plan())
    for index, rule in enumerate(recipe.rules):
        matched = [layer for layer in layers if rule.matches(layer)]
        if not matched:
            patterns = " or ".join(map(repr, rule.layers))
            endings = ", ".join(sorted({layer.rsplit(".", 1)[-1] for layer in layers}))
            raise RecipeError(
                f"recipe {recipe.name}: rules.{index}.layers, {patterns}, matches none of the {len(layers)} layers; "
                f"their names are like {next(iter(layers), 'x')!r} and end in {endings}"
            )
        plans.update(dict.fromkeys(matched, None if rule.keep_float else recipe.plan(rule)))
    return plans


# Presets, files and --set


def presets() -> tuple[str, ...]:
    """Return the names of the recipes that come with zeropoint, sorted: the files in presets/."""
    folder = resources.files("zeropoint") / "presets"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def preset_text(name: str) -> str:
    """Return the TOML text of a preset, comments included.

    Raises: RecipeError, naming the presets and the nearest of them, when none has that name.
    """
    if name not in presets():
        raise RecipeError(
            f"no recipe is called {name!r}; there are {', '.join(presets())}{find.nearest(name, presets())} "
            "(for a recipe of your own give the path of a file whose name ends in .toml)"
        )
    return (resources.files("zeropoint") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return a preset, or the recipe in a .toml file, with single values replaced.

    overrides: "KEY=VALUE" each, such as "rounding=rtn", "weights.bits=3" or "rules.0.keep_float=true". VALUE is a TOML
    value, or else text. Where it chooses another method or granularity, the options of the former one go, but for those
    that are set here too.
    Raises: RecipeError for an unknown name, a file that cannot be read or is not TOML, and all that `Recipe` refuses.
    """
    text, source, name = _open_recipe(name_or_path)
    document = toml.parse(text, source)
    document.setdefault("name", name)
    return _overridden(document, overrides, source)


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return the recipe with single values replaced, as `load_recipe` does it."""
    return _overridden(recipe.to_dict(), overrides, recipe.name)


def _overridden(document: dict[str, Any], overrides: Sequence[str], source: str) -> Recipe:
    changes = [_split_override(text) for text in overrides]
    asked = {keys for keys, _ in changes}
    for text, (keys, value) in zip(overrides, changes, strict=True):
        try:
            _override(document, keys, value, asked)
        except RecipeError as error:
            raise RecipeError(f"{source} --set {text}: {error}") from error
    return Recipe.from_dict(document, source=" --set ".join((source, *overrides)))


def load_recipes(given: Iterable[str | Path | Recipe]) -> dict[str, Recipe]:
    """Return recipes by name: that of the preset, of the file without its ending, or the one a Recipe gives itself.

    Raises: RecipeError as `load_recipe`; for two of one name, or a name that cannot be that of a folder.
    """
    found: dict[str, Recipe] = {}
    for each in given:
        recipe = each if isinstance(each, Recipe) else load_recipe(each)
        name = recipe.name if isinstance(each, Recipe) else Path(each).stem
        if Path(name).name != name or not name.isprintable():
            raise RecipeError(f"a recipe is called {name!r}, which cannot be the name of a folder; give it another one")
        if name in found:
            raise RecipeError(f"two recipes are called {name!r}; leave one out, or give it another name")
        found[name] = recipe
    if not found:
        raise RecipeError(f"no recipe is given; there are {', '.join(presets())}, or give the path of a .toml file")
    return found


def _open_recipe(name_or_path: str | Path) -> tuple[str, str, str]:
    """Return the text of a recipe, its name in messages, and its name unless it gives one itself."""
    path = Path(name_or_path)
    if path.suffix != ".toml" and path.name == str(name_or_path):
        return preset_text(path.name), f"{path.name}.toml", path.name
    try:
        return documents.read_bytes(path, MAX_RECIPE_BYTES).decode(), str(path), path.stem
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}: not TOML: not UTF-8 text (at line {line})") from error
    except documents.MalformedError as error:
        raise RecipeError(f"{path}: {error}; a recipe is a short text") from error
    except OSError as error:
        presets_ = ", ".join(presets())
        raise RecipeError(
            f"{path}: not a readable recipe ({error.strerror}); give a .toml file or one of {presets_}"
        ) from error


def _split_override(text: str) -> tuple[tuple[str, ...], object]:
    key, equals, right = text.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not equals or not all(keys):
        raise RecipeError(f"--set {text}: not KEY=VALUE; write for example rounding=rtn or weights.bits=3")
    value = toml.parse_value(right)
    return ((*keys, "method") if keys[-1] in _FOLDERS and isinstance(value, str) else keys), value


def _override(
    document: dict[str, Any], keys: tuple[str, ...], value: object, asked: Collection[tuple[str, ...]]
) -> None:
    """Put `value` under the keys. asked: all keys that are overridden, which no other override takes away."""
    for end in range(1, len(keys)):
        if keys[end - 1] in _FOLDERS:  # rounding = "gptq" becomes a table, so that rounding.damping has a place
            table = toml.table_at(document, keys[: end - 1], lists=_LISTS)
            if isinstance(table, dict) and isinstance(table.get(keys[end - 1]), str):
                table[keys[end - 1]] = {"method": table[keys[end - 1]]}
    if keys[0] in _METHODS and len(keys) > 1 and document.get(keys[0]):  # and so does ["smoothquant"]
        document[keys[0]] = _as_tables(document[keys[0]])
    if len(keys) > 1 and keys[-2] == "activations":  # of what was float, too
        table = toml.table_at(document, keys[:-2], lists=_LISTS)
        if isinstance(table, dict) and table.get("activations") == _FLOAT:
            table["activations"] = {}
    node = toml.table_at(document, keys[:-1], lists=_LISTS)
    if isinstance(node, dict):
        stale: list[str] = []
        if keys[-1] == "method" and node.get("method", value) != value:
            stale = list(node)
        if keys[-1] == "granularity" and value != "group":
            stale = ["group_size", "super_size"]
        if keys[-2:] == ("activations", "dynamic") and value is True:
            stale = ["symmetric"]
        for key in stale:
            if (*keys[:-1], key) not in asked:
                node.pop(key, None)
    toml.assign(node, keys, value)


# From a document to a recipe


def _read_recipe(table: object, place: Place) -> dict[str, Any]:
    """Return the fields of a recipe, all checked but the options of the methods."""
    given = toml.read_keys(table, place)
    for key in given:
        if key not in Recipe.__struct_fields__:
            raise toml.unknown_key(place.at(key), Recipe.__struct_fields__)
    fields: dict[str, Any] = {key: _read_field(key, value, place.at(key)) for key, value in given.items()}
    plan = LayerPlan(
        fields.get("weights", _DEFAULT.scheme),
        fields.get("range", _DEFAULT.range),
        fields.get("rounding", _DEFAULT.rounding),
        fields.get("activations"),
        fields.get("activation_range", _DEFAULT.activation_range),
    )
    for index, rule in enumerate(fields.get("rules", ())):
        _merge(plan, rule, place.at("rules", str(index)))
    return fields


def _read_field(key: str, value: object, place: Place) -> object:
    match key:
        case "weights" | "fallback":
            return _merge_scheme(_DEFAULT.scheme, _read_scheme_keys(value, place), place)
        case "activations":
            return _merge_input(None, _read_input_keys(value, place) or {"bits": InputScheme().bits}, place)
        case "range" | "rounding" | "activation_range":
            return _merge_choice(getattr(_DEFAULT, key), _read_choice_keys(_FOLDERS[key], value, place))
        case "rules" | "transforms" | "refine":
            return _read_list(key, value, place)
        case "calibration":
            return Calibration(**toml.read_table(Calibration, value, place))
        case _:
            plain = _PLAIN.get(key, str)
            return _read_name("formats", value, place) if key == "format" else toml.read_value(plain, value, place)


def _read_list(key: Literal["rules", "transforms", "refine"], value: object, place: Place) -> tuple[object, ...]:
    if key == "rules":
        return tuple(_read_rule(item, at) for item, at in _items(value, place))
    return tuple(_read_method(key, item, at) for item, at in _items(_as_tables(value), place))


def _items(value: object, place: Place) -> Iterator[tuple[dict[str, Any], Place]]:
    """Yield the tables of a list, each with its place."""
    for index, item in enumerate(toml.read_value(list[dict[str, Any]], value, place)):
        yield item, place.at(str(index))


def _as_tables(value: object) -> object:
    """Return a list of methods with a table for each that is only named; one name alone is a list of it."""
    items = [value] if isinstance(value, str) else value
    return [{"method": item} if isinstance(item, str) else item for item in items] if isinstance(items, list) else items


def _read_method(kind: Literal["transforms", "refine"], table: object, place: Place) -> Choice:
    given = _read_choice_keys(kind, table, place)
    if "method" not in given:
        known = ", ".join(map(repr, find.names(kind)))
        raise RecipeError(f"{place} names no method; allowed is one of {known}")
    return Choice(given.pop("method"), given)


def _read_rule(table: object, place: Place) -> Rule:
    given = toml.read_keys(table, place)
    for key in given:
        if key not in Rule.__struct_fields__:
            raise toml.unknown_key(place.at(key), Rule.__struct_fields__)
    patterns = given.get("layers", [])
    layers = toml.read_value(tuple[str, ...], [patterns] if isinstance(patterns, str) else patterns, place.at("layers"))
    if not layers:
        raise RecipeError(f'{place} names no layers; write for example layers = "*.down_proj"')
    try:
        compile_quick(layers)
    except PatternError as error:
        raise RecipeError(f"{place.at('layers')}: {error}") from error
    keep_float = toml.read_value(bool, given.get("keep_float", False), place.at("keep_float"))
    differs = [key for key in ("weights", "activations", *_FOLDERS) if given.get(key)]
    if keep_float and differs:
        raise RecipeError(f"{place} keeps its layers float and gives {' and '.join(differs)}; leave one of the two out")
    return Rule(
        layers=layers,
        keep_float=keep_float,
        weights=_read_scheme_keys(given.get("weights", {}), place.at("weights")),
        activations=_read_input_keys(given.get("activations", {}), place.at("activations")),
        **{key: _read_choice_keys(folder, given.get(key, {}), place.at(key)) for key, folder in _FOLDERS.items()},
    )


def _read_scheme_keys(table: object, place: Place) -> dict[str, Any]:
    return toml.read_table(Scheme, table, place, limits=_SCHEME_LIMITS)


def _read_input_keys(value: object, place: Place) -> dict[str, Any] | Literal["float"]:
    if value == _FLOAT:
        return _FLOAT
    if not isinstance(value, Mapping):
        raise RecipeError(f"{place} is {value!r}; allowed is 'float', or a table such as {{ dynamic = true }}")
    return toml.read_table(InputScheme, value, place, limits=_INPUT_LIMITS)


def _read_choice_keys(kind: ChoiceKind, value: object, place: Place) -> dict[str, Any]:
    given = {"method": value} if isinstance(value, str) else dict(toml.read_keys(value, place))
    if "method" in given:
        given["method"] = _read_name(kind, given["method"], place if isinstance(value, str) else place.at("method"))
    return given


def _read_name(kind: str, value: object, place: Place) -> str:
    """Return the name of a file in the folder `kind`; the folder is listed, nothing in it is imported."""
    known = find.choices(kind)
    if not isinstance(value, str) or value not in known:
        near = find.nearest(str(value), known)
        raise RecipeError(f"{place} is {value!r}; allowed is one of {', '.join(map(repr, known))}{near}")
    return value


def _merge(plan: LayerPlan, rule: Rule, place: Place) -> LayerPlan:
    return replace(
        plan,
        scheme=_merge_scheme(plan.scheme, rule.weights, place.at("weights")),
        range=_merge_choice(plan.range, rule.range),
        rounding=_merge_choice(plan.rounding, rule.rounding),
        activations=_merge_input(plan.activations, rule.activations, place.at("activations")),
        activation_range=_merge_choice(plan.activation_range, rule.activation_range),
    )


def _merge_scheme(scheme: Scheme, given: Mapping[str, Any], place: Place) -> Scheme:
    none = {"super_size": None} if given.get("super_size") == _NO_LIMIT else {}
    merged = replace(scheme, **{**given, **none})
    if merged.granularity == "group":
        return replace(merged, group_size=merged.group_size or Scheme().group_size)
    if given.get("group_size") is not None:
        raise RecipeError(
            f"{place.at('group_size')} is {merged.group_size}, but granularity is {merged.granularity!r}; "
            "leave it out, or write granularity = 'group'"
        )
    return replace(merged, group_size=None)


def _merge_input(
    scheme: InputScheme | None, given: Mapping[str, Any] | Literal["float"], place: Place
) -> InputScheme | None:
    if isinstance(given, str):
        return None
    if not given:
        return scheme
    if scheme is None and set(given) == {"outlier_threshold"}:
        raise RecipeError(
            f"{place.at('outlier_threshold')} is {given['outlier_threshold']!r}, but the inputs here are float; "
            "leave it out, or round them: write dynamic = true or false beside it"
        )
    none = {"outlier_threshold": None} if given.get("outlier_threshold") == _NO_LIMIT else {}
    merged = replace(scheme or InputScheme(), **{**given, **none})
    if not merged.dynamic:
        return merged
    if given.get("symmetric") is False:
        raise RecipeError(
            f"{place.at('symmetric')} is False, but a dynamic scale goes with zero point 0; leave it out, or write "
            "dynamic = false"
        )
    return replace(merged, symmetric=True)


def _merge_choice(choice: Choice, given: Mapping[str, Any]) -> Choice:
    """Return the choice with the keys given; options of one method mean nothing to another and are not taken over."""
    method = given.get("method", choice.method)
    kept = choice.options if method == choice.method else {}
    return Choice(method, kept | {key: value for key, value in given.items() if key != "method"})


def _load_options(kind: ChoiceKind, choice: Choice, place: Place) -> msgspec.Struct:
    options: type[msgspec.Struct] = find.load(kind, choice.method, error=RecipeError).Options
    return options(**toml.read_table(options, choice.options, place))


def _plain(value: object) -> object:
    """Return a part of a recipe as TOML has it; what is no part of a recipe comes back as it is, to be refused."""
    match value:
        case Scheme() | InputScheme():
            table = asdict(value)
            if isinstance(value, Scheme) and (value.granularity != "group" or value.group_size is None):
                del table["group_size"]
            for key in ("scale_bits", "super_size"):
                if isinstance(value, Scheme) and getattr(value, key) is None:
                    del table[key]
            if isinstance(value, InputScheme) and value.outlier_threshold is None:
                del table["outlier_threshold"]
            return table
        case Choice():
            return {"method": value.method, **value.options}
        case Rule():
            given = {key: _plain(getattr(value, key)) for key in Rule.__struct_fields__}
            return {key: item for key, item in given.items() if item or key == "layers"}
        case Calibration():
            return msgspec.structs.asdict(value)
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value
