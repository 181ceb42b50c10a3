"""Templates: the prompting function, from an input's fields to token ids with an answer slot."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from leaven.adapt.prompting.tokenizer import PromptTokenizer, continued
from leaven.errors import ConfigError, DataError, ModelError

Kind = Literal["masked", "causal", "seq2seq"]
"""What a language model is: one that fills in masks, that continues a text, or that writes another one."""
Fields = str | Mapping[str, str]
"""An input: the text of the field `text`, or texts by field."""


class Encoded(NamedTuple):
    """A prompt as ids. slots: where the answers are predicted. soft: number of the soft token at each place, or -1.

    decoder: what the decoder of a sequence-to-sequence model reads, in which the slots then are.
    cut: tokens of the input that were left out.
    """

    ids: list[int]
    slots: list[int]
    soft: list[int]
    decoder: list[int]
    cut: int


class Demonstration(NamedTuple):
    """An answered example to be put before a prompt. answers: token ids for each of the template's slots."""

    fields: Fields
    answers: tuple[tuple[int, ...], ...]


class _Part(NamedTuple):
    kind: Literal["text", "field", "mask", "soft", "tokens"]
    value: str = ""
    ids: tuple[int, ...] = ()


class _Piece(NamedTuple):
    ids: list[int]
    kind: str = "text"
    soft: int = -1


