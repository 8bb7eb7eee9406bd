"""From tokenizer.json and the files beside it to the tokenizer of a GGUF file.

    gpt2     byte-level BPE: tokens, merges, and the name of the rule that cuts text ("pre"), one of checkpoint's CUTS
    llama    BPE over characters with byte fallback: tokens, and a score for each instead of merges

What is not one of these is refused, by the part that is not known. Then the description is put to the proof: the
tokenizer is made anew of it, as a reader of the file makes it, and has to give the tokens of tokenizer.json on a text.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.checkpoint.gguf_tokenizer import (
    CONTROL,
    CUTS,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    make_tokenizer,
    merges_from_scores,
    pre_tokenizer,
)
from zeropoint.checkpoint.reader import Checkpoint
from zeropoint.checkpoint.tokenizer import Tokenizer, load_tokenizer
from zeropoint.errors import CheckpointError
from zeropoint.observe.data import bundled_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

UNUSED, BYTE = 5, 6
"""More of tokenizer.ggml.token_type."""

PROOF_CHARS = 20_000
"""Of the bundled text, tokenized both ways."""

HARD = (
    " two  spaces and   three", "tabs\tand\n\n\nlines \n", "1234567 and 3.14, 2024-01-31", "it's WE'LL don't I'M",
    "naïve Ærøskøbing, 你好世界 こんにちは мир", "def f(x):\n    return x**2  # 🙂🙃\n", "<html>&amp;</html>",
)  # fmt: skip

ADVICE = "give the model to the converter of llama.cpp for its tokenizer, or run the folder"


@dataclass(frozen=True)
class Described:
    """fields: metadata by key. notes: where llama.cpp reads a text otherwise."""

    fields: Mapping[str, Any]
    notes: tuple[str, ...]


def describe(checkpoint: Checkpoint, vocab_size: int) -> Described:
    """Return the metadata of a checkpoint's tokenizer. vocab_size: rows of the embedding.

    Raises: CheckpointError if there is no tokenizer.json, or GGUF cannot say what is in it, naming the part.
    """
    tokenizer = load_tokenizer(checkpoint)
    state = json.loads(tokenizer.backend.to_str())
    where = f"{checkpoint.path}/tokenizer.json"
    tokens, types = _tokens(tokenizer, state, vocab_size, where)
    model = state["model"]
    if model.get("type") != "BPE":
        raise CheckpointError(f"{where}: a {model.get('type')} tokenizer; of BPE a GGUF file can be made; {ADVICE}")
    kind = _sentencepiece if model.get("byte_fallback") else _byte_level
    fields, notes = kind(state, tokens, types, where)
    fields = {
        **fields,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        **_special(tokenizer, state, where),
    }
    if tokenizer.chat_template is not None:
        fields["tokenizer.chat_template"] = tokenizer.chat_template
    _require_same(tokenizer.backend, fields, where)
    return Described(fields, (*notes, *_spaces(state)))


def _tokens(tokenizer: Tokenizer, state: Mapping[str, Any], vocab_size: int, where: str) -> tuple[list[str], list[int]]:
    """Return the text and the type of every row of the embedding."""
    found = {number: token for token, number in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    if found and max(found) >= vocab_size:
        raise CheckpointError(f"{where}: has the token {max(found)}, and the embedding {vocab_size} rows; {ADVICE}")
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in state["added_tokens"]}
    unknown = state["model"].get("unk_token")
    types = []
    for number in range(vocab_size):
        token = found.get(number)
        if token is None:
            types.append(UNUSED)
        elif token == unknown and state["model"].get("byte_fallback"):
            types.append(UNKNOWN)
        else:
            types.append(added.get(number, NORMAL))
    return [found.get(number, f"[PAD{number}]") for number in range(vocab_size)], types


def _byte_level(
    state: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], where: str
) -> tuple[dict[str, Any], list[str]]:
    model = state["model"]
    cut = _plain(state["pre_tokenizer"])
    ignores = bool(model.get("ignore_merges"))
    known = {name: (_plain(_state_of(name)), each.ignore_merges) for name, each in CUTS.items()}
    pre = next((name for name, its in known.items() if its == (cut, ignores)), None)
    if pre is None:
        raise CheckpointError(
            f"{where}: pre_tokenizer is {json.dumps(cut)[:300]} with ignore_merges = {json.dumps(ignores)}, a rule for "
            f"cutting text whose name in llama.cpp is not known here; those of {', '.join(CUTS)} are; {ADVICE}"
        )
    notes = []
    if state["normalizer"] is not None:
        if state["normalizer"] != {"type": "NFC"}:
            raise CheckpointError(
                f"{where}: the normalizer {json.dumps(state['normalizer'])[:200]} is not in GGUF; {ADVICE}"
            )
        notes.append("the tokenizer composes accents first (NFC), llama.cpp does not: rare texts get other tokens")
    merges = [" ".join(pair) for pair in _pairs(model["merges"])]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": merges}, notes


def _sentencepiece(
    state: Mapping[str, Any], tokens: Sequence[str], types: list[int], where: str
) -> tuple[dict[str, Any], list[str]]:
    """Return scores in place of merges, and mark the tokens of single bytes in `types`."""
    for number, token in enumerate(tokens):
        if types[number] == NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[number] = BYTE
    merges = list(_pairs(state["model"]["merges"]))
    ranks = {piece: rank for rank, piece in enumerate(dict.fromkeys("".join(pair) for pair in merges))}
    scores = [
        -float(ranks.get(token, len(ranks) + number)) if kind == NORMAL else 0.0
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
    ]
    mergeable = {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    again = merges_from_scores(mergeable, {token: number for number, token in enumerate(tokens)})
    if _by_piece(again) != _by_piece(merges):
        raise CheckpointError(
            f"{where}: its merges are not those of any scores, and llama.cpp merges by scores where bytes are "
            f"the fallback; {ADVICE}"
        )
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": _space_prefix(state, where),
    }
    return fields, []


def _space_prefix(state: Mapping[str, Any], where: str) -> bool:
    """Say whether a text begins with a space that is not in it. Raises: CheckpointError for what GGUF cannot say."""
    spell = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer, cut = state["normalizer"], state["pre_tokenizer"]
    if cut is None:
        if normalizer == {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spell]}:
            return True
        if normalizer == spell:
            return False
    if normalizer is None and cut is not None and cut.get("type") == "Metaspace" and cut.get("split") is False:
        return bool(cut.get("prepend_scheme") != "never")
    raise CheckpointError(
        f"{where}: normalizer {json.dumps(normalizer)[:200]} with pre_tokenizer {json.dumps(cut)[:200]} is not what "
        f"GGUF has beside scores; {ADVICE}"
    )


def _special(tokenizer: Tokenizer, state: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the ids of special tokens, and whether a text begins or ends with one."""
    backend = tokenizer.backend
    fields: dict[str, Any] = {}
    ends = list(tokenizer.eos_ids)
    named = backend.token_to_id(tokenizer.named.get("eos_token", ""))
    if named is not None:
        ends = [named, *(token for token in ends if token != named)]
    for key, token in zip(("eos", "eot", "eom"), ends, strict=False):
        fields[f"tokenizer.ggml.{key}_token_id"] = token
    fallen_back = {"bos": tokenizer.bos_id, "unk": backend.token_to_id(state["model"].get("unk_token") or "")}
    for ours, theirs in (("bos", "bos"), ("pad", "padding"), ("unk", "unknown")):
        number = backend.token_to_id(tokenizer.named.get(f"{ours}_token", ""))
        number = fallen_back.get(ours) if number is None else number
        if number is not None:
            fields[f"tokenizer.ggml.{theirs}_token_id"] = number
    bare, edged = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=True)
    at = next((i for i in range(len(edged)) if edged[i : i + len(bare)] == bare), len(edged))
    before, after = edged[:at], edged[at + len(bare) :]
    for kind, edge in (("bos", before), ("eos", after)):
        if edge and edge != [fields.get(f"tokenizer.ggml.{kind}_token_id")]:
            raise CheckpointError(
                f"{where}: puts the tokens {edge} {'before' if kind == 'bos' else 'behind'} a text, and a GGUF "
                f"file can only say {kind}; {ADVICE}"
            )
        fields[f"tokenizer.ggml.add_{kind}_token"] = bool(edge)
    return fields


