"""leaven's own model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from leaven.errors import ModelError
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.models.encoder import TextEncoder, TextEncoderConfig
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.models.language_model import LanguageModel, LanguageModelConfig
from leaven.models.saved import load_model, read_manifest, save_model, tied_names
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import DualEncoder, DualEncoderConfig, ImageEncoder, ImageEncoderConfig

TRUNK = TrunkConfig(dim=16, depth=2, heads=2)
IMAGE = ImageEncoderConfig(TRUNK, size=8, patch=4, labels=3)
MODELS = {
    "encoder-decoder": lambda: EncoderDecoder(EncoderDecoderConfig.t5(vocab=30, dim=16, depth=1, heads=2, gated=True)),
    "language-model": lambda: LanguageModel(LanguageModelConfig(30, TRUNK)),
    "language-model, untied": lambda: LanguageModel(LanguageModelConfig(30, TRUNK, tied=False)),
    "text-encoder": lambda: TextEncoder(TextEncoderConfig(30, TRUNK)),
    "image-encoder": lambda: ImageEncoder(IMAGE),
    "dual-encoder": lambda: DualEncoder(DualEncoderConfig(IMAGE, TRUNK, 30, eos_id=None)),
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def t5() -> EncoderDecoder:
    torch.manual_seed(1)
    return EncoderDecoder(EncoderDecoderConfig.t5(vocab=30, dim=16, depth=1, heads=2)).eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    state = torch.random.get_rng_state()
    back: Any = load_model(save_model(tmp_path / "deep" / "model", model, extra={"seed": 7}))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert back.config == model.config and not back.training
    assert back.config.architecture == name.partition(",")[0]
    assert back.config.architecture == read_manifest(tmp_path / "deep" / "model")["architecture"]
    assert read_manifest(tmp_path / "deep" / "model")["extra"] == {"seed": 7}
    for key, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor)
    assert names(tmp_path / "deep") == ["model"]


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", t5())
    assert tied_names(t5()) == {"head.proj.weight": "embed.tokens.weight"}
    assert "head.proj.weight" not in load_file(folder / "model.safetensors")
    back: Any = load_model(folder)
    assert back.head.proj.weight is back.embed.tokens.weight


def test_bfloat16_halves_the_file_and_comes_back_in_float32(tmp_path: Path) -> None:
    model = t5()
    save_model(tmp_path / "full", model)
    save_model(tmp_path / "half", model, dtype=torch.bfloat16)
    size = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")}
    assert size["half"] < 0.6 * size["full"]
    back = load_model(tmp_path / "half")
    for name, tensor in model.state_dict().items():
        assert back.state_dict()[name].dtype == torch.float32
        assert torch.equal(back.state_dict()[name], tensor.bfloat16().float())


def test_the_tokenizer_travels_along(tmp_path: Path) -> None:
    tokenizer = CodeTokenizer.train(["def f(x): return x"] * 5, vocab_size=400)
    back = CodeTokenizer.load(save_model(tmp_path / "m", t5(), tokenizer))
    assert back.encode(["def f"])[0].ids == tokenizer.encode(["def f"])[0].ids


def test_an_earlier_model_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    save_model(tmp_path / "m", t5(), extra={"run": 1})
    (tmp_path / "m" / "stale.json").touch()
    save_model(tmp_path / "m", t5(), extra={"run": 2})
    assert read_manifest(tmp_path / "m")["extra"] == {"run": 2}
    assert names(tmp_path / "m") == ["leaven.json", "model.safetensors"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(ModelError, match="exists and is no model of leaven"):
        save_model(tmp_path / "photos", t5())
    assert names(tmp_path) == ["m", "photos"]


def test_a_failing_save_leaves_the_earlier_model(tmp_path: Path) -> None:
    save_model(tmp_path / "m", t5(), extra={"run": 1})
    with pytest.raises(TypeError):
        save_model(tmp_path / "m", t5(), extra={"run": object()})
    assert read_manifest(tmp_path / "m")["extra"] == {"run": 1}
    load_model(tmp_path / "m")
    assert names(tmp_path) == ["m"]


def test_models_that_could_not_be_loaded_again_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Linear is no architecture of leaven"):
        save_model(tmp_path / "m", nn.Linear(2, 2))
    model = t5()
    model.encoder.blocks[0].ffn_adapter = nn.Linear(16, 16)
    with pytest.raises(ModelError, match=r"weights encoder.blocks.0.ffn_adapter.bias, .*: merge or remove adapters"):
        save_model(tmp_path / "m", model)
    assert not (tmp_path / "m").exists()


def change(folder: Path, **values: Any) -> None:
    path = folder / "leaven.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def config_with(folder: Path, **values: Any) -> dict[str, Any]:
    return {**json.loads((folder / "leaven.json").read_text())["config"], **values}


def test_damaged_folders(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", t5())
    weights, manifest = folder / "model.safetensors", folder / "leaven.json"
    whole, said = weights.read_bytes(), manifest.read_text()

    def refuses(message: str) -> None:
        with pytest.raises(ModelError, match=message):
            load_model(folder)
        weights.write_bytes(whole)
        manifest.write_text(said)

    weights.write_bytes(whole[:-1])
    refuses("model.safetensors is not the file that was saved: its sha256 is")
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refuses("model.safetensors is not the file that was saved: its sha256 is")
    weights.unlink()
    refuses("has no model.safetensors: the model is incomplete")
    change(folder, architecture="oracle")
    refuses("unknown architecture 'oracle', expected one of encoder-decoder, language-model")
    change(folder, config=config_with(folder, vocab=31))
    refuses(r"embed.tokens.weight has shape \(30, 16\), but the model's configuration says \(31, 16\)")
    change(folder, config=config_with(folder, tied=False))
    refuses("lacks the weight head.proj.weight")
    change(folder, config=config_with(folder, colour="red"))
    refuses("the configuration is not one of encoder-decoder: .*colour")
    change(folder, config=config_with(folder, encoder={"dim": 16, "depth": 1, "heads": 3}))
    refuses("the configuration is not one of encoder-decoder: trunk dim=16")
    change(folder, config=7)
    refuses("the configuration is not one of encoder-decoder")
    manifest.write_text("{")
    refuses("leaven.json cannot be read")
    manifest.write_text('{"config": {}}')
    refuses("leaven.json lacks architecture, sha256")
    manifest.write_text("[]")
    refuses("leaven.json lacks architecture, config, sha256")
    manifest.unlink()
    refuses("is no model of leaven: it has no leaven.json")
    load_model(folder)
