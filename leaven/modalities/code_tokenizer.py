"""Byte-level BPE for code: whole identifiers as pre-tokens, sentinels and language tags."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from leaven.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
SENTINELS = 100
TAGS = ("<en>", "<python>", "<java>", "<c>", "<c_sharp>", "<javascript>", "<go>", "<ruby>", "<php>")
WORD = re.compile(r"\w+|[^\w\s]")
_SPLIT = r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+"


class CodeTokenizer:
    """Text to ids and back, with the special ids that code objectives need.

    Ids 0 to 4 are `<pad> <s> </s> <unk> <mask>` as in CodeT5; language tags and 100 sentinels `<extra_id_k>` are tokens
    of their own. A tokenizer of another maker serves when it has pad, start and end tokens; `sentinel_ids` says how
    many sentinels it has.

    Source: arXiv 2109.00859 section 3 (byte-level BPE on code and docs, 100 sentinels).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pad_id = self._id("<pad>")
        self.start_id = self._id("<s>")
        self.end_id = self._id("</s>")

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise ModelError(f"the tokenizer has no {token!r} token: use one trained for code (vocabulary of CodeT5)")
        return int(found)

    @cached_property
    def sentinel_ids(self) -> list[int]:
        """Ids of `<extra_id_0>`, `<extra_id_1>`, ..., as far as the vocabulary has them."""
        ids = (self.tokenizer.token_to_id(f"<extra_id_{k}>") for k in range(SENTINELS))
        return [int(i) for i in ids if i is not None]

    def require_sentinels(self, count: int = SENTINELS) -> list[int]:
        """The first `count` sentinels. Raises: ModelError naming how many are missing."""
        missing = count - len(self.sentinel_ids)
        if missing > 0:
            raise ModelError(
                f"the tokenizer lacks {missing} of {count} sentinels <extra_id_k>: add them as special tokens"
            )
        return self.sentinel_ids[:count]

    def tag_id(self, language: str) -> int:
        """Id of a language's tag, `<en>` for English. Raises: ModelError when the vocabulary has none."""
        return self._id(f"<{language}>")

    def tag_ids(self, language: str) -> list[int]:
        """The tag of a language as one id or, in a vocabulary without tags such as CodeT5's, as the pieces it has."""
        tag = f"<{language}>"
        found = self.tokenizer.token_to_id(tag)
        return [int(found)] if found is not None else list(self.encode([tag])[0].ids)

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Encodings without specials: `.ids` and `.offsets` (character spans)."""
        return list(self.tokenizer.encode_batch(list(texts), add_special_tokens=False))

    def decode(self, ids: Sequence[int], *, keep_specials: bool = False) -> str:
        """Text up to the first end token."""
        ids = [int(i) for i in ids]
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=not keep_specials))

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int = 32100, min_frequency: int = 3) -> CodeTokenizer:
        """Train on texts; `vocab_size` includes specials, tags and sentinels.

        Raises: ConfigError when the size leaves no room for the 256 bytes and the special tokens.
        """
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        sentinels = [f"<extra_id_{k}>" for k in range(SENTINELS)]
        smallest = 256 + len(SPECIALS) + len(TAGS) + SENTINELS
        if vocab_size < smallest:
            raise ConfigError(f"vocab_size={vocab_size}: at least {smallest} are needed for bytes and special tokens")
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - SENTINELS,
            min_frequency=min_frequency,
            special_tokens=[*SPECIALS, *TAGS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.add_special_tokens(sentinels)
        return CodeTokenizer(tokenizer)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, which transformers' fast tokenizers load as well."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))

    @staticmethod
    def load(folder: Path) -> CodeTokenizer:
        """Read `tokenizer.json`, or the `vocab.json` and `merges.txt` of a RoBERTa-style tokenizer such as CodeT5's."""
        from tokenizers import ByteLevelBPETokenizer, Tokenizer

        if (folder / "tokenizer.json").is_file():
            return CodeTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")))
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            bpe = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
            bpe.add_special_tokens(list(SPECIALS))
            bpe.add_special_tokens([f"<extra_id_{k}>" for k in range(SENTINELS)])
            return CodeTokenizer(Tokenizer.from_str(bpe.to_str()))
        raise ModelError(f"{folder}: no tokenizer.json, nor vocab.json with merges.txt, to read a tokenizer from")