def _require_same(backend: Backend, fields: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError if the tokenizer that the metadata describes gives other tokens than tokenizer.json."""
    again = make_tokenizer(fields, Path(where))
    text = Path(bundled_text("judge")).read_text(encoding="utf-8")[:PROOF_CHARS]
    for sample in (text, *HARD):
        wanted, found = (list(each.encode(sample, add_special_tokens=True).ids) for each in (backend, again))
        if wanted != found:
            at = next(i for i, pair in enumerate(itertools.zip_longest(wanted, found)) if pair[0] != pair[1])
            raise CheckpointError(
                f"{where}: a GGUF file would cut {sample[:40]!r} otherwise from token {at} on "
                f"({wanted[at : at + 4]} here, {found[at : at + 4]} there); {ADVICE}"
            )


def _spaces(state: Mapping[str, Any]) -> list[str]:
    eating = [token["content"] for token in state["added_tokens"] if token["lstrip"] or token["rstrip"]]
    if not eating:
        return []
    return [f"{len(eating)} special tokens, like {eating[0]}, take spaces beside them; llama.cpp may not"]


def _state_of(name: str) -> Any:
    return json.loads(pre_tokenizer(CUTS[name]).__getstate__())


def _plain(step: Any) -> Any:
    """Return a pre_tokenizer's state with nothing in it that does not change tokens."""
    if not isinstance(step, dict):
        return step
    steps = step.get("pretokenizers")
    if steps is not None:
        return _plain(steps[0]) if len(steps) == 1 else [_plain(each) for each in steps]
    return {key: value for key, value in step.items() if key != "trim_offsets"}


def _pairs(merges: Iterable[Any]) -> Iterable[tuple[str, str]]:
    """Yield merges as pairs; older files have them as texts."""
    for merge in merges:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield left, right


def _by_piece(merges: Iterable[tuple[str, str]]) -> list[tuple[str, set[tuple[str, str]]]]:
    """Return merges by what they make, in order; which of two ways to one piece comes first is nobody's business."""
    return [(piece, set(ways)) for piece, ways in itertools.groupby(merges, key="".join)]
