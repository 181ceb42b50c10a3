"""Streams of labelled inputs, and what a learner answers after each task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leaven.adapt.continual import Increment, Learner, accuracy_matrix, class_increments, domain_increments
from leaven.adapt.continual.features import Inputs, joined
from leaven.adapt.continual.learner import Label, Labels
from leaven.errors import ConfigError, DataError
from leaven.evidence.arenas.image_data import ImageData, ImageSet, class_groups
from leaven.evidence.arenas.merge_shifts import SHIFTS, shifted
from leaven.evidence.selection import Sealed
from leaven.evidence.system import Figures
from leaven.metrics.continual import average_incremental_accuracy, backward_transfer, forgetting, last_accuracy
from leaven.training.randomness import mix


@dataclass(frozen=True)
class Part:
    """A split: inputs, such as images (count, 3, size, size) uint8, and of each its class and what makes the tasks."""

    inputs: Inputs
    labels: list[str]
    groups: list[str]

    @staticmethod
    def of(inputs: Inputs, labels: Sequence[str], group: str = "") -> Part:
        """All in one group, or each input in the group of its class."""
        return Part(inputs, list(labels), [group] * len(labels) if group else list(labels))

    @staticmethod
    def joined(parts: Sequence[Part]) -> Part:
        """Parts behind one another."""
        return Part(
            joined([part.inputs for part in parts]),
            [label for part in parts for label in part.labels],
            [group for part in parts for group in part.groups],
        )


@dataclass(frozen=True)
class Parts:
    """The splits of labelled inputs. classes: names, sorted. what: "images" or "texts"."""

    classes: list[str]
    train: Part
    valid: Part
    test: Part
    what: str


def image_parts(data: ImageData, group: str = "") -> Parts:
    """Those of images, whose test split is read."""
    train, valid, test = (Part.of(one.images, one.labels, group) for one in (data.train, data.valid, data.test.read()))
    return Parts(data.classes, train, valid, test, "images")


@dataclass(frozen=True)
class Stream:
    """Tasks, the splits, and the test inputs, whose labels are sealed until a learner has been chosen.

    tasks: rows of `train`. classes: how many there are in all. what: "images" or "texts".
    """

    tasks: list[Increment]
    classes: int
    train: Part
    valid: Part
    test_inputs: Inputs
    test: Sealed[Part]
    what: str

    def sizes(self, part: Part) -> list[int]:
        """Inputs of each task in a split."""
        return [len(task.of(part.groups)) for task in self.tasks]


def task_sizes(classes: int, tasks: int, first: int = 0) -> list[int]:
    """Classes of each task; the first tasks get one more where they do not come out even.

    first: classes of the first task, 0 for as many as of the others.
    Raises: ConfigError where a task would have less than two classes.
    """
    head, rest, left = ([first], classes - first, tasks - 1) if first else ([], classes, tasks)
    sizes = head + [rest // left + (at < rest % left) for at in range(left)]
    if sum(sizes) != classes or min(sizes) < 2:
        asked = f"tasks={tasks}, first={first}" if first else f"tasks={tasks}"
        raise ConfigError(
            f"{asked}: of {classes} classes each task must get at least 2, as a loss over one class teaches nothing; "
            f"expected at most {classes // 2} tasks" + (" and less in the first" if first else "")
        )
    return sizes


def class_stream(parts: Parts, sizes: Sequence[int], *, seed: int, spec: str) -> Stream:
    """Tasks that have classes of their own, in an order that the seed decides; those of a group come together.

    Raises: DataError for a class with a single input to train on.
    """
    counts = Counter(parts.train.labels)
    rare = next((label for label in parts.classes if counts[label] < 2), None)
    if rare is not None:
        raise DataError(
            f"{spec}: class {rare!r} has {counts[rare]} {parts.what.removesuffix('s')} to train on; a task needs at "
            f"least 2 of each class: add {parts.what}, or leave the class out"
        )
    order = [name for group in class_groups(parts.classes, seed).values() for name in group]
    increments = class_increments(parts.train.labels, sizes, seed=None if order else seed, order=order or None)
    return _stream(increments, parts, spec)


def domain_stream(domains: dict[str, ImageData], *, spec: str) -> Stream:
    """Tasks that have the same classes in another domain each, in the order of the domains."""
    found = [image_parts(data, name) for name, data in domains.items()]
    train, valid, test = (
        Part.joined(split)
        for split in ([one.train for one in found], [one.valid for one in found], [one.test for one in found])
    )
    parts = Parts(found[0].classes, train, valid, test, found[0].what)
    return _stream(domain_increments(train.groups, order=list(domains)), parts, spec)


def _stream(tasks: list[Increment], parts: Parts, spec: str) -> Stream:
    test = parts.test
    return Stream(tasks, len(parts.classes), parts.train, parts.valid, test.inputs, Sealed(test, spec), parts.what)


def shifted_domains(data: ImageData, domains: int, *, seed: int, spec: str) -> dict[str, ImageData]:
    """The images of every class divided among domains: the first as they are, each other one under a shift.

    Raises: ConfigError for more domains than there are shifts; DataError for a class with fewer images than domains.
    """
    names = ["as they are", *SHIFTS]
    if domains > len(names):
        raise ConfigError(
            f"tasks={domains}: expected at most {len(names)}, as there are the domains {', '.join(names)}"
        )
    parts = [_shares(part, domains, spec) for part in (data.train, data.valid, data.test.read())]
    found = {}
    for at, name in enumerate(names[:domains]):
        train, valid, test = (
            shares[at] if name not in SHIFTS else _under(shares[at], name, mix(seed, at, place))
            for place, shares in enumerate(parts)
        )
        found[name] = ImageData(data.classes, train, valid, Sealed(test, spec))
    return found


def _shares(part: ImageSet, shares: int, spec: str) -> list[ImageSet]:
    """Of each class, every so many-th image."""
    counts: Counter[str] = Counter()
    rows: list[list[int]] = [[] for _ in range(shares)]
    for row, label in enumerate(part.labels):
        rows[counts[label] % shares].append(row)
        counts[label] += 1
    rare = min(counts, key=counts.__getitem__)
    if counts[rare] < shares:
        raise DataError(
            f"{spec}: class {rare!r} has {counts[rare]} images in a split, fewer than the {shares} domains: take more "
            "images of a class, or fewer tasks"
        )
    return [ImageSet(part.images[own], tuple(part.labels[row] for row in own)) for own in rows]


def _under(images: ImageSet, shift: str, seed: int) -> ImageSet:
    return ImageSet(shifted(images.images, shift, seed=seed), images.labels)


@dataclass
class Taught(Learner):
    """A learner and, from then on, what it answers on the test inputs after each task: not scored before it is chosen.

    matrix: accuracies (tasks, tasks) on the validation split, once the stream is over.
    """

    learner: Learner
    test_inputs: Inputs
    answers: list[list[Label]] = field(default_factory=list)
    matrix: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    @property
    def classes(self) -> Sequence[Label]:
        """Labels of the learner."""
        return self.learner.classes

    def learn(self, inputs: Inputs, labels: Labels) -> None:
        """Let the learner take in a task, and answer."""
        self.learner.learn(inputs, labels)
        self.answers.append(self.learner.predict(self.test_inputs))

    def scores(self, inputs: Inputs) -> Tensor:
        """Scores of the learner."""
        return self.learner.scores(inputs)

    def predict(self, inputs: Inputs) -> list[Label]:
        """What the learner answers, which need not be its highest score."""
        return self.learner.predict(inputs)


def teach(learner: Learner, stream: Stream) -> Taught:
    """One task after the other, with accuracies on the validation split after each."""
    taught = Taught(learner, stream.test_inputs)
    valid = stream.valid
    taught.matrix = accuracy_matrix(
        taught, stream.tasks, (stream.train.inputs, stream.train.labels), (valid.inputs, valid.labels),
        groups=valid.groups,
    )  # fmt: skip
    return taught


def scored(taught: Taught, stream: Stream) -> tuple[Tensor, list[int]]:
    """Accuracies (tasks, tasks) on the test split, as `accuracy_matrix` gives them, and the inputs of each task there.

    Raises: ReadTwiceError when the labels were opened before.
    """
    test = stream.test.read()
    parts = [task.of(test.groups).tolist() for task in stream.tasks]
    shares = [
        [sum(guesses[row] == test.labels[row] for row in rows) / len(rows) for rows in parts]
        for guesses in taught.answers
    ]
    return 100 * torch.tensor(shares, dtype=torch.float64), [len(rows) for rows in parts]


def figures_of(matrix: Tensor, sizes: Sequence[int]) -> Figures:
    """What the arenas report, accuracies in [0, 100]; of forgetting, smaller is better."""
    values = matrix.numpy()
    return {
        "last_accuracy": last_accuracy(values, sizes),
        "average_accuracy": average_incremental_accuracy(values, sizes),
        "forgetting": forgetting(values),
        "backward_transfer": backward_transfer(values),
    }
