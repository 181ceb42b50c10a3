import re

import pytest
import torch

from leaven.contracts import Batch
from leaven.data.examples import CodeExample
from leaven.errors import ConfigError
from leaven.modalities.code import collate_functions, encode_functions
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.modalities.text import IGNORE
from leaven.objectives.corruption import row_noise
from leaven.objectives.identifiers import IdentifierTagging, MaskedIdentifierPrediction
from leaven.objectives.span_corruption import SpanCorruption

SOURCE = """def total(items, start=0):
    result = start
    for item in items:
        # result is not a name here
        result = result + item.value
    return result if result else "result"
"""
LONG = "def f(a):\n" + "".join(f"    a = a + name_{i} * {i}\n" for i in range(30)) + "    return a\n"


@pytest.fixture(scope="module")
def tokenizer() -> CodeTokenizer:
    return CodeTokenizer.train([SOURCE, LONG, "Sum the items."] * 3, 420, 2)


def batch_of(tokenizer: CodeTokenizer, *codes: str) -> Batch:
    examples = [CodeExample(code, "python", docstring="Sum the items.") for code in codes]
    return collate_functions(encode_functions(examples, tokenizer), tokenizer.pad_id)


def restored(tokenizer: CodeTokenizer, inputs: torch.Tensor, labels: torch.Tensor) -> str:
    target = tokenizer.tokenizer.decode([int(i) for i in labels if i != IGNORE], skip_special_tokens=False)
    text = tokenizer.tokenizer.decode([int(i) for i in inputs], skip_special_tokens=False)
    pieces = re.split(r"(<extra_id_\d+>)", target.replace("</s>", ""))
    for sentinel, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        text = re.sub(rf"\s?{re.escape(sentinel)}", lambda m, p=piece: p, text)
    return re.sub(r"\s+", "", re.sub(r"<(pad|s|/s)>", "", text))


def original(tokenizer: CodeTokenizer, ids: torch.Tensor) -> str:
    text = tokenizer.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
    return re.sub(r"\s+", "", re.sub(r"<(pad|s|/s)>", "", text))


def test_a_name_used_often_is_one_sentinel_and_one_target_entry(tokenizer: CodeTokenizer) -> None:
    batch = batch_of(tokenizer, SOURCE)
    objective = MaskedIdentifierPrediction(tokenizer.sentinel_ids, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)
    masked = objective.prepare(batch, torch.Generator())
    text = tokenizer.tokenizer.decode([int(i) for i in masked["input_ids"][0]], skip_special_tokens=False)
    target = tokenizer.tokenizer.decode([int(i) for i in masked["labels"][0]], skip_special_tokens=False)
    names = re.split(r"<extra_id_\d+>", target.replace("</s>", ""))[1:]
    assert [name.strip() for name in names] == ["total", "items", "start", "result", "item", "value"]
    assert text.count("<extra_id_3>") == 5
    assert "result is not a name here" in text and '"result"' in text and "Sum the items." in text
    assert restored(tokenizer, masked["input_ids"][0], masked["labels"][0]) == original(
        tokenizer, batch["input_ids"][0]
    )


def test_names_beyond_the_limit_and_beyond_the_cut_leave_the_target(tokenizer: CodeTokenizer) -> None:
    batch = batch_of(tokenizer, LONG)
    common = {"end_id": tokenizer.end_id, "pad_id": tokenizer.pad_id}
    few = MaskedIdentifierPrediction(tokenizer.sentinel_ids, max_names=5, **common).prepare(batch, torch.Generator())
    assert set(tokenizer.sentinel_ids) & set(few["labels"][0].tolist()) == set(tokenizer.sentinel_ids[:5])
    cut = MaskedIdentifierPrediction(tokenizer.sentinel_ids, max_inputs=40, **common).prepare(batch, torch.Generator())
    sentinels = set(tokenizer.sentinel_ids)
    assert cut["input_ids"].shape[1] == 40
    assert sentinels & set(cut["labels"][0].tolist()) == sentinels & set(cut["input_ids"][0].tolist()) != set()


