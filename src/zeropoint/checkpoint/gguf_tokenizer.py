"""From the metadata of a GGUF file to tokenizer.json and the other files beside the weights of a Hugging Face folder.

A GGUF file holds the vocabulary, the merges or the scores, and the *name* of the rule by which text is cut before
merging ("pre"). Only rules whose cut has been checked against a second source are listed; another one is refused by its
name, because a wrong cut gives plausible tokens and a worse model (docs/decisions/0003-gguf-tokenizer.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.checkpoint.tokenizer_bounds import package_errors
from zeropoint.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4

GPT2_REGEX = None  # the one that tokenizers' ByteLevel has built in
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_REGEX = LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class Cut:
    """How text is cut into the pieces inside which bytes are merged.

    regex: each match is a piece, and so is what lies between two; None for GPT-2's. single_digits: cut around each
    digit first. ignore_merges: a piece that is in the vocabulary is a token, whether merges lead to it or not.
    bos: whether a text begins with the bos token where the file does not say.
    """

    regex: str | None
    single_digits: bool = False
    ignore_merges: bool = False
    bos: bool = False


CUTS: Mapping[str, Cut] = {
    "gpt-2": Cut(GPT2_REGEX),
    "smollm": Cut(GPT2_REGEX, single_digits=True),
    "starcoder": Cut(GPT2_REGEX, single_digits=True),
    "qwen2": Cut(QWEN2_REGEX),
    "llama-bpe": Cut(LLAMA3_REGEX, ignore_merges=True, bos=True),
    "llama3": Cut(LLAMA3_REGEX, ignore_merges=True, bos=True),
    "llama-v3": Cut(LLAMA3_REGEX, ignore_merges=True, bos=True),
    "olmo": Cut(GPT2_REGEX),
    "dbrx": Cut(LLAMA3_REGEX),
    "smaug-bpe": Cut(LLAMA3_REGEX),
}


def make_side_files(metadata: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> dict[str, bytes]:
    """Return tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja if the file has one.

    Raises: CheckpointError if the metadata describes a tokenizer that is not covered, or is inconsistent.
    """
    tokens = _texts(metadata, "tokenizer.ggml.tokens", path)
    named = {kind: config.get(f"{kind}_token_id") for kind in ("bos", "eos", "pad", "unk")}
    tokenizer_config = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        # the class that takes tokenizer.json as it is; a model's own class would rebuild parts of it
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{kind}_token": tokens[token] for kind, token in named.items() if token is not None},
    }
    generation = {f"{kind}_token_id": named[kind] for kind in ("bos", "pad") if named[kind] is not None}
    ends = _end_tokens(metadata, named["eos"], len(tokens))
    if ends:
        generation["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    files = {
        "tokenizer.json": make_tokenizer(metadata, path).to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(tokenizer_config),
        "generation_config.json": _json(generation),
    }
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        files["chat_template.jinja"] = template.encode()
    return files


def make_tokenizer(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """Return the tokenizer that the metadata describes.

    Raises: CheckpointError if its kind or its cut is not covered, or if tokens, types, scores or merges do not fit.
    """
    from tokenizers import AddedToken

    kind = metadata.get("tokenizer.ggml.model")
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in makers:
        raise CheckpointError(
            f"{path}: tokenizer.ggml.model is {str(kind)[:60]!r}; {', '.join(makers)} are covered{_OTHERWISE}"
        )
    tokens = _texts(metadata, "tokenizer.ggml.tokens", path)
    if len(set(tokens)) < len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise CheckpointError(
            f"{path}: the token {twice!r} is there twice, which tokenizer.json cannot say{_OTHERWISE}"
        )
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise CheckpointError(
            f"{path}: tokenizer.ggml.token_type does not have one entry for each of {len(tokens)} tokens"
        )
    with package_errors(f"{path}: the tokenizer's metadata does not fit together", _OTHERWISE):
        tokenizer = makers[kind](metadata, tokens, types, path)
        tokenizer.add_tokens(
            [
                AddedToken(token, special=kind != USER_DEFINED, normalized=False)
                for token, kind in zip(tokens, types, strict=True)
                if kind in (CONTROL, USER_DEFINED) or (kind == UNKNOWN and tokenizer.model.unk_token == token)
            ]
        )
    return tokenizer


_OTHERWISE = "; give the Hugging Face folder that the file was converted from"


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int], path: Path) -> Tokenizer:
    """Return a byte-level BPE: bytes spelled as printable characters, merged in the order of `merges`."""
    from tokenizers import Tokenizer, decoders, models

    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in CUTS:
        raise CheckpointError(
            f"{path}: tokenizer.ggml.pre is {str(name)[:60]!r}, a rule for cutting text that is not covered; "
            f"{', '.join(CUTS)} are{_OTHERWISE}"
        )
    cut = CUTS[name]
    merges = [_pair(merge, path) for merge in _texts(metadata, "tokenizer.ggml.merges", path)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=cut.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer(cut)
    tokenizer.decoder = decoders.ByteLevel()
    _add_edges(tokenizer, metadata, tokens, bos=cut.bos)
    return tokenizer


def pre_tokenizer(cut: Cut) -> PreTokenizer:
    """Return what cuts text so."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[PreTokenizer] = []
    if cut.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if cut.regex is not None:
        steps.append(pre_tokenizers.Split(Regex(cut.regex), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.regex is None))
    return pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int], path: Path) -> Tokenizer:
    """Return a BPE over characters, spaces spelled "▁", whose pair with the best score is merged first.

    What is in no token falls back to the tokens of its UTF-8 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    for key in ("tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.remove_extra_whitespaces"):
        if metadata.get(key):
            raise CheckpointError(f"{path}: {key} changes the text before it is cut, which is not covered{_OTHERWISE}")
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CheckpointError(f"{path}: tokenizer.ggml.scores does not have one score for each of {len(tokens)} tokens")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    mergeable = {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges_from_scores(mergeable, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spell, read = normalizers.Replace(" ", "▁"), decoders.Replace("▁", " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spell]) if prefixed else spell
    ends = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence([read, decoders.ByteFallback(), decoders.Fuse(), *ends])
    _add_edges(tokenizer, metadata, tokens, bos=True)
    return tokenizer


def merges_from_scores(scores: Mapping[str, float], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return every way to make a piece of two others, best score first.

    sentencepiece merges the adjacent pair whose joint piece scores highest, so the score of the result ranks the pair;
    among the ways to one piece the order follows transformers' converter of sentencepiece models.
    """
    found = []
    for piece, score in scores.items():
        for middle in range(1, len(piece)):
            left, right = piece[:middle], piece[middle:]
            if left in scores and right in scores:
                found.append((-score, -len(left), -len(right), vocabulary[left], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_edges(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str], *, bos: bool) -> None:
    """Let `encode(..., add_special_tokens=True)` put bos and eos where the file says, or else where llama.cpp does."""
    from tokenizers import processors

    edges = {}
    for kind, default in (("bos", bos), ("eos", False)):
        token = metadata.get(f"tokenizer.ggml.{kind}_token_id")
        wanted = metadata.get(f"tokenizer.ggml.add_{kind}_token", default)
        edges[kind] = [tokens[token]] if wanted and token is not None else []
    if any(edges.values()):
        single = " ".join([*edges["bos"], "$A", *edges["eos"]])
        special = [(token, tokens.index(token)) for edge in edges.values() for token in edge]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)


def _end_tokens(metadata: Mapping[str, Any], eos: int | None, count: int) -> list[int]:
    """Return the tokens that end a generation: of the text, of a turn, of a message to a tool."""
    others = (metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eot", "eom"))
    found = [eos, *(token for token in others if type(token) is int and 0 <= token < count)]
    return list(dict.fromkeys(token for token in found if token is not None))


def _texts(metadata: Mapping[str, Any], key: str, path: Path) -> list[str]:
    texts = metadata.get(key)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise CheckpointError(f"{path}: {key} is no list of texts; the file holds no tokenizer{_OTHERWISE}")
    return texts


def _pair(merge: str, path: Path) -> tuple[str, str]:
    left, found, right = merge.partition(" ")
    if not found:
        raise CheckpointError(f"{path}: tokenizer.ggml.merges has {merge[:60]!r}, which is no pair{_OTHERWISE}")
    return left, right


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
