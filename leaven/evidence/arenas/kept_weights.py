"""Trained weights that are kept beside the arms of a seed, so that all of them share what was trained once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from leaven.evidence.json_file import read_json, write_json
from leaven.merge import Weights, open_weights
from leaven.training.distributed import is_main_process

Records = list[dict[str, Any]]


class Trained(NamedTuple):
    """Weights and the records of their training."""

    weights: Weights
    records: Records


class KeptWeights:
    """A folder of weights by name, each with the records of its training; made when they are first asked for.

    An interrupted training leaves nothing and begins again; those before it are kept.

    Args:
        place: where the folder is made.
        kind: first part of its name. values: what decides the weights; the folder is another one for other values.
    """

    def __init__(self, place: Path, kind: str, values: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(dict(values), sort_keys=True, default=str).encode()).hexdigest()[:8]
        self.folder = place / f"{kind}-{digest}"

    def get(self, name: str, model: nn.Module, train: Callable[[], Records], notes: Mapping[str, Any]) -> Trained:
        """The weights of a name: from the folder, else those that `train` leaves in the model.

        Args:
            train: trains the model in place and returns the records.
            notes: what to write beside the weights.
        """
        path, beside = self.folder / f"{name}.safetensors", self.folder / f"{name}.json"
        if path.is_file():
            return Trained(open_weights(path), read_json(beside)["records"])
        records = train()
        made = open_weights({key: tensor.detach().cpu().clone() for key, tensor in model.state_dict().items()}, name)
        if is_main_process():
            # The weights come last: where they are, the records are too.
            write_json(beside, {**notes, "records": records})
            made.save(path)
            made = open_weights(path)
        return Trained(made, records)
