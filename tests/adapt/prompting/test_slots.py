"""What is read at the slots, against the models themselves and the fill-mask pipeline of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from adapt.prompting.small_prompts import CONTEXT, DIM, MODELS, TEXTS, VOCAB, bert, gpt2, roberta, word_tokenizer
from torch.nn import functional as F

from leaven.adapt.peft import Prefix, PromptTuning
from leaven.adapt.prompting import SlotReader, Slots, Template
from leaven.adapt.prompting.slots import SoftTokens
from leaven.errors import ConfigError, ModelError
from leaven.models.bridge.foreign import wrap
from leaven.models.encoder import TextEncoder, TextEncoderConfig
from leaven.models.trunk import TrunkConfig

WORD = word_tokenizer()
KINDS = {"bert": "masked", "roberta": "masked", "text-encoder": "masked", "gpt2": "causal", "language-model": "causal",
         "t5": "seq2seq", "encoder-decoder": "seq2seq"}  # fmt: skip


def whole_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    fields = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].long()}
    if "decoder_input_ids" in batch:
        fields["decoder_input_ids"] = batch["decoder_input_ids"]
    return model(**fields).logits


def read(reader: SlotReader, prompts: list[Any], soft: torch.Tensor | None = None) -> Slots:
    (found,) = reader.read(prompts, lambda slots: slots, soft=soft)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_slots_are_the_models_own_scores_whatever_the_padding(name: str) -> None:
    model = MODELS[name]()
    reader = SlotReader(model, WORD)
    assert reader.kind == KINDS[name]
    prompts = [reader.encode(Template("{text} it is {mask}"), text) for text in TEXTS[:4]]
    together = read(reader, prompts)
    for row, prompt in enumerate(prompts):
        batch = reader.collate([prompt])
        with torch.no_grad():
            want = whole_logits(model, batch)[0, prompt.slots]
        torch.testing.assert_close(together.logits[row], want, rtol=1e-4, atol=1e-5)
        states = together.states[row]
        assert states.shape == (1, DIM)
        rows, bias = reader.output_rows(torch.arange(VOCAB))
        torch.testing.assert_close(states @ rows.T + bias, want, rtol=1e-4, atol=1e-5)
    if name == "t5":
        assert prompts[0].decoder == [0, 5] and prompts[0].slots == [1]


def test_scores_equal_those_of_the_fill_mask_pipeline() -> None:
    model, text = bert(), "the ice is cold"
    fill = transformers.pipeline("fill-mask", model=model, tokenizer=WORD, top_k=VOCAB, device="cpu")
    want = torch.zeros(VOCAB)
    for one in fill(f"{text} . it is [MASK] ."):
        want[one["token"]] = one["score"]
    reader = SlotReader(model, WORD)
    slots = read(reader, [reader.encode(Template("{text} . it is {mask} ."), text)])
    torch.testing.assert_close(slots.logits[0, 0].softmax(-1), want, rtol=1e-4, atol=1e-6)


def test_wrapped_models_read_as_they_are() -> None:
    for make in (bert, gpt2):
        plain, wrapped = (SlotReader(model, WORD) for model in (make(), wrap(make())))
        prompt = plain.encode(Template("{text} is {mask}"), "ice")
        torch.testing.assert_close(read(wrapped, [prompt]).logits, read(plain, [prompt]).logits)


@pytest.mark.parametrize("name", MODELS)
def test_soft_tokens_that_are_words_read_as_the_words(name: str) -> None:
    reader = SlotReader(MODELS[name](), WORD)
    soft, hard = Template("{text} {soft:it is} {mask}"), Template("{text} it is {mask}")
    ids = soft.soft_ids(reader.tokenizer)
    weight = SoftTokens(ids, reader.embedded(), torch.Generator()).weight.detach()
    prompts = [reader.encode(soft, text) for text in TEXTS[:3]]
    got = read(reader, prompts, weight).logits
    want = read(reader, [reader.encode(hard, text) for text in TEXTS[:3]]).logits
    torch.testing.assert_close(got, want)
    other = read(reader, prompts, -weight).logits
    assert (other - want).abs().max() > 1e-3


def test_the_gradient_of_soft_tokens_is_a_difference_quotient() -> None:
    reader = SlotReader(bert().double(), WORD)
    template = Template("{soft:2} {text} is {mask} .")
    weight = SoftTokens([None, None], reader.embedded(), torch.Generator().manual_seed(0)).weight.detach()
    batch = reader.collate([reader.encode(template, text) for text in TEXTS[:2]])

    def loss(soft: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(reader(batch, soft).logits[:, 0], -1)[:, 7].sum()

    assert torch.autograd.gradcheck(loss, weight.requires_grad_(True))


def test_prefixes_and_prompts_of_peft_leave_slots_in_place() -> None:
    for name in ("bert", "gpt2", "text-encoder", "language-model"):
        for method in (Prefix(2, reparameterize=0), PromptTuning(2)):
            model = MODELS[name]()
            limit = SlotReader(model, WORD).max_length
            reader = SlotReader(method.apply(model), WORD)
            fewer = 2 if isinstance(method, PromptTuning) and limit else 0
            assert reader.max_length == (None if limit is None else limit - fewer)
            prompt = reader.encode(Template("{text} is {mask}"), "ice")
            with torch.no_grad():
                want = whole_logits(model, reader.collate([prompt]))[0, prompt.slots]
            torch.testing.assert_close(read(reader, [prompt]).logits[0], want, rtol=1e-4, atol=1e-5)


def test_the_context_is_what_the_model_has_positions_for() -> None:
    long = " ".join(["ice"] * 100)
    for name, limit in {"bert": CONTEXT, "roberta": CONTEXT - 1, "gpt2": CONTEXT, "text-encoder": CONTEXT}.items():
        reader = SlotReader(MODELS[name](), WORD)
        prompt = reader.encode(Template("{text} is {mask}"), long)
        assert reader.max_length == len(prompt.ids) == limit
        assert read(reader, [prompt]).logits.isfinite().all()
    assert SlotReader(MODELS["language-model"](), WORD).max_length is None
    assert len(SlotReader(roberta(), WORD, max_length=20).encode(Template("{text} is {mask}"), long).ids) == 20


def test_what_is_no_language_model_is_refused() -> None:
    config = TextEncoderConfig(VOCAB, TrunkConfig(DIM, 1, 4), head=False)
    with pytest.raises(ModelError, match="no masked-token head"):
        SlotReader(TextEncoder(config), WORD)
    with pytest.raises(ModelError, match="no output matrix"):
        SlotReader(transformers.BertModel(bert().config), WORD)
    with pytest.raises(ConfigError, match="kind='both'"):
        SlotReader(bert(), WORD, kind="both")  # type: ignore[arg-type]


def test_a_model_in_training_is_read_without_dropout_and_left_in_training() -> None:
    model = bert()
    model.config.hidden_dropout_prob = 0.5
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    reader = SlotReader(model, WORD)
    prompt = reader.encode(Template("{text} is {mask}"), "ice")
    want = read(reader, [prompt]).logits
    model.train()
    torch.testing.assert_close(read(reader, [prompt]).logits, want)
    assert all(module.training for module in model.modules())
