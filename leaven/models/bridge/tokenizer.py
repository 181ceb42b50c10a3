"""The tokenizer of a Hugging Face folder, where it is one that objectives on text and code can use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leaven.errors import ModelError
from leaven.modalities.code_tokenizer import SENTINELS, SPECIALS, CodeTokenizer

_HINTS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
)


def load_tokenizer(folder: Path) -> tuple[CodeTokenizer | None, str]:
    """The tokenizer of a folder and an empty string, or None and why there is none.

    `vocab.json` with `merges.txt` is byte-level BPE as CodeT5 has it, its sentinels where the folder's added tokens say
    (CodeT5 counts them backwards). Anything else is what transformers makes of the folder, without running its code.
    """
    if not any((folder / name).is_file() for name in _HINTS):
        return None, "the folder has no tokenizer files"
    try:
        if (folder / "tokenizer.json").is_file():
            return CodeTokenizer.load(folder), ""
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return _byte_level(folder), ""
        return CodeTokenizer(_of_transformers(folder)), ""
    except ModelError as error:
        return None, str(error)
    except Exception as error:  # tokenizers and transformers raise plain exceptions of several kinds
        return None, f"its tokenizer files cannot be used: {error}"


def _byte_level(folder: Path) -> CodeTokenizer:
    from tokenizers import ByteLevelBPETokenizer, Tokenizer

    added = _added_tokens(folder)
    if not added:
        return CodeTokenizer.load(folder)
    # Read without the special tokens at first: one that the vocabulary lacks would take an id that is not its own.
    bpe = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    bpe.add_special_tokens([token for token in SPECIALS if bpe.token_to_id(token) is not None])
    for token, expected in added:
        bpe.add_special_tokens([token])
        if expected is not None and bpe.token_to_id(token) != expected:
            raise ModelError(
                f"{folder / 'added_tokens.json'} gives {token!r} the id {expected}, "
                f"but after vocab.json it can only be {bpe.token_to_id(token)}"
            )
    bpe.add_special_tokens([f"<extra_id_{k}>" for k in range(SENTINELS)])
    return CodeTokenizer(Tokenizer.from_str(bpe.to_str()))


def _added_tokens(folder: Path) -> list[tuple[str, int | None]]:
    """Tokens beyond vocab.json in the order of their ids, and the ids where the folder says them."""
    ids = _read_json(folder / "added_tokens.json")
    if ids:
        return [(str(token), int(ids[token])) for token in sorted(ids, key=lambda token: int(ids[token]))]
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        listed = _read_json(folder / name).get("additional_special_tokens") or []
        if listed:
            return [(token["content"] if isinstance(token, dict) else str(token), None) for token in listed]
    return []


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _of_transformers(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{type(tokenizer).__name__} has no fast form, which is the one that leaven uses")
    return backend
