"""Using a trained model: which folder a name means, and which system knows what to do with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from leaven.errors import CatalogError
from leaven.models.loading import Loaded, load_model_and_tokenizer, model_folder
from leaven.models.saved import MANIFEST, read_manifest
from leaven.systems import find_system

DEFAULT_SYSTEM = "codet5"
"""What a checkpoint without a note of its system is taken for, when it is a sequence-to-sequence model."""


def apply_model(name: str, task: str, text: str, **options: Any) -> list[dict[str, str]]:
    """What a trained model answers on an input, one row per function or item of it.

    Args:
        name: a folder that a run has made, a model folder, `zoo:NAME` or `hf:ID`.
        task: one of the tasks that the model was trained for.
        text: the input. options: what the system's task takes, such as language and beams.

    Raises: CatalogError for a task that the model was not trained for; ModelError for an unknown model.
    """
    spec = _model_of_run(Path(name), task) or name
    extra = _notes(spec)
    system = find_system(str(extra.get("system", DEFAULT_SYSTEM)))
    loaded: Loaded = load_model_and_tokenizer(spec)
    return system.apply(loaded, extra, task, text, **options)


def _notes(spec: str | Path) -> dict[str, Any]:
    """What was saved with a model, nothing for one of another maker."""
    folder = model_folder(spec)
    return dict(read_manifest(folder)["extra"]) if (folder / MANIFEST).is_file() else {}


def _model_of_run(folder: Path, task: str) -> Path | None:
    """The model of a run's folder that was trained for a task; None where the folder is no run."""
    outcome = folder / "outcome.json"
    if not outcome.is_file():
        return None
    artefacts: dict[str, str] = json.loads(outcome.read_text(encoding="utf-8"))["artefacts"]
    found = (
        artefacts.get("all tasks")
        or artefacts.get(task)
        or (artefacts.get("pre-trained model") if task == "fill" else None)
    )
    if found is None:
        tasks = [name for name in artefacts if name != "pre-trained model"]
        raise CatalogError(f"{folder} has no model for the task {task!r}; it has {', '.join(tasks)}, fill")
    return folder / found
