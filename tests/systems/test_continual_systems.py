import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from evidence.small_images import encoder_folder, image_folder
from sklearn.neighbors import NearestCentroid
from standard_data import needs_data

from leaven.adapt.continual import APER, LAE, NearestMean
from leaven.adapt.peft.patches import Patch
from leaven.cli import main
from leaven.errors import ConfigError, DataError, LeavenError, ModelError
from leaven.evidence.arenas.continual_encoder import open_encoder
from leaven.evidence.runner import run_claims
from leaven.evidence.system import Measurement, System
from leaven.systems import find_system
from leaven.systems.continual.lae import steps_to_loss
from leaven.systems.running import run_in

SLUGS = ("adam-cil", "nmc", "slca", "lae", "stationary-reps")
OF_STREAMS = SLUGS[:4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return encoder_folder(tmp_path_factory.mktemp("model") / "vit")


def small(slug: str, model: str, **options: Any) -> type[System]:
    """The system at smoke size with a small model."""
    system = find_system(slug)
    given = {} if slug == "stationary-reps" else {"model": model}
    return type("Small", (system,), {"smoke": {**system.smoke, **given, **options}})


def measured(slug: str, model: str, arm: str | None, **options: Any) -> Measurement:
    with TemporaryDirectory() as place:
        return small(slug, model).configured(smoke=True, arm=arm, **options).measure(Path(place) / "arm")


@pytest.mark.parametrize("slug", SLUGS)
def test_every_arm_runs_with_the_same_budget_and_the_claims_are_decided(slug: str, model: str, tmp_path: Path) -> None:
    system = small(slug, model)
    evidence = run_claims(system, seeds=1, smoke=True, out=tmp_path)
    assert set(evidence.arms) == {arm for arm in system.arms if not arm.startswith("texts")}
    assert [claim.says for claim in evidence.claims] == [one.says for one in system.claims if "embedded" in one.tiers]
    steps = ["steps"] if slug == "stationary-reps" else []
    for arm in evidence.arms.values():
        assert arm.equal == ["epochs per task", *steps, "tasks", "test images", "training images"]
        figures = [spread.mean for name, spread in arm.metrics.items() if name != "backward_transfer"]
        assert all(-100 <= figure <= 100 for figure in figures)
    if slug in OF_STREAMS:
        assert any(claim.metric == "forgetting" and claim.smaller_is_better for claim in evidence.claims)


@needs_data
@pytest.mark.parametrize("slug", SLUGS)
def test_every_arm_of_the_standard_tier_runs_on_its_data(slug: str, model: str, tmp_path: Path) -> None:
    system = (
        small(slug, model, search_classes=110, train_images=4, pretrain_epochs=40)
        if slug == "stationary-reps"
        else small(slug, model)
    )
    evidence = run_claims(system, seeds=1, smoke=True, tier="standard", out=tmp_path)
    assert system.configured(tier="standard").config.data == "omniglot" and system.seeds["standard"] == 3
    assert [claim.says for claim in evidence.claims] == [one.says for one in system.claims if "standard" in one.tiers]
    steps = ["steps"] if slug == "stationary-reps" else []
    for name, arm in evidence.arms.items():
        what = "texts" if name.startswith("texts") else "images"
        assert arm.equal == ["epochs per task", *steps, "tasks", f"test {what}", f"training {what}"]


@pytest.mark.parametrize("slug", SLUGS)
def test_the_whole_path_of_a_run(slug: str, model: str, tmp_path: Path) -> None:
    outcome = run_in(small(slug, model).configured(smoke=True), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert saved["rows"] == outcome.rows and saved["title"].startswith(find_system(slug).title)
    assert all((tmp_path / "run" / name).exists() for name in outcome.artefacts.values())
    assert "after each task" in outcome.curves and len(outcome.notes) >= 4


def figures(found: Measurement) -> Mapping[str, float]:
    return {name: round(value, 6) for name, value in found.metrics.items() if name in ("last_accuracy", "forgetting")}


@pytest.mark.parametrize("adapt", ["adapter", "ssf", "finetune"])
def test_adam_without_epochs_is_simplecil(adapt: str, folder: str, model: str) -> None:
    plain = measured("adam-cil", model, "simplecil", data=folder)
    assert figures(measured("adam-cil", model, None, data=folder, adapt=adapt, epochs=0)) == figures(plain)


@pytest.mark.parametrize("adapt", ["adapter", "ssf", "vpt-shallow", "vpt-deep", "finetune"])
def test_adam_adapts_a_copy_on_the_first_task_alone(adapt: str, folder: str, model: str) -> None:
    system = small("adam-cil", model).configured(smoke=True, data=folder, adapt=adapt, epochs=2)
    encoder, stream = system.open_encoder(), system.open_stream()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    learner = system.learner(encoder, system.config.training(1e-2))
    assert isinstance(learner, APER)
    images, labels = stream.train.inputs, stream.train.labels
    states = []
    for task in stream.tasks[:2]:
        learner.learn(images[task.rows], [labels[row] for row in task.rows.tolist()])
        states.append({name: tensor.clone() for name, tensor in learner.adapted.state_dict().items()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], before.get(name, torch.zeros(1))) for name in states[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.encoder.state_dict().items())
    assert not any(isinstance(part, Patch) for part in learner.encoder.modules())
    joined = learner.prototypes.features(images[:3])
    assert joined.shape == (3, 32)
    torch.testing.assert_close(joined[:, :16], encoder(images[:3]).detach())


def test_the_adapter_is_adaptformers(folder: str, model: str) -> None:
    system = small("adam-cil", model).configured(smoke=True, data=folder, bottleneck=3)
    adapted = system._attach(system._modules(), system.open_encoder())
    patches = [part for part in adapted.modules() if isinstance(part, Patch)]
    assert len(patches) == 2 and all(patch.parallel and "ffn" in patch.host for patch in patches)
    for patch in patches:
        assert patch.change.form == "relu" and patch.change.scale == 0.1 and patch.change.down.shape == (3, 16)
        assert patch.change.up.abs().sum() == 0 and patch.change.down.abs().sum() > 0


def test_nmc_is_scikit_learns_nearest_centroid_on_unit_features(folder: str, model: str) -> None:
    system = small("nmc", model).configured(smoke=True, data=folder)
    stream = system.open_stream()
    encoder, test = open_encoder(model, 32), stream.test.read()
    with torch.no_grad():
        train, asked = (torch.nn.functional.normalize(encoder(part.inputs), dim=1) for part in (stream.train, test))
    centroids = NearestCentroid().fit(train.double().numpy(), stream.train.labels)
    expected = 100 * np.mean(centroids.predict(asked.double().numpy()) == np.array(test.labels))
    assert measured("nmc", model, "nmc", data=folder).metrics["last_accuracy"] == pytest.approx(expected)


def test_nmc_does_not_care_for_the_order(folder: str, model: str) -> None:
    accuracies = {
        measured("nmc", model, "nmc", data=folder, seed=seed, tasks=tasks).metrics["last_accuracy"]
        for seed in range(5)
        for tasks in (1, 5)
    }
    assert len(accuracies) == 1
    trained = {
        measured("nmc", model, "sequential", data=folder, seed=seed).metrics["last_accuracy"] for seed in (0, 1, 2)
    }
    assert len(trained) > 1


def test_domains_bring_the_same_classes_back_and_as_many_images(model: str) -> None:
    systems = [small("nmc", model).configured(smoke=True, regime=regime) for regime in ("class", "domain")]
    one, other = (system.open_stream() for system in systems)
    assert len(one.train.labels) == len(other.train.labels) and len(one.test_inputs) == len(other.test_inputs)
    assert [task.groups for task in other.tasks] == [("gap 0",), ("gap 0.5",), ("gap 1",)]
    for task in other.tasks:
        assert len({other.train.labels[row] for row in task.rows.tolist()}) == 16
    # Plain print is plain: later domains have more of a ground.
    grounds = [other.train.inputs[task.rows].float().median() for task in other.tasks]
    assert grounds[0] < grounds[1]


def test_task_means_forget_what_running_means_keep(model: str) -> None:
    system = small("nmc", model).configured(smoke=True, method="task-means")
    learner = system.learner(system.open_encoder(), system.config.training(1e-3))
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    last = NearestMean(system.open_encoder())
    for start in (0, 4):
        learner.learn(images[start : start + 4], ["a", "a", "b", "b"])
    last.learn(images[4:], ["a", "a", "b", "b"])
    torch.testing.assert_close(learner.statistics.means(), last.statistics.means())
    with pytest.raises(DataError):
        learner.learn(images[:2], ["a"])
    torch.testing.assert_close(learner.statistics.means(), last.statistics.means())


def test_slca_frozen_and_without_alignment_is_a_linear_probe(folder: str, model: str) -> None:
    options = {"data": folder, "epochs": 3}
    bare = measured("slca", model, "frozen-ca", **options, align_epochs=0)
    assert bare.metrics == measured("nmc", model, "probe", **options).metrics


def test_slca_picks_its_factor_on_the_validation_stream(folder: str, model: str) -> None:
    found = measured("slca", model, "slca", data=folder, slow=(0.0, 0.5), learning_rates=(1e-3, 1e-2), epochs=2)
    assert set(found.chosen) == {"slow", "learning_rate"} and found.chosen["slow"] in (0.0, 0.5)
    alone = [
        measured("slca", model, "slca", data=folder, slow=slow, learning_rates=(rate,), epochs=2)
        for slow in (0.0, 0.5)
        for rate in (1e-3, 1e-2)
    ]
    best = max(alone, key=lambda one: one.validation["last_accuracy"])
    assert found.validation == best.validation and found.metrics == best.metrics
    assert measured("slca", model, "simplecil", data=folder, slow=(0.0, 0.5)).chosen == {}


def test_arms_of_slca_are_what_they_say(folder: str, model: str) -> None:
    system = small("slca", model)

    def learner(arm: str) -> Any:
        made = system.configured(smoke=True, arm=arm, data=folder)
        return made.learner(made.open_encoder(), made.config.training(1e-3))

    slca, plain = learner("slca"), learner("sequential")
    assert slca.slow == 0.01 and slca.alignment.epochs == 1 and slca.alignment.temperature == 0.1
    assert plain.slow == 1.0 and plain.alignment.epochs == 0
    assert learner("frozen-ca").slow == 0.0 and learner("uniform-ca").slow == 1.0
    assert learner("no-logit-norm").alignment.temperature == 0.0 and learner("cumulative-heads").cumulative
    assert system.configured(arm="slca").config.slow == (0.01, 0.05)
    assert system.configured(arm="sequential").config.slow == 1.0


@pytest.mark.parametrize("pet", ["adapter", "lora", "prefix"])
def test_modules_of_lae_stand_in_the_first_blocks_alone(pet: str, tmp_path: Path) -> None:
    deep = encoder_folder(tmp_path / "deep", depth=4)
    system = small("lae", deep).configured(smoke=True, pet=pet, blocks=3)
    encoder = system.open_encoder()
    learner = system.learner(encoder, system.config.training(1e-3))
    learned = [name for name, parameter in learner.encoder.named_parameters() if parameter.requires_grad]
    assert {name.split("blocks.")[1][0] for name in learned} == {"0", "1", "2"}
    assert any("scale" in name for name in learned)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    same = torch.allclose(learner.encoder(images), encoder(images), atol=1e-5)
    assert same == (pet != "prefix")
    patches = [part for part in learner.encoder.modules() if isinstance(part, Patch)]
    if pet == "prefix":
        assert all(patch.composition == "compensated" for patch in patches)
    first = [parameter for name, parameter in learner.encoder.named_parameters() if name in learned and "down" in name]
    assert pet == "prefix" or not torch.equal(first[0], first[1])


def test_experts_of_lae(folder: str, model: str) -> None:
    options = {"data": folder, "epochs": 4, "learning_rates": (2e-2,), "freeze": 0.0}
    found = {
        answers: measured("lae", model, None, answers=answers, decay=0.0, **options)
        for answers in ("ensemble", "online", "offline")
    }
    # Without memory the average is the online module.
    assert found["ensemble"].metrics == found["online"].metrics == found["offline"].metrics
    slow = {answers: measured("lae", model, None, answers=answers, decay=0.99, **options) for answers in found}
    assert slow["online"].metrics == found["online"].metrics != slow["offline"].metrics
    assert {"oldest_task", "newest_task"} <= set(slow["online"].metrics)


def test_steps_to_a_loss() -> None:
    losses = [1.0, 0.8, 0.1, 0.5, 0.3, 0.2, 0.1, 0.9]
    brute = {
        target: next((n for n in range(3, 9) if np.mean(losses[n - 3 : n]) <= target), 9) for target in (0.7, 0.4, 0.1)
    }
    # A single low batch is not enough; where the loss stays above, it is one step more than were taken.
    assert brute == {0.7: 3, 0.4: 5, 0.1: 9}
    assert {target: steps_to_loss(losses, target) for target in brute} == brute
    assert steps_to_loss(losses, 0.1 + 1e-9, window=1) == 3 and steps_to_loss([0.0, 0.0], 1.0) == 3


def test_steps_to_the_loss_are_those_of_the_first_task_at_the_largest_rate(folder: str, model: str) -> None:
    options = {"data": folder, "epochs": 8, "freeze": 0.5}
    rates = (2e-2, 1e-4)
    found = measured("lae", model, None, learning_rates=rates, **options).metrics["steps_to_loss"]
    fast = measured("lae", model, None, learning_rates=rates[:1], **options)
    assert found == fast.metrics["steps_to_loss"] and fast.metrics["log2_steps_to_loss"] == np.log2(found)
    losses = [one["cross_entropy"] for one in fast.curves["training"]]
    # Every step has its record, and the first task has four classes.
    assert [one["step"] for one in fast.curves["training"]] == list(range(1, len(losses) + 1))
    first = next(n for n in range(3, len(losses)) if np.mean(losses[n - 3 : n]) <= 0.25 * np.log(4))
    assert found == first < len(losses) / 3
    slow = measured("lae", model, None, learning_rates=rates[1:], **options)
    assert slow.metrics["steps_to_loss"] == slow.budget["steps"] // 3 + 1
    assert "steps_to_loss" not in measured("lae", model, "frozen-heads", data=folder).metrics


def test_modules_trained_on_all_data_start_anew_after_each_task(folder: str, model: str) -> None:
    system = small("lae", model).configured(smoke=True, arm="joint", data=folder)
    stream, encoder = system.open_stream(), system.open_encoder()
    learner = system.learner(encoder, system.config.training(1e-2))
    for task in stream.tasks[:2]:
        learner.learn(stream.train.inputs[task.rows], [stream.train.labels[row] for row in task.rows.tolist()])
    trained = dict(learner.learner.encoder.named_parameters())
    frozen = dict(encoder.named_parameters())
    assert all(torch.equal(trained[name], parameter) for name, parameter in frozen.items())
    assert any(p.requires_grad for p in trained.values()) and len(learner.classes) == 7


def test_what_cannot_be_is_told(folder: str, model: str, tmp_path: Path) -> None:
    flat = encoder_folder(tmp_path / "flat", depth=0)
    for pet in ("adapter", "lora", "prefix"):
        with pytest.raises(ConfigError, match=f"pet={pet} goes to attention, of which model=.*flat has none"):
            measured("lae", flat, None, data=folder, pet=pet)
    with pytest.raises(DataError, match=r"images in a split, fewer than the 4 domains: take more images of a class"):
        measured("nmc", model, "domain-nmc", data=folder, tasks=4)
    with pytest.raises(ModelError, match="no batch normalisation"):
        measured("adam-cil", model, None, data=folder, adapt="batch-norm")
    large = encoder_folder(tmp_path / "large", size=64)
    for slug in OF_STREAMS:
        with pytest.raises(LeavenError, match="set size=64"):
            measured(slug, large, None, data=folder)
        with pytest.raises(ConfigError, match="at most 5 tasks"):
            measured(slug, model, None, data=folder, tasks=6)


def test_rivals_are_compared_on_a_folder_from_the_command_line(
    folder: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    specs = ["adam-cil:simplecil", "adam-cil", "slca", "lae", "nmc"]
    argv = [
        "compare",
        *specs,
        f"data={folder}",
        "tasks=5",
        f"model={model}",
        "--smoke",
        "--seeds",
        "2",
        "--out",
        "runs/x",
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    for spec in specs:
        assert f"\n{spec} " in out
    assert "95% interval" in out and "runs/x/after-each-task-accuracy-on-classes-seen.svg written" in out
    picture = (tmp_path / "runs/x/after-each-task-accuracy-on-classes-seen.svg").read_text()
    assert picture.count(" thick") == 5 and all(f">{spec}</text>" in picture for spec in specs)
    comparison = json.loads((tmp_path / "runs/x/comparison.json").read_text())
    assert comparison["metrics"] == ["last_accuracy", "average_accuracy", "forgetting", "backward_transfer"]
    assert comparison["protocol"]["shared"]["tasks"] == 5 and comparison["notes"] == []
    # Forgetting less is better: a positive effect is a smaller figure.
    pair = next(one for one in comparison["pairs"] if one["metric"] == "forgetting")
    means = {
        label: comparison["arms"][label]["metrics"]["forgetting"]["mean"] for label in (pair["one"], pair["other"])
    }
    assert pair["effect"] == pytest.approx(means[pair["other"]] - means[pair["one"]], abs=1e-3)
    assert main(["report", "runs/x"]) == 0
    assert "after each task: accuracy on classes seen" in (tmp_path / "runs/x/report.html").read_text()
    capsys.readouterr()
    assert main(["compare", "slca", "lae", f"data={folder}", "tasks=6", f"model={model}", "--smoke"]) == 2
    assert capsys.readouterr().err.count("expected at most 5 tasks") == 1


def test_a_saved_expert_is_read_back(folder: str, model: str, tmp_path: Path) -> None:
    system = small("lae", model).configured(smoke=True, data=folder)
    outcome = run_in(system, tmp_path / "run")
    twin = system.learner(system.open_encoder(), system.config.training(1e-3))
    assert isinstance(twin, LAE)
    twin.restore(tmp_path / "run" / outcome.artefacts["experts"])
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(twin.scores(images), outcome.model.scores(images))
