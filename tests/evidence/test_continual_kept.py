import shutil
from pathlib import Path

import pytest
import torch
from evidence.small_images import encoder_folder, image_folder

from leaven.adapt.continual import LAE, fine_tuning, lae
from leaven.evidence.arenas.continual_arena import ContinualSystem
from leaven.evidence.arenas.continual_kept import SharedFineTuning, SharedLAE
from leaven.evidence.system import Measurement
from leaven.systems import find_system


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return encoder_folder(tmp_path_factory.mktemp("model") / "vit")


class Counted:
    """How many trainings a measurement ran, of tasks and of alignments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        train = lae.train

        def counted(*args, **options):
            self.count += 1
            return train(*args, **options)

        for module in (lae, fine_tuning):
            monkeypatch.setattr(module, "train", counted)

    def since(self) -> int:
        count, self.count = self.count, 0
        return count


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def system(slug: str, arm: str, folder: str, model: str, **options) -> ContinualSystem:
    rates = {"learning_rates": (5e-3, 2e-2), "epochs": 2}
    return find_system(slug).configured(smoke=True, arm=arm, data=folder, model=model, **{**rates, **options})


def same(one: Measurement, other: Measurement) -> bool:
    def curve(found: Measurement) -> list[dict[str, float]]:
        return [{k: v for k, v in record.items() if k != "seconds"} for record in found.curves["training"]]

    kept = ("metrics", "validation", "budget", "equal", "chosen")
    return all(getattr(one, name) == getattr(other, name) for name in kept) and curve(one) == curve(other)


# Two learning rates, three tasks.
@pytest.mark.parametrize(
    "groups",
    [
        [["lae", "online", "offline", "mean-vote"], ["sequential", "no-freezing"], ["lae-prefix"]],
        [["slca", "slow", "no-logit-norm", "cumulative-heads"], ["sequential", "uniform-ca"], ["frozen-ca"]],
    ],
    ids=["lae", "slca"],
)
def test_arms_that_train_alike_train_once_and_measure_what_they_do_alone(
    groups: list[list[str]], folder: str, model: str, tmp_path: Path, trainings: Counted
) -> None:
    found, slug = [], groups[0][0]
    for group in groups:
        for at, arm in enumerate(group):
            slow = {"slow": 0.3} if slug == "slca" and group[0] == "slca" else {}
            one = system(slug, arm, folder, model, **slow)
            together = one.measure(tmp_path / "seed-0" / arm)
            assert trainings.since() == (0 if at else 6)
            alone = one.measure(tmp_path / arm / "alone")
            assert trainings.since() == 6
            assert same(together, alone), arm
            found.append(str(together.metrics))
    assert len(set(found)) > len(groups)


def test_other_options_seeds_and_factors_are_not_shared(
    folder: str, model: str, tmp_path: Path, trainings: Counted
) -> None:
    for slug, arm, changes in (
        ("lae", "lae", [{}, {"seed": 1}, {"rank": 3}, {"decay": 0.5}, {"epochs": 2}, {"freeze": 0.0}]),
        ("slca", "slca", [{}, {"seed": 1}, {"slow": 0.5}, {"slow": 0.0}, {"batch_size": 4}]),
    ):
        for change in changes:
            one = system(slug, arm, folder, model, **{"learning_rates": (5e-3,), "epochs": 1, **change})
            one.measure(tmp_path / "x")
            assert trainings.since() == 3, (slug, change)
    system("slca", "slca", folder, model, slow=(0.01, 0.5), learning_rates=(5e-3,), epochs=1).measure(tmp_path / "y")
    assert trainings.since() == 0


@pytest.mark.parametrize("slug", ["lae", "slca"])
def test_a_stream_that_was_cut_off_or_damaged_goes_on(
    slug: str, folder: str, model: str, tmp_path: Path, trainings: Counted
) -> None:
    one = system(slug, slug, folder, model, learning_rates=(2e-2,), **({"slow": 0.3} if slug == "slca" else {}))
    whole = one.measure(tmp_path / "seed" / "x")
    assert trainings.since() == 3
    (kept,) = (path for path in (tmp_path / "seed").iterdir() if path.name.startswith(slug))
    assert sorted(path.name for path in kept.iterdir()) == ["step-00000001", "step-00000002", "step-00000003"]
    # Killed while the second task was written: a draft, and nothing after it.
    (kept / "step-00000002").rename(kept / ".draft-step-00000002")
    shutil.rmtree(kept / "step-00000003")
    assert same(one.measure(tmp_path / "seed" / "y"), whole) and trainings.since() == 2
    file = kept / "step-00000002" / "head.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.warns(UserWarning, match=r"damaged training passed over, done again: .*head.safetensors: altered"):
        again = one.measure(tmp_path / "seed" / "z")
    assert same(again, whole) and trainings.since() == 1
    assert same(one.measure(tmp_path / "seed" / "z"), whole) and trainings.since() == 0


@pytest.mark.parametrize(("slug", "kind"), [("lae", SharedLAE), ("slca", SharedFineTuning)])
def test_a_learner_put_back_is_the_learner(slug: str, kind: type, folder: str, model: str, tmp_path: Path) -> None:
    one = system(slug, slug, folder, model, **({"slow": 0.3} if slug == "slca" else {}))
    stream, encoder = one.open_stream(), one.open_encoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    learners = []
    for place in (None, tmp_path, tmp_path):
        learner = one.learner(encoder, one.config.training(2e-2))
        assert isinstance(learner, kind)
        if place is not None:
            one._shared(learner, place, 2e-2)
        for task in stream.tasks:
            learner.learn(stream.train.inputs[task.rows], [stream.train.labels[row] for row in task.rows.tolist()])
        learners.append(learner)
    plain, _, back = learners
    assert back.classes == plain.classes and back.tasks == plain.tasks == 3
    assert back.heads.sizes == plain.heads.sizes
    for part in ("encoder", "heads"):
        ours, theirs = (getattr(found, part).state_dict() for found in (back, plain))
        assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(back.scores(stream.test_inputs), plain.scores(stream.test_inputs))
    if isinstance(plain, LAE):
        assert torch.equal(
            back.scores(stream.test_inputs, "offline"), plain.scores(stream.test_inputs, "offline")
        ) and not torch.equal(plain.scores(stream.test_inputs, "offline"), plain.scores(stream.test_inputs, "online"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_run_of_its_own_keeps_nothing_beside_it(folder: str, model: str, tmp_path: Path) -> None:
    system("lae", "lae", folder, model, epochs=1, learning_rates=(5e-3,)).run(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_trainings_without_steps_are_kept_too(folder: str, model: str, tmp_path: Path) -> None:
    one = system("lae", "lae", folder, model, epochs=0, learning_rates=(5e-3,))
    found = [one.measure(tmp_path / name).metrics for name in ("x", "y")]
    assert found[0] == found[1] and "steps_to_loss" not in found[0]
