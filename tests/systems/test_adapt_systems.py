import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from evidence.small_backbones import causal_folder, image_folder, jsonl, text_folder, vision_folder
from standard_data import needs_data

from leaven.adapt.peft import adapter_parameters
from leaven.adapt.peft.method import adaptation_of
from leaven.adapt.peft.patches import sha256
from leaven.adapt.peft.sites import projections
from leaven.adapt.prompting import PromptedClassifier, PromptEnsemble, PromptTask
from leaven.catalog import card
from leaven.cli import main
from leaven.errors import CatalogError, ConfigError
from leaven.evidence.arenas.peft_few_shot import ACCURACY, _trained
from leaven.evidence.runner import run_claims
from leaven.models.loading import load_model_and_tokenizer
from leaven.systems import find_system
from leaven.systems.peft.dsee import DSEESystem
from leaven.systems.peft.petl_unified import PetlUnified
from leaven.systems.peft.svfit import SVFitSystem
from leaven.systems.running import run_in
from leaven.systems.survey.prompting_survey import METHODS, PromptingSurvey

PEFT = (PetlUnified, SVFitSystem, DSEESystem)
COLD = '{"0": ["cold"], "1": ["warm"]}'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("own")
    return {
        "text": text_folder(folder / "text"),
        "causal": causal_folder(folder / "causal"),
        "vision": vision_folder(folder / "vision"),
        "texts": jsonl(folder),
        "images": image_folder(folder / "images"),
    }


def small(system: Any, place: dict[str, str], **options: Any) -> Any:
    return system.configured(smoke=True, model=place["text"], **{"data": place["texts"], **options})


