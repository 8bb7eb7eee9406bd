"""Text to tokens and back through the tokenizers package, and messages to text through a jinja2 template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint import documents, heap
from zeropoint.checkpoint import rendering
from zeropoint.checkpoint.reader import Checkpoint
from zeropoint.checkpoint.tokenizer_bounds import package_errors, require_bounded
from zeropoint.errors import CheckpointError, TextError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Message = Mapping[str, Any]
"""{"role": "user", "content": "..."}, and whatever else a chat template reads."""


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a checkpoint.

    eos_ids: tokens that end a generation, maybe none. bos_id: the token that begins a text, if there is one.
    chat_template: jinja source. named: {"bos_token": "<s>", ...}, which templates may read. path: of the checkpoint.
    """

    backend: Backend
    eos_ids: tuple[int, ...]
    bos_id: int | None
    chat_template: str | None
    named: Mapping[str, str] = field(default_factory=dict)
    path: Path = Path()

    @property
    def vocab_size(self) -> int:
        """How many tokens there are; a model's embedding may have more rows."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def start_ids(self) -> tuple[int, ...]:
        """The tokens that its model wants in front of every text, such as bos; () if there are none."""
        whole, bare = self.encode("a", add_special_tokens=True), self.encode("a")
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return tuple(whole[:start])
        return ()

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the tokens of a text; with add_special_tokens also those its model wants at the ends, such as bos."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(f"the text holds half of a character, {text[error.start]!r}; give text") from error
        with package_errors(f"{self.path}: tokenizer.json cannot be used on the text", "; get it again"):
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of tokens."""
        with package_errors(f"{self.path}: tokenizer.json cannot be used on tokens", "; get it again"):
            return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the text of a conversation as the model was trained to see it, up to where the assistant begins.

        Raises: CheckpointError if there is no chat template or it is broken; TextError if it refuses the messages.
        """
        if self.chat_template is None:
            raise CheckpointError(
                f"{self.path}: the model has no chat template; give plain text, or use the instruction-tuned model"
            )
        variables = {
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self.named,
        }
        try:
            return rendering.render(self.chat_template, variables)
        except rendering.RefusedError as error:
            raise TextError(f"{self.path}: the chat template refuses the messages: {error}") from error
        except rendering.BrokenError as error:
            raise CheckpointError(
                f"{self.path}: the chat template cannot be used ({error}); "
                "check that each message has a role and a content, or give plain text"
            ) from error


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Return the tokenizer of a checkpoint, of either kind.

    Raises: CheckpointError if there is no tokenizer.json, or it or a file beside it cannot be used.
    """
    tokenizer = find_tokenizer(checkpoint)
    if tokenizer is None:
        raise CheckpointError(
            f"{checkpoint.path}: there is no tokenizer.json; make one where transformers is installed: "
            "transformers.AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL)"
        )
    return tokenizer


def find_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """Return the tokenizer of a checkpoint, or None if there is no tokenizer.json.

    Raises: CheckpointError if it or a file beside it cannot be used.
    """
    from tokenizers import Tokenizer as Backend

    content = checkpoint.side_file("tokenizer.json")
    if content is None:
        return None
    with package_errors(f"{checkpoint.path}: tokenizer.json cannot be read"):
        backend = Backend.from_str(content.decode())
        require_bounded(backend)
    del content
    heap.give_back()
    backend.no_truncation()  # a file saved by a training script cuts every text at its own window
    backend.no_padding()
    settings = _side_json(checkpoint, "tokenizer_config.json")
    named = _named_tokens(checkpoint, settings)
    return Tokenizer(
        backend,
        eos_ids=_token_ids(checkpoint, backend, "eos", named),
        bos_id=next(iter(_token_ids(checkpoint, backend, "bos", named)), None),
        chat_template=_chat_template(checkpoint, settings),
        named=named,
        path=checkpoint.path,
    )


def _side_json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Return the JSON object in a side file, {} if there is no such file."""
    try:
        content = documents.parse_json(checkpoint.side_file(name) or b"{}")
    except documents.MalformedError as error:
        raise CheckpointError(f"{checkpoint.path}: {name} {error}; get the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{checkpoint.path}: {name} holds a {type(content).__name__}, not a JSON object")
    return content


def _named_tokens(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return {"bos_token": "<s>", ...} from tokenizer_config.json or, in older folders, special_tokens_map.json."""
    named = {}
    for source in (_side_json(checkpoint, "special_tokens_map.json"), settings):
        for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
            token = source.get(key)
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                named[key] = text
    return named


def _token_ids(checkpoint: Checkpoint, backend: Backend, kind: str, named: Mapping[str, str]) -> tuple[int, ...]:
    """Return the ids of a named token: from generation_config.json, else config.json, else the tokenizer's settings."""
    for source in (_side_json(checkpoint, "generation_config.json"), checkpoint.config):
        value = source.get(f"{kind}_token_id")
        found = value if isinstance(value, list) else [value]
        ids = tuple(token for token in found if type(token) is int)
        if ids:
            return ids
    token = backend.token_to_id(named.get(f"{kind}_token", ""))
    return () if token is None else (token,)


def _chat_template(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> str | None:
    """Return the template's source: its own file, or where it stood before it had one."""
    own = checkpoint.side_file("chat_template.jinja")
    if own is not None:
        try:
            return own.decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{checkpoint.path}: chat_template.jinja is not UTF-8 text ({error})") from error
    found = _side_json(checkpoint, "chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(found, list):  # [{"name": "default", "template": ...}, {"name": "tool_use", ...}]
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}.get("default")
    return found if isinstance(found, str) else None
