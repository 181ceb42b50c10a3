"""How the zoo's small language models are made: masked or causal, on documented code."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from leaven.contracts import Batch, Objective
from leaven.data.docstring_topics import TOPICS
from leaven.data.examples import CodeExample
from leaven.data.loader import Loader
from leaven.data.sources import open_source
from leaven.data.splits import hash_share, some_by_hash
from leaven.modalities.code_tokenizer import SPECIALS, TAGS, WORD, CodeTokenizer
from leaven.models.encoder import TextEncoder, TextEncoderConfig
from leaven.models.language_model import LanguageModel, LanguageModelConfig
from leaven.models.trunk import TrunkConfig
from leaven.objectives.contrastive import CroppedTextContrast
from leaven.objectives.masked_language_modeling import MaskedLanguageModeling
from leaven.objectives.mixture import Alternate
from leaven.objectives.next_token_prediction import NextTokenPrediction
from leaven.systems.zoo_made import Made
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit

_PIECE = 2000
_HELD_OUT = 0.01
_FEWEST_WORDS = 3
_MOST_PIECES = 150_000
_EVALUATED = 1024


def mini_mlm(work: Path, **options: Any) -> Made:
    """A masked language model: in every second batch whole words are hidden, in the others spans of a text find each
    other, without which the mean of its states says less of a text than its words do. Options as of `mini_lm`.
    """

    def build(tokenizer: CodeTokenizer, trunk: TrunkConfig) -> nn.Module:
        return TextEncoder(
            TextEncoderConfig(
                len(tokenizer), trunk, embedding_positions=0, types=0, pad_id=tokenizer.pad_id, pooler=False
            )
        )

    def objective(tokenizer: CodeTokenizer) -> Objective:
        ids = tokenizer.tokenizer.get_vocab()
        special = {ids[token] for token in (*SPECIALS, *TAGS)} | set(tokenizer.sentinel_ids)
        return MaskedLanguageModeling(ids["<mask>"], sorted(set(ids.values()) - special))

    return _pretrained(work, build, objective, CroppedTextContrast(), **options)


def mini_lm(work: Path, **options: Any) -> Made:
    """A causal language model.

    Args:
        data: source of functions. functions: most of them.
        dim, depth, heads: of the trunk. vocab: tokens of the byte-level BPE, specials included.
        max_tokens: to which texts are cut.
        pretrain: budget on whole functions. short: budget, after that and at a third of the rate, on single lines and
            on documentation alone, as a sentence in front of a prompt is no function.
        batch_size: texts per step. learning_rate: peak.
        seed: of initial weights, order and corruption.
    """

    def build(tokenizer: CodeTokenizer, trunk: TrunkConfig) -> nn.Module:
        return LanguageModel(
            LanguageModelConfig(len(tokenizer), trunk, pad_id=tokenizer.pad_id, eos_id=tokenizer.end_id)
        )

    return _pretrained(work, build, lambda _: NextTokenPrediction(), None, **options)


def _pretrained(
    work: Path,
    build: Callable[[CodeTokenizer, TrunkConfig], nn.Module],
    objective: Callable[[CodeTokenizer], Objective],
    other: Objective | None,
    *,
    data: str,
    functions: int,
    dim: int,
    depth: int,
    heads: int,
    vocab: int,
    max_tokens: int,
    pretrain: str,
    short: str,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Made:
    started = time.perf_counter()
    texts, pieces = pretraining_texts(data, functions)
    seen = [text for text in texts if hash_share(f"held out\0{text}") >= _HELD_OUT]
    unseen = [text for text in texts if hash_share(f"held out\0{text}") < _HELD_OUT][:_EVALUATED]
    tokenizer = CodeTokenizer.train(seen, vocab)
    batches = _loader(encoded(seen, tokenizer, max_tokens), tokenizer.pad_id, batch_size, seed)
    data_seconds = time.perf_counter() - started
    torch.manual_seed(seed)
    model = build(tokenizer, TrunkConfig(dim=dim, depth=depth, heads=heads))
    # Embeddings, which Muon leaves to AdamW, learn many times slower than the blocks at one rate.
    training = TrainingConfig(
        optimizer="muon",
        learning_rate=learning_rate,
        lr_factors={"embed.tokens*": 5.0},
        seed=seed,
        checkpoint_seconds=60,
        checkpoint_every=None,
        keep=1,
    )
    idea = objective(tokenizer)
    both = idea if other is None else Alternate({"words": idea, "spans": other})
    result = fit(model, both, batches, pretrain, training, out=work / "pretraining", label="pre-training")
    short_batches = _loader(encoded(pieces, tokenizer, max_tokens), tokenizer.pad_id, batch_size, seed)
    slower = training.model_copy(update={"learning_rate": learning_rate / 3})
    then = fit(model, idea, short_batches, short, slower, out=work / "short", label="short texts")
    return Made(
        model=model,
        tokenizer=tokenizer,
        extra={"max_tokens": max_tokens},
        data={
            "source": f"{data}: functions with their documentation, without the packages of the topic task",
            "texts": len(seen),
            "short texts": len(pieces),
            "held-out texts": len(unseen),
        },
        results=[
            {
                "tokens": result.used.tokens,
                "train loss": _last(result.records),
                "train loss of short texts": _last(then.records),
                "held-out loss": _held_out(model, idea, encoded(unseen, tokenizer, max_tokens), tokenizer.pad_id),
            }
        ],
        seconds={"data": data_seconds, "pre-training": result.used.seconds, "short texts": then.used.seconds},
    )


def pretraining_texts(data: str, functions: int) -> tuple[list[str], list[str]]:
    """Different functions, each its documentation and then its code in one line; and pieces of them: documentation
    alone, single lines of code. All have three words or more, and no piece is of a function that is held out.

    Functions of the packages whose topic the arenas ask for are left out, so that no text of theirs has been seen.
    """
    struck = {package for packages in TOPICS.values() for package in packages}
    examples = [
        example
        for example in open_source(data, CodeExample, split="all").examples
        if example.module.partition(".")[0] not in struck
    ]
    found: dict[str, None] = {}
    pieces: dict[str, None] = {}
    for example in some_by_hash(examples, functions):
        text = " ".join(f"{example.docstring or ''} {example.code}".split())
        found[text] = None
        if hash_share(f"held out\0{text}") >= _HELD_OUT:
            lines = [line.strip() for line in example.code.splitlines()]
            pieces |= dict.fromkeys([" ".join((example.docstring or "").split()), *lines])
    whole, parts = ([text for text in texts if len(WORD.findall(text)) >= _FEWEST_WORDS] for texts in (found, pieces))
    return whole, some_by_hash(parts, _MOST_PIECES)


def encoded(texts: Sequence[str], tokenizer: CodeTokenizer, max_tokens: int) -> list[dict[str, Any]]:
    """`<s> text </s>` as ids, with the word of each token: what the tokenizer splits at first, -1 at the two ends."""
    items = []
    for start in range(0, len(texts), _PIECE):
        for encoding in tokenizer.encode(texts[start : start + _PIECE]):
            ids, words = encoding.ids[: max_tokens - 2], encoding.word_ids[: max_tokens - 2]
            items.append(
                {
                    "input_ids": np.array([tokenizer.start_id, *ids, tokenizer.end_id], dtype=np.int64),
                    "word_ids": np.array([-1, *(-1 if word is None else word for word in words), -1], dtype=np.int64),
                }
            )
    return items


def _collated(items: Sequence[Any], pad_id: int) -> Batch:
    length = max(len(item["input_ids"]) for item in items)
    batch: Batch = {}
    for name, fill in (("input_ids", pad_id), ("word_ids", -1)):
        rows = np.full((len(items), length), fill, dtype=np.int64)
        for row, item in enumerate(items):
            rows[row, : len(item[name])] = item[name]
        batch[name] = torch.from_numpy(rows)
    lengths = torch.tensor([len(item["input_ids"]) for item in items])
    batch["attention_mask"] = torch.arange(length) < lengths[:, None]
    return batch


def _loader(items: list[dict[str, Any]], pad_id: int, batch_size: int, seed: int) -> Loader:
    return Loader(
        items,
        lambda rows: _collated(rows, pad_id),
        batch_size=batch_size,
        length=lambda item: len(item["input_ids"]),
        bucket=20,
        seed=seed,
    )


@torch.no_grad()
def _held_out(model: nn.Module, objective: Objective, items: list[dict[str, Any]], pad_id: int) -> float:
    """Mean loss on texts that were not trained on, under one fixed corruption."""
    if not items:
        return float("nan")
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    total, count = 0.0, 0.0
    model.eval()
    for start in range(0, len(items), 64):
        batch = objective.prepare(_collated(items[start : start + 64], pad_id), generator)
        loss = objective(model, {name: field.to(device) for name, field in batch.items()})
        total, count = total + float(loss.total) * float(loss.count), count + float(loss.count)
    return total / count


def _last(records: Sequence[dict[str, Any]]) -> float:
    return float(np.mean([record["loss"] for record in records if "loss" in record][-10:]))
