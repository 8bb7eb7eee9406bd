"""What the fuzzer (tests/fuzz) has found, each with the least that shows it, and what it cannot be told to look for."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend

from tiny import byte_level_tokenizer, make_llama
from zeropoint import documents, toml
from zeropoint.checkpoint import rendering
from zeropoint.checkpoint.journal import Journal, Step, line_of
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import Tokenizer, find_tokenizer
from zeropoint.checkpoint.tokenizer_bounds import BoundsError, require_bounded
from zeropoint.checkpoint.writer import Writer
from zeropoint.errors import ArchitectureError, CheckpointError, InputError, OutputError, RecipeError, TextError
from zeropoint.evaluation.results import Probe, Text
from zeropoint.formats import compressed_tensors
from zeropoint.models import load_model
from zeropoint.observe import data
from zeropoint.patterns import PatternError, compile_quick, require_quick
from zeropoint.recipe import load_recipe
from zeropoint.runtime.weights import Weights
from zeropoint.types import divisors
from zeropoint.verification import _require_probe

CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 260,
}  # fmt: skip
SIZES = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 32, "vocab": 260}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_llama(tmp_path / "model", **SIZES)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# Messages


def test_a_message_is_printable_and_not_long() -> None:
    message = str(InputError("a\x1b[2J\ud800\u202e\n" + "é" * 100_000 + " the end"))
    assert message.startswith("a\\x1b[2J\\ud800\\u202e\né")
    assert message.endswith("é the end")
    assert len(message) < 2100


# JSON


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "holds NaN"),
        ('{"a": 1e999}', "holds inf"),
        ('{"a": 1, "a": 2}', "says the same thing twice"),
        ('{"a": "\\ud800"}', "half of a character"),
        ('{"\\udfff": 1}', "half of a character"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ("[" * 100_000, "nested more than 64 deep"),
        ("1" * 50, "a whole number of"),
        ("1" * 5000, "is not JSON"),
        ('{"a": }', "is not JSON"),
    ],
)
def test_json_that_breaks_what_reads_on_is_refused(text: str, reason: str) -> None:
    with pytest.raises(documents.MalformedError, match=reason):
        documents.parse_json(text.encode())


def test_json_as_models_have_it_is_read() -> None:
    found = {"model_max_length": 1000000000000000019884624838656, "a": [[[-1.5, None, True, "ü\0"]]]}
    assert documents.parse_json(json.dumps(found).encode()) == found


def test_a_file_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(documents.MalformedError, match="larger than 1000 bytes"):
        documents.read_bytes(Path("/dev/zero"), 1000)


# config.json


@pytest.mark.parametrize("value", ["4", [4], {}, 0, -1, 4.5, True, 1 << 31, float("nan")])
@pytest.mark.parametrize(
    "key", ["hidden_size", "num_key_value_heads", "head_dim", "max_position_embeddings", "num_hidden_layers"]
)
def test_a_size_that_is_none_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ArchitectureError, match=rf"{key} is .*a positive integer up to"):
        load_model({**CONFIG, key: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'; a number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"rope_theta": []}, r"rope_theta is \[\]"),
        ({"rope_parameters": 3}, "rope_parameters is 3; a table"),
        ({"rope_parameters": {"rope_type": ["linear"]}}, "rope type"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor is 0"),
        ({"rope_parameters": {"rope_type": "linear", "factor": None}}, "factor is None"),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
            "low_freq_factor of the rope must be below",
        ),
        ({"partial_rotary_factor": "1"}, "partial_rotary_factor is '1'"),
        ({"attention_bias": "false"}, "attention_bias is 'false'; true or false"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"model_type": "mistral", "sliding_window": "4096"}, "sliding_window is '4096'"),
    ],
)
def test_a_config_value_of_a_wrong_kind_is_refused_by_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        load_model({**CONFIG, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, r"has the shape \(32,\), and by config.json \(64,\)"),
        ({"vocab_size": 259}, r"embed_tokens.weight has the shape \(260, 32\), and by config.json \(259, 32\)"),
        ({"intermediate_size": 30}, r"(gate|up|down)_proj.weight has the shape"),
        ({"num_key_value_heads": 2}, r"k_proj.weight has the shape \(16, 32\), and by config.json \(32, 32\)"),
        ({"num_hidden_layers": 10_000}, "num_hidden_layers is 10000, and there are 11 tensors"),
        ({"quantization_config": 3}, "quantization_config is '3'; a table"),
    ],
)
def test_a_config_that_belongs_to_another_model_is_refused(model: Path, changes: dict[str, Any], message: str) -> None:
    edit(model / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        Weights(open_checkpoint(model))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32])
def test_integers_and_float8_are_not_taken_for_weights(model: Path, dtype: torch.dtype) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is stored as (F8_E4M3|I32), and nothing says how"):
        Weights(open_checkpoint(model))


def test_a_tensor_name_without_an_end_is_refused(model: Path) -> None:
    save_file({"1" * 5000: torch.zeros(1)}, model / "model.safetensors")
    with pytest.raises(CheckpointError, match="has 5000 characters"):
        open_checkpoint(model)


# Regular expressions


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|aa)*$", "(?:a|.)*b", "(a*)*", "a*" * 5, "a?" * 30, "(a|b|)" * 30, "(?=(a+)+b)", "(a{1,9}){1,99}b"],
)
def test_a_pattern_that_could_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="takes too long"):
        compile_quick([f"re:{pattern}"])


@pytest.mark.parametrize(
    "pattern",
    [r"(.)\1", r"(?P<a>.)(?P=a)",
     "(a)(?(1)b|c)", "(?x)a # (", "a{9999}", "(" * 60 + ")" * 60, "(?i:a", "[a", "a" * 20_000],
)  # fmt: skip
def test_a_pattern_that_cannot_be_counted_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        compile_quick([f"re:{pattern}"])


def test_patterns_that_are_used_are_taken() -> None:
    targets = [
        r"re:.*self_attn\.(q|k|v)_proj$", r"re:.*\.layers\.\d+\.mlp\.(?:gate|up|down)_proj", "re:.*lm_head", "Linear",
        r"re:model\.layers\.(1[0-9]|2[0-3])\..*", r"re:^(?!.*vision).*_proj(?:\.\d{1,2})?$", "re:[]a-z^]{2,}[^]]",
    ]  # fmt: skip
    assert list(compile_quick(targets)) == [target for target in targets if target != "Linear"]
    require_quick(
        [r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?[\p{Lu}[a-z]]*[\p{Ll}\p{M}]+|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+"]
    )


def test_the_slowest_pattern_that_is_taken_takes_no_second() -> None:
    pattern = compile_quick(["re:" + ".*" * 4 + "!"])["re:" + ".*" * 4 + "!"]
    started = time.process_time()
    assert pattern.match("model.layers.10.self_attn.q_proj.weight") is None
    assert time.process_time() - started < 1


def test_many_patterns_count_together() -> None:
    one = "re:" + "[a-z]*" * 4
    compile_quick([one])
    with pytest.raises(PatternError, match="takes too long"):
        compile_quick([f"{one}{index}" for index in range(9)])


@pytest.mark.parametrize("place", ["targets", "ignore"])
def test_a_checkpoint_s_pattern_cannot_hang(place: str) -> None:
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "channel"}}
    config = {"config_groups": {"0": group}, "quantization_status": "compressed", "format": "pack-quantized"}
    if place == "targets":
        group["targets"] = ["re:(.*)*x"]
    else:
        config["ignore"] = ["re:(.*)*x"]
    with pytest.raises(CheckpointError, match=r"'re:\(\.\*\)\*x' can lie on a name in too many ways"):
        compressed_tensors.schemes(config, ["model.layers.0.self_attn.q_proj"])


def test_a_recipe_s_pattern_cannot_hang() -> None:
    with pytest.raises(RecipeError, match=r"rules\.0\.layers: 're:\(\.\*\)\*x' can lie on a name in too many ways"):
        load_recipe("w4a16", ['rules.0.layers="re:(.*)*x"', "rules.0.keep_float=true"])


def test_divisors_of_a_large_number_take_no_time() -> None:
    assert divisors(36) == (1, 2, 3, 4, 6, 9, 12, 18, 36)
    assert divisors(2**31 - 1) == (1, 2**31 - 1)


# Recipes


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 10_000, "a = " + "[" * 100 + "]" * 100, "a." * 70 + "a = 1", "[" + "a." * 100_000 + "a]",
     "a = 0x" + "f" * 5000, "a = " + "9" * 5000, "a = 99999999999999999999", "a = nan", "a = inf", "a = '\ud800'"],
)  # fmt: skip
def test_toml_that_breaks_what_reads_on_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"mine\.toml: .*no recipe needs that"):
        toml.parse(text, "mine.toml")


@pytest.mark.parametrize("value", ["\ud800", '"\ud800"', "[" * 10_000, "0x" + "f" * 5000, "{" + "a." * 50_000 + "a=1}"])
def test_an_override_that_breaks_what_reads_on_is_refused(value: str) -> None:
    with pytest.raises(RecipeError, match="no recipe needs that"):
        load_recipe("w4a16", [f"description={value}"])


def test_a_recipe_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").symlink_to("/dev/zero")
    with pytest.raises(RecipeError, match="is larger than"):
        load_recipe(tmp_path / "mine.toml")


# Tokenizers


def with_part(**parts: object) -> Backend:
    return Backend.from_str(json.dumps({**json.loads(byte_level_tokenizer(260).to_str()), **parts}))


def replace(old: dict[str, str], new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": old, "content": new}


def in_sequence(kind: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", kind: steps}


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
TWICE = {"type": "TemplateProcessing", "single": [TEXT, TEXT], "pair": [], "special_tokens": {}}
WORDS = {
    "type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "", "vocab": {"a": 0},
    "max_input_chars_per_word": 10**9,
}  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"normalizer": in_sequence("normalizers", *[replace({"String": "a"}, "aaaaaaaa")] * 12)}, "times as long"),
        ({"normalizer": in_sequence("normalizers", *[in_sequence("normalizers", {"type": "NFKD"})] * 3)}, "as long"),
        ({"normalizer": in_sequence("normalizers", *[{"type": "Prepend", "prepend": "aa"}] * 9)}, "times as long"),
        ({"normalizer": replace({"Regex": ""}, "a" * 5000)}, "times as long"),
        ({"normalizer": replace({"String": ""}, "a" * 5000)}, "times as long"),
        ({"pre_tokenizer": in_sequence("pretokenizers", *[BYTES] * 7)}, "times as long"),
        ({"decoder": in_sequence("decoders", *[replace({"String": "a"}, "aa")] * 12)}, "times as long"),
        ({"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "(a|a)*b"}}}, "a pattern that cannot be used"),
        ({"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "(?<x>a\\g<x>?)"}}}, "a pattern that cannot be used"),
        ({"normalizer": replace({"Regex": "(a+)+$"}, "")}, "a pattern that cannot be used"),
        ({"post_processor": TWICE}, "repeats the text"),
        ({"model": WORDS, "added_tokens": []}, "words of more than"),
    ],
)
def test_a_tokenizer_that_blows_a_text_up_or_hangs_is_refused(parts: dict[str, Any], reason: str) -> None:
    with pytest.raises(BoundsError, match=reason):
        require_bounded(with_part(**parts))


def test_tokenizers_that_are_used_are_taken() -> None:
    albert = [replace({"String": "``"}, '"'), {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
              replace({"Regex": " {2,}"}, " ")]  # fmt: skip
    require_bounded(with_part(normalizer=in_sequence("normalizers", *albert)))
    require_bounded(with_part())


def test_a_panic_of_the_tokenizers_package_is_a_sentence(model: Path) -> None:
    edit(model / "tokenizer.json", pre_tokenizer={"type": "FixedLength", "length": 0})
    tokenizer = find_tokenizer(open_checkpoint(model))
    assert tokenizer is not None
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be used on the text \(chunk size"):
        tokenizer.encode("text")


def test_half_of_a_character_is_no_text(model: Path) -> None:
    tokenizer = find_tokenizer(open_checkpoint(model))
    assert tokenizer is not None
    with pytest.raises(TextError, match=r"half of a character, '\\ud800'"):
        tokenizer.encode("a\ud800")


# Chat templates


def chat(template: str) -> str:
    return Tokenizer(byte_level_tokenizer(260), (), None, template).chat([{"role": "user", "content": "hello"}])


@pytest.fixture
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering._stop()
    monkeypatch.setattr(rendering, "SECONDS", 0.3)


@pytest.mark.usefixtures("little_time")
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than 0.3 s"),
        ("{{ 'a' * 10 ** 12 }}", "too much memory"),
        ("{{ 'a'.ljust(10 ** 12) }}", "too much memory"),
        ("{{ '%0999999999999d' % 1 }}", "too much memory|ValueError|OverflowError"),
        ("{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "memory|0.3 s"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{% include '/proc/version' %}", "TypeError|TemplateError|loader"),
        ("{{ messages[0].append }}{{ messages.append(1) }}", "SecurityError|UndefinedError"),
    ],
)
def test_a_template_is_bounded_and_the_next_one_is_served(template: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        chat(template)
    assert chat("{{ messages[0].content }}") == "hello"


def test_messages_that_are_no_json_are_refused() -> None:
    with pytest.raises(CheckpointError, match="the messages are not JSON"):
        Tokenizer(byte_level_tokenizer(260), (), None, "x").chat([{"role": "user", "content": object()}])


# What a run has written


def test_a_result_of_endless_numbers_is_refused(tmp_path: Path) -> None:
    text = {"name": "t", "sha256": "", "windows": 1, "length": 1}
    for changes in ({"windows": 10**400}, {"windows": "1"}, {"name": ["["] * 9}, {"note": "\\ud800" * 2}):
        raw = json.dumps({**text, **changes}).replace("\\\\u", "\\u")
        (tmp_path / "t.json").write_text(raw)
        with pytest.raises(InputError, match="not Text as zeropoint"):
            Text.load(tmp_path / "t.json")
    (tmp_path / "t.json").write_text('{"x":' * 10_000)
    with pytest.raises(InputError, match="not Text as zeropoint"):
        Text.load(tmp_path / "t.json")


@pytest.mark.parametrize(
    "changes",
    [{"tokens": ()}, {"tokens": (1, 5)},
     {"ids": ((1, 2), (3,))}, {"ids": ((1, 2), (3, -1))}, {"logprobs": ((0.0, 0.0),)}],
)  # fmt: skip
def test_a_probe_of_another_model_is_refused(changes: dict[str, Any]) -> None:
    fine = {"tokens": (1, 2), "ids": ((1, 2), (3, 4)), "logprobs": ((0.0, 0.0), (0.0, 0.0)), "spread": 1.0}
    _require_probe(Probe(**fine), 5)
    with pytest.raises(CheckpointError, match=r"the probe in .* is none of a model with 5 tokens"):
        _require_probe(Probe(**{**fine, **changes}), 5)


def test_a_step_that_holds_something_else_is_refused() -> None:
    step = msgspec.json.decode(line_of(Step(kind="block", data=msgspec.Raw(b"[3]"))))["step"]
    with pytest.raises(CheckpointError, match="a step 'block' is not as this version writes it"):
        msgspec.json.decode(json.dumps(step), type=Step).read(dict[str, str])


def test_a_weight_shape_without_an_end_is_refused() -> None:
    from zeropoint.types import Scheme, StoredArray

    shape = StoredArray(torch.tensor([4, 2**62 + 1]).numpy(), "int64")
    packed = StoredArray(torch.zeros(4, 4, dtype=torch.int32).numpy(), "int32")
    stored = {"a.weight_shape": shape, "a.weight_packed": packed, "a.weight_scale": packed}
    with pytest.raises(CheckpointError, match="no weight is so large"):
        compressed_tensors.read_packed("a", stored, Scheme())


# Links


def test_a_link_to_somebody_s_file_is_not_handed_on(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a key")
    (model / "LICENSE").symlink_to("../secret")
    (tmp_path / "copy").mkdir()
    checkpoint = open_checkpoint(model)
    for act in (checkpoint.files, lambda: checkpoint.copy_side_files(tmp_path / "copy")):
        with pytest.raises(CheckpointError, match=r"LICENSE: is a link to .*secret, outside of the model's folder"):
            act()
    assert list((tmp_path / "copy").iterdir()) == []


def test_links_as_downloads_have_them_are_handed_on(model: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (model / "tokenizer.json").rename(blobs / "0123abcd")
    (model / "tokenizer.json").symlink_to(blobs / "0123abcd")
    (model / "LICENSE").symlink_to("config.json")
    assert {"tokenizer.json", "LICENSE"} < {file.name for file in open_checkpoint(model).files()}


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    """A file in a folder that a hostile link leads to."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    return tmp_path / "mine" / "letter"


