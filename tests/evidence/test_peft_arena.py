import json
from pathlib import Path

import pytest
import torch
import transformers
from evidence.small_backbones import (
    DEPTH,
    DIM,
    causal_folder,
    image_folder,
    jsonl,
    sentences,
    text_folder,
    tokenizer,
    vision_folder,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from leaven.adapt.peft import MAM, Adapter, LoRA, Method, Prefix, SVFit, load_adapter
from leaven.adapt.peft.patches import sha256
from leaven.adapt.prompting import prompt_tokenizer
from leaven.errors import ConfigError, DataError, ModelError
from leaven.evidence.arenas.peft_budget import learned_numbers, matched_widths, projection_numbers, width_for
from leaven.evidence.arenas.peft_data import ImageRows, LabelledTexts, TextRows, open_texts
from leaven.evidence.arenas.peft_few_shot import draw_shots
from leaven.evidence.arenas.peft_model import attach, open_backbone, predict, settled_cost
from leaven.evidence.selection import ReadTwiceError
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.models.loading import load_model_and_tokenizer
from leaven.models.saved import save_model
from leaven.systems.peft.petl_unified import PetlUnified
from leaven.systems.peft.svfit import SVFitSystem

LIMITS = (1000, 1000, 1000)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return text_folder(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> str:
    return vision_folder(tmp_path_factory.mktemp("models") / "vision")


def tuned(model: str, data: str, system: type = PetlUnified, **options: object) -> object:
    small = {"max_tokens": 24, "budget": "40 steps", "batch_size": 16, "learning_rates": (1e-2,), "share": 0.1}
    if system is SVFitSystem:
        del small["share"]
    return system(system.Config(model=model, data=data, **{**small, **options}))


def test_methods_under_one_budget_train_equally_many_numbers(text: str) -> None:
    model = open_backbone(text, images=False).classifier(2, 0)
    before = {name: sha256(tensor) for name, tensor in model.state_dict().items()}
    families = {
        "lora": lambda width: LoRA(rank=width, targets="q,v", train=("head",)),
        "prefix": lambda width: Prefix(length=width, train=("head",)),
        "adapter": lambda width: Adapter(bottleneck=width, train=("head",)),
        "mam": lambda width: MAM(prefix=2, bottleneck=width, train=("head",)),
    }
    assert projection_numbers(model.encoder) == 12 * DIM * DIM * DEPTH
    widths = matched_widths(model, families, 0.06 * projection_numbers(model.encoder))
    assert {name: sha256(tensor) for name, tensor in model.state_dict().items()} == before
    counts = {}
    for name, family in families.items():
        copy = open_backbone(text, images=False).classifier(2, 0)
        method = family(widths[name])
        attach(copy, method, 0)
        counts[name] = settled_cost(copy, method).trainable
        trained = sum(p.numel() for p in copy.parameters() if p.requires_grad)
        assert trained == counts[name] + sum(p.numel() for p in copy.head.parameters())
        assert counts[name] == learned_numbers(model, method)
    assert counts["lora"] == 4 * DIM * DEPTH * widths["lora"]
    assert max(counts.values()) <= 1.03 * counts["lora"] and min(counts.values()) >= 0.97 * counts["lora"]
    with pytest.raises(ConfigError, match="no widths of lora, prefix, adapter, mam train equally many numbers"):
        matched_widths(model, families, 100)


@pytest.mark.parametrize("numbers", [1, 200, 1000, 3000])
def test_the_width_is_that_whose_count_comes_nearest(text: str, numbers: int) -> None:
    model = open_backbone(text, images=False).classifier(2, 0)
    family = lambda width: Adapter(bottleneck=width)  # noqa: E731
    counted = {width: learned_numbers(model, family(width)) for width in range(1, DIM + 1)}
    best = min(counted, key=lambda width: abs(counted[width] - numbers))
    assert counted[width_for(model, family, numbers)] == counted[best]


METHODS: list[Method] = [LoRA(rank=2), SVFit(energy=0.9), Adapter(bottleneck=4), MAM(prefix=2, bottleneck=4)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_arms_start_alike_and_the_base_never_moves(
    text: str, tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jsonl(tmp_path)
    object.__setattr__(method, "train", ("head",))
    monkeypatch.setattr(PetlUnified, "adaptation", lambda self, model: method)
    system = tuned(text, data, budget="6 steps")
    backbone = system.backbone()
    task = system.task(backbone)
    plain, adapted = (backbone.classifier(2, 7) for _ in range(2))
    fields = task.train.batch(range(8))
    before = plain(**fields)
    attach(adapted, method, 7)
    changed = float((adapted(**fields) - before).detach().abs().max())
    # A prefix shares the softmax, so it changes the model from the start; the others do not.
    assert changed > 0 if isinstance(method, MAM) else changed < 1e-5
    frozen = {name: sha256(p) for name, p in plain.encoder.named_parameters()}
    trained = system.train(backbone.classifier(2, 7), task, 1e-2, tmp_path / "run")
    now = dict(trained.model.encoder.named_parameters())
    assert {name: sha256(now[name]) for name in frozen} == frozen
    assert not torch.equal(trained.model.head.weight, plain.head.weight)
    assert not any(p.grad is not None for name, p in now.items() if name in frozen)


def test_the_head_is_the_same_for_all_and_a_seed_repeats_itself(text: str, tmp_path: Path) -> None:
    data = jsonl(tmp_path)
    found = [
        tuned(text, data, seed=seed, budget="5 steps").measure(tmp_path / str(at)) for at, seed in enumerate((3, 3, 4))
    ]
    losses = [[record["loss"] for record in one.curves["training"]] for one in found]
    assert losses[0] == losses[1] != losses[2]
    backbone = open_backbone(text, images=False)
    assert torch.equal(backbone.classifier(2, 3).head.weight, backbone.classifier(2, 3).head.weight)
    assert not torch.equal(backbone.classifier(2, 3).head.weight, backbone.classifier(2, 4).head.weight)


@pytest.mark.parametrize("method", ["mam", "prefix", "lora", "adapter", "full"])
def test_what_can_be_told_apart_is_learnt(text: str, tmp_path: Path, method: str) -> None:
    found = tuned(text, jsonl(tmp_path), method=method).measure(tmp_path / "run")
    assert found.metrics["accuracy"] == 100.0 and found.validation["accuracy"] == 100.0


def test_the_rate_is_picked_on_the_validation_split_and_a_finished_run_is_not_repeated(
    text: str, tmp_path: Path
) -> None:
    system = tuned(text, jsonl(tmp_path), learning_rates=(1e-7, 1e-2), budget="20 steps")
    first = system.measure(tmp_path / "run")
    scores = first.chosen["scores"]
    assert first.chosen["learning_rate"] == 1e-2 and scores["0.01"] == max(scores.values()) > scores["1e-07"]
    assert first.budget["steps"] == 20 and first.budget["trials"] == 2
    assert system.measure(tmp_path / "run").metrics == first.metrics


def test_an_adapter_goes_on_a_fresh_model(text: str, tmp_path: Path) -> None:
    system = tuned(text, jsonl(tmp_path), reparameterize=8, seed=5)
    outcome = system.run(tmp_path / "run")
    assert {sample["task"] for sample in outcome.samples} == {"classify"}
    assert outcome.artefacts == {"adapter and head": "adapter"}
    backbone = system.backbone()
    test = system.task(backbone).read_test()
    fresh = load_adapter(backbone.classifier(2, 99), tmp_path / "run" / "adapter")
    assert predict(fresh, test) == predict(outcome.model, test)
    fields = test.batch([0, 1])
    torch.testing.assert_close(fresh(**fields), outcome.model(**fields), rtol=0, atol=1e-6)


def test_padding_does_not_reach_the_pooled_state(text: str) -> None:
    backbone = open_backbone(text, images=False)
    model = backbone.classifier(2, 0)
    rows = TextRows(LabelledTexts(("ice", "the sun is it the fire"), ("0", "1")), ["0", "1"], backbone.tokenizer, 24)
    together = model(**rows.batch([0, 1]))
    torch.testing.assert_close(together, torch.cat([model(**rows.batch([at])) for at in range(2)]), rtol=0, atol=1e-5)
    assert rows.ids[0][0] == 1 and rows.ids[0][-1] == 2
    short = TextRows(LabelledTexts(("the sun is it the fire",), ("1",)), ["0", "1"], backbone.tokenizer, 5)
    assert len(short.ids[0]) == 5 and short.ids[0][-1] == 2


def test_images_are_judged_by_the_class_token(vision: str, tmp_path: Path) -> None:
    system = tuned(vision, image_folder(tmp_path / "images"), SVFitSystem, per_class=(20, 4, 4))
    backbone = system.backbone()
    task = system.task(backbone)
    model = backbone.classifier(2, 0)
    fields = task.train.batch(range(4))
    encoder = load_model_and_tokenizer(vision).model
    torch.testing.assert_close(model(**fields), model.head(encoder(fields["pixel_values"])))
    assert isinstance(task.train, ImageRows) and model.tokens == 17
    assert system.measure(tmp_path / "run").metrics["accuracy"] == 100.0


def test_a_causal_model_serves_too(tmp_path: Path) -> None:
    found = tuned(causal_folder(tmp_path / "causal"), jsonl(tmp_path), method="lora").measure(tmp_path / "run")
    assert found.metrics["accuracy"] > 90


def test_of_an_encoder_decoder_the_encoder_alone_is_adapted(tmp_path: Path) -> None:
    made = tokenizer()
    torch.manual_seed(0)
    model = EncoderDecoder(EncoderDecoderConfig.t5(len(made), DIM, DEPTH, 4))
    folder = save_model(tmp_path / "t5", model, made)
    classifier = open_backbone(str(folder), images=False).classifier(2, 0)
    assert projection_numbers(classifier) == sum(
        p.numel() for name, p in model.encoder.named_parameters() if name.endswith("proj.weight")
    )
    method = LoRA(rank=2, train=("head",))
    attach(classifier, method, 0)
    assert settled_cost(classifier, method).trainable == DEPTH * 2 * 2 * 2 * DIM


def test_a_folder_of_transformers_with_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ice", "snow", "sun", "fire"]
    inner = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokens = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=12,
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path / "bert")
    tokens.save_pretrained(tmp_path / "bert")
    backbone = open_backbone(str(tmp_path / "bert"), images=False)
    assert backbone.longest == 12
    rows = TextRows(LabelledTexts(("ice snow", "sun"), ("0", "1")), ["0", "1"], backbone.tokenizer, 12)
    assert rows.ids == [[2, 5, 6, 3], [2, 7, 3]]
    model = backbone.classifier(2, 0)
    batch = rows.batch([0, 1])
    mask = batch["attention_mask"]
    states = theirs.bert(batch["input_ids"], attention_mask=mask.long()).last_hidden_state
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(model(**batch), model.head(pooled), rtol=1e-4, atol=1e-5)


def test_models_that_do_not_fit_the_data_are_named(text: str, vision: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="reads texts, and the data are images"):
        open_backbone(text, images=True)
    with pytest.raises(ModelError, match="reads images, and the data are texts"):
        open_backbone(vision, images=False)
    save_model(tmp_path / "bare", load_model_and_tokenizer(text).model)
    with pytest.raises(ModelError, match="no tokenizer that can be used"):
        open_backbone(str(tmp_path / "bare"), images=False)


def test_own_texts_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    data = open_texts(jsonl(tmp_path), limits=LIMITS)
    assert data.classes == ["0", "1"]
    test = data.test.read()
    assert len(data.train) + len(data.valid) + len(test) == 120
    with pytest.raises(ReadTwiceError):
        data.test.read()
    assert len(open_texts(jsonl(tmp_path), limits=(10, 3, 3)).train) == 10
    (tmp_path / "one").mkdir()
    with pytest.raises(DataError, match="has 1 classes; expected two or more"):
        open_texts(jsonl(tmp_path / "one", [{**row, "label": 0} for row in sentences()]), limits=LIMITS)
    rare = [*sentences(), *({"text": f"rare {at}", "label": 5} for at in range(40))]
    (tmp_path / "rare").mkdir()
    spec = jsonl(tmp_path / "rare", rare)
    texts = set(open_texts(spec, limits=LIMITS).train.texts)
    path = tmp_path / "unseen.jsonl"
    # A single text of a label lies where its hash says; of three or more, one is for training.
    (lone, *_) = (row for row in rare if row["label"] == 5 and row["text"] not in texts)
    path.write_text("\n".join(map(json.dumps, [*sentences(), lone])))
    with pytest.raises(DataError, match=r"unseen.jsonl:\d+: label 5 is in the (valid|test) split and no text .*0, 1"):
        open_texts(f"jsonl:{path}", limits=LIMITS)


def test_classes_by_name_have_one_order_in_all_splits(tmp_path: Path) -> None:
    names = {0: "winter", 1: "summer"}
    rows = [{**row, "label": names[int(str(row["label"]))]} for row in sentences()]
    data, numbered = open_texts(jsonl(tmp_path, rows), limits=LIMITS), tmp_path / "numbered"
    numbered.mkdir()
    same = open_texts(jsonl(numbered), limits=LIMITS)
    assert data.classes == ["summer", "winter"]
    for found, by_number in ((data.train, same.train), (data.valid, same.valid), (data.test.read(), same.test.read())):
        assert dict(zip(found.texts, found.labels, strict=True)) == {
            text: names[int(label)] for text, label in zip(by_number.texts, by_number.labels, strict=True)
        }
        rows_of = TextRows(found, data.classes, prompt_tokenizer(tokenizer()), 16)
        assert [data.classes[at] for at in rows_of.targets.tolist()] == list(found.labels)


def test_topics_have_names_and_lines_of_code_on_demand() -> None:
    with_code, without = (open_texts("docstring-topics", limits=LIMITS, source=source) for source in (True, False))
    assert with_code.classes == without.classes and "mail" in without.classes
    full = (10**9, 10**9, 10**9)
    counts = [len(open_texts("docstring-topics", limits=full, source=source).train) for source in (True, False)]
    assert counts[0] > 2 * counts[1]


def test_shots_are_balanced_nested_and_drawn_anew_by_each_seed(tmp_path: Path) -> None:
    data = open_texts(jsonl(tmp_path), limits=LIMITS)
    few, more = (draw_shots(data, count, 2, 0) for count in (3, 9))
    assert sorted(few.train.labels) == ["0"] * 3 + ["1"] * 3
    assert set(few.train.texts) <= set(more.train.texts)
    assert set(few.dev.texts) <= set(data.valid.texts)
    assert draw_shots(data, 3, 2, 0) == few != draw_shots(data, 3, 2, 1)
    with pytest.raises(DataError, match="500 of every class were asked for"):
        draw_shots(data, 500, 2, 0)
