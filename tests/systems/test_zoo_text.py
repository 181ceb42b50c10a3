import math
from pathlib import Path

import pytest
import torch

from leaven.data.docstring_topics import TOPICS, topic_texts
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.models.loading import load_model_and_tokenizer
from leaven.models.saved import save_model
from leaven.systems.zoo_made import Made
from leaven.systems.zoo_text import encoded, mini_lm, mini_mlm, pretraining_texts

TINY = {
    "data": "stdlib-code", "functions": 400, "dim": 32, "depth": 1, "heads": 2, "vocab": 700, "max_tokens": 24,
    "pretrain": "40 steps", "short": "5 steps", "batch_size": 32, "learning_rate": 3e-3, "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize("recipe", [mini_mlm, mini_lm])
def test_a_language_model_is_made_saved_and_made_again(recipe: object, tmp_path: Path) -> None:
    made: Made = recipe(tmp_path / "work", **TINY)  # type: ignore[operator]
    (results,) = made.results
    # A uniform guess costs log(vocab); the frequencies of tokens are learnt within 40 steps.
    assert results["held-out loss"] < 0.9 * math.log(len(made.tokenizer))
    assert made.data["texts"] > 50 * made.data["held-out texts"]
    loaded = load_model_and_tokenizer(save_model(tmp_path / "model", made.model, made.tokenizer, extra=made.extra))
    assert loaded.kind == ("text-encoder" if recipe is mini_mlm else "language-model")
    again: Made = recipe(tmp_path / "again", **TINY)  # type: ignore[operator]
    weights = again.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.model.state_dict().items())


def test_no_text_of_the_topic_task_is_seen() -> None:
    texts, pieces = pretraining_texts("stdlib-code", 10**9)
    assert len(texts) > 3_000 and len(texts) == len(set(texts))
    assert len(pieces) > 2 * len(texts) and len(pieces) == len(set(pieces))
    task = {one.text for split in ("train", "valid", "test") for one in topic_texts(split)}
    # Sentences that several packages have in common are no secret of the task.
    whole = "\n".join([*texts, *pieces])
    assert sum(text in whole for text in task if len(text.split()) >= 5) < 0.02 * len(task)
    assert len(TOPICS) == 8


def test_words_are_what_the_tokenizer_splits_at_first() -> None:
    tokenizer = CodeTokenizer.train(["the number of widgets"] * 5, 400, 2)
    (item,) = encoded(["the numbers zq"], tokenizer, 24)
    pieces = [tokenizer.decode([token], keep_specials=True) for token in item["input_ids"]]
    assert pieces[0] == "<s>" and item["input_ids"][-1] == tokenizer.end_id
    words: dict[int, str] = {}
    for word, piece in zip(item["word_ids"][1:-1], pieces[1:-1], strict=True):
        words[int(word)] = words.get(int(word), "") + piece
    assert list(words.values()) == ["the", " numbers", " zq"]
    assert item["word_ids"][0] == item["word_ids"][-1] == -1
    (cut,) = encoded(["the numbers zq"], tokenizer, 4)
    assert len(cut["input_ids"]) == len(cut["word_ids"]) == 4 and cut["input_ids"][-1] == tokenizer.end_id
