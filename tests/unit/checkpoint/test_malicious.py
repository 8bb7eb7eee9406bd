"""Files made to do harm: only a CheckpointError may come out, quickly, and without a large allocation."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from zeropoint.checkpoint import load_tokenizer, open_checkpoint
from zeropoint.checkpoint.safetensors_header import DTYPES, MAX_HEADER_BYTES, read_header
from zeropoint.errors import CheckpointError, TextError


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@contextmanager
def small_and_quick() -> Iterator[None]:
    """Fail if the block takes seconds, or megabytes of Python's memory."""
    tracemalloc.start()
    started = time.perf_counter()
    try:
        yield
        assert time.perf_counter() - started < 5
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


A = entry()
SAFETENSORS = {
    "length of the header beyond the file": struct.pack("<Q", 1 << 40) + b"{}",
    "length of the header beyond 64 bits of address": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "header is no JSON": safetensors_bytes(b"{nope}"),
    "header is no UTF-8": safetensors_bytes(b'{"\xff": 1}'),
    "header begins with a space": safetensors_bytes(b" {}"),
    "header is a list": safetensors_bytes([]),
    "header is nested deeply": safetensors_bytes(b'{"a":' + b"[" * 200_000),
    "header has a number of many digits": safetensors_bytes(b'{"a":' + b"9" * 100_000 + b"}"),
    "a name twice": safetensors_bytes(b'{"a":%(a)s,"a":%(a)s}' % {b"a": json.dumps(A).encode()}, bytes(4)),
    "a key of an entry twice": safetensors_bytes(
        b'{"a":{"dtype":"I8","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "metadata twice": safetensors_bytes(b'{"__metadata__":{},"__metadata__":{}}'),
    "metadata is a list": safetensors_bytes({"__metadata__": []}),
    "metadata holds a number": safetensors_bytes({"__metadata__": {"format": 1}}),
    "entry is null": safetensors_bytes({"a": None}),
    "entry without dtype": safetensors_bytes({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "entry with another key": safetensors_bytes({"a": entry(extra=1)}, bytes(4)),
    "unknown dtype": safetensors_bytes({"a": entry(dtype="F31")}, bytes(4)),
    "dtype is a list": safetensors_bytes({"a": entry(dtype=["F32"])}, bytes(4)),
    "negative dimension": safetensors_bytes({"a": entry(shape=[-1, -1])}, bytes(4)),
    "dimension is true": safetensors_bytes({"a": entry(shape=[True])}, bytes(4)),
    "dimension is a fraction": safetensors_bytes({"a": entry(shape=[1.0])}, bytes(4)),
    "dimension is NaN": safetensors_bytes(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "shape wraps around 64 bits": safetensors_bytes({"a": entry(shape=[1 << 32, 1 << 32, 4])}, bytes(4)),
    "shape has 50,000 dimensions": safetensors_bytes({"a": entry(shape=[1 << 62] * 50_000)}, bytes(4)),
    "shape of many ones": safetensors_bytes({"a": entry(shape=[1] * 65)}, bytes(4)),
    "shape is text": safetensors_bytes({"a": entry(shape="1")}, bytes(4)),
    "shape is larger than the data": safetensors_bytes({"a": entry(shape=[2])}, bytes(4)),
    "offsets backwards": safetensors_bytes({"a": entry(offsets=[4, 0])}, bytes(4)),
    "offsets beyond the end": safetensors_bytes({"a": entry(shape=[2], offsets=[0, 8])}, bytes(4)),
    "offsets beyond 64 bits": safetensors_bytes({"a": entry(offsets=[1 << 70, (1 << 70) + 4])}, bytes(4)),
    "three offsets": safetensors_bytes({"a": entry(offsets=[0, 4, 8])}, bytes(4)),
    "gap before a tensor": safetensors_bytes({"a": entry(offsets=[4, 8])}, bytes(8)),
    "gap between tensors": safetensors_bytes({"a": A, "b": entry(offsets=[8, 12])}, bytes(12)),
    "overlap": safetensors_bytes({"a": entry(shape=[2], offsets=[0, 8]), "b": entry(offsets=[4, 8])}, bytes(8)),
    "same bytes for two names": safetensors_bytes({"a": A, "b": A}, bytes(4)),
    "bytes after the last tensor": safetensors_bytes({"a": A}, bytes(5)),
    "name is half a character": safetensors_bytes(b'{"\\ud800":%s}' % json.dumps(A).encode(), bytes(4)),
    "name moves the cursor": safetensors_bytes({"\x1b[2J": A}, bytes(4)),
}


@pytest.mark.parametrize("content", SAFETENSORS.values(), ids=SAFETENSORS.keys())
def test_malicious_safetensors_header_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with small_and_quick(), pytest.raises(CheckpointError) as caught:
        read_header(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert message.isprintable()
    assert len(message) < 500


def test_header_above_the_limit_of_the_format_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:  # sparse: takes no space
        stream.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        stream.truncate(2 * MAX_HEADER_BYTES)
    with small_and_quick(), pytest.raises(CheckpointError, match="the format allows 100 MB"):
        read_header(file)


def check_or_refuse(file: Path, content: bytes) -> None:
    """Whatever the bytes are: either CheckpointError, or tensors that fill the file without gap or overlap."""
    file.write_bytes(content)
    try:
        found = read_header(file)
    except CheckpointError:
        return
    position = 8 + struct.unpack("<Q", content[:8])[0]
    for info in sorted(found.values(), key=lambda info: (info.offset, info.size_bytes)):
        assert info.offset == position
        position += info.size_bytes
        count = DTYPES[info.dtype].bytes
        for dimension in info.shape:
            count *= dimension
        assert count == info.size_bytes
    assert position == len(content)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200))
def test_random_bytes_are_no_safetensors_file(scratch: Path, content: bytes) -> None:
    check_or_refuse(scratch / "a.safetensors", content)
    check_or_refuse(scratch / "a.safetensors", safetensors_bytes(b"{" + content, bytes(16)))


NUMBERS = st.integers(-2, 20) | st.sampled_from([1 << 31, 1 << 63, 1 << 64, 1 << 200, -1, 0.5, True, None, "1"])
ENTRIES = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*DTYPES, "F4", 3]), "shape": st.lists(NUMBERS, max_size=4)},
    optional={"data_offsets": st.lists(NUMBERS, min_size=1, max_size=3), "x": st.just(1)},
)


