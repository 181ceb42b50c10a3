"""What a continual learner leaves in a run's folder."""

from __future__ import annotations

import csv
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from leaven.adapt.continual import APER, LAE, SLCA, JointTraining, Learner, NearestMean, SequentialFineTuning, SimpleCIL
from leaven.adapt.continual.heads import EncoderWithHead
from leaven.training.checkpoint import replaced


def save_learner(learner: Learner, out: Path) -> dict[str, str]:
    """Write what a learner has learnt, all but a frozen encoder; the files by what they hold, relative to `out`.

    Prototypes can be read back by `SimpleCIL.load` and `NearestMean.load`, experts by `LAE.restore`; weights are the
    state of the module, with safetensors. A learner of another kind leaves nothing.
    """
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(learner, SimpleCIL | NearestMean):
        return {"prototypes": learner.save(out / "prototypes.safetensors").name}
    if isinstance(learner, APER):
        files = {"prototypes": learner.prototypes.save(out / "prototypes.safetensors").name}
        return files if learner.adapted is None else {**files, "adapted encoder": _weights(learner.adapted, out)}
    if isinstance(learner, LAE):
        return {"experts": learner.save(out / "experts").name}
    if isinstance(learner, JointTraining):
        return save_learner(learner.learner, out)
    if isinstance(learner, SequentialFineTuning):
        heads = learner.aligned if isinstance(learner, SLCA) else learner.heads
        if learner.slow and isinstance(learner.encoder, nn.Module):
            return {"weights": _weights(EncoderWithHead(learner.encoder, heads), out)}
        return {"weights": _weights(heads, out)}
    return {}


def save_accuracies(matrix: Tensor, out: Path) -> str:
    """Write accuracies (tasks, tasks), a row after each task; the name of the file."""
    file = out / "accuracies.csv"
    with replaced(file) as draft, draft.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["after task", *(f"on task {at + 1}" for at in range(len(matrix)))])
        rows.writerows([at, *(f"{value:.4f}" for value in row)] for at, row in enumerate(matrix.tolist(), 1))
    return file.name


def _weights(module: nn.Module, out: Path) -> str:
    file = out / "weights.safetensors"
    with replaced(file) as draft:
        save_file({name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}, draft)
    return file.name
