"""One name for every model: the zoo, the hub, folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from leaven.errors import ModelError
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.models.bridge import ForeignEncoderDecoder, save_huggingface
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.models.loading import load_model_and_tokenizer
from leaven.models.saved import save_model
from leaven.models.zoo import CARD_FIELDS, zoo_card, zoo_folder, zoo_names

CODE = ["def add(left, right):\n    return left + right", "for name in names: print(name)"] * 4


def t5(vocab: int = 400) -> EncoderDecoder:
    torch.manual_seed(0)
    return EncoderDecoder(EncoderDecoderConfig.t5(vocab=vocab, dim=16, depth=1, heads=2)).eval()


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    root = tmp_path / "zoo"
    for name in ("code-t5", "small-clip"):
        save_model(root / name, t5(), CodeTokenizer.train(CODE, vocab_size=400))
    (root / "code-t5" / "card.json").write_text(json.dumps(dict.fromkeys(CARD_FIELDS, "...")))
    (root / "small-clip" / "card.json").write_text(json.dumps({"what": "...", "seed": 0}))
    (root / "drafts").mkdir()
    return root


def test_the_zoo_that_ships_can_be_listed() -> None:
    for name in zoo_names():
        assert set(CARD_FIELDS) <= set(zoo_card(name))


def test_the_zoo(zoo: Path) -> None:
    assert zoo_names(zoo) == ["code-t5", "small-clip"]
    assert zoo_folder("code-t5", zoo) == zoo / "code-t5"
    assert set(zoo_card("code-t5", zoo)) == set(CARD_FIELDS)
    loaded = load_model_and_tokenizer("zoo:code-t5", zoo_root=zoo)
    assert loaded.origin == "zoo:code-t5" and loaded.kind == "encoder-decoder" and loaded.notes == ()
    assert isinstance(loaded.model, EncoderDecoder) and len(loaded.tokenizer.sentinel_ids) == 100


def test_the_zoo_names_what_it_has(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no zoo:code-t6: the zoo has code-t5, small-clip; did you mean zoo:code-t5?"):
        load_model_and_tokenizer("zoo:code-t6", zoo_root=zoo)
    with pytest.raises(ModelError, match="there is no zoo:x: the zoo is empty"):
        zoo_folder("x", tmp_path)
    with pytest.raises(ModelError, match=r"card.json lacks data, command, sha256, parameters, size_bytes"):
        zoo_card("small-clip", zoo)
    (zoo / "small-clip" / "card.json").write_text("{")
    with pytest.raises(ModelError, match="zoo:small-clip has no readable card"):
        zoo_card("small-clip", zoo)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("code-t5", "expected zoo:NAME .zoo:code-t5, zoo:small-clip., hf:ID .* or a folder; did you mean zoo:code-t5?"),
        ("zoo;code-t5", "did you mean zoo:code-t5?"),
        ("Salesforce/codet5-small", "did you mean hf:Salesforce/codet5-small?"),
        ("", "there is no model ''"),
        ("zoo:", "there is no model 'zoo:'"),
        ("hf:../../etc", "is no name of the Hugging Face hub: expected hf:OWNER/NAME"),
        ("hf:a b", "is no name of the Hugging Face hub"),
    ],
)
def test_names_that_are_none(spec: str, message: str, zoo: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_model_and_tokenizer(spec, zoo_root=zoo)


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model: expected leaven.json or .* config.json, found nothing"):
        load_model_and_tokenizer(tmp_path)
    (tmp_path / "x.txt").touch()
    with pytest.raises(ModelError, match=r"found x.txt"):
        load_model_and_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"x.txt is a file: name the folder"):
        load_model_and_tokenizer(tmp_path / "x.txt")


def codet5_small(folder: Path, *, added: bool = False) -> Any:
    """A checkpoint as Salesforce/codet5-small is published, with fewer layers and ids."""
    tokenizer = CodeTokenizer.train(CODE, vocab_size=420)
    bpe = json.loads(tokenizer.tokenizer.to_str())["model"]
    vocab = {token: i for token, i in bpe["vocab"].items() if not token.startswith("<extra_id")}
    size = len(vocab) + 100
    values = {
        "_name_or_path": "codet5-small", "architectures": ["T5ForConditionalGeneration"], "bos_token_id": 1,
        "d_ff": 2048, "d_kv": 64, "d_model": 512, "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 2,
        "feed_forward_proj": "relu", "gradient_checkpointing": False, "initializer_factor": 1.0,
        "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512,
        "num_decoder_layers": 1, "num_heads": 8, "num_layers": 1, "output_past": True, "pad_token_id": 0,
        "relative_attention_num_buckets": 32, "torch_dtype": "float32", "transformers_version": "4.10.2",
        "use_cache": True, "vocab_size": size,
    }  # fmt: skip
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**values)).eval()
    folder.mkdir()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "vocab.json").write_text(json.dumps(vocab))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    if added:
        ids = {f"<extra_id_{k}>": size - 1 - k for k in range(100)}
        (folder / "added_tokens.json").write_text(json.dumps(ids))
    return theirs


@pytest.mark.parametrize("added", [False, True])
def test_codet5_small(added: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAVEN_CACHE", str(tmp_path / "cache"))
    theirs = codet5_small(tmp_path / "codet5", added=added)
    loaded = load_model_and_tokenizer(tmp_path / "codet5")
    assert loaded.kind == "encoder-decoder" and loaded.notes == ()
    model: Any = loaded.model
    tokenizer = loaded.tokenizer
    assert (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id) == (0, 1, 2)
    assert len(tokenizer) == model.config.vocab
    last = model.config.vocab - 1
    assert tokenizer.require_sentinels()[0] == (last if added else last - 99)
    (encoded,) = tokenizer.encode(["def add(<extra_id_0>, right): return"])
    assert tokenizer.sentinel_ids[0] in encoded.ids
    assert tokenizer.decode(encoded.ids) == "def add(, right): return"
    ids = torch.tensor([encoded.ids])
    want = theirs(ids, labels=ids).logits
    assert float((model(ids, labels=ids).logits - want).detach().abs().max()) < 1e-4


def test_added_tokens_that_do_not_fit_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAVEN_CACHE", str(tmp_path / "cache"))
    codet5_small(tmp_path / "codet5")
    (tmp_path / "codet5" / "added_tokens.json").write_text('{"<extra_id_0>": 5000}')
    loaded = load_model_and_tokenizer(tmp_path / "codet5")
    assert loaded.tokenizer is None
    assert "gives '<extra_id_0>' the id 5000" in loaded.notes[0]


def test_a_hugging_face_folder_with_tokenizer_json(tmp_path: Path) -> None:
    folder = save_huggingface(t5(), tmp_path / "m")
    assert "no tokenizer: the folder has no tokenizer files" in load_model_and_tokenizer(folder).notes
    tokenizer = CodeTokenizer.train(CODE, vocab_size=400)
    tokenizer.save(folder)
    loaded = load_model_and_tokenizer(str(folder))
    assert loaded.tokenizer.sentinel_ids == tokenizer.sentinel_ids


def test_a_tokenizer_without_what_is_needed_is_left_out_and_says_so(tmp_path: Path) -> None:
    folder = save_huggingface(t5(), tmp_path / "m")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "code"]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    loaded = load_model_and_tokenizer(folder)
    assert loaded.tokenizer is None
    assert loaded.notes == (
        "no tokenizer: the tokenizer has no '<pad>' token: use one trained for code (vocabulary of CodeT5)",
    )
    (folder / "tokenizer.json").write_text("{")
    assert "no tokenizer: its tokenizer files cannot be used" in load_model_and_tokenizer(folder).notes[0]


def test_a_model_used_as_it_is_says_why(tmp_path: Path) -> None:
    config = transformers.BartConfig(vocab_size=20, d_model=8, encoder_layers=1, decoder_layers=1,
                                     encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=8,
                                     decoder_ffn_dim=8, max_position_embeddings=10)  # fmt: skip
    transformers.BartForConditionalGeneration(config).save_pretrained(tmp_path)
    loaded = load_model_and_tokenizer(tmp_path)
    assert isinstance(loaded.model, ForeignEncoderDecoder) and loaded.kind == "encoder-decoder"
    assert loaded.notes[0].startswith("used as it is: bart is not one of the families")


class _Hub:
    """Stands in for the hub: copies the files that match the patterns."""

    def __init__(self, source: Path, target: Path) -> None:
        self.source, self.target = source, target
        self.asked: list[tuple[str, str | None, bool]] = []

    def __call__(self, name: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        self.asked.append((name, revision, local_files_only))
        self.target.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for path in self.source.glob(pattern):
                shutil.copy(path, self.target)
        return str(self.target)


def test_the_hub_is_asked_for_safetensors_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAVEN_CACHE", str(tmp_path / "cache"))
    for name in ("LEAVEN_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    codet5_small(tmp_path / "codet5")
    (tmp_path / "codet5" / "run.py").touch()
    hub = _Hub(tmp_path / "codet5", tmp_path / "snapshot")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    loaded = load_model_and_tokenizer("hf:Salesforce/codet5-small@main")
    assert loaded.kind == "encoder-decoder" and loaded.origin == "hf:Salesforce/codet5-small@main"
    assert hub.asked == [("Salesforce/codet5-small", "main", False)] * 2
    assert not (tmp_path / "snapshot" / "run.py").exists()
    hub = _Hub(save_huggingface(t5(), tmp_path / "safe"), tmp_path / "second")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    load_model_and_tokenizer("hf:someone/model")
    assert hub.asked == [("someone/model", None, False)]


@pytest.mark.parametrize("switch", ["LEAVEN_OFFLINE", "HF_HUB_OFFLINE"])
def test_the_hub_offline(switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(switch, "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"set offline .* not in the hub's cache; .* pass its folder instead"):
        load_model_and_tokenizer("hf:Salesforce/codet5-small")


def test_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEAVEN_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)

    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ModelError, match=r"check the name and the network; or .* pass its folder .*no route to host"):
        load_model_and_tokenizer("hf:Salesforce/codet5-small")
