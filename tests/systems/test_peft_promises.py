"""What the sheets of adapters and prompts promise: arms are the methods they name, one budget, no leaks."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from adapt.peft.small_models import DIM, HEADS, bert, disturb, gpt2, ids, mask, text_encoder
from adapt.prompting.small_prompts import CLOZE, COLD, word_tokenizer
from adapt.prompting.small_prompts import text_encoder as masked_model
from evidence.small_backbones import jsonl, text_folder

from leaven.adapt.peft import (
    DSEE,
    MAM,
    Adapter,
    LoRA,
    Prefix,
    SVFit,
    adapter_parameters,
    adapter_state,
    forward_flops,
    load_adapter,
    merge,
    prune_weights,
    sparsity,
    spectra,
)
from leaven.adapt.peft.method import adaptation_of
from leaven.adapt.peft.sites import projections
from leaven.adapt.peft.targets import select
from leaven.adapt.prompting import PromptedClassifier, PromptTask, SlotReader
from leaven.adapt.prompting import classifier as prompted
from leaven.evidence.arenas.peft_arena import PeftConfig
from leaven.evidence.arenas.peft_budget import learned_numbers, projection_numbers
from leaven.evidence.arenas.peft_few_shot import FewShotConfig
from leaven.evidence.arenas.peft_model import attach, settled_cost
from leaven.systems.peft.dsee import DSEESystem
from leaven.systems.peft.petl_unified import PetlUnified
from leaven.systems.peft.svfit import SVFitSystem
from leaven.systems.survey.prompting_survey import COMBINED, METHODS, PromptingConfig, PromptingSurvey
from leaven.training.config import TrainingConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("own")
    return {"model": text_folder(folder / "text"), "data": jsonl(folder)}


def test_mam_is_a_prefix_and_a_scaled_parallel_adapter_of_the_feed_forward_part() -> None:
    """h + s (W_up relu(W_down x + b) + b') with x the input of the feed-forward part; without it, prefix tuning."""
    model, scale = text_encoder(), 4.0
    MAM(prefix=3, bottleneck=5, scale=scale, reparameterize=0).apply(model, torch.Generator().manual_seed(0))
    disturb(model)
    for block in model.encoder.blocks:
        seen: dict[str, torch.Tensor] = {}
        up, down = block.ffn.up_proj, block.ffn.down_proj
        up.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(x=args[0]), prepend=True)
        down.register_forward_hook(lambda _, args, out, seen=seen: seen.update(h=out), prepend=True)
        down.register_forward_hook(lambda _, args, out, seen=seen: seen.update(changed=out))
        with torch.no_grad():
            model.encode(ids(), mask())
            change = down.adapter.change
            hidden = torch.relu(seen["x"] @ change.down.t() + change.down_bias)
            want = seen["h"] + scale * (hidden @ change.up.t() + change.up_bias)
        torch.testing.assert_close(seen["changed"], want)
    prefix = text_encoder()
    Prefix(length=3, reparameterize=0).apply(prefix)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if "prefix_tuning" in name:
                prefix.get_parameter(name).copy_(parameter)
            else:
                parameter.zero_()
        torch.testing.assert_close(model.encode(ids(), mask()).x, prefix.encode(ids(), mask()).x, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hidden", [0, 12])
def test_prefixes_equal_pefts(hidden: int) -> None:
    """peft's prefix tuning, with its network (prefix_projection) and without; its prefixes move the positions on."""
    peft = pytest.importorskip("peft")
    options = {"prefix_projection": True, "encoder_hidden_size": hidden} if hidden else {}
    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **options)
    theirs = peft.get_peft_model(gpt2(), config).eval()
    ours = Prefix(length=4, reparameterize=hidden).apply(gpt2())
    encoder = theirs.prompt_encoder.default
    blocks = ours.transformer.h
    with torch.no_grad():
        encoder.embedding.weight.normal_()
        for at, block in enumerate(blocks):
            patch, own = block.attn.prefix_tuning, slice(2 * DIM * at, 2 * DIM * (at + 1))
            if hidden:
                first, last = encoder.transform[0], encoder.transform[2]
                patch.network.embedding.copy_(encoder.embedding.weight)
                patch.network.weight.copy_(first.weight)
                patch.network.bias.copy_(first.bias)
                patch.out_weight.copy_(last.weight[own])
                patch.out_bias.copy_(last.bias[own])
            else:
                patch.states.copy_(encoder.embedding.weight[:, own])
        want = theirs(input_ids=ids(), attention_mask=torch.ones(3, 7, dtype=torch.long)).logits
        got = ours(ids(), position_ids=torch.arange(4, 11).expand(3, -1)).logits
        assert (want - gpt2()(ids()).logits).abs().max() > 0.01
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_what_svfit_leaves_frozen_is_what_pissa_does() -> None:
    """The weight without its greatest singular values is peft's residual of PiSSA."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=5, lora_alpha=5, target_modules=["query", "value"], init_lora_weights="pissa")
    theirs = peft.get_peft_model(bert(), config).base_model.model.bert.encoder.layer
    ours = SVFit(rank=5, targets="q,v").apply(bert())
    with torch.no_grad():
        for parameter in adapter_parameters(ours).values():
            parameter.zero_()
    merge(ours)
    for own, other in zip(ours.bert.encoder.layer, theirs, strict=True):
        for name in ("query", "value"):
            rest = getattr(other.attention.self, name).base_layer.weight
            torch.testing.assert_close(getattr(own.attention.self, name).weight, rest, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["ABS", "WABS", "AB", "NABS", "W"])
def test_every_ranking_keeps_the_largest_of_its_own_scores(mode: Any) -> None:
    """With alpha / r on both parts of the update, in the ranking by weight and update too."""
    model = DSEE(rank=2, sparse=40, alpha=6).apply(text_encoder())
    disturb(model, 0.1)
    parts = select(model, "q,v")
    changes: dict[Any, Any] = dict(item for patch in adaptation_of(model).modules(model) for item in patch.items())  # type: ignore[attr-defined]
    scores = []
    with torch.no_grad():
        for part in parts:
            weight, change = part.weight(model).clone(), changes[part]
            low, sparse = 3.0 * change.up @ change.down, torch.zeros(DIM, DIM)
            sparse[change.rows, change.columns] = 3.0 * change.values
            update = low + sparse
            score = {"ABS": update, "NABS": update, "WABS": weight + update, "AB": low, "W": weight}[mode].abs()
            scores.append(-score if mode == "NABS" else score)
    prune_weights(model, 0.3, mode=mode)
    flat = torch.cat([score.flatten() for score in scores])
    kept = torch.cat([(part.weight(model) != 0).flatten() for part in parts])
    assert int((~kept).sum()) == round(0.3 * len(flat)) and float(flat[kept].min()) >= float(flat[~kept].max())


def arms_of(system: Any, **options: Any) -> dict[str, Any]:
    return {arm: system.configured(arm=arm, tier="embedded", **options) for arm in system.arms}


def test_arms_of_the_unified_view_are_what_they_are_called_and_train_equally_many_numbers() -> None:
    """On the model of the claim, at its share of the numbers."""
    systems = arms_of(PetlUnified)
    model = systems["mam"].backbone().classifier(8, 0)
    made = {arm: system.adaptation(model) for arm, system in systems.items()}
    assert made.pop("full") == "full" and made.pop("head") == "head"
    mam, prefix, lora, adapter = (made[name] for name in ("mam", "prefix", "lora", "adapter"))
    assert isinstance(prefix, Prefix) and isinstance(lora, LoRA) and lora.targets == "q,v"
    assert isinstance(adapter, Adapter) and (adapter.insertion, adapter.places) == ("sequential", ("ffn",))
    for scale in (1.0, 2.0, 4.0):
        assert made[f"parallel-s{scale:g}"] == Adapter(adapter.bottleneck, "parallel", scale=scale, train=("head",))
    assert isinstance(mam, MAM) and mam.scale > 1 and 1 <= mam.prefix < prefix.length / 2
    assert learned_numbers(model, Prefix(mam.prefix)) < learned_numbers(model, mam) / 2
    counts = {arm: learned_numbers(model, method) for arm, method in made.items()}
    assert all(abs(count - counts["lora"]) <= 0.03 * counts["lora"] for count in counts.values())
    assert counts["lora"] == pytest.approx(0.04 * projection_numbers(model.encoder), rel=0.05)


def test_arms_of_svfit_train_what_holds_the_share_of_the_spectrum() -> None:
    """As many values as 99 % of the squares need, in each of the four matrices of every layer, and not one more."""
    systems = arms_of(SVFitSystem)
    backbone = systems["svfit"].backbone()
    model = backbone.classifier(20, 0)
    counts = {arm: learned_numbers(model, system.adaptation(model)) for arm, system in systems.items() if arm not in
              ("full", "head")}  # fmt: skip
    assert counts["svfit"] <= counts["lora"] / 10 and counts["random"] == counts["svfit"]
    assert abs(counts["lora-r1"] - counts["svfit"]) <= counts["svfit"] / 2
    whole = {f"{p.module}:{p.role}": torch.linalg.svdvals(p.weight(model).detach()) for p in select(model, "attention")}
    attach(model, systems["svfit"].adaptation(model), 0)
    found = spectra(model)
    assert found.keys() == whole.keys() and {name.rpartition(":")[2] for name in found} == set("qkvo")
    for name, (before, _) in found.items():
        held = whole[name].double().square().cumsum(0) / whole[name].double().square().sum()
        assert held[len(before) - 1] >= 0.99 - 1e-6 and held[len(before) - 2] < 0.99 + 1e-6
    random = backbone.classifier(20, 0)
    attach(random, systems["random"].adaptation(random), 0)
    assert [len(before) for before, _ in spectra(random).values()] == [len(before) for before, _ in found.values()]


def test_arms_of_dsee_are_what_they_are_called() -> None:
    systems = arms_of(DSEESystem)
    model = systems["dsee"].backbone().classifier(8, 0)
    made = {arm: system.adaptation(model) for arm, system in systems.items()}
    assert isinstance(made["lora"], LoRA) and made["lora"] == made["lora-magnitude"]
    assert made["dsee"].support == "decomposition" and made["dsee"].sparse is None
    assert made["dsee"] == made["heads"] == made["random-heads"]
    assert made["random-support"] == DSEE(**{**made["dsee"].__dict__, "support": "random"})
    assert made["no-sparse"].sparse == 0 and made["no-sparse"].rank == made["lora"].rank == made["dsee"].rank + 1
    chosen = {arm: (one.config.prune, one.config.by, one.config.heads_by) for arm, one in systems.items()}
    assert chosen["lora"][0] == "none" and chosen["lora-magnitude"][:2] == ("weights", "W")
    assert {chosen[arm][:2] for arm in ("dsee", "no-sparse", "random-support")} == {("weights", "ABS")}
    assert (chosen["heads"][0], chosen["heads"][2]) == ("heads", "update")
    assert (chosen["random-heads"][0], chosen["random-heads"][2]) == ("heads", "random")


def test_arms_of_dsee_train_equally_many_numbers_in_matrices_of_any_shape(place: dict[str, str]) -> None:
    systems = arms_of(DSEESystem, targets="q,v,up", **place)
    model = systems["dsee"].backbone().classifier(2, 0)
    counts = {arm: learned_numbers(model, systems[arm].adaptation(model)) for arm in ("dsee", "lora")}
    assert counts["dsee"] == counts["lora"]


@pytest.mark.parametrize("tier", ["embedded", "standard"])
@pytest.mark.parametrize("system", [PetlUnified, SVFitSystem, DSEESystem, PromptingSurvey])
def test_arms_differ_in_nothing_but_their_method(system: Any, tier: str) -> None:
    """Data, model, budget, batches and the grid of rates are those of the system."""
    shared = set((FewShotConfig if system is PromptingSurvey else PeftConfig).model_fields)
    own = {"gap-256": {"shots"}, "gap-random": {"random_weights"}} if system is PromptingSurvey else {}
    default = system.configured(tier=tier).config
    for arm in system.arms:
        config = system.configured(arm=arm, tier=tier).config
        different = {name for name in shared if getattr(config, name) != getattr(default, name)}
        assert different == own.get(arm, set()), arm


def small(system: Any, place: dict[str, str], **options: Any) -> Any:
    return system.configured(smoke=True, **{**place, "learning_rates": (1e-2,), **options})


def test_the_head_is_counted_for_no_arm_and_reported_for_all(place: dict[str, str]) -> None:
    systems = [*arms_of(PetlUnified, **place, share=0.1).values(), *arms_of(SVFitSystem, **place).values()]
    backbone = systems[0].backbone()
    encoder = sum(p.numel() for p in backbone.encoder.parameters())
    for system in systems:
        model = backbone.classifier(2, 0)
        adaptation = system.adaptation(model)
        attach(model, adaptation, 0)
        trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
        cost = settled_cost(model, adaptation)
        assert cost.head == 2 * DIM + 2 and cost.trainable == trains - cost.head
        assert cost.percent == pytest.approx(100 * cost.trainable / encoder)
        if system.config.method != "svfit" or system.config.basis != "random":
            assert cost.stored_bytes == 4 * cost.trainable


def test_a_measurement_says_what_the_arms_must_share(place: dict[str, str], tmp_path: Path) -> None:
    found = small(PetlUnified, place, arm="head", budget="2 steps").measure(tmp_path)
    assert set(found.equal) == {"steps", "trials", "head"} and found.budget["steps"] == 2


@pytest.mark.parametrize("arm", ["dsee", "lora-magnitude", "heads", "lora"])
def test_the_update_is_tuned_again_on_the_pruned_model(
    arm: str, place: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[dict[str, Any]] = []
    plain = DSEESystem.tune

    def noted(self: Any, model: Any, *given: Any, **rest: Any) -> Any:
        before = adapter_state(model)
        shares = [sparsity(model).share]
        records = plain(self, model, *given, **rest)
        after = adapter_state(model)
        moved = [name for name in before if before[name].is_floating_point()
                 and not torch.equal(before[name], after[name])]  # fmt: skip
        shares.append(sparsity(model).share)
        widths = {part.stop - part.start for part in projections(model.encoder) if part.role == "q"}
        stages.append({"shares": shares, "moved": moved, "widths": widths, "learned": before})
        return records

    monkeypatch.setattr(DSEESystem, "tune", noted)
    system = small(DSEESystem, place, arm=arm, budget="10 steps")
    backbone = system.backbone()
    tuned = system.train(backbone.classifier(2, 0), system.task(backbone), 1e-2, tmp_path)
    first, second = stages
    share = 0.5 if arm in ("dsee", "lora-magnitude") else 0.0
    assert first["shares"] == [0, 0] and second["shares"] == pytest.approx([share, share], abs=1e-3)
    assert first["widths"] == {DIM} and second["widths"] == {DIM - (DIM // HEADS if arm == "heads" else 0)}
    assert set(second["moved"]) == set(second["learned"]) - {
        n for n in second["learned"] if n.endswith(("rows", "columns"))
    }
    assert tuned.used["steps"] == 10


@pytest.mark.parametrize("arm", ["dsee", "heads"])
def test_what_is_saved_is_as_sparse_and_as_small_as_claimed(arm: str, place: dict[str, str], tmp_path: Path) -> None:
    system = small(DSEESystem, place, arm=arm, budget="10 steps")
    outcome = system.run(tmp_path)
    backbone = system.backbone()
    fresh: Any = backbone.classifier(2, 99)
    dense = forward_flops(fresh, 24)
    load_adapter(fresh, tmp_path / "adapter")
    figures = dict(zip(outcome.columns, outcome.rows[0], strict=True))
    left = forward_flops(fresh, 24)
    assert 100 * sparsity(fresh).share == figures["sparsity percent"]
    assert 100 * left.total / dense.total == figures["flops percent"]
    assert figures["sparsity percent"] == pytest.approx(50 if arm == "dsee" else 0, abs=0.1)


def few(place: dict[str, str], **options: Any) -> Any:
    chosen = {"words": {"0": ["cold"], "1": ["warm"]}, "shots": 4, "dev_shots": 2, "budget": "3 steps", "batch_size": 4}
    return PromptingSurvey.configured(smoke=True, **place, **{**chosen, "learning_rates": (1e-3,), **options})


@pytest.mark.parametrize("name", [*METHODS, *COMBINED])
def test_no_method_reads_a_test_text_or_trains_on_held_out_ones(
    name: str, place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    fitted: list[tuple[str, ...]] = []
    before: set[str] = set()
    steps: list[int] = []
    plain_encode, plain_fit, plain_loop = SlotReader.encode, PromptedClassifier.fit, prompted.fit

    def encode(self: SlotReader, template: Any, fields: Any, shots: Any = (), *rest: Any, **named: Any) -> Any:
        read.extend([fields, *(shot.fields for shot in shots)])
        return plain_encode(self, template, fields, shots, *rest, **named)

    def fit(self: PromptedClassifier, texts: Any, labels: Any, *rest: Any, **named: Any) -> Any:
        fitted.append(tuple(texts))
        return plain_fit(self, texts, labels, *rest, **named)

    def loop(*given: Any, **named: Any) -> Any:
        before.update(text if isinstance(text, str) else text["text"] for text in read)
        result = plain_loop(*given, **named)
        steps.append(result.used.steps)
        return result

    monkeypatch.setattr(SlotReader, "encode", encode)
    monkeypatch.setattr(PromptedClassifier, "fit", fit)
    monkeypatch.setattr(prompted, "fit", loop)
    system = few(place, templates=("{text} it is {mask}", "{text} the {mask}"), demonstration_words=100)
    ground = system.ground()
    shots = ground.shots
    assert not set(shots.train.texts) & set(shots.dev.texts)
    best = system.best(ground, name)
    given = {text if isinstance(text, str) else text["text"] for text in read}
    nothing = {"a", "", *inspect.signature(PromptedClassifier.calibrate).parameters["inputs"].default}
    assert before <= {*shots.train.texts, *nothing}, "held-out texts are there to choose by, after training"
    assert set(shots.dev.texts) <= given <= {*shots.train.texts, *shots.dev.texts, *nothing}
    assert not given & set(ground.data.test.read().texts)
    trainings = 0 if name in ("zero-shot", "calibrated") else 2 if name in ("single-templates", "ensemble") else 1
    assert fitted == [shots.train.texts] * trainings and steps == [3] * trainings
    assert len(best.scores) == 1


@pytest.mark.parametrize("name", ["promptless", "fixed-prompt", "prompt-and-lm", "demonstrations"])
def test_where_the_model_trains_all_of_it_trains(name: str, place: dict[str, str]) -> None:
    """The baseline too: a new head is tuned together with every layer."""
    system = few(place, budget="2 steps")
    ground = system.ground()
    before = {key: tensor.clone() for key, tensor in ground.model.named_parameters()}
    (made,) = system.best(ground, name).result
    after = dict(made.model.language_model.named_parameters())
    still = {key for key in before if torch.equal(before[key], after[key])}
    # A task head takes the place of the output's bias over the vocabulary.
    assert all(key.startswith("head.proj") for key in still) and len(still) < 2


def test_a_shortened_demonstration_never_answers_its_own_text() -> None:
    texts = ["ice snow winter rain", "winter ice", "sun fire summer hot", "fire summer"]
    labels = ["cold", "cold", "warm", "warm"]

    def by_first_word(given: list[str]) -> torch.Tensor:
        return torch.tensor(
            [[float(text.startswith(word)) for word in ("ice", "winter", "sun", "fire")] for text in given]
        )

    task = PromptTask(
        masked_model(), word_tokenizer(), COLD, (CLOZE,), texts, labels, texts, labels, by_first_word,
        budget="1 steps", config=TrainingConfig(progress=False, warmup=0),
    )  # fmt: skip
    (made,) = METHODS["demonstrations"](task, PromptingConfig(demonstration_words=2))
    assert isinstance(made, PromptedClassifier)
    for text, prompt in zip(texts, made.encode(texts), strict=True):
        shown = made.reader.tokenizer.decode(prompt.ids)
        assert shown.count(" ".join(text.split()[:2])) == 1, shown
