"""CodeT5 from the hub's checkpoint, and from a model that the trunk cannot express, in every place that takes one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from leaven.errors import ModelError
from leaven.models import zoo
from leaven.models.bridge import save_huggingface
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.models.loading import load_model_and_tokenizer
from leaven.systems import zoo_recipes
from leaven.systems.applying import apply_model
from leaven.systems.code.codet5 import CodeT5
from leaven.systems.running import run_in

SOURCE = "def add(left, right):\n    return left + right\n"


def write_tokenizer(folder: Path, vocab: int) -> None:
    """RoBERTa-style files as CodeT5 publishes them: no sentinels, no language tags."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    specials = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator([SOURCE] * 5, vocab_size=vocab, min_frequency=1, special_tokens=specials)
    bpe.save_model(str(folder))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The form of Salesforce/codet5-small, with fewer layers and ids."""
    folder = tmp_path_factory.mktemp("codet5-small")
    torch.manual_seed(0)
    form = EncoderDecoderConfig.t5(vocab=500, dim=64, depth=1, heads=2, head_dim=16, ffn_dim=128)
    save_huggingface(EncoderDecoder(form), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"_name_or_path": "codet5-small", "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, 320)
    return folder


@pytest.fixture
def hub(published: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("leaven.models.loading.fetch_from_hub", lambda name: published)
    return "hf:Salesforce/codet5-small"


def test_the_hubs_checkpoint_is_pretrained_further_fine_tuned_judged_and_applied(hub: str, tmp_path: Path) -> None:
    system = CodeT5.configured(smoke=True, model=hub, tasks=("variable", "summarize", "clone"), scratch=False)
    outcome = run_in(system, tmp_path / "run")
    assert [row[0] for row in outcome.rows] == ["variable", "summarize", "clone"]
    assert {"msp", "it", "mip"} & {name for record in outcome.curves["pre-training"] for name in record}
    (row,) = apply_model(str(tmp_path / "run"), "summarize", SOURCE)
    assert row["function"] == "add"
    loaded = load_model_and_tokenizer(tmp_path / "run" / "pretrained")
    assert loaded.kind == "encoder-decoder" and loaded.tokenizer is not None


def test_the_hubs_checkpoint_is_applied_as_it_is(hub: str) -> None:
    assert apply_model(hub, "summarize", SOURCE)[0]["function"] == "add"
    assert (
        "<extra_id_0>" not in apply_model(hub, "fill", "def add(left, right):\n    return <extra_id_0>\n")[0]["answer"]
    )


def test_dual_generation_needs_language_tags(hub: str, tmp_path: Path) -> None:
    system = CodeT5.configured(smoke=True, model=hub, dual=0.5, tasks=("variable",), scratch=False)
    with pytest.raises(ModelError, match="'<en>'"):
        run_in(system, tmp_path / "run")


def test_a_model_used_as_it_is_goes_the_whole_way(tmp_path: Path) -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    folder = tmp_path / "bart"
    config = BartConfig(
        vocab_size=500,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    BartForConditionalGeneration(config).save_pretrained(folder)
    write_tokenizer(folder, 320)
    loaded = load_model_and_tokenizer(folder)
    assert loaded.notes and loaded.tokenizer is not None
    system = CodeT5.configured(smoke=True, model=str(folder), tasks=("variable", "clone"), scratch=False)
    measured = system.measure(tmp_path / "arm")
    assert set(measured.metrics) == {"variable/f1", "variable/exact", "clone/f1", "clone/accuracy"}


def test_a_model_that_cannot_write_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path / "bert"
    BertForMaskedLM(
        BertConfig(vocab_size=500, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    ).save_pretrained(folder)
    write_tokenizer(folder, 320)
    with pytest.raises(ModelError, match="cannot write code: a sequence-to-sequence model"):
        apply_model(str(folder), "summarize", SOURCE)


def test_the_zoo_is_made_by_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {**CodeT5.smoke, "tasks": ["variable", "summarize"], "multi_task": True, "scratch": False}
    recipe = zoo_recipes.SystemRecipe("codet5", {**options, "data": "stdlib-code"}, "all tasks", "a test")
    monkeypatch.setitem(zoo_recipes.RECIPES, "tiny", recipe)
    folder = zoo_recipes.make("tiny", work=tmp_path / "work", out=tmp_path / "zoo")
    card = zoo.zoo_card("tiny", tmp_path / "zoo")
    assert card["command"] == "leaven zoo make tiny" and card["data"]["functions"] > 1000
    # Two bytes a parameter and a header of names.
    assert 2 * card["parameters"] <= card["size_bytes"] < 2 * card["parameters"] + 10_000
    shipped, made = load_model_and_tokenizer(folder), load_model_and_tokenizer(tmp_path / "work" / "all-tasks")
    for name, tensor in shipped.model.state_dict().items():
        assert torch.equal(tensor, made.model.state_dict()[name].bfloat16().float())
    monkeypatch.setattr(zoo_recipes, "LARGEST_BYTES", 1000)
    with pytest.raises(ModelError, match="more than the 1000"):
        zoo_recipes.make("tiny", work=tmp_path / "work", out=tmp_path / "zoo")
