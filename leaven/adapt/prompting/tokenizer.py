"""Tokenizers as prompts need them: text to ids and back, and the special tokens in and around a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from leaven.errors import ModelError
from leaven.modalities.code_tokenizer import SPECIALS, TAGS, CodeTokenizer


@dataclass(frozen=True)
class PromptTokenizer:
    """What a prompt asks of a tokenizer; make one by hand for a tokenizer that `prompt_tokenizer` does not know.

    encode: ids of a text, without special tokens. decode: text of ids. mask_id: the token that a masked model fills in.
    sentinel_id: the first sentinel of a T5-like model. start_ids, end_ids: the special tokens around a whole input.
    special_ids: all ids that stand for no text.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    pad_id: int
    mask_id: int | None = None
    unknown_id: int | None = None
    sentinel_id: int | None = None
    start_ids: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    special_ids: frozenset[int] = frozenset()


def prompt_tokenizer(tokenizer: Any) -> PromptTokenizer:
    """The protocol on a tokenizer of transformers or a `CodeTokenizer`; a `PromptTokenizer` is returned as it is.

    Raises: ModelError for anything else.
    """
    if isinstance(tokenizer, PromptTokenizer):
        return tokenizer
    if isinstance(tokenizer, CodeTokenizer):
        return _of_code(tokenizer)
    if hasattr(tokenizer, "mask_token_id") and callable(tokenizer):
        return _of_transformers(tokenizer)
    raise ModelError(
        f"a {type(tokenizer).__name__} is no tokenizer that prompts can use: expected one of transformers, a "
        "CodeTokenizer, or a PromptTokenizer made of your own encode and decode"
    )


def _of_code(tokenizer: CodeTokenizer) -> PromptTokenizer:
    inner, sentinels = tokenizer.tokenizer, tokenizer.sentinel_ids
    named = [inner.token_to_id(token) for token in (*SPECIALS, *TAGS)]
    return PromptTokenizer(
        encode=lambda text: list(tokenizer.encode([text])[0].ids),
        decode=lambda ids: str(inner.decode(list(ids), skip_special_tokens=False)),
        pad_id=tokenizer.pad_id,
        mask_id=inner.token_to_id("<mask>"),
        unknown_id=inner.token_to_id("<unk>"),
        sentinel_id=sentinels[0] if sentinels else None,
        start_ids=(tokenizer.start_id,),
        end_ids=(tokenizer.end_id,),
        special_ids=frozenset([*(i for i in named if i is not None), *sentinels]),
    )


def _of_transformers(tokenizer: Any) -> PromptTokenizer:
    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    start, end = _around(encode("a"), list(tokenizer("a")["input_ids"]))
    sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    ends = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return PromptTokenizer(
        encode=encode,
        decode=lambda ids: str(tokenizer.decode(list(ids))),
        pad_id=next(i for i in ends if i is not None),
        mask_id=tokenizer.mask_token_id,
        unknown_id=tokenizer.unk_token_id,
        sentinel_id=None if sentinel in (None, tokenizer.unk_token_id) else sentinel,
        start_ids=start,
        end_ids=end,
        special_ids=frozenset(tokenizer.all_special_ids),
    )


def _around(plain: list[int], whole: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that stand before and after a text."""
    for at in range(len(whole) - len(plain) + 1):
        if whole[at : at + len(plain)] == plain:
            return tuple(whole[:at]), tuple(whole[at + len(plain) :])
    raise ModelError(
        "the tokenizer encodes a text differently with special tokens than without, so that a prompt cannot be put "
        "together: make a PromptTokenizer that says which tokens go where"
    )


def continued(tokenizer: PromptTokenizer, text: str, before: str) -> list[int]:
    """Ids of a text that follows the character `before`, "" at the start or after a special token."""
    if before:
        head, whole = tokenizer.encode(before), tokenizer.encode(before + text)
        if whole[: len(head)] == head:
            return whole[len(head) :]
    return tokenizer.encode(text)
