"""Model soups: one model that is the average of several fine-tuned ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from leaven.errors import ConfigError
from leaven.merge.combination import Combination
from leaven.merge.compatibility import check_combinable, warn_of_strangers
from leaven.merge.weights import Source, Weights, open_all

Score = Callable[[dict[str, Tensor]], float]
"""Held-out figure of a state dict, larger is better; not on the data that the result is reported on."""


class Trial(NamedTuple):
    """One evaluation of a greedy selection: members are indices into the list of ingredients."""

    members: tuple[int, ...]
    score: float
    accepted: bool


class Soup(Combination):
    """The equal-weight average of the accepted ingredients.

    ingredients: all that were offered. accepted: indices of those in the soup, in the order they were taken.
    trials: every evaluation in its order; empty for a uniform soup.
    """

    def __init__(self, ingredients: Sequence[Weights], accepted: Sequence[int], trials: Sequence[Trial] = ()) -> None:
        super().__init__([(ingredients[i], 1 / len(accepted)) for i in accepted], f"soup of {len(accepted)}")
        self.ingredients, self.accepted, self.trials = tuple(ingredients), tuple(accepted), tuple(trials)

    def record(self) -> dict[str, Any]:
        """The ingredients, those accepted, and the log of scores."""
        return {
            "recipe": "greedy soup" if self.trials else "uniform soup",
            "ingredients": [weights.label for weights in self.ingredients],
            "accepted": list(self.accepted),
            "trials": [trial._asdict() for trial in self.trials],
        }


def uniform_soup(sources: Sequence[Source], out: Path | str | None = None) -> Soup:
    """The average of all sources. It is computed when it is read or saved, with a few chunks in memory at a time.

    Running statistics of batch norm are averaged like weights, which is wrong: follow with `reestimate_batch_norm`.

    Args:
        sources: two or more checkpoints fine-tuned from one initialisation, head included.
        out: where to save it at once (see `Weights.save`).

    Raises: ConfigError for fewer than two sources, ModelError when they do not fit each other.
    Source: arXiv 2203.05482 section 2.
    """
    ingredients = checked_ingredients(sources)
    soup = Soup(ingredients, range(len(ingredients)))
    if out is not None:
        soup.save(out)
    return soup


def greedy_soup(
    sources: Sequence[Source], score: Score, out: Path | str | None = None, *, accept_ties: bool = False
) -> Soup:
    """Add checkpoints to the average, best first, as long as the average gets better on held-out data.

    The soup's score is never below the best single one. One model is in memory at a time; files are read again for
    each candidate.

    Args:
        sources: two or more checkpoints fine-tuned from one initialisation, head included.
        score: held-out figure of a state dict, larger is better.
        out: where to save the soup at once (see `Weights.save`).
        accept_ties: also accept an average that is as good as the one before.

    Raises: ConfigError for fewer than two sources, no score function or a score that is NaN; ModelError when the
    sources do not fit each other.
    Source: arXiv 2203.05482 recipe 1.
    """
    if not callable(score):
        raise ConfigError(f"a greedy soup needs a score function of a state dict, not {score!r}; or use uniform_soup")
    ingredients = checked_ingredients(sources)

    def score_of(members: tuple[int, ...]) -> float:
        return score(Soup(ingredients, members).state())

    accepted, trials = select_greedily(len(ingredients), score_of, accept_ties=accept_ties)
    soup = Soup(ingredients, accepted, trials)
    if out is not None:
        soup.save(out)
    return soup


def select_greedily(
    count: int, score_of: Callable[[tuple[int, ...]], float], *, accept_ties: bool = False
) -> tuple[tuple[int, ...], list[Trial]]:
    """Greedy forward selection: each of `count` members alone, then in falling order of score whatever helps.

    Args:
        score_of: figure of a set of members, larger is better.

    Raises: ConfigError when a score is NaN.
    """

    def measured(members: tuple[int, ...]) -> float:
        value = float(score_of(members))
        if math.isnan(value):
            raise ConfigError(f"the score of {members} is NaN: expected a number, larger is better")
        return value

    alone = [measured((member,)) for member in range(count)]
    # Equal scores keep the order of the list.
    order = sorted(range(count), key=lambda member: -alone[member])
    accepted: tuple[int, ...] = (order[0],)
    best = alone[order[0]]
    trials = [Trial((member,), alone[member], member == order[0]) for member in range(count)]
    for member in order[1:]:
        candidate = (*accepted, member)
        value = measured(candidate)
        better = value > best or (accept_ties and value == best)
        trials.append(Trial(candidate, value, better))
        if better:
            accepted, best = candidate, value
    return accepted, trials


def checked_ingredients(sources: Sequence[Source]) -> list[Weights]:
    """Open the sources of a soup. Raises: ConfigError for fewer than two, ModelError when they do not fit."""
    if isinstance(sources, str | Path | Mapping) or len(sources) < 2:
        lone = isinstance(sources, str | Path | Mapping)
        given = "one alone" if lone or len(sources) == 1 else "an empty list"
        raise ConfigError(f"a soup needs a list of two or more checkpoints, not {given}")
    ingredients = open_all(sources)
    check_combinable(ingredients, same_task=True)
    warn_of_strangers(ingredients, stacklevel=4)
    return ingredients
