"""A pre-trained model as the encoder of a classifier, which methods of adaptation are applied to."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from leaven.adapt.peft import Method, settle, trainable_report
from leaven.adapt.prompting import PromptTokenizer, prompt_tokenizer
from leaven.contracts import Batch
from leaven.errors import ModelError
from leaven.evidence.arenas.peft_data import Rows
from leaven.metrics.classification import accuracy
from leaven.models.loading import Loaded, load_model_and_tokenizer, model_folder

HEAD = "head"
DEFAULT_TEXT, DEFAULT_IMAGE = "zoo:mini-mlm", "zoo:mini-vit"
_UNUSED = ("head", "pooler", "decoder")
Adaptation = Method | Literal["full", "head"]
"""What trains beside the head: a method's part, the whole encoder, or nothing."""


@dataclass(frozen=True)
class Backbone:
    """A pre-trained encoder. tokenizer: of a model that reads texts; size: side in pixels of one that reads images.

    longest: most tokens that it has positions for, None for any number.
    """

    encoder: Any
    pool: Literal["mean", "first"]
    tokenizer: PromptTokenizer | None
    size: int | None
    longest: int | None

    def classifier(self, classes: int, seed: int) -> Classifier:
        """A copy of the encoder with a new head."""
        if self.size is None:
            probe: Batch = {"input_ids": torch.tensor([[1]]), "attention_mask": torch.ones(1, 1, dtype=torch.bool)}
        else:
            probe = {"pixel_values": torch.zeros(1, 3, self.size, self.size)}
        generator = torch.Generator().manual_seed(seed)
        return Classifier(copy.deepcopy(self.encoder), classes, self.pool, probe, generator)


