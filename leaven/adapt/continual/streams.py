"""Streams: which rows of a data set come in which task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leaven.adapt.continual.features import Inputs, rows_in, take
from leaven.adapt.continual.learner import Label, Labels, Learner, checked_labels, distinct
from leaven.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Increment:
    """One task of a stream.

    Args:
        groups: the labels (or domains) that make it.
        rows: (rows,) int64, its rows in the data set that the stream was made of, in their order there.
    """

    groups: tuple[Label, ...]
    rows: Tensor

    def of(self, labels: Labels) -> Tensor:
        """Rows of another data set, such as the test set, that have one of the task's labels (or domains).

        Raises: DataError when there is none.
        """
        values = checked_labels(labels, len(labels), self.groups)
        wanted = set(self.groups)
        rows = [row for row, label in enumerate(values) if label in wanted]
        if not rows:
            raise DataError(f"no row has one of {list(self.groups)[:8]}; expected some of each task")
        return torch.tensor(rows)


def class_increments(
    labels: Labels,
    tasks: int | Sequence[int] = 5,
    *,
    seed: int | None = None,
    order: Sequence[Label] | None = None,
) -> list[Increment]:
    """A stream whose tasks have classes of their own.

    Args:
        labels: of all rows.
        tasks: number of tasks, the first of which get one class more where they do not come out even; or the number
            of classes of each.
        seed: shuffles the sorted labels as `numpy.random.seed(seed); numpy.random.permutation` does, which for 1993 is
            the order of most published results; None leaves them sorted.
        order: the classes in the order in which they shall come, instead.

    Raises: ConfigError for sizes that do not fit the classes or both seed and order; DataError for a class of the
    order without rows, a class missing from it, or labels that cannot be sorted.
    """
    values = checked_labels(labels, len(labels))
    ordered = _ordered(distinct(values), seed, order, "class")
    sizes = _sizes(len(ordered), tasks)
    starts = np.cumsum([0, *sizes])
    groups = [tuple(ordered[at : at + size]) for at, size in zip(starts, sizes, strict=False)]
    return _increments(values, groups)


def domain_increments(
    domains: Labels, *, seed: int | None = None, order: Sequence[Label] | None = None
) -> list[Increment]:
    """A stream of domains, each a task in which the same classes may come back.

    Args:
        domains: the domain of every row.
        seed, order: as for `class_increments`.

    Raises: as `class_increments`.
    """
    values = checked_labels(domains, len(domains))
    return _increments(values, [(domain,) for domain in _ordered(distinct(values), seed, order, "domain")])


def task_free(rows: int, batch_size: int = 1, *, seed: int | None = None) -> Iterator[Tensor]:
    """Batches of rows (batch,) int64 that know nothing of tasks: shuffled, or in their order without a seed.

    Raises: ConfigError for no rows or a batch size below 1.
    """
    if rows < 1 or batch_size < 1:
        raise ConfigError(f"task_free: rows {rows}, batch_size {batch_size}; expected at least 1")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    order = torch.arange(rows) if generator is None else torch.randperm(rows, generator=generator)
    return iter(torch.split(order, batch_size))


def accuracy_matrix(
    learner: Learner,
    stream: Sequence[Increment],
    train: tuple[Inputs, Labels],
    test: tuple[Inputs, Labels],
    *,
    groups: Labels | None = None,
) -> Tensor:
    """Teach a learner one task after the other, and test it on every task after each.

    Args:
        learner: any; it is told neither task nor domain of a test input.
        stream: the tasks.
        train, test: inputs and labels.
        groups: what the tasks are made of, for the rows of `test`: their labels if None, else their domains.

    Returns: (tasks, tasks) float64: row i, column j is the accuracy in [0, 100] on task j after i + 1 tasks. What comes
    before a task of new classes is learnt is 0.
    """
    inputs, labels = train[0], checked_labels(train[1], rows_in(train[0]))
    tested, wanted = test[0], checked_labels(test[1], rows_in(test[0]), labels[:1])
    parts = [increment.of(wanted if groups is None else groups) for increment in stream]
    matrix = torch.zeros(len(stream), len(stream), dtype=torch.float64)
    for at, increment in enumerate(stream):
        learner.learn(take(inputs, increment.rows), [labels[row] for row in increment.rows.tolist()])
        guesses = learner.predict(tested)
        for to, rows in enumerate(parts):
            hits = [guesses[row] == wanted[row] for row in rows.tolist()]
            matrix[at, to] = 100 * sum(hits) / len(hits)
    return matrix


def _increments(values: list[Label], groups: Sequence[tuple[Label, ...]]) -> list[Increment]:
    task = {label: at for at, group in enumerate(groups) for label in group}
    rows: list[list[int]] = [[] for _ in groups]
    for row, label in enumerate(values):
        rows[task[label]].append(row)
    return [Increment(group, torch.tensor(own)) for group, own in zip(groups, rows, strict=True)]


def _ordered(found: list[Label], seed: int | None, order: Sequence[Label] | None, what: str) -> list[Label]:
    if order is None:
        try:
            found = sorted(found)  # type: ignore[type-var]  # what cannot be compared is refused below
        except TypeError as error:
            raise DataError(f"the {what} labels have no natural order ({error}): give order=") from error
        if seed is None:
            return found
        return [found[at] for at in np.random.RandomState(seed).permutation(len(found))]
    if seed is not None:
        raise ConfigError("give either seed or order, not both")
    given = checked_labels(order, len(order), found[:1])
    if len(set(given)) != len(given):
        raise DataError(f"order names a {what} twice: {next(one for one in given if given.count(one) > 1)!r}")
    for label in given:
        if label not in set(found):
            raise DataError(f"{what} {label!r} of the order has no row: take it out, or give its examples")
    for label in found:
        if label not in set(given):
            raise DataError(f"{what} {label!r} is not in the order: add it, or leave its rows out")
    return given


def _sizes(classes: int, tasks: int | Sequence[int]) -> list[int]:
    if isinstance(tasks, int):
        if not 1 <= tasks <= classes:
            raise ConfigError(f"tasks is {tasks}; expected from 1 to the {classes} classes")
        return [classes // tasks + (at < classes % tasks) for at in range(tasks)]
    sizes = list(tasks)
    if not sizes or min(sizes) < 1 or sum(sizes) != classes:
        raise ConfigError(f"tasks of {sizes} classes; expected at least 1 each, and {classes} in all")
    return sizes