@settings(max_examples=200, deadline=None)
@given(
    header=st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), ENTRIES | st.none(), max_size=4),
    size=st.integers(0, 30),
)
def test_random_headers_are_refused_or_right(scratch: Path, header: dict[str, Any], size: int) -> None:
    check_or_refuse(scratch / "a.safetensors", safetensors_bytes(header, bytes(size)))


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=4
)


def mutate(content: bytes, mutations: list[tuple[int, bytes, int]], reach: int) -> bytes:
    """Replace some bytes within the first `reach` by others, of another number."""
    for place, new, removed in mutations:
        at = place % min(reach, len(content) + 1)
        content = content[:at] + new + content[at + removed :]
    return content


@settings(max_examples=300, deadline=None)
@given(mutations=MUTATIONS, cut=st.none() | st.integers(0, 600))
def test_a_mutated_safetensors_file_is_refused_or_right(
    scratch: Path, mutations: list[tuple[int, bytes, int]], cut: int | None
) -> None:
    good = safetensors_bytes(
        {"__metadata__": {"format": "pt"}, "a": entry(shape=[2, 2], offsets=[0, 16]), "b": entry("I8", [0], [16, 16])},
        bytes(16),
    )
    check_or_refuse(scratch / "a.safetensors", mutate(good, mutations, 200)[:cut])


# Pickles and paths


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth", "m.ckpt"]
)
def test_pickle_checkpoint_is_refused_and_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    marker = tmp_path / "executed"
    # unpickling this would make the marker
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(marker).encode())
    for path in (tmp_path, *([tmp_path / name] if not name.endswith(".json") else [])):
        with pytest.raises(CheckpointError, match=r"zeropoint never does; convert the model .*save_pretrained"):
            open_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/etc/x.safetensors",
        "a/../b.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "x.bin",
        "a\0.safetensors",
        "..",
    ],
)
def test_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    folder = tiny.make_llama(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match=r"a shard is a \.safetensors file in the same folder") as caught:
        open_checkpoint(folder)
    assert str(caught.value).isprintable()


# GGUF

GgufBytes = bytes


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> GgufBytes:
    sizes = {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 32, "vocab": 259}
    return tiny.make_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", quantization="Q8_0", **sizes).read_bytes()


def use_or_refuse(file: Path, content: bytes) -> None:
    """Open, read everything, make the tokenizer: only CheckpointError may come out."""
    file.write_bytes(content)
    with suppress(CheckpointError):
        checkpoint = open_checkpoint(file)
        for name, info in checkpoint.tensors.items():
            with suppress(CheckpointError):
                assert tuple(checkpoint.read(name).shape) == info.shape
        load_tokenizer(checkpoint).encode("a text")


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_random_bytes_are_no_gguf_file(scratch: Path, content: bytes) -> None:
    use_or_refuse(scratch / "a.gguf", content)
    use_or_refuse(scratch / "a.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2, 3) + content)


@settings(max_examples=150, deadline=None)
@given(mutations=MUTATIONS)
def test_a_mutated_gguf_file_is_refused_or_readable(
    scratch: Path, gguf_bytes: GgufBytes, mutations: list[tuple[int, bytes, int]]
) -> None:
    use_or_refuse(scratch / "a.gguf", mutate(gguf_bytes, mutations, 12_000))


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_truncated_gguf_file_is_refused(tmp_path: Path, gguf_bytes: GgufBytes, part: float) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes[: int(part * len(gguf_bytes))])
    with small_and_quick(), pytest.raises(CheckpointError, match=r"m\.gguf: .*download it again"):
        open_checkpoint(tmp_path / "m.gguf")


