"""The corpus of the code family: functions, the tokenizer made from them, and their encoded form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from leaven.data.examples import CodeExample
from leaven.data.loader import Loader
from leaven.data.sources import open_source
from leaven.data.splits import some_by_hash
from leaven.errors import DataError
from leaven.modalities.code import NATURAL, collate_functions, encode_functions
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.models.loading import load_model_and_tokenizer


@dataclass(frozen=True)
class CodeCorpus:
    """Encoded functions of the train split and their tokenizer."""

    tokenizer: CodeTokenizer
    items: list[dict[str, Any]]

    def loader(self, batch_size: int, seed: int, *, paired: bool = False) -> Loader:
        """Batches of functions, those of like length together; `paired`: of documented functions alone.

        Raises: DataError when there is no documented function.
        """
        items = self.items
        if paired:
            items = [item for item in items if (item["segment_ids"] == NATURAL).any()]
            if not items:
                raise DataError("no bimodal pairs: no function has documentation, which dual generation needs")
        return Loader(
            items,
            lambda rows: collate_functions([dict(row) for row in rows], self.tokenizer.pad_id),
            batch_size=batch_size,
            length=lambda item: len(item["input_ids"]),
            bucket=20,
            seed=seed,
            drop_last=len(items) >= batch_size,
        )


@cache
def open_corpus(spec: str, *, vocab: int, longest: int, most: int = 10_000_000, model: str = "") -> CodeCorpus:
    """Functions of the train split of a source, encoded; once per process.

    Args:
        vocab: size of the tokenizer to train on them, where no model brings one.
        most: functions to keep; which depends on each function alone.
        longest: tokens kept of a function (objectives corrupt before they cut, so more than the model reads).
        model: name of a model whose tokenizer to use.

    Raises: DataError for unusable data; ModelError when the model has no tokenizer for code.
    """
    examples = some_by_hash(open_source(spec, CodeExample, split="train").examples, most)
    if model:
        tokenizer = load_model_and_tokenizer(model).tokenizer
        assert isinstance(tokenizer, CodeTokenizer)
    else:
        texts = [text for example in examples for text in (example.code, example.docstring or "")]
        tokenizer = CodeTokenizer.train(texts, vocab)
    return CodeCorpus(tokenizer, encode_functions(examples, tokenizer, max_tokens=longest))