class Classifier(nn.Module):
    """An encoder and a linear head on its pooled states.

    pool: the mean over real tokens, or the first state (a class token). probe: an input, to find the width by. The head
    starts from N(0, 0.02^2) and zero.

    Shapes: the encoder's fields (batch, ...) -> logits (batch, classes).
    """

    def __init__(
        self, encoder: Any, classes: int, pool: Literal["mean", "first"], probe: Batch, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.encoder, self.pool = encoder.eval(), pool
        with torch.no_grad():
            states = self.states(**probe)
        self.tokens = states.shape[1]
        self.head = nn.Linear(states.shape[-1], classes)
        with torch.no_grad():
            self.head.weight.normal_(0, 0.02, generator=generator)
            self.head.bias.zero_()

    def states(self, **fields: Tensor) -> Tensor:
        """States of the encoder (batch, tokens, dim)."""
        if "pixel_values" in fields:
            found: Tensor = self.encoder.encode(fields["pixel_values"]).x
        elif hasattr(self.encoder, "encode"):
            found = self.encoder.encode(fields["input_ids"], fields["attention_mask"]).x
        else:
            found = self.encoder.states(fields["input_ids"], fields["attention_mask"])
        return found.flatten(2).transpose(1, 2) if found.ndim == 4 else found

    def forward(self, **fields: Tensor) -> Tensor:
        """Logits."""
        states = self.states(**fields)
        mask = fields.get("attention_mask")
        if self.pool == "first":
            pooled = states[:, 0]
        elif mask is None:
            pooled = states.mean(1)
        else:
            weight = mask[..., None].to(states.dtype)
            pooled = (states * weight).sum(1) / weight.sum(1)
        logits: Tensor = self.head(pooled)
        return logits


def open_backbone(spec: str, *, images: bool) -> Backbone:
    """The model of a name, without heads that a classifier has no use for.

    Args:
        spec: `zoo:NAME`, `hf:ID` or a folder; empty for the zoo's own model of texts, or of images.
        images: whether the data are images.

    Raises: ModelError for a model of the other modality, one without a tokenizer, or one that reads both.
    """
    spec = spec or (DEFAULT_IMAGE if images else DEFAULT_TEXT)
    loaded = load_model_and_tokenizer(spec)
    model: Any = loaded.model
    inner = getattr(model, "inner", None)
    if loaded.kind == "dual-encoder" or (inner is not None and loaded.kind == "encoder-decoder"):
        raise ModelError(f"{spec} ({loaded.kind}) is no encoder of texts or images alone: choose another model")
    reads_images = loaded.kind == "image-encoder" or getattr(inner, "main_input_name", "") == "pixel_values"
    if reads_images != images:
        reads, given = ("images", "texts") if reads_images else ("texts", "images")
        raise ModelError(f"{spec} reads {reads}, and the data are {given}: choose another model, or other data")
    return Backbone(
        encoder=model if inner is not None else without_heads(model),
        pool="first" if loaded.kind == "image-encoder" else "mean",
        tokenizer=None if images else tokenizer_of(loaded, spec),
        size=_pixels(model, spec) if images else None,
        longest=_positions(model),
    )


def without_heads(model: Any) -> Any:
    """One of leaven's own models, in place, without the parts that a classifier has no use for."""
    for name in _UNUSED:
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    return model


def tokenizer_of(loaded: Loaded, spec: str) -> PromptTokenizer:
    """The tokenizer of a model, by transformers where leaven's own form does not hold it.

    Raises: ModelError where the folder has none.
    """
    if loaded.tokenizer is not None:
        return prompt_tokenizer(loaded.tokenizer)
    from transformers import AutoTokenizer

    folder = model_folder(spec)
    try:
        found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises plain exceptions of many kinds
        raise ModelError(f"{spec} has no tokenizer that can be used ({'; '.join(loaded.notes)}): {error}") from error
    return prompt_tokenizer(found)


def _pixels(model: Any, spec: str) -> int:
    size = getattr(model.config, "size", None) or getattr(model.config, "theirs", {}).get("image_size")
    size = size[0] if isinstance(size, list | tuple) else size
    if not isinstance(size, int):
        raise ModelError(f"{spec} does not say what size of images it reads (image_size in its configuration)")
    return size


def _positions(model: Any) -> int | None:
    config = model.config
    own = getattr(config, "embedding_positions", 0) - getattr(config, "position_offset", 0)
    theirs = getattr(config, "theirs", {}).get("max_position_embeddings")
    return own if own > 0 else theirs


def attach(model: Classifier, adaptation: Adaptation, seed: int) -> None:
    """Let the head train, and beside it what the adaptation says. A method is to name the head in its `train`."""
    if isinstance(adaptation, Method):
        adaptation.apply(model, torch.Generator().manual_seed(seed))
    else:
        model.requires_grad_(True)
        model.encoder.requires_grad_(adaptation == "full")


@dataclass(frozen=True)
class Cost:
    """What an adaptation takes.

    trainable: numbers that train and are kept, the head apart. percent: of the encoder's. head: numbers of the head.
    stored_bytes: of the trainable ones on disk. frozen_basis: frozen numbers kept beside the encoder's.
    """

    trainable: int
    percent: float
    head: int
    stored_bytes: int
    frozen_basis: int


def settled_cost(model: Classifier, adaptation: Adaptation) -> Cost:
    """Drop what only training needs, and count."""
    head = sum(p.numel() for p in model.head.parameters())
    if isinstance(adaptation, Method):
        settle(model)
        report = trainable_report(model)
        return Cost(report.adapter, report.percent, head, report.stored_bytes, report.frozen_basis)
    trained = [p for p in model.encoder.parameters() if p.requires_grad]
    total = sum(p.numel() for p in model.encoder.parameters())
    count = sum(p.numel() for p in trained)
    return Cost(count, 100 * count / total, head, sum(p.numel() * p.element_size() for p in trained), 0)


@torch.no_grad()
def predict(model: Classifier, rows: Rows, batch_size: int = 128) -> list[int]:
    """Indices of the likeliest classes, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(rows.targets)), key=rows.length)
    answers = [0] * len(order)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        fields = {name: value.to(device) for name, value in rows.batch(chosen).items()}
        for at, answer in zip(chosen, model(**fields).argmax(-1).tolist(), strict=True):
            answers[at] = answer
    return answers


def judged(model: Classifier, rows: Rows) -> float:
    """Accuracy in [0, 100]."""
    return accuracy(predict(model, rows), rows.targets.tolist())