@dataclass(frozen=True)
class Template:
    """A prompt: `{text}` and other fields for the input, `{mask}` for the answer, `{soft:...}` for learned tokens.

    `{soft:5}` is five learned tokens, `{soft:it was}` learned tokens that start as these words. Several `{mask}` take
    one answer each. Where the model's context is too short, the longest fields of the input are cut at their end;
    the template, its slots and demonstrations never are.

    Args:
        text: for example "{text} This is about {mask}." or "Topic of {text}: {mask}".
        promptless: the input alone; a task head reads the state at the first token, in a causal model at the last.

    Raises: ConfigError for a template without an answer slot (or, when promptless, with one), or without input.
    Source: arXiv 2107.13586 sections 2.2 and 4; section 7.2.1 for promptless.
    """

    text: str
    promptless: bool = False
    parts: tuple[_Part, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", self.parts or tuple(_parse(self.text)))
        named = {part.kind for part in self.parts}
        if not self.promptless and "mask" not in named:
            raise ConfigError(f"template {self.text!r} has no answer slot: write {{mask}} where the answer goes")
        if self.promptless and named & {"mask", "soft"}:
            raise ConfigError(f"template {self.text!r} is promptless: leave out {{mask}} and {{soft}}")
        if "field" not in named:
            raise ConfigError(f"template {self.text!r} has no input: write {{text}}, or the name of another field")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the input's fields."""
        return tuple(dict.fromkeys(part.value for part in self.parts if part.kind == "field"))

    @property
    def slots(self) -> int:
        """How many answers are read."""
        return 1 if self.promptless else sum(part.kind == "mask" for part in self.parts)

    @property
    def shape(self) -> Literal["cloze", "prefix"]:
        """The first where something follows the answer slot, the second where a left-to-right model can fill it."""
        after = [part for at, part in enumerate(self.parts) if any(p.kind == "mask" for p in self.parts[:at])]
        return "cloze" if any(part.kind != "text" or part.value.strip() for part in after) else "prefix"

    def soft_ids(self, tokenizer: PromptTokenizer) -> list[int | None]:
        """For each soft token the id of the token that it starts as, None for any."""
        return [i for part in self.parts if part.kind == "soft" for i in _soft_ids(part, tokenizer)]

    def filled(self, ids: Sequence[int], tokenizer: PromptTokenizer) -> Template:
        """The template with these tokens in the place of the soft ones. Raises: ConfigError for too many or too few."""
        if len(ids) != (wanted := len(self.soft_ids(tokenizer))):
            raise ConfigError(f"{len(ids)} tokens for template {self.text!r}, which has {wanted} soft tokens")
        left, parts = list(ids), list(self.parts)
        for at, part in enumerate(parts):
            if part.kind == "soft":
                taken, left = _split(left, len(_soft_ids(part, tokenizer)))
                parts[at] = _Part("tokens", tokenizer.decode(taken), tuple(taken))
        return Template("".join(_shown(part) for part in parts), parts=tuple(parts))

    def answer_ids(self, tokenizer: PromptTokenizer, word: str, slot: int = 0) -> list[int]:
        """Ids of a word where it stands in the slot: after a space if the template has one before the slot.

        Raises: ConfigError for a slot that the template does not have.
        """
        masks = [index for index, part in enumerate(self.parts) if part.kind == "mask"]
        if slot >= len(masks):
            raise ConfigError(f"template {self.text!r} has no answer slot {slot} for the word {word!r}")
        at = masks[slot]
        before = self.parts[at - 1] if at else _Part("mask")
        if before.kind != "text":
            return continued(tokenizer, word, "." if before.kind == "field" else "")
        bare = before.value.rstrip()
        return continued(tokenizer, word if bare == before.value else f" {word}", bare[-1:] or ".")

    def encode(
        self,
        tokenizer: PromptTokenizer,
        fields: Fields,
        *,
        kind: Kind = "masked",
        max_length: int | None = None,
        demonstrations: Sequence[Demonstration] = (),
        width: int = 1,
    ) -> Encoded:
        """The prompt of an input.

        Args:
            kind: of the model that reads it.
            max_length: tokens that the model can read, None for no limit.
            demonstrations: answered examples to put before it.
            width: mask tokens in each slot, for answers of several tokens.

        Raises: ModelError when the tokenizer has no token for the slot; ConfigError for a template that the kind of
        model cannot fill, or that alone is longer than max_length; DataError for a missing field, demonstrations that
        do not fit, or when nothing of the input would be left.
        """
        self._require_fillable(tokenizer, kind)
        between = "\n" if kind == "causal" else " "
        shots: list[_Piece] = []
        for shot in demonstrations:
            answered = self._pieces(tokenizer, shot.fields, between if shots else "", answers=shot.answers)
            shots += [piece._replace(kind="text") for piece in answered]
        token = {"masked": tokenizer.mask_id, "seq2seq": tokenizer.sentinel_id, "causal": None}[kind]
        mask = () if token is None else (token,) * width
        pieces = list(self._pieces(tokenizer, fields, between if shots else "", answers=[mask] * self.slots))
        end = () if kind == "causal" else tokenizer.end_ids
        kept, cut = self._kept(pieces, max_length, len(tokenizer.start_ids) + len(end), sum(len(p.ids) for p in shots))
        ids, slots, soft = list(tokenizer.start_ids), [0] if self.promptless else [], [-1] * len(tokenizer.start_ids)
        for piece in [*shots, *kept]:
            if piece.kind == "mask":
                slots += range(len(ids), len(ids) + len(piece.ids))
            ids += piece.ids
            soft += range(piece.soft, piece.soft + len(piece.ids)) if piece.soft >= 0 else [-1] * len(piece.ids)
        if kind == "causal":
            slots = [len(ids) - 1]
        if not ids:
            raise DataError(
                f"template {self.text!r} with input {fields!r} has no tokens: give a text that is not empty"
            )
        return Encoded([*ids, *end], slots, [*soft, *[-1] * len(end)], [], cut)

    def _require_fillable(self, tokenizer: PromptTokenizer, kind: Kind) -> None:
        if self.promptless:
            return
        if kind == "masked" and tokenizer.mask_id is None:
            raise ModelError(
                f"template {self.text!r} on a masked model needs a mask token, and the tokenizer has none: "
                "use a tokenizer with one, or a causal model"
            )
        if kind == "causal" and self.shape == "cloze":
            raise ConfigError(
                f"template {self.text!r} is a cloze: a causal model sees nothing behind {{mask}}; put it at the end"
            )
        if kind == "seq2seq" and self.slots > 1:
            raise ConfigError(f"template {self.text!r} has {self.slots} slots; with an encoder-decoder expected one")
        if kind == "seq2seq" and self.shape == "cloze" and tokenizer.sentinel_id is None:
            raise ModelError(f"template {self.text!r}: the tokenizer has no sentinel <extra_id_0> for the slot")

    def _kept(self, pieces: list[_Piece], limit: int | None, around: int, shots: int) -> tuple[list[_Piece], int]:
        """The pieces, those of the input shortened to what there is room for, and how many tokens that cost."""
        if limit is None:
            return pieces, 0
        given = [len(piece.ids) for piece in pieces]
        inputs = sorted(
            (at for at, piece in enumerate(pieces) if piece.kind == "field" and piece.ids), key=given.__getitem__
        )
        fixed = around + sum(given) - sum(given[at] for at in inputs)
        if fixed + len(inputs) > limit:
            raise ConfigError(
                f"template {self.text!r} takes {fixed} tokens without the input, and the model reads {limit}: "
                "truncation would delete the template or its mask; shorten the template"
            )
        room = limit - fixed - shots
        if room < len(inputs):
            raise DataError(
                f"demonstrations of {shots} tokens and a template of {fixed} leave no room for the input in the "
                f"{limit} tokens of the context: give fewer or shorter demonstrations"
            )
        kept = list(pieces)
        for left, at in zip(range(len(inputs), 0, -1), inputs, strict=True):
            kept[at] = pieces[at]._replace(ids=pieces[at].ids[: room // left])
            room -= len(kept[at].ids)
        return kept, sum(given) - sum(len(piece.ids) for piece in kept)

    def _pieces(
        self, tokenizer: PromptTokenizer, fields: Fields, space: str, *, answers: Sequence[Sequence[int]]
    ) -> Iterator[_Piece]:
        """The parts as ids; spaces go to the text that they stand before, as tokenizers have them."""
        texts = {"text": fields} if isinstance(fields, str) else fields
        before, slot, soft = "." if space else "", 0, 0
        for part in self.parts:
            if part.kind in ("text", "field"):
                text = space + (part.value if part.kind == "text" else self._value(texts, part.value).strip())
                bare = text.rstrip()
                space = text[len(bare) :]
                yield _Piece(continued(tokenizer, bare, before) if bare else [], part.kind)
                before = bare[-1:] or before
                continue
            if part.kind == "mask":
                yield _Piece(list(answers[slot]), "mask")
                slot += 1
            elif part.kind == "soft":
                count = len(_soft_ids(part, tokenizer))
                # Any token but padding, whose place some models do not count; what is embedded there is replaced.
                yield _Piece([int(tokenizer.pad_id == 0)] * count, "soft", soft)
                soft += count
            else:
                yield _Piece(list(part.ids))
            space, before = "", ""

    def _value(self, texts: Mapping[str, str], name: str) -> str:
        if not isinstance(value := texts.get(name), str):
            raise DataError(
                f"template {self.text!r} needs a text in the field {name!r}, got {value!r}: "
                f"the input has {', '.join(texts) or 'no fields'}"
            )
        return value


def _soft_ids(part: _Part, tokenizer: PromptTokenizer) -> list[int | None]:
    return [None] * int(part.value) if part.value.isdecimal() else [*tokenizer.encode(f" {part.value}")]


def _split(items: list[int], at: int) -> tuple[list[int], list[int]]:
    return items[:at], items[at:]


def _shown(part: _Part) -> str:
    if part.kind == "text":
        return part.value.replace("{", "{{").replace("}", "}}")
    return {"field": f"{{{part.value}}}", "mask": "{mask}"}.get(part.kind, part.value)


def _parse(text: str) -> Iterator[_Part]:
    try:
        found = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"template {text!r}: {error}; write {{{{ and }}}} for braces") from error
    for literal, name, spec, _ in found:
        if literal:
            yield _Part("text", literal)
        if name == "soft" and spec and not (spec.isdecimal() and int(spec) < 1):
            yield _Part("soft", spec)
        elif name is not None and name != "soft" and name.isidentifier() and not spec:
            yield _Part("mask") if name == "mask" else _Part("field", name)
        elif name is not None:
            raise ConfigError(
                f"template {text!r}: cannot read {{{name}:{spec}}}; expected {{mask}}, the name of a field such as "
                "{text}, {soft:5} or {soft:some words}"
            )
