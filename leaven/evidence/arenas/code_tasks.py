"""The tasks of the code family: what a model is asked, from which data, and how its answers are judged."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from leaven.data.code_tasks.desugaring import desugaring
from leaven.data.code_tasks.generation import body_generation, refinement, style_translation
from leaven.data.code_tasks.understanding import (
    HIDDEN,
    clone_detection,
    defect_detection,
    name_prediction,
    summarization,
    variable_naming,
)
from leaven.data.examples import ClonePair, CodeExample, Labelled, Pair
from leaven.data.schema import FIELDS
from leaven.data.sources import kind_of, open_source
from leaven.data.splits import Split, some_by_hash
from leaven.errors import ConfigError, DataError
from leaven.evidence.selection import Sealed
from leaven.evidence.system import Figures
from leaven.metrics.bleu import corpus_bleu, smoothed_bleu4
from leaven.metrics.classification import accuracy, binary_f1, exact_match, subtoken_f1
from leaven.metrics.codebleu import codebleu
from leaven.modalities.pairs import PairFormat

Score = Callable[[Sequence[str], Sequence[str]], Figures]
Example = Pair | ClonePair


@dataclass(frozen=True)
class CodeTask:
    """One task.

    control: the control code in front of every source in multi-task training, and alone.
    tag: language whose tag begins the target. metric: the figure that picks models. score: all figures, in [0, 100].
    make: pairs from functions, for tasks whose labels are made from code; None for tasks that come as pairs.
    """

    name: str
    what: str
    control: str
    metric: str
    score: Score
    tag: str | None = None
    max_target: int = 32
    make: Callable[[Sequence[CodeExample]], Sequence[Example]] | None = None

    def form(self, max_source: int, max_target: int | None = None) -> PairFormat:
        """How its pairs are written; `max_target` lowers the task's own limit."""
        longest = self.max_target if max_target is None else min(max_target, self.max_target)
        return PairFormat(self.control, self.tag, max_source, longest)


@dataclass(frozen=True)
class TaskData:
    """A task and its pairs (`Pair`, or `ClonePair` for clone detection); the test split can be read once."""

    task: CodeTask
    train: list[Any]
    valid: list[Any]
    test: Sealed[list[Any]]


def _names(predictions: Sequence[str], references: Sequence[str]) -> Figures:
    cleaned = [prediction.strip() for prediction in predictions]
    return {"f1": subtoken_f1(cleaned, references), "exact": exact_match(cleaned, references)}


def _summaries(predictions: Sequence[str], references: Sequence[str]) -> Figures:
    return {"bleu": smoothed_bleu4(predictions, references)}


def _answers(predictions: Sequence[str], references: Sequence[str]) -> Figures:
    return {"accuracy": accuracy([prediction.strip() for prediction in predictions], references)}


def _clones(predictions: Sequence[str], references: Sequence[str]) -> Figures:
    return {"f1": binary_f1(predictions, references, positive="1"), "accuracy": accuracy(predictions, references)}


def _code(language: str) -> Score:
    def score(predictions: Sequence[str], references: Sequence[str]) -> Figures:
        cleaned = [prediction.strip() for prediction in predictions]
        return {
            "bleu": corpus_bleu(cleaned, references),
            "exact": exact_match(cleaned, [reference.strip() for reference in references]),
            "codebleu": codebleu(cleaned, references, language),
        }

    return score


def _texts(predictions: Sequence[str], references: Sequence[str]) -> Figures:
    cleaned = [prediction.strip() for prediction in predictions]
    return {
        "bleu": corpus_bleu(cleaned, references),
        "exact": exact_match(cleaned, [reference.strip() for reference in references]),
    }


# A name is asked for as pre-training asks for what it hid: the answer begins with the sentinel that stands for it.
SENTINEL = HIDDEN.strip("<>")

TASKS: dict[str, CodeTask] = {
    task.name: task
    for task in (
        CodeTask("name", "name a function", "", "f1", _names, SENTINEL, 16, name_prediction),
        CodeTask("variable", "name a local variable", "", "f1", _names, SENTINEL, 16, variable_naming),
        CodeTask(
            "summarize",
            "first line of the documentation",
            "summarize python: ",
            "bleu",
            _summaries,
            "en",
            32,
            summarization,
        ),
        CodeTask(
            "defect",
            "is a local name used in the place of another",
            "defect python: ",
            "accuracy",
            _answers,
            None,
            4,
            defect_detection,
        ),
        CodeTask("clone", "are two functions the same", "", "f1", _clones, make=clone_detection),
        CodeTask(
            "generate",
            "body of a function from documentation and signature",
            "generate python: ",
            "codebleu",
            _code("python"),
            "python",
            64,
            body_generation,
        ),
        CodeTask(
            "translate",
            "comprehensions and f-strings to loops and format",
            "translate python-plain: ",
            "codebleu",
            _code("python"),
            "python",
            256,
            style_translation,
        ),
        CodeTask(
            "desugar",
            "a statement without shorthand",
            "desugar python: ",
            "exact",
            _code("python"),
            "python",
            96,
            desugaring,
        ),
        CodeTask(
            "refine",
            "repair a wrong operator or name",
            "refine python: ",
            "exact",
            _code("python"),
            "python",
            256,
            refinement,
        ),
    )
}

