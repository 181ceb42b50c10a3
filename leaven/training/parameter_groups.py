"""Parameter groups: weight decay by shape, learning-rate factors by parameter name, Muon for hidden matrices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from leaven.errors import ConfigError
from leaven.training.config import TrainingConfig
from leaven.training.muon import Muon


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], config: TrainingConfig, matrices: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in groups of one weight decay, one learning-rate factor and one optimizer.

    Each group has `params`, `names`, `weight_decay`, `lr`, `lr_factor`, `muon` and `parts`. One-dimensional parameters
    (biases, norm scales) are not decayed unless `config.decay_vectors`.

    Args:
        matrices: names of the parameters that Muon may update, and how many matrices are fused in each.

    Raises: ConfigError if nothing is trainable, or a pattern of `config.lr_factors` fits no parameter name.
    """
    trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if not trainable:
        raise ConfigError("nothing to train: no parameter of the model or the objective has requires_grad=True")
    names = [name for name, _ in trainable]
    for pattern in config.lr_factors:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise ConfigError(
                f"lr_factors: pattern {pattern!r} fits no trainable parameter; the nearest names are {', '.join(near)}"
            )
    matrices = matrices if matrices and config.optimizer == "muon" else {}
    groups: dict[tuple[float, float, int], dict[str, Any]] = {}
    for name, parameter in trainable:
        factor = next((f for pattern, f in config.lr_factors.items() if fnmatchcase(name, pattern)), 1.0)
        decay = config.weight_decay if config.decay_vectors or parameter.ndim >= 2 else 0.0
        group = groups.setdefault(
            (factor, decay, matrices.get(name, 0)),
            {
                "params": [],
                "names": [],
                "weight_decay": decay,
                "lr": config.learning_rate * factor,
                "lr_factor": factor,
                "muon": name in matrices,
                "parts": matrices.get(name, 1),
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW, Muon and AdamW, or SGD with momentum; fused where every parameter's type and device has such a kernel."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(p.device.type in {"cpu", "cuda", "mps", "xpu"} and torch.is_floating_point(p) for p in parameters)
    stripped = [{key: value for key, value in group.items() if key != "names"} for group in groups]
    if config.optimizer == "sgd":
        return torch.optim.SGD(stripped, lr=config.learning_rate, momentum=config.momentum, fused=fused)
    adamw: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps, "fused": fused}
    if config.optimizer == "muon":
        return Muon(stripped, momentum=config.momentum, **adamw)
    return torch.optim.AdamW(stripped, **adamw)
