"""How the models of the zoo are made: one recorded command each."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from leaven.data.examples import CodeExample
from leaven.data.sources import open_source
from leaven.errors import ModelError
from leaven.evidence.json_file import write_json
from leaven.models.loading import load_model_and_tokenizer
from leaven.models.saved import WEIGHTS, read_manifest, save_model
from leaven.models.zoo import SHIPPED
from leaven.systems import find_system
from leaven.systems.running import run_in
from leaven.systems.zoo_made import Made
from leaven.systems.zoo_text import mini_lm, mini_mlm
from leaven.systems.zoo_vision import mini_clip, mini_vit

LARGEST_BYTES = 12_000_000


_TEXT: dict[str, Any] = {
    "data": "installed-code",
    "functions": 60_000,
    "dim": 128,
    "depth": 4,
    "heads": 4,
    "vocab": 4096,
    "max_tokens": 96,
    "pretrain": "5000 steps",
    "short": "2000 steps",
    "batch_size": 48,
    "learning_rate": 3e-3,
    "seed": 0,
}


@dataclass(frozen=True)
class SystemRecipe:
    """A system with its options, and which of the models that it makes is shipped."""

    system: str
    options: dict[str, Any]
    artefact: str
    what: str

    def make(self, work: Path) -> Made:
        """Run the system in its folder, or go on there."""
        outcome = run_in(find_system(self.system).configured(**self.options), work)
        source = work / outcome.artefacts[self.artefact]
        loaded = load_model_and_tokenizer(source)
        return Made(
            model=loaded.model,
            tokenizer=loaded.tokenizer,
            extra=read_manifest(source)["extra"],
            data=_functions(self.options["data"]),
            results=[dict(zip(outcome.columns, row, strict=True)) for row in outcome.rows],
            # The loop's clock goes on after an interruption, that of the stages begins anew.
            seconds={**outcome.timings, **_trained_seconds(outcome.curves)},
        )


@dataclass(frozen=True)
class FunctionRecipe:
    """A function with its options."""

    function: Callable[..., Made]
    options: dict[str, Any]
    what: str

    def make(self, work: Path) -> Made:
        """Train in the folder, or go on there."""
        return self.function(work, **self.options)


RECIPES: dict[str, SystemRecipe | FunctionRecipe] = {
    "code-t5": SystemRecipe(
        system="codet5",
        options={
            "data": "installed-code",
            "dim": 128,
            "depth": 3,
            "heads": 8,
            "vocab": 6144,
            "max_source": 128,
            "max_target": 64,
            "pretrain": "3000 steps",
            "dual": 0.2,
            "learning_rate": 3e-3,
            "finetune": "1000 steps",
            "finetune_rates": [1e-2],
            "tasks": ["name", "summarize", "defect", "refine", "translate", "desugar"],
            "multi_task": True,
            "scratch": False,
            "precision": "auto",
            "train_limit": 20_000,
            "valid_limit": 150,
            "test_limit": 300,
        },
        artefact="all tasks",
        what="a small CodeT5 for Python: pre-trained with all its objectives, then on six tasks with control codes",
    ),
    "mini-vit": FunctionRecipe(
        function=mini_vit,
        options={
            "dim": 96,
            "depth": 6,
            "heads": 4,
            "patch": 8,
            "scenes": 20_000,
            "per_letter": 200,
            "crops": 6000,
            "pretrain": "6000 steps",
            "label": "5000 steps",
            "batch_size": 64,
            "seed": 0,
        },
        what="a small image encoder, 32 x 32 pixels in 8 x 8 patches: masked autoencoding, then letters and shapes",
    ),
    "mini-clip": FunctionRecipe(
        function=mini_clip,
        options={
            "dim": 96,
            "depth": 4,
            "text_depth": 2,
            "heads": 4,
            "patch": 8,
            "projection": 64,
            "vocab": 640,
            "scenes": 20_000,
            "train": "4000 steps",
            "batch_size": 128,
            "seed": 0,
        },
        what="a small pair of image and text encoders, contrastive on rendered scenes and their captions",
    ),
    "mini-mlm": FunctionRecipe(
        function=mini_mlm,
        options=_TEXT,
        what="a small masked language model of Python's code and its documentation",
    ),
    "mini-lm": FunctionRecipe(
        function=mini_lm,
        options=_TEXT,
        what="a small causal language model of Python's code and its documentation",
    ),
}


def make(name: str, *, work: Path, out: Path | None = None) -> Path:
    """Make a model of the zoo and put it, in bfloat16 and with its card, where the package ships it (or into `out`).

    Args:
        work: folder of the run; a later call goes on there.

    Raises: ModelError for an unknown name, or a model over 12 MB.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ModelError(f"there is no recipe {name!r}: there are {', '.join(RECIPES)}{hint}")
    recipe = RECIPES[name]
    made = recipe.make(work)
    folder = save_model((out or SHIPPED) / name, made.model, made.tokenizer, extra=made.extra, dtype=torch.bfloat16)
    size = (folder / WEIGHTS).stat().st_size
    if size > LARGEST_BYTES:
        raise ModelError(f"zoo:{name} has {size} bytes, more than the {LARGEST_BYTES} that the zoo ships")
    write_json(
        folder / "card.json",
        {
            "what": recipe.what,
            "data": made.data,
            "seed": recipe.options.get("seed", 0),
            "command": f"leaven zoo make {name}",
            "options": recipe.options,
            "sha256": read_manifest(folder)["sha256"],
            "parameters": sum(p.numel() for p in made.model.parameters()),
            "size_bytes": size,
            "results": made.results,
            "seconds": {stage: round(seconds) for stage, seconds in made.seconds.items()},
        },
    )
    return folder


def _trained_seconds(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """Seconds of training by curve."""
    clocks = {name: [record["seconds"] for record in of if "seconds" in record] for name, of in curves.items()}
    return {f"training: {name}": float(clock[-1]) for name, clock in clocks.items() if clock}


def _functions(spec: str) -> dict[str, Any]:
    """How many functions of which packages, and their versions."""
    examples = open_source(spec, CodeExample, split="train").examples
    tops = Counter(example.module.partition(".")[0] for example in examples)
    owners = packages_distributions()
    packages = sorted({owners[top][0] for top in tops if top in owners})
    return {
        "source": spec,
        "functions": len(examples),
        "documented": sum(example.docstring is not None for example in examples),
        "packages": {package: version(package) for package in packages},
    }