def leave_unfinished(out: Path) -> Path:
    """Begin a run, stop it, and return the folder that it keeps its work in."""

    def run() -> None:
        with Writer(out, begun={"a": "1"}) as writer:
            writer.add({"a": torch.zeros(1)})
            writer.step("block", None)
            raise CheckpointError("stop")

    with pytest.raises(CheckpointError, match="stop"):
        run()
    return out.with_name(f".{out.name}.partial")


def test_going_on_removes_nothing_behind_a_link(tmp_path: Path, letter: Path) -> None:
    work = leave_unfinished(tmp_path / "out")
    (work / "model").rmdir()
    (work / "model").symlink_to(letter.parent)
    with Writer(tmp_path / "out", begun={"a": "1"}) as writer:
        assert len(writer.steps) == 1
        assert not (work / "model").is_symlink()
    assert letter.read_text() == "dear"


def test_no_journal_is_read_or_written_behind_a_link(tmp_path: Path, letter: Path) -> None:
    work = leave_unfinished(tmp_path / "out")
    (work / "journal.jsonl").rename(tmp_path / "moved")
    (work / "journal.jsonl").symlink_to(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="no file of its own"):
        Writer(tmp_path / "out", begun={"a": "1"})
    journal = Journal(tmp_path)
    (tmp_path / "journal.jsonl").symlink_to(letter)
    with pytest.raises(OSError, match="symbolic links"):
        journal.append(Step(kind="begin"))
    assert letter.read_text() == "dear"


def test_no_run_works_in_a_folder_behind_a_link(tmp_path: Path, letter: Path) -> None:
    (tmp_path / ".out.partial").symlink_to(letter.parent)
    with pytest.raises(OutputError, match=r"\.out\.partial: is a link"):
        Writer(tmp_path / "out")
    assert letter.read_text() == "dear"


# Texts


def test_a_line_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_LINE_BYTES", 100)
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": "' + "a" * 100)
    with pytest.raises(TextError, match=re.escape("t.jsonl, line 2: has more than 100 bytes")):
        [list(pieces) for pieces in data.read_documents(tmp_path / "t.jsonl", None)]  # type: ignore[arg-type]
