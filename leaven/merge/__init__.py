"""Combine trained models."""

from leaven.merge.batch_norm import reestimate_batch_norm
from leaven.merge.composed_model import ComposedModel
from leaven.merge.composition_objectives import AscentDescent, PredictionEntropy, UnsupervisedFixMatch, trusted_rows
from leaven.merge.ensembles import greedy_ensemble, logit_ensemble, logits_of, soup_versus_ensemble
from leaven.merge.learned_soup import LearnedSoup, learned_soup
from leaven.merge.mixed_model import MixedModel, MixedObjective, RepeatedBatches
from leaven.merge.self_positioning import PositionedModel, ProbeObjective, self_position, slerp_coefficients
from leaven.merge.soups import Soup, greedy_soup, uniform_soup
from leaven.merge.task_vectors import TaskVector
from leaven.merge.weight_gradients import (
    best_blocks,
    best_vectors,
    block_scores,
    composite_vectors,
    random_blocks,
    task_conflict,
)
from leaven.merge.weights import Weights, open_weights

__all__ = [
    "AscentDescent",
    "ComposedModel",
    "LearnedSoup",
    "MixedModel",
    "MixedObjective",
    "PositionedModel",
    "PredictionEntropy",
    "ProbeObjective",
    "RepeatedBatches",
    "Soup",
    "TaskVector",
    "UnsupervisedFixMatch",
    "Weights",
    "best_blocks",
    "best_vectors",
    "block_scores",
    "composite_vectors",
    "greedy_ensemble",
    "greedy_soup",
    "learned_soup",
    "logit_ensemble",
    "logits_of",
    "open_weights",
    "random_blocks",
    "reestimate_batch_norm",
    "self_position",
    "slerp_coefficients",
    "soup_versus_ensemble",
    "task_conflict",
    "trusted_rows",
    "uniform_soup",
]
