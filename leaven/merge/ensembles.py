"""Ensembles of logits, to compare soups with, and how far a soup is from one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from leaven.errors import ConfigError
from leaven.merge.combination import Combination
from leaven.merge.soups import Trial, checked_ingredients, select_greedily
from leaven.merge.weights import Source, open_all

Predict = Callable[[dict[str, Tensor]], Tensor]
"""Logits (examples, classes) of a state dict on fixed inputs."""


def logits_of(sources: Sequence[Source], predict: Predict) -> Tensor:
    """Logits (models, examples, classes) of each source, one model in memory at a time."""
    return torch.stack([predict(weights.state()).detach() for weights in open_all(sources)])


def logit_ensemble(logits: Tensor) -> Tensor:
    """Mean of unnormalised logits over models: (models, examples, classes) -> (examples, classes).

    It costs one forward pass per model. Source: arXiv 2203.05482 section 2, table of recipes.
    """
    return logits.mean(0)


def greedy_ensemble(
    logits: Tensor, score: Callable[[Tensor], float], *, accept_ties: bool = False
) -> tuple[tuple[int, ...], list[Trial]]:
    """Which models to average the logits of, chosen as `greedy_soup` chooses weights.

    Args:
        logits: (models, examples, classes) on held-out data.
        score: figure of logits (examples, classes), larger is better.

    Returns: the accepted models and every evaluation.
    """
    return select_greedily(len(logits), lambda m: score(logit_ensemble(logits[list(m)])), accept_ties=accept_ties)


class SoupVersusEnsemble(NamedTuple):
    """Loss of the soup minus loss of the ensemble at points of the segment between two models, each (points,) float64.

    alpha: share of the second model. difference: measured. approximation: what curvature and confidence predict.
    soup_loss, ensemble_loss: mean cross-entropies. correlation: of difference and approximation, NaN if either is flat.
    """

    alpha: Tensor
    soup_loss: Tensor
    ensemble_loss: Tensor
    difference: Tensor
    approximation: Tensor
    correlation: float


def soup_versus_ensemble(
    first: Source, second: Source, predict: Predict, labels: Tensor, *, scale: float = 1.0, points: int = 11
) -> SoupVersusEnsemble:
    """When is averaging weights as good as averaging logits: where the loss is flat and predictions are confident.

    With f the logits, beta their scale, theta_a = (1 - a) theta_0 + a theta_1 and delta = f(theta_1) - f(theta_0),
    L_soup(a) - L_ensemble(a) ~ a (1 - a) / 2 * (-L_soup''(a) + beta^2 E_x Var_Y[delta_Y(x)]),
    with Y ~ softmax(beta f(x; theta_a)).
    The second derivative is taken by central differences on the grid, whose ends have none and are left out.

    Args:
        predict: logits (examples, classes) of a state dict.
        labels: (examples,) int64.
        scale: beta > 0.
        points: of the grid from 0 to 1, >= 5.

    Source: arXiv 2203.05482 section 4.
    """
    if points < 5 or scale <= 0:
        raise ConfigError(f"points is {points} and scale {scale}: expected at least 5 points and a positive scale")
    ends = checked_ingredients([first, second])
    alpha = torch.linspace(0, 1, points, dtype=torch.float64)
    states = (Combination([(ends[0], 1 - a), (ends[1], a)], "interpolation").state() for a in alpha.tolist())
    logits = torch.stack([scale * predict(state).detach().double() for state in states])
    ensembles = torch.lerp(logits[0], logits[-1], alpha[:, None, None])
    soup, ensemble = (torch.stack([F.cross_entropy(x, labels) for x in many]) for many in (logits, ensembles))
    step = alpha[1] - alpha[0]
    curvature = (soup[2:] - 2 * soup[1:-1] + soup[:-2]) / step**2
    # The scale is already in the logits, so the variance has its square.
    change, p = logits[-1] - logits[0], logits[1:-1].softmax(-1)
    variance = ((p * change**2).sum(-1) - (p * change).sum(-1) ** 2).mean(-1)
    inner = alpha[1:-1]
    difference = (soup - ensemble)[1:-1]
    approximation = inner * (1 - inner) / 2 * (variance - curvature)
    correlation = float(torch.corrcoef(torch.stack([difference, approximation]))[0, 1])
    return SoupVersusEnsemble(inner, soup[1:-1], ensemble[1:-1], difference, approximation, correlation)