def gguf_header(*fields: bytes, tensors: int = 0, keys: int | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(fields) if keys is None else keys) + b"".join(fields)


def gguf_text(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


STRING, ARRAY, UINT8 = 8, 9, 0
GGUF = {
    "more keys than bytes": gguf_header(keys=1 << 62),
    "more tensors than bytes": gguf_header(tensors=1 << 62),
    "key of 2^63 bytes": gguf_header(gguf_text(b"a", 1 << 63)),
    "value of an unknown kind": gguf_header(gguf_text(b"a") + struct.pack("<I", 99)),
    "array of 2^60 numbers": gguf_header(gguf_text(b"a") + struct.pack("<IIQ", ARRAY, UINT8, 1 << 60)),
    "array of 2^60 texts": gguf_header(gguf_text(b"a") + struct.pack("<IIQ", ARRAY, STRING, 1 << 60)),
    "text of 2^63 bytes in an array": gguf_header(gguf_text(b"a") + struct.pack("<IIQQ", ARRAY, STRING, 1, 1 << 63)),
    "arrays in arrays": gguf_header(gguf_text(b"a") + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 3000),
    "text that is no UTF-8": gguf_header(gguf_text(b"a") + struct.pack("<I", STRING) + gguf_text(b"\xff")),
    "key twice": gguf_header(*[gguf_text(b"a") + struct.pack("<IB", UINT8, 1)] * 2),
    "shape that wraps around 64 bits": gguf_header(tensors=1)
    + gguf_text(b"token_embd.weight")
    + struct.pack("<IQQIQ", 2, 1 << 32, 1 << 32, 0, 0)
    + bytes(64),
    "data beyond the end": gguf_header(tensors=1)
    + gguf_text(b"t")
    + struct.pack("<IQIQ", 1, 8, 0, 1 << 40)
    + bytes(64),
    "offset that wraps around 64 bits": gguf_header(tensors=1)
    + gguf_text(b"t")
    + struct.pack("<IQIQ", 1, 0, 0, (1 << 64) - 1)
    + bytes(64),
    "a billion dimensions": gguf_header(tensors=1) + gguf_text(b"t") + struct.pack("<I", 1 << 30) + bytes(640),
}


@pytest.mark.parametrize("content", GGUF.values(), ids=GGUF.keys())
def test_malicious_gguf_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with small_and_quick(), pytest.raises(CheckpointError, match=r"m\.gguf: the header cannot be read"):
        open_checkpoint(tmp_path / "m.gguf")


# Chat templates are a stranger's code


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{{ lipsum.__globals__.os.getcwd() }}",
        "{% include '/etc/passwd' %}",
        "{{ 1 // 0 }}",
        "{{ messages[0]['role'] + 1 }}",
        "{% if %}",
    ],
)
def test_chat_template_that_breaks_out_or_breaks_down_is_refused(tmp_path: Path, template: str) -> None:
    folder = tiny.make_llama(tmp_path / "m")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match="the chat template cannot be used"):
        load_tokenizer(open_checkpoint(folder)).chat([{"role": "user", "content": "hi"}])


def test_chat_template_may_refuse_the_messages(tmp_path: Path) -> None:
    folder = tiny.make_llama(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TextError, match="refuses the messages: roles must alternate"):
        load_tokenizer(open_checkpoint(folder)).chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", lambda text: text[:500]),
        ("tokenizer.json", lambda text: "{}"),
        ("tokenizer.json", lambda text: text.replace('"BPE"', '"Pickle"')),
        ("tokenizer_config.json", lambda text: "[]"),
        ("tokenizer_config.json", lambda text: "{"),
        ("generation_config.json", lambda text: "nonsense"),
    ],
)
def test_damaged_tokenizer_files_are_refused_by_name(tmp_path: Path, name: str, change: Callable[[str], str]) -> None:
    folder = tiny.make_llama(tmp_path / "m")
    (folder / name).write_text(change((folder / name).read_text()))
    with pytest.raises(CheckpointError, match=f"{name} "):
        load_tokenizer(open_checkpoint(folder))