_PAIR_SETS: dict[str, CodeTask] = {
    "java2cs": CodeTask(
        "java2cs", "Java to C#", "translate java-c_sharp: ", "bleu", _code("c_sharp"), "c_sharp", max_target=256
    ),
    "refine": CodeTask(
        "refine", "repair Java functions", "refine java: ", "exact", _code("java"), "java", max_target=128
    ),
    "concode": CodeTask(
        "concode", "Java from a description", "concode: ", "codebleu", _code("java"), "java", max_target=150
    ),
    "cosqa": CodeTask(
        "cosqa", "Python from a query", "generate python: ", "codebleu", _code("python"), "python", max_target=150
    ),
}


def task_names() -> list[str]:
    """Tasks by name: those made from functions, then the standard sets of pairs."""
    return [*TASKS, *(f"set:{name}" for name in _PAIR_SETS)]


def open_task(name: str, source: str, *, limits: tuple[int, int, int] = (1_000_000, 500, 2000)) -> TaskData:
    """A task's data.

    Args:
        name: a name of `task_names()`; or the user's own pairs such as `jsonl:FILE`, with the fields source and target,
            or code and label.
        source: where functions come from, for tasks that are made from them.
        limits: most pairs of the train, valid and test split; which are taken depends on each pair alone.

    Raises: ConfigError for an unknown task; DataError when a split has no pairs for it.
    """
    if name in TASKS:
        task = TASKS[name]
        splits: dict[Split, list[Any]] = {
            split: _made(name, source, split, most) for split, most in zip(_SPLITS, limits, strict=True)
        }
        # Different functions may hold the same statement.
        seen = set(splits["train"])
        for split in ("valid", "test"):
            splits[split] = [pair for pair in splits[split] if pair not in seen]
    elif name.startswith("set:") and name.removeprefix("set:") in _PAIR_SETS:
        spec = name.removeprefix("set:")
        task = _PAIR_SETS[spec]
        splits = {split: list(open_source(spec, Pair, split=split).examples) for split in _SPLITS}
    elif ":" in name and not name.startswith("set:"):
        task, splits = _own(name)
    else:
        near = difflib.get_close_matches(name, [*task_names(), *_PAIR_SETS], n=1, cutoff=0.4)
        meant = f"set:{near[0]}" if near and near[0] in _PAIR_SETS and near[0] not in TASKS else "".join(near)
        hint = f"; did you mean {meant!r}?" if near else ""
        raise ConfigError(f"no task {name!r}: there are {', '.join(task_names())}, or jsonl:FILE with your pairs{hint}")
    for split, pairs in splits.items():
        if not pairs:
            raise DataError(f"task {name!r}: the {split} split of {source} has no example for it")
    return TaskData(
        task,
        some_by_hash(splits["train"], limits[0]),
        some_by_hash(splits["valid"], limits[1]),
        Sealed(some_by_hash(splits["test"], limits[2]), f"task {name!r}"),
    )


@cache
def _made(name: str, source: str, split: Split, most: int) -> list[Any]:
    """Pairs made from functions, once per process: arms and seeds share them.

    Of a large source no more functions are looked at than so many pairs are likely to need.
    """
    make = TASKS[name].make
    assert make is not None
    return list(make(some_by_hash(open_source(source, CodeExample, split=split).examples, max(8 * most, 4000))))


_SPLITS: tuple[Split, ...] = ("train", "valid", "test")


def _own(spec: str) -> tuple[CodeTask, dict[Split, list[Any]]]:
    """The user's pairs, labelled texts written as pairs, or clone pairs: whichever the fields of the rows make them."""
    kind = kind_of(spec)
    task = CodeTask("own", f"pairs of {spec}", "", "bleu", _texts, None, 256)
    if kind is Pair:
        return task, {split: list(open_source(spec, Pair, split=split).examples) for split in _SPLITS}
    if kind is ClonePair:
        clones: dict[Split, list[Any]] = {
            split: list(open_source(spec, ClonePair, split=split).examples) for split in _SPLITS
        }
        return replace(TASKS["clone"], what=task.what), clones
    if kind is Labelled:
        labelled: dict[Split, list[Any]] = {
            split: [Pair(e.text, str(e.label)) for e in open_source(spec, Labelled, split=split).examples]
            for split in _SPLITS
        }
        return replace(task, metric="accuracy", score=_answers, max_target=4), labelled
    raise ConfigError(
        f"task {spec!r}: its rows are {kind.__name__}; to fine-tune, give rows of {FIELDS[Pair]}, {FIELDS[Labelled]} "
        f"or {FIELDS[ClonePair]}"
    )
