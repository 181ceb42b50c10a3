"""Continual learning on any encoder: classes come task by task or batch by batch, without stored examples."""

from leaven.adapt.continual.alignment import Alignment
from leaven.adapt.continual.aper import APER, BatchNormReestimation, CosineTuning
from leaven.adapt.continual.compatibility import Compatibility, compatibility_matrix
from leaven.adapt.continual.fine_tuning import JointTraining, LinearProbe, SequentialFineTuning
from leaven.adapt.continual.lae import LAE
from leaven.adapt.continual.learner import Learner
from leaven.adapt.continual.prototypes import NearestMean, SimpleCIL
from leaven.adapt.continual.simplex_encoder import SimplexEncoder
from leaven.adapt.continual.slca import SLCA
from leaven.adapt.continual.stationary import CompatibleLearner
from leaven.adapt.continual.statistics import ClassStatistics
from leaven.adapt.continual.streams import Increment, accuracy_matrix, class_increments, domain_increments, task_free
from leaven.adapt.continual.task_training import TaskTraining

__all__ = [
    "APER",
    "LAE",
    "SLCA",
    "Alignment",
    "BatchNormReestimation",
    "ClassStatistics",
    "Compatibility",
    "CompatibleLearner",
    "CosineTuning",
    "Increment",
    "JointTraining",
    "Learner",
    "LinearProbe",
    "NearestMean",
    "SequentialFineTuning",
    "SimpleCIL",
    "SimplexEncoder",
    "TaskTraining",
    "accuracy_matrix",
    "class_increments",
    "compatibility_matrix",
    "domain_increments",
    "task_free",
]
