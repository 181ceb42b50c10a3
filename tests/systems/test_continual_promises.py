"""What would make a toy of a continual system: missing controls, unequal arms, kept data, figures of another name."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapt.continual.toy import INPUT, Encoder, classes, quick
from adapt.peft.small_models import bert, disturb, ids
from evidence.small_images import encoder_folder, image_folder
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from leaven.adapt.continual import (
    APER,
    LAE,
    SLCA,
    Alignment,
    ClassStatistics,
    Compatibility,
    CosineTuning,
    JointTraining,
    NearestMean,
    SequentialFineTuning,
    SimpleCIL,
    TaskTraining,
    alignment,
)
from leaven.adapt.continual.heads import TaskHeads
from leaven.adapt.peft import Adapter, LoRA, Prefix
from leaven.evidence.arenas.continual_encoder import PixelEncoder, open_encoder, random_twin
from leaven.evidence.arenas.continual_search import Elsewhere, SmallConvNet, _Versions
from leaven.evidence.arenas.continual_search_data import open_search_data
from leaven.systems import find_system
from leaven.systems.continual.lae import LAE as LAESystem
from leaven.systems.continual.stationary_reps import StationaryReps
from leaven.training.ema import WeightAverage

# What each paper must be measured against: (better, than) of a claim.
RIVALS = {
    "adam-cil": {
        ("adam-adapter", "simplecil"), ("adam-ssf", "simplecil"), ("adam-finetune", "simplecil"),
        ("adam-adapter", "adapted-alone"), ("simplecil", "sequential"), ("simplecil", "random-net"),
        ("simplecil", "raw-pixels"), ("simplecil-no-gap", "adam-adapter-no-gap"),
    },
    "slca": {
        ("slca", "sequential"), ("slca", "slow"), ("slca", "uniform-ca"), ("slca", "frozen-ca"),
        ("slca-strong-gap", "frozen-ca-strong-gap"),
    },
    "lae": {
        ("lae", "sequential"), ("lae-lora", "sequential-lora"), ("lae-prefix", "sequential-prefix"),
        ("online", "offline"), ("offline", "online"), ("lae", "frozen-heads"), ("lae-prefix", "uncompensated"),
    },
    "nmc": {
        ("nmc", "random-net"), ("nmc", "raw-pixels"), ("nmc", "sequential"), ("nmc", "joint-probe"),
        ("nmc", "unnormalised"), ("domain-nmc", "domain-task-means"),
    },
    "stationary-reps": {("hoc", "er"), ("hoc", "er-distilled"), ("hoc", "ce-only"), ("hoc", "er-reindexed")},
}  # fmt: skip
# What an arm may differ in and still have the data, the encoder, the budget and the memory of its rival.
OF_THE_METHOD = {
    "adam-cil": {"method", "adapt", "merge"},
    "slca": {"method", "slow", "align_epochs", "logit_norm", "cumulative"},
    "lae": {"method", "pet", "compensate", "answers", "vote", "freeze"},
    "nmc": {"method"},
    "stationary-reps": {"method"},
}


@pytest.mark.parametrize("slug", RIVALS)
def test_each_system_is_measured_against_its_rivals_and_controls(slug: str) -> None:
    system, embedded_alone = find_system(slug), {"simplecil-no-gap", "slca-strong-gap", "lae-prefix"}
    for tier in system.tiers:
        claimed = {(claim.better, claim.than) for claim in system.claims if tier in claim.tiers}
        assert all(tier != "embedded" and pair[0] in embedded_alone for pair in RIVALS[slug] - claimed)
    for arm in {arm for pair in RIVALS[slug] for arm in pair}:
        read = getattr(system.configured(arm=arm).config, "encoder", "model")
        assert read == {"random-net": "random", "raw-pixels": "pixels"}.get(arm, "model")


@pytest.mark.parametrize("slug", RIVALS)
def test_arms_of_a_claim_share_data_encoder_and_budget(slug: str) -> None:
    system = find_system(slug)
    for tier, claim in ((tier, claim) for tier in system.tiers for claim in system.claims):
        arms = (claim.better, claim.than)
        one, other = (system.configured(tier=tier, arm=arm).config.model_dump() for arm in arms)
        allowed = OF_THE_METHOD[slug] | ({"first"} if claim.better == "large-first-task" else set())
        # A control reads something else; the method does not.
        if other.get("encoder", "model") != "model":
            allowed = {"encoder"}
        assert {name for name in one if one[name] != other[name]} <= allowed, (tier, arms)


def test_modules_of_lae_are_three_kinds_with_the_prefix_compensated() -> None:
    pets = {arm: LAESystem.configured(arm=arm).config for arm in ("lae", "lae-lora", "lae-prefix")}
    assert [one.pet for one in pets.values()] == ["adapter", "lora", "prefix"]
    for arm, config in pets.items():
        assert config.compensate and config.answers == "ensemble" and config.vote == "max" and config.decay == "auto"
        rival = LAESystem.configured(arm=arm.replace("lae", "sequential")).config
        assert (rival.pet, rival.answers, rival.freeze) == (config.pet, "online", 0.0)
    modules = {arm: LAESystem.configured(arm=arm)._module() for arm in LAESystem.arms}
    assert modules["lae"] == Adapter(5, "parallel", ("attention",), learn_scale=True, form="gelu")
    assert modules["lae-prefix"] == Prefix(10, 0, compensate=True, learn_scale=True, init="lae")
    assert modules["uncompensated"] == replace(modules["lae-prefix"], compensate=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return encoder_folder(tmp_path_factory.mktemp("model") / "vit")


@pytest.mark.parametrize("slug", ["adam-cil", "nmc"])
def test_the_random_control_has_fresh_weights_of_the_seed_and_the_other_control_no_model(slug: str, model: str) -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    read = [find_system(slug).configured(arm="random-net", model=model, seed=seed).open_encoder() for seed in (0, 1)]
    patches = [one.model.embed.proj.weight.flatten() for one in (open_encoder(model, 32), *read)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert F.cosine_similarity(patches[one], patches[other], dim=0).abs() < 0.2
    assert torch.equal(read[1](images), random_twin(open_encoder(model, 32), 1)(images))
    pixels = find_system(slug).configured(arm="raw-pixels", model=model).open_encoder()
    assert torch.equal(pixels(images), (images.float() / 255 * 2 - 1).flatten(1)) and not list(pixels.parameters())


@pytest.mark.parametrize("adapt", ["adapter", "ssf", "vpt-shallow", "vpt-deep", "finetune"])
def test_adam_tunes_its_modules_alone(adapt: str, model: str, tmp_path: Path) -> None:
    folder = image_folder(tmp_path, classes=4, counts=(4, 1, 1))
    system = find_system("adam-cil").configured(smoke=True, adapt=adapt, model=model, data=folder, tasks=2)
    encoder, stream = system.open_encoder(), system.open_stream()
    learner = system.learner(encoder, system.config.training(1e-2))
    rows = stream.tasks[0].rows
    learner.learn(stream.train.inputs[rows], [stream.train.labels[row] for row in rows.tolist()])
    adapted, given = dict(learner.adapted.named_parameters()), dict(encoder.named_parameters())
    moved = [name for name, parameter in given.items() if not torch.equal(adapted[name], parameter)]
    assert (adapted.keys() > given.keys() and not moved) if adapt != "finetune" else len(moved) > len(given) / 2


def attached(encoder: nn.Module) -> nn.Module:
    return LoRA(rank=2, targets="last").apply(encoder, torch.Generator().manual_seed(0))


LEARNERS: dict[str, Callable[[TaskTraining], Any]] = {
    "nearest mean": lambda _: NearestMean(Encoder()),
    "simplecil": lambda _: SimpleCIL(Encoder()),
    "adam": lambda training: APER(Encoder(), CosineTuning(training=training)),
    "slca": lambda training: SLCA(Encoder(), slow=0.1, alignment=Alignment(1, 8), training=training),
    "lae": lambda training: LAE(Encoder(), attached, training=training),
    "sequential": lambda training: SequentialFineTuning(Encoder(), training=training),
}


def size_after(make: Callable[[TaskTraining], Any], rows: int) -> int:
    inputs, labels = classes(4, rows)
    learner, file = make(quick("2 steps")), io.BytesIO()
    for task in (slice(0, 2 * rows), slice(2 * rows, None)):
        learner.learn(inputs[task], labels[task])
    torch.save(learner, file)
    return file.tell()


@pytest.mark.parametrize("name", LEARNERS)
def test_more_images_take_no_more_memory(name: str) -> None:
    few, many = (size_after(LEARNERS[name], rows) for rows in (10, 300))
    # One number of each further input would be 4 * 290 * 4 bytes.
    assert abs(many - few) < 4 * 290 * 4
    if name == "sequential":
        kept = [size_after(lambda training: JointTraining(Encoder(), training=training), rows) for rows in (10, 300)]
        assert kept[1] - kept[0] >= 4 * 290 * INPUT * 4


def test_alignment_takes_its_loss_of_normalised_logits_over_uneven_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, tasks = torch.Generator().manual_seed(0), [["a"], ["b", "c", "d"], ["e", "f"]]
    statistics, heads = ClassStatistics("full"), TaskHeads()
    for task in tasks:
        heads = heads.with_task(len(task), 3, 1.0, generator)
        statistics.update(torch.randn(8 * len(task), 3, generator=generator) + 2, task * 8)
    made: list[alignment.GaussianReplay] = []
    monkeypatch.setattr(alignment, "train", lambda heads, objective, *_, **__: made.append(objective))
    for temperature in (0.1, 0.05, 0.0):
        alignment.align(heads, statistics, tasks, Alignment(temperature=temperature), quick().config)
    drawn, target = torch.randn(12, 3, generator=generator), torch.arange(6).repeat(2)
    logits = heads(drawn).detach().double().numpy()
    norms = [np.linalg.norm(logits[:, a:b], axis=1) for a, b in ((0, 1), (1, 4), (4, 6))]
    for objective, temperature in zip(made, (0.1, 0.05, None), strict=True):
        scaled = logits if temperature is None else logits / np.mean(norms, axis=0)[:, None] / temperature
        wanted = np.log(np.exp(scaled).sum(1)) - scaled[np.arange(12), target.numpy()]
        found = objective(heads, {"inputs": drawn, "target": target})
        assert found.total.item() == pytest.approx(wanted.mean(), rel=1e-5)
        # The official 0.9 + 0.1 (j + 1) / (k + 1), with tasks counted from 0.
        shrunk = [0.9 + 0.1 * (at + 1) / 3 for at, task in enumerate(tasks) for _ in task]
        expected = torch.tensor(shrunk, dtype=torch.float64)[:, None] * statistics.means()
        torch.testing.assert_close(objective.means, expected.float())


def test_without_rate_and_alignment_slca_is_a_logistic_regression_per_task() -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(5, 3, generator=generator)
    labels = [at for at in range(5) for _ in range(30)]
    inputs = centres[labels] + 1.2 * torch.randn(150, 3, generator=generator)
    training = TaskTraining("250 steps", quick(rate=0.1, schedule="cosine", clip=None).config, batch_size=150)
    learner = SLCA(nn.Identity(), slow=0, alignment=Alignment(epochs=0), training=training)
    for rows, columns in ((slice(0, 60), slice(0, 2)), (slice(60, 150), slice(2, 5))):
        learner.learn(inputs[rows], labels[rows])
        reference = LogisticRegression(C=np.inf, tol=1e-8).fit(inputs[rows].numpy(), labels[rows])
        found = learner.scores(inputs)[:, columns].softmax(1).numpy()
        np.testing.assert_allclose(found, reference.predict_proba(inputs.numpy()), atol=2e-3)


def test_simplecil_is_the_nearest_centroid_only_once_means_are_normalised() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.rand(200, 1, generator=generator) * 9 + 1
    inputs, labels = classes(10, 20, spread=1.5)
    inputs, asked = inputs * lengths, classes(10, 60, spread=1.5, seed=5)[0]
    learner = SimpleCIL(nn.Identity())
    learner.learn(inputs, labels)
    means = torch.stack([inputs[[one == name for one in labels]].double().mean(0) for name in learner.classes])
    unit = F.normalize(asked.double(), dim=1).numpy()
    centroids = (F.normalize(means, dim=1), means / means.norm(dim=1).mean())
    # Two rows about each centroid, as one has no deviation to divide by.
    fits = [NearestCentroid().fit(torch.cat([0.9 * c, 1.1 * c]).numpy(), learner.classes * 2) for c in centroids]
    guesses = [fit.predict(unit).tolist() for fit in fits]
    assert learner.predict(asked) == guesses[0] != guesses[1]


def test_lora_of_lae_is_pefts_on_keys_and_values() -> None:
    peft = pytest.importorskip("peft")
    ours = LAESystem.configured(pet="lora")._module().apply(bert(), torch.Generator().manual_seed(0))
    disturb(ours)
    config = peft.LoraConfig(r=5, lora_alpha=5, target_modules=["key", "value"])
    theirs, plain = peft.get_peft_model(bert(), config).eval(), bert()
    state = {name: tensor.detach() for name, tensor in ours.named_parameters() if tensor.requires_grad}
    places = {name.rpartition(".")[0] for name in state if ".adapter." in name}
    assert len(places) == 4 and not any("query" in place for place in places)
    with torch.no_grad():
        for place in places:
            linear = theirs.base_model.model.get_submodule(place.partition(".adapter")[0])
            linear.lora_A.default.weight.copy_(state[f"{place}.down"])
            linear.lora_B.default.weight.copy_(state[f"{place}.up"] * state[f"{place}.scale"])
        torch.testing.assert_close(ours(ids()).logits, theirs(ids()).logits, rtol=1e-5, atol=1e-5)
        assert (ours(ids()).logits - plain(ids()).logits).abs().max() > 1e-2


def test_the_offline_average_is_torchs_exponential_average() -> None:
    layer = nn.Linear(3, 2)
    average = WeightAverage(dict(layer.named_parameters()), 0.9)
    reference = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    reference.update_parameters(layer)
    for step in range(7):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(0.5).add_(step)
        average.update()
        reference.update_parameters(layer)
    for name, tensor in reference.module.named_parameters():
        torch.testing.assert_close(average.average[name], tensor.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("slug", ["adam-cil", "slca", "lae", "nmc"])
def test_both_accuracies_are_shown_and_lae_names_its_ends_rightly(slug: str) -> None:
    matrix = torch.tensor([[80.0, 0.0, 0.0], [60.0, 90.0, 0.0], [50.0, 70.0, 100.0]])
    figures = find_system(slug).configured().figures(matrix, [1, 1, 1])
    assert figures["last_accuracy"] == pytest.approx(220 / 3)
    assert figures["average_accuracy"] == pytest.approx((80 + 75 + 220 / 3) / 3)
    if slug == "lae":
        assert (figures["oldest_task"], figures["newest_task"]) == (50.0, 100.0)


def test_searches_are_chosen_on_validation_queries_and_reported_on_test_queries() -> None:
    system = StationaryReps.configured(smoke=True, learning_rates=(1e-3, 1e-2))
    data, nan = open_search_data(system.config), float("nan")
    valid, matrix = data.valid, torch.tensor([[50.0, nan], [60.0, 70.0]], dtype=torch.float64)
    # The larger rate is better on the test queries, the smaller one on the validation queries.
    system._stream = lambda _, __, training: _Versions([training.config.learning_rate], ())
    system._search = lambda models, _, asked: Compatibility(matrix + 5 * ((asked is valid) == (models[0] < 2e-3)))
    found, measurement, versions = system._find(data, [])
    assert versions == [1e-3] and measurement.chosen == {"learning_rate": 1e-3}
    assert measurement.validation == {"search_accuracy": pytest.approx(65)} and torch.equal(found.matrix[1], matrix[1])
    assert measurement.metrics == {
        "compatibility": 1.0, "search_accuracy": pytest.approx(60), "newest_in_oldest": 60.0, "newest_in_own": 70.0,
    }  # fmt: skip


def test_arms_of_a_replaced_model_take_the_same_steps_with_the_same_memory() -> None:
    spent = {}
    for arm in StationaryReps.arms:
        system = StationaryReps.configured(smoke=True, arm=arm, pretrain_classes=(2,), replace_at=(0,), tasks=2)
        data = open_search_data(system.config)
        start = system.untrained(PixelEncoder(SmallConvNet()).eval(), 64, 0).eval()
        images = data.pretraining[0]
        learner = system.learner(Elsewhere(start, images.images, list(images.labels)), system.config.training(1e-3))
        for task in data.tasks:
            learner.learn(data.train.images[task.rows], [data.train.labels[row] for row in task.rows.tolist()])
        spent[arm] = [fit.used.steps for fit in learner.fits], sorted(learner.exemplars.labels)
    assert all(one == spent["hoc"] for one in spent.values()) and len(spent["hoc"][1]) == 2 * 6
