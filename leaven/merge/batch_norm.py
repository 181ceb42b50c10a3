"""Running statistics of batch norm for weights that were averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from leaven.errors import DataError


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[Any], call: Callable[[nn.Module, Any], Any] | None = None
) -> int:
    """Replace the running means and variances of all batch norms by plain averages over the batches.

    Everything else of the model stays in eval mode, so that no dropout disturbs the statistics. The model is left as
    it was, statistics apart; if a batch fails, with its old statistics.

    Args:
        batches: what the model is run on, a few hundred rows in all.
        call: runs the model on a batch; None calls `model(batch)`.

    Returns: the number of batch norms, 0 if there was nothing to do.
    Raises: DataError without a batch.
    Source: arXiv 1803.05407 section 3.2 (batch normalization of averaged weights).
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    seen = 0
    done = False
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for batch in batches:
            (call or _plainly)(model, batch)
            seen += 1
        if not seen:
            raise DataError("batch norms cannot be re-estimated without data: batches is empty")
        done = True
    finally:
        for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not done:
                for name, buffer in norm.named_buffers():
                    buffer.copy_(buffers[name])
        for module, mode in modes.items():
            module.training = mode
    return len(norms)


def _plainly(model: nn.Module, batch: Any) -> Any:
    return model(batch)