@pytest.mark.parametrize("system", [*PEFT, PromptingSurvey])
def test_a_claim_run_measures_every_arm_with_what_its_claims_need(
    system: Any, place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_system(card(system.slug).slug) is system
    extra = {"model": place["text"], "data": "docstring-topics"}
    monkeypatch.setattr(system, "smoke", {**system.smoke, **extra})
    evidence = run_claims(system, smoke=True, seeds=1, out=tmp_path)
    assert set(evidence.arms) == set(system.arms)
    assert len(evidence.claims) == len(system.claims)
    assert all(math.isfinite(claim.effect) for claim in evidence.claims)
    if system is PetlUnified:
        matched = ("mam", "prefix", "lora", "adapter", "parallel-s1", "parallel-s4")
        counts = [evidence.arms[name].budget["trainable"].mean for name in matched]
        assert max(counts) <= 1.06 * min(counts)
    if system is DSEESystem:
        assert len({arm.budget["trainable"].mean for arm in evidence.arms.values()}) == 1
    if system is SVFitSystem:
        trained = {name: arm.budget["trainable"].mean for name, arm in evidence.arms.items()}
        assert trained["svfit"] == trained["random"] <= trained["lora"] / 10
        assert trained["bottom-50"] == trained["energy-50"] < trained["energy-90"] < trained["energy-100"]
        assert evidence.arms["random"].budget["stored_bytes"].mean > evidence.arms["svfit"].budget["stored_bytes"].mean
    if system is PromptingSurvey:
        assert evidence.arms["zero-shot"].budget["steps"].mean == 0


@needs_data
@pytest.mark.parametrize("system", [*PEFT, PromptingSurvey])
def test_the_standard_tier_measures_every_arm_on_public_texts(
    system: Any, place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "smoke", {**system.smoke, "model": place["text"]})
    evidence = run_claims(system, tier="standard", smoke=True, seeds=1, out=tmp_path)
    # Questions about abbreviations are fewer than 256.
    missing = {"gap-256"} if system is PromptingSurvey else set()
    assert set(evidence.arms) == set(system.arms) - missing
    expected = [one for one in system.claims if not {one.better, one.than} & missing]
    assert [(one.says, one.metric, one.by) for one in evidence.claims] == [
        (one.says, one.metric, one.by) for one in expected
    ]
    assert all(math.isfinite(one.effect) for one in evidence.claims)


@pytest.mark.parametrize("system", PEFT)
@pytest.mark.parametrize("kind", ["texts", "images"])
def test_the_whole_path_on_own_data(system: Any, kind: str, place: dict[str, str], tmp_path: Path) -> None:
    model = place["text" if kind == "texts" else "vision"]
    outcome = run_in(system.configured(smoke=True, model=model, data=place[kind]), tmp_path / "run")
    assert len(outcome.columns) == len(outcome.rows[0])
    assert 0 <= outcome.rows[0][outcome.columns.index("accuracy")] <= 100
    assert (tmp_path / "run" / "adapter" / "adapter.safetensors").is_file()
    assert len(outcome.samples) == (3 if kind == "texts" else 0)
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["curves"]


@pytest.mark.parametrize("kind", ["texts", "images"])
def test_rivals_are_compared_on_own_data_by_the_command_line(
    kind: str,
    place: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model = place["text" if kind == "texts" else "vision"]
    argv = ["compare", "petl-unified", "svfit", "dsee", f"data={place[kind]}", f"model={model}", "--smoke"]
    assert main([*argv, "--seeds", "2"]) == 0
    table = capsys.readouterr().out
    assert "petl-unified - svfit" in table and "accuracy" in table and "log10 trainable" in table
    assert main([*argv, "--seeds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == ["accuracy", "log10_trainable"] and found["notes"] == []
    # Fewer trained numbers are better.
    (pair,) = (one for one in found["pairs"] if one["metric"] == "log10_trainable" and one["other"] == "svfit")
    assert pair["effect"] < 0 and pair["better"] == "svfit"


def test_wrong_data_and_models_are_told_on_the_command_line(
    place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["compare", "petl-unified", "svfit", "--smoke", f"data={place['images']}"]
    assert main([*argv, f"model={place['text']}"]) == 2
    assert "reads texts, and the data are images" in capsys.readouterr().err
    assert main([*argv[:-1], "data=glyphs", f"model={place['vision']}", "share=0.1"]) == 2
    assert "no option 'share'" in capsys.readouterr().err
    with pytest.raises(CatalogError, match="no arm 'mam2'"):
        PetlUnified.configured(arm="mam2")


def test_pruned_weights_are_zero_and_the_update_is_dense(place: dict[str, str], tmp_path: Path) -> None:
    system = small(DSEESystem, place, budget="10 steps")
    backbone = system.backbone()
    task = system.task(backbone)
    tuned = system.train(backbone.classifier(2, 0), task, 1e-2, tmp_path)
    assert {stage: records[-1]["step"] for stage, records in tuned.curves.items()} == {"update": 6, "re-tuning": 4}
    assert tuned.used["steps"] == 10
    parts = [part for part in projections(tuned.model.encoder) if part.role]
    for chosen in ([p for p in parts if p.role in "qv"], [p for p in parts if p.role not in "qv"]):
        weights = [part.weight(tuned.model.encoder) for part in chosen]
        zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
        assert abs(zeros / total - 0.5) < 1e-3
    assert abs(tuned.figures["sparsity_percent"] - 50) < 0.1
    for part in parts:
        now, before = part.weight(tuned.model.encoder), part.weight(backbone.encoder)
        assert torch.equal(now, torch.where(now == 0, 0.0, before))
    learned = adapter_parameters(tuned.model)
    assert all(bool((p != 0).any()) for p in learned.values())
    assert not any(bool((p == 0).all(-1).any()) for name, p in learned.items() if name.endswith("up"))
    # The sparse entries are a list of values, not a matrix with a penalty.
    assert {p.ndim for name, p in learned.items() if name.endswith("values")} == {1}


def test_the_update_decides_what_is_pruned_and_the_weight_where_asked(place: dict[str, str], tmp_path: Path) -> None:
    masks = {}
    for arm in ("dsee", "lora-magnitude"):
        system = small(DSEESystem, place, arm=arm)
        backbone = system.backbone()
        model = system.train(backbone.classifier(2, 0), system.task(backbone), 1e-2, tmp_path / arm).model
        masks[arm] = adaptation_of(model).masks
        adapted = [part for part in projections(backbone.encoder) if part.role and part.role in "qv"]
        sizes = torch.cat([part.weight(backbone.encoder).detach().abs().flatten() for part in adapted])
        kept = torch.cat([masks[arm][f"encoder.{part.name}:{part.start}"].flatten() for part in adapted])
        assert int(kept.sum()) == len(kept) // 2
        # By magnitude nothing that was kept is smaller than what was cut.
        assert (float(sizes[kept].min()) >= float(sizes[~kept].max())) == (arm == "lora-magnitude")
    shared = [torch.equal(masks["dsee"][name], masks["lora-magnitude"][name]) for name in masks["dsee"]]
    assert any(shared) and not all(shared)


def test_heads_are_cut_out_of_the_matrices(place: dict[str, str], tmp_path: Path) -> None:
    found = {}
    for arm in ("heads", "random-heads", "lora"):
        system = small(DSEESystem, place, arm=arm)
        backbone = system.backbone()
        found[arm] = system.train(backbone.classifier(2, 0), system.task(backbone), 1e-2, tmp_path / arm)
    shapes = {part.role: part.weight(found["heads"].model).shape for part in projections(found["heads"].model)}
    assert shapes["q"] == shapes["k"] == shapes["v"] == (24, 32) and shapes["o"] == (32, 24)
    figures = found["heads"].figures
    assert figures["attention_flops_percent"] == 75.0 and 85 < figures["flops_percent"] < 93
    assert found["lora"].figures["flops_percent"] == 100.0
    kept = [adaptation_of(found[arm].model).heads for arm in ("heads", "random-heads")]
    assert all(len(heads) == 3 for plan in kept for heads in plan.values())


def test_svfit_adapts_every_part_of_a_fused_matrix_and_starts_as_the_base(place: dict[str, str]) -> None:
    system = small(SVFitSystem, place, energy=1.0)
    backbone = system.backbone()
    model = backbone.classifier(2, 0)
    method = system.adaptation(model)
    batch = system.task(backbone).train.batch(range(4))
    before = model(**batch)
    method.apply(model)
    torch.testing.assert_close(model(**batch), before, rtol=0, atol=1e-5)
    learned = adapter_parameters(model)
    # Four square matrices a layer, two layers, 32 values each: the fused qkv has three spectra.
    assert [p.shape for p in learned.values()] == [(32,)] * 8
    values = torch.linalg.svdvals(
        next(p for p in projections(backbone.encoder) if p.role == "k").weight(backbone.encoder)
    )
    name = next(name for name in learned if ".k." in name)
    torch.testing.assert_close(learned[name].detach(), values.detach(), rtol=1e-4, atol=1e-5)


def test_a_run_of_svfit_keeps_its_spectra(place: dict[str, str], tmp_path: Path) -> None:
    outcome = small(SVFitSystem, place, energy=0.9).run(tmp_path)
    found = json.loads((tmp_path / outcome.artefacts["singular values before and after"]).read_text())
    before, after = next(iter(found.values()))
    assert before == sorted(before, reverse=True) and before != after and len(before) == len(after)


def learnable(place: dict[str, str], model: str = "text", **options: Any) -> Any:
    chosen = {
        "shots": 16, "dev_shots": 4, "words": json.loads(COLD), "budget": "30 steps", "learning_rates": (3e-3,),
        "batch_size": 16, "test_limit": 20, **options,
    }  # fmt: skip
    return PromptingSurvey.configured(smoke=True, model=place[model], data=place["texts"], **chosen)


@pytest.mark.parametrize("model", ["text", "causal"])
def test_prompts_are_learnt(model: str, place: dict[str, str], tmp_path: Path) -> None:
    outcome = run_in(learnable(place, model, compare=("zero-shot", "fixed-prompt")), tmp_path / "run")
    scores = {row[0]: row[3] for row in outcome.rows}
    assert scores["fixed-prompt"] == 100.0 > scores["zero-shot"]
    assert outcome.rows[0][1] is None and "cold" in outcome.samples[0]["answer"]


@pytest.mark.parametrize("name", ["fixed-lm", "zero-shot", "calibrated"])
def test_a_fixed_model_stays_fixed(name: str, place: dict[str, str]) -> None:
    system = learnable(place, soft_tokens=4, learning_rates=(3e-2,))
    (made,) = system.best(system.ground(), name).result
    assert isinstance(made, PromptedClassifier)
    base = load_model_and_tokenizer(place["text"]).model.state_dict()
    trained = made.model.language_model.state_dict()
    assert {key: sha256(base[key]) for key in base} == {key: sha256(trained[key]) for key in base}
    if name == "fixed-lm":
        assert made.model.soft is not None and made.model.soft.weight.shape == (4, 32)


def test_the_base_model_is_not_used_up_by_a_method(place: dict[str, str]) -> None:
    system = learnable(place)
    ground = system.ground()
    before = {name: sha256(tensor) for name, tensor in ground.model.state_dict().items()}
    first, second = (system.best(ground, "fixed-prompt") for _ in range(2))
    assert first.scores == second.scores
    assert {name: sha256(tensor) for name, tensor in ground.model.state_dict().items()} == before


def test_an_ensemble_is_of_a_model_for_each_template(place: dict[str, str]) -> None:
    templates = ("{text} it is {mask}", "{text} the {mask}")
    system = learnable(place, templates=templates, budget="3 steps")
    ground = system.ground()
    (together,) = system.best(ground, "ensemble").result
    singles = system.best(ground, "single-templates").result
    assert isinstance(together, PromptEnsemble) and [one.template.text for one in singles] == list(templates)
    texts = list(ground.shots.dev.texts)
    mean = torch.stack([one.scores(texts).exp() for one in singles]).mean(0)
    torch.testing.assert_close(together.scores(texts).exp(), mean, rtol=1e-5, atol=1e-6)
    alone = learnable(place, templates=templates[:1], budget="3 steps")
    (of_one,) = alone.best(ground, "ensemble").result
    (single,) = alone.best(ground, "fixed-prompt").result
    torch.testing.assert_close(of_one.scores(texts), single.scores(texts), rtol=1e-5, atol=1e-5)


def test_arms_of_a_seed_share_what_they_trained_and_have_what_they_would_have_alone(
    place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("fixed-prompt", "single-templates", "ensemble", "gap")
    options: dict[str, Any] = {"templates": ("{text} it is {mask}", "{text} the {mask}"), "budget": "3 steps"}
    trainings: list[str] = []
    plain = PromptTask.classifier

    def counted(task: PromptTask, *given: Any, **rest: Any) -> PromptedClassifier:
        trainings.append(task.templates[0])
        return plain(task, *given, **rest)

    monkeypatch.setattr(PromptTask, "classifier", counted)
    measure = {name: learnable(place, method=name, seed=3, **options) for name in names}
    shared = {name: system.measure(tmp_path).metrics for name, system in measure.items()}
    rates = len(measure["gap"].config.learning_rates)
    assert len(trainings) == rates * (1 + 2 + 0 + 1), "a head is all that the gap adds"
    learnable(place, method="fixed-prompt", seed=4, **options).measure(tmp_path)
    assert len(trainings) == rates * (1 + 2 + 0 + 1 + 1), "another seed begins anew"
    for name, system in measure.items():
        _trained.cache_clear()
        assert system.measure(tmp_path).metrics == shared[name]


def test_searched_and_random_words(place: dict[str, str]) -> None:
    system = learnable(place)
    ground = system.ground()
    searched, random = (system.best(ground, name).result[0] for name in ("searched-words", "random-words"))
    for made in (searched, random):
        words = made.model.verbalizer.words
        assert len(set(words)) == 2 and all(word.isalpha() for word in words)
    again = system.best(ground, "random-words").result[0]
    assert again.model.verbalizer.words == random.model.verbalizer.words


def test_the_gap_is_that_of_the_two_methods(place: dict[str, str], tmp_path: Path) -> None:
    measured = {
        name: learnable(place, method=name, budget="4 steps").measure(tmp_path)
        for name in ("gap", "fixed-prompt", "promptless")
    }
    difference = measured["fixed-prompt"].metrics[ACCURACY] - measured["promptless"].metrics[ACCURACY]
    assert measured["gap"].metrics["gap"] == pytest.approx(difference)
    fresh = learnable(place, random_weights=True).ground().model.state_dict()
    again = learnable(place, random_weights=True).ground().model.state_dict()
    base = load_model_and_tokenizer(place["text"]).model.state_dict()
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)
    assert not torch.equal(fresh["embed.tokens.weight"], base["embed.tokens.weight"])


def test_what_is_wrong_with_prompts_is_named(place: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="there is no method 'prompt'; there are zero-shot"):
        PromptingSurvey.configured(method="prompt")
    with pytest.raises(ConfigError, match="there is no method 'gap'"):
        PromptingSurvey.configured(compare=("gap",))
    with pytest.raises(ConfigError, match="expected steps alone"):
        PromptingSurvey.configured(budget="5min")
    with pytest.raises(ConfigError, match="words has nothing, and the labels are 0, 1"):
        learnable(place, words={}).ground()
    with pytest.raises(ConfigError, match="has no answer slot"):
        system = learnable(place, templates=("{text} it is",))
        system.best(system.ground(), "zero-shot")
    assert set(METHODS) < set(PromptingSurvey.arms)


@pytest.mark.parametrize("tier", ["embedded", "standard"])
@pytest.mark.parametrize(
    ("slugs", "options"),
    [
        (("nmc", "adam-cil", "slca", "lae"), ("data", "train_images", "epochs", "batch_size")),
        (("petl-unified", "svfit", "dsee"), ("budget", "batch_size")),
    ],
)
def test_rivals_have_the_same_budget_in_a_tier(tier: str, slugs: tuple[str, ...], options: tuple[str, ...]) -> None:
    configs = [find_system(slug).configured(tier=tier).config for slug in slugs]
    for name in options:
        assert len({getattr(config, name) for config in configs}) == 1, name
    if "svfit" in slugs:
        assert len({len(config.learning_rates) for config in configs}) == 1