def test_spans_are_whole_words_and_the_target_restores_the_text(tokenizer: CodeTokenizer) -> None:
    batch = batch_of(tokenizer, SOURCE, LONG)
    objective = SpanCorruption(tokenizer.sentinel_ids, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)
    for seed in range(20):
        masked = objective.prepare(batch, torch.Generator().manual_seed(seed))
        for row in range(2):
            inputs, labels = masked["input_ids"][row], masked["labels"][row]
            assert restored(tokenizer, inputs, labels) == original(tokenizer, batch["input_ids"][row])
            order = [i for i in labels.tolist() if i in tokenizer.sentinel_ids]
            assert order == tokenizer.sentinel_ids[: len(order)]


def test_share_and_length_of_spans() -> None:
    tokens = torch.arange(1000, 1200).expand(400, -1)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens).bool()}
    masked = SpanCorruption(list(range(100)), end_id=2, pad_id=0).prepare(batch, torch.Generator().manual_seed(0))
    removed = (masked["labels"] >= 1000).sum(1).float()
    spans = ((masked["labels"] >= 0) & (masked["labels"] < 100) & (masked["labels"] != 2)).sum(1).float()
    spans = spans + (masked["labels"] == 2).sum(1) - 1
    assert abs(float(removed.mean()) / 200 - 0.15) < 0.005
    assert abs(float(removed.sum() / spans.sum()) - 3) < 0.1


def test_corruption_does_not_depend_on_how_the_batch_is_sharded(tokenizer: CodeTokenizer) -> None:
    objective = SpanCorruption(tokenizer.sentinel_ids, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)
    whole = {**batch_of(tokenizer, SOURCE, LONG), "row": torch.arange(2)}
    alone = {**batch_of(tokenizer, SOURCE), "row": torch.tensor([0])}
    a = objective.prepare(whole, torch.Generator().manual_seed(7))["labels"][0]
    b = objective.prepare(alone, torch.Generator().manual_seed(7))["labels"][0]
    assert a[a != IGNORE].tolist() == b[b != IGNORE].tolist()


def test_noise_is_uniform_and_reproducible() -> None:
    batch = {"row": torch.arange(500)}
    noise = row_noise(batch, 40, torch.Generator().manual_seed(3))
    assert abs(float(noise.mean()) - 0.5) < 0.01 and abs(float(noise.var()) * 12 - 1) < 0.03
    assert torch.equal(noise, row_noise(batch, 40, torch.Generator().manual_seed(3)))
    assert not torch.equal(noise, row_noise(batch, 40, torch.Generator().manual_seed(4)))


def test_tagging_reads_clean_input_and_programs_alone(tokenizer: CodeTokenizer) -> None:
    class Model(torch.nn.Module):
        def encode(self, input_ids: torch.Tensor, mask: torch.Tensor):
            self.seen = input_ids
            from leaven.contracts import Tokens

            return Tokens(torch.ones(*input_ids.shape, 4))

    batch = batch_of(tokenizer, SOURCE)
    objective = IdentifierTagging(4)
    model = Model()
    loss = objective(model, objective.prepare(batch, torch.Generator()))
    program = batch["segment_ids"][0] == 2
    share = (batch["identifier_ids"][0][program] >= 0).float()
    logit = objective.head(torch.ones(4)).detach()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit.expand(len(share)), share)
    torch.testing.assert_close(loss.total.detach(), expected)
    assert torch.equal(model.seen, batch["input_ids"]) and int(loss.count) == int(program.sum())


def test_too_few_sentinels_and_bad_shares_are_named() -> None:
    tokens = torch.arange(1000, 1200).expand(2, -1)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens).bool()}
    with pytest.raises(ConfigError, match="has 3 sentinels"):
        SpanCorruption([5, 6, 7], end_id=2, pad_id=0).prepare(batch, torch.Generator())
    with pytest.raises(ConfigError, match="density=1"):
        SpanCorruption([5], end_id=2, pad_id=0, density=1)
