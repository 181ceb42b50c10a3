"""Sources of weights, and weights on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from merge.nets import Net, Tied, near
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from leaven.errors import ModelError
from leaven.merge import open_weights, uniform_soup
from leaven.merge.weights import CHUNK, SafetensorsWeights
from leaven.models.saved import load_model, save_model
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import ImageEncoder, ImageEncoderConfig

MIXED = {
    "big": torch.arange(2 * CHUNK + 6, dtype=torch.float32).view(2, -1) / 7,
    "matrix": torch.randn(300, 251, generator=torch.Generator().manual_seed(1)),
    "half": torch.randn(7, generator=torch.Generator().manual_seed(2)).half(),
    "bfloat": torch.randn(5, 3, generator=torch.Generator().manual_seed(3)).bfloat16(),
    "double": torch.randn(2, 2, generator=torch.Generator().manual_seed(4)).double(),
    "count": torch.tensor(17),
    "flags": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
}


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def shards(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    names = sorted(state)
    where = {}
    for place, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{place:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def test_every_kind_of_source_reads_the_same(tmp_path: Path) -> None:
    save_file(MIXED, tmp_path / "one.safetensors")
    torch.save(MIXED, tmp_path / "pickled.pt")
    (tmp_path / "single").mkdir()
    save_file(MIXED, tmp_path / "single" / "model.safetensors")
    for source in (
        MIXED,
        tmp_path / "one.safetensors",
        str(tmp_path / "pickled.pt"),
        tmp_path / "single",
        shards(tmp_path / "many", MIXED),
    ):
        same(open_weights(source).state(), MIXED)


def test_shapes_are_known_without_reading_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(MIXED, tmp_path / "one.safetensors")
    monkeypatch.setattr(SafetensorsWeights, "flat", lambda *_: pytest.fail("values were read"))
    specs = open_weights(tmp_path / "one.safetensors").specs
    assert {name: (spec.shape, spec.dtype) for name, spec in specs.items()} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in MIXED.items()
    }


def test_a_piece_of_a_tensor(tmp_path: Path) -> None:
    save_file(MIXED, tmp_path / "one.safetensors")
    weights = open_weights(tmp_path / "one.safetensors")
    assert torch.equal(weights.flat("matrix", 1000, 1234), MIXED["matrix"].flatten()[1000:1234])
    assert torch.equal(weights.flat("bfloat", 4, 9), MIXED["bfloat"].flatten()[4:9])


def test_a_module_is_read_live_and_tied_names_are_left_out() -> None:
    model = Tied()
    weights = open_weights(model)
    assert list(weights.specs) == ["embed.weight"]
    with torch.no_grad():
        model.embed.weight.fill_(3.0)
    assert torch.equal(weights.state()["embed.weight"], torch.full((5, 4), 3.0))
    fresh = Tied(1)
    weights.into(fresh)
    assert torch.equal(fresh.out.weight, torch.full((5, 4), 3.0)) and fresh.out.weight is fresh.embed.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_what_the_library_reads(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in MIXED.items()}
    path = open_weights(state).save(tmp_path / "deep" / "out.safetensors")
    same({**load_file(path)}, state)
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt" and json.loads(file.metadata()["merge"])["source"] == "state dict"
    assert [p.name for p in path.parent.iterdir()] == ["out.safetensors"]


def test_a_folder_in_shards(tmp_path: Path) -> None:
    out = open_weights(MIXED).save(tmp_path / "out", shard_bytes=1000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    # Two tensors are larger than a shard each.
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{place}-of-00003.safetensors" for place in (1, 2, 3)
    ]
    same(open_weights(out).state(), MIXED)
    for file in set(index["weight_map"].values()):
        held = load_file(out / file)
        assert len(held) == 1 or sum(t.numel() * t.element_size() for t in held.values()) <= 1000


def test_a_hugging_face_model_comes_back(tmp_path: Path) -> None:
    from transformers import AutoModel, BertConfig, BertModel

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    torch.manual_seed(0)
    models = [BertModel(config)]
    models.append(BertModel(config))
    models[1].load_state_dict(near(models[0].state_dict(), 1, 0.02))
    for place, model in enumerate(models):
        model.save_pretrained(tmp_path / f"run{place}")
    uniform_soup([tmp_path / "run0", tmp_path / "run1"], tmp_path / "soup")
    back = AutoModel.from_pretrained(tmp_path / "soup")
    states = [model.state_dict() for model in models]
    for name, tensor in back.state_dict().items():
        expected = (states[0][name] + states[1][name]) / 2 if tensor.is_floating_point() else states[0][name]
        assert torch.allclose(tensor, expected, atol=1e-7)


def test_a_model_of_leaven_comes_back(tmp_path: Path) -> None:
    config = ImageEncoderConfig(TrunkConfig(dim=16, depth=1, heads=2), size=8, patch=4, labels=3)
    model = ImageEncoder(config)
    other = ImageEncoder(config)
    other.load_state_dict(near(model.state_dict(), 1, 0.01))
    save_model(tmp_path / "a", model, extra={"seed": 1})
    save_model(tmp_path / "b", other)
    out = uniform_soup([tmp_path / "a", tmp_path / "b"]).save(tmp_path / "soup", shard_bytes=10)
    back = load_model(out).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(back[name], (tensor + other.state_dict()[name]) / 2, atol=1e-7)


def test_what_lies_beside_the_weights_goes_along(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "checkpoint-5").mkdir()
    save_file(Net().state_dict(), folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "1_Pooling/config.json", "trainer_state.json", "optimizer.pt"):
        (folder / name).write_text("{}")
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    out = uniform_soup([folder, near(Net().state_dict(), 1)]).save(tmp_path / "soup")
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == [
        "1_Pooling/config.json",
        "config.json",
        "merge.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
    ]
    assert json.loads((out / "merge.json").read_text())["recipe"] == "uniform soup"


def test_an_earlier_merge_is_replaced_and_anything_else_refused(tmp_path: Path) -> None:
    soup = open_weights(MIXED)
    soup.save(tmp_path / "soup")
    open_weights(Net()).save(tmp_path / "soup")
    same(open_weights(tmp_path / "soup").state(), Net().state_dict())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match=r"mine exists and is no earlier merge"):
        soup.save(tmp_path / "mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "soup"]


@pytest.mark.parametrize("out", ["soup.safetensors", "soup"])
def test_nothing_is_changed_when_saving_fails(tmp_path: Path, out: str) -> None:
    open_weights(Net()).save(tmp_path / out)
    bad = near(Net().state_dict(), 1)
    bad["head.bias"][1] = float("nan")
    soup = uniform_soup([Net().state_dict(), bad])
    with pytest.raises(ModelError, match=r"head\.bias of source 2: 1 of 3 values"):
        soup.save(tmp_path / out)
    same(open_weights(tmp_path / out).state(), Net().state_dict())
    assert [p.name for p in tmp_path.iterdir()] == [out]


def test_wrong_sources(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there are no weights"):
        open_weights(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="no known ending"):
        (tmp_path / "notes.md").write_text("x")
        open_weights(tmp_path / "notes.md")
    save_file(MIXED, tmp_path / "cut.safetensors")
    with (tmp_path / "cut.safetensors").open("rb+") as file:
        file.truncate(2000)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        open_weights(tmp_path / "cut.safetensors")
    folder = shards(tmp_path / "many", MIXED)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        open_weights(folder)
    with pytest.raises(ModelError, match="expected tensors by name"):
        open_weights({"a": [1, 2]})  # type: ignore[dict-item]
    with pytest.raises(ModelError, match=r"is in model-00001-of-00002\.safetensors and in"):
        shards(tmp_path / "double", MIXED)
        save_file(MIXED, tmp_path / "double" / "model-00002-of-00002.safetensors")
        open_weights(tmp_path / "double")


def test_a_file_cut_after_opening_is_noticed(tmp_path: Path) -> None:
    save_file(MIXED, tmp_path / "one.safetensors")
    weights = open_weights(tmp_path / "one.safetensors")
    with (tmp_path / "one.safetensors").open("rb+") as file:
        file.truncate(2000)
    with pytest.raises(ModelError, match="ends inside matrix"):
        weights.tensor("matrix")


def test_tensors_in_any_memory_layout() -> None:
    state = {"w": torch.arange(70_000.0).view(7, 10_000).T, "images": torch.rand(2, 3, 4, 5)}
    state["images"] = state["images"].contiguous(memory_format=torch.channels_last)
    found = open_weights(state).state()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_nothing_outside_the_models_folder_is_copied(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key.txt").write_text("secret")
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(Net().state_dict(), folder / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps([{"path": "../private"}, {"path": ".."}]))
    out = open_weights(folder).save(tmp_path / "out")
    assert sorted(p.name for p in out.rglob("*")) == ["merge.json", "model.safetensors", "modules.json"]
    (folder / "modules.json").write_text("[1]")
    with pytest.raises(ModelError, match="no list of modules"):
        open_weights(folder).save(tmp_path / "out")


def test_a_pickled_file_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": Net()}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="is refused"):
        open_weights(tmp_path / "model.pt")
