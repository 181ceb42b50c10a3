"""Reading weights: safetensors, shards, pickles that are safe and pickles that are not; and what cannot be saved."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from leaven.data.downloads import sha256_of
from leaven.errors import ModelError
from leaven.models.bridge import load_huggingface, read_weights, save_huggingface
from leaven.models.encoder import TextEncoder, TextEncoderConfig
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.models.language_model import LanguageModel, LanguageModelConfig
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import DualEncoder, DualEncoderConfig, ImageEncoder, ImageEncoderConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEAVEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4), "c": torch.tensor([1, 2])}


def same(got: dict[str, torch.Tensor]) -> bool:
    return got.keys() == STATE.keys() and all(torch.equal(got[name], STATE[name]) for name in STATE)


def index(folder: Path, name: str, files: dict[str, str]) -> None:
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def test_every_form_gives_the_same_weights(folder: Path, cache: Path) -> None:
    torch.save(dict(STATE), folder / "pytorch_model-00001-of-00002.bin")
    torch.save({}, folder / "pytorch_model-00002-of-00002.bin")
    index(folder, "pytorch_model.bin", dict.fromkeys("abc", "pytorch_model-00001-of-00002.bin"))
    before = names(folder)
    assert same(read_weights(folder))
    assert names(folder) == before
    torch.save(STATE, folder / "pytorch_model.bin")
    assert same(read_weights(folder))
    save_file({"a": STATE["a"].half()}, folder / "model-1.safetensors")
    save_file({"b": STATE["b"], "c": STATE["c"]}, folder / "model-2.safetensors")
    index(folder, "model.safetensors", {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    assert same(read_weights(folder))
    save_file(STATE, folder / "model.safetensors")
    assert same(read_weights(folder))
    assert len(list(cache.rglob("*.safetensors"))) == 2


def test_a_pickle_is_converted_once_and_again_when_the_copy_is_damaged(folder: Path, cache: Path) -> None:
    shared = torch.ones(3)
    torch.save({"a": shared, "tied": shared}, folder / "pytorch_model.bin")
    read_weights(folder)
    (copy,) = cache.rglob("*.safetensors")
    assert copy.stem == sha256_of(folder / "pytorch_model.bin")
    written = copy.stat().st_mtime_ns
    read_weights(folder)
    assert copy.stat().st_mtime_ns == written
    copy.write_bytes(copy.read_bytes()[:-2])
    assert torch.equal(read_weights(folder)["tied"], shared)
    assert set(load_file(copy)) == {"a", "tied"}


class _RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("raw", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(raw: bool, folder: Path, tmp_path: Path) -> None:
    path, marker = folder / "pytorch_model.bin", tmp_path / "ran"
    content = {"a": torch.ones(2), "b": _RunsCode(marker)}
    if raw:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match=rf"{path} is refused: torch's weights_only loader cannot read it"):
        read_weights(folder)
    assert not marker.exists()
    # The file does run code where a loader lets it: the refusal is what kept the marker away.
    if raw:
        pickle.loads(path.read_bytes())
        assert marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(2), "step": 3}, "entry 'step' is a int, not a dense tensor by name"),
        ({"model": {"a": torch.ones(2)}}, "entry 'model' is a dict"),
        ({1: torch.ones(2)}, "entry 1 is a Tensor, not a dense tensor by name"),
        ([torch.ones(2)], "holds a list, expected a dictionary of tensors"),
        ({"a": torch.eye(2).to_sparse()}, "entry 'a' is a Tensor, not a dense tensor"),
    ],
)
def test_a_pickle_with_more_than_tensors_is_refused(content: Any, message: str, folder: Path, cache: Path) -> None:
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=f"pytorch_model.bin is refused: .*{message}"):
        read_weights(folder)
    assert not cache.exists()


@pytest.mark.parametrize("keep", [0, 10, -5])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_files(name: str, keep: int, folder: Path) -> None:
    path = folder / name
    if name.endswith(".bin"):
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:keep])
    message = "is refused" if name.endswith(".bin") else "is not a whole safetensors file"
    with pytest.raises(ModelError, match=f"{path} {message}"):
        read_weights(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weight_map": {"a": "model-9.safetensors"}}', "names the shard model-9.safetensors, which is missing"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "names the shard '../model.safetensors': expected a"),
        ('{"weight_map": {"a": "model.pkl"}}', "names the shard 'model.pkl': expected a .safetensors or .bin"),
        ('{"weight_map": 3}', "is not an index of shards"),
        ("{", "is not an index of shards"),
    ],
)
def test_broken_indexes(content: str, message: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        read_weights(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "tf_model.h5").touch()
    with pytest.raises(ModelError, match=r"no model.safetensors and no pytorch_model.bin, .* it has tf_model.h5"):
        read_weights(folder)


def gpt2(folder: Path) -> dict[str, Any]:
    config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8, bos_token_id=1,
                                     eos_token_id=2)  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "brand_new"}, "has no model_type 'brand_new'; a model that brings its own code is not run"),
        ({"model_type": None}, "has no model_type None"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantised checkpoints are not read"),
        ({"n_embd": "wide"}, "is not a configuration that transformers accepts"),
        ({"n_layer": 2}, "lacks the weights h.1.ln_1.weight, h.1.ln_1.bias, h.1.attn.c_attn.weight and 9 more"),
        ({"vocab_size": 21}, r"embed.tokens.weight has shape \(20, 8\), .* says \(21, 8\)"),
        ({"tie_word_embeddings": False}, "lacks the weights lm_head.weight"),
    ],
)
def test_configurations_that_do_not_fit(change: dict[str, Any], message: str, folder: Path) -> None:
    values = gpt2(folder)
    (folder / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(ModelError, match=message):
        load_huggingface(folder)


def test_folders_that_are_no_models(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config.json"):
        load_huggingface(folder)
    with pytest.raises(ModelError, match="is not a folder"):
        load_huggingface(tmp_path / "nowhere")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json cannot be read"):
        load_huggingface(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="has no model_type"):
        load_huggingface(folder)


def test_code_that_a_folder_names_is_not_run(folder: Path, tmp_path: Path) -> None:
    values = gpt2(folder)
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    values["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(values))
    assert load_huggingface(folder).reason is None
    values["scale_attn_by_inverse_layer_idx"] = True
    (folder / "config.json").write_text(json.dumps(values))
    assert load_huggingface(folder).reason is not None
    assert not marker.exists()


def test_missing_weights_of_a_model_used_as_it_is(folder: Path) -> None:
    config = transformers.BartConfig(vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1,
                                     encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=8,
                                     decoder_ffn_dim=8, max_position_embeddings=10)  # fmt: skip
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in state.items() if not n.endswith("fc1.weight")}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks the weights .*fc1.weight, .*fc1.weight of a BartForConditional"):
        load_huggingface(folder)


def test_weights_without_a_place_are_named(folder: Path) -> None:
    values = gpt2(folder)
    state = load_file(folder / "model.safetensors")
    save_file({**state, "transformer.h.0.adapter.weight": torch.ones(2)}, folder / "model.safetensors")
    _, reason = load_huggingface(folder)
    assert "no place for the weights h.0.adapter.weight; transformers has no use for 1 of its weights" in str(reason)
    assert values["model_type"] == "gpt2"


PLAIN = TrunkConfig(dim=8, depth=1, heads=2, positions="none", norm="layer", bias=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (EncoderDecoder(EncoderDecoderConfig(9, TrunkConfig(dim=8, depth=1, heads=2),
                                             TrunkConfig(dim=8, depth=1, heads=2, cross_attention=True))),
         "positions='rotary' cannot be written as T5"),
        (LanguageModel(LanguageModelConfig(9, TrunkConfig(dim=8, depth=1, heads=2))), "positions='rotary' .* GPT-2"),
        (LanguageModel(LanguageModelConfig(9, PLAIN)), "embedding_positions=0 cannot be written as GPT-2"),
        (TextEncoder(TextEncoderConfig(9, PLAIN)), "pre_norm=True cannot be written as BERT"),
        (ImageEncoder(ImageEncoderConfig(PLAIN, size=8, patch=4, embedding_norm=True)), "embedding_norm=True"),
        (DualEncoder(DualEncoderConfig(ImageEncoderConfig(PLAIN, size=8, patch=4), PLAIN, 9)), "written as CLIP"),
        (nn.Linear(2, 2), "Linear has no counterpart in transformers"),
    ],
)  # fmt: skip
def test_models_that_transformers_cannot_express(model: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        save_huggingface(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_saving_never_mixes_with_what_is_there(folder: Path) -> None:
    model = EncoderDecoder(EncoderDecoderConfig.t5(vocab=9, dim=8, depth=1, heads=2))
    (folder / "notes.txt").touch()
    with pytest.raises(ModelError, match="is not empty: choose another folder"):
        save_huggingface(model, folder)
    model.encoder.blocks[0].ffn_adapter = nn.Linear(8, 8)
    with pytest.raises(ModelError, match=r"no place for encoder.blocks.0.ffn_adapter.bias"):
        save_huggingface(model, folder / "new")
    assert names(folder) == ["notes.txt"]
