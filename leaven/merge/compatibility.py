"""Which weights may be combined: same tensors, same tokenizer and labels, finite values, one ancestor."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from leaven.errors import ModelError
from leaven.merge.weights import Spec, Weights

SHOWN = 10
"""Differences that a message lists."""

SAMPLE = 16_384
"""Entries of each tensor that are looked at to tell whether two models are related."""

_VOCABULARY = ("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


def listed(lines: Sequence[str]) -> str:
    """The first lines, one under the other, and how many more there are."""
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*lines[:SHOWN], *more])


def check_combinable(sources: Sequence[Weights], *, same_task: bool) -> None:
    """Refuse weights that differ in names, shapes or types of tensors, in tokenizer or in labels.

    Args:
        same_task: whether the models do one task; labels and integer tensors of different tasks may differ.

    Raises: ModelError that counts the differences from the first source and names the first 10.
    """
    differences = [line for other in sources[1:] for line in _differences(sources[0], other, same_task)]
    if differences:
        raise ModelError(
            f"weights of different models cannot be combined; {len(differences)} difference"
            f"{'s' if len(differences) > 1 else ''} from {sources[0].label}:{listed(differences)}\n"
            "take checkpoints of one architecture, with one head, saved in one type"
        )
    readers = {"tokenizer": _tokenizer} | ({"labels (id2label of config.json)": _labels} if same_task else {})
    for what, read in readers.items():
        known = [(source, read(source.folder)) for source in sources if source.folder is not None]
        known = [(source, value) for source, value in known if value is not None]
        for source, value in known[1:]:
            if value != known[0][1]:
                raise ModelError(
                    f"{source.label} has another {what} than {known[0][0].label}: the same row of a weight means "
                    "different things in them, so they cannot be combined"
                )


def floating(weights: Weights) -> dict[str, Spec]:
    """Shapes and types of the floating-point tensors."""
    return {name: spec for name, spec in weights.specs.items() if spec.dtype.is_floating_point}


def _differences(first: Weights, other: Weights, same_task: bool) -> list[str]:
    mine, theirs = (weights.specs if same_task else floating(weights) for weights in (first, other))
    lines = [f"{name}: missing from {other.label}" for name in mine if name not in theirs]
    lines += [f"{name}: only in {other.label}" for name in theirs if name not in mine]
    for name in mine:
        if name not in theirs:
            continue
        for what, here, there in (
            ("shape", mine[name].shape, theirs[name].shape),
            ("type", mine[name].dtype, theirs[name].dtype),
        ):
            if here != there:
                lines.append(f"{name}: {what} {here}, but {there} in {other.label}")
    return lines


def _tokenizer(folder: Path) -> str | None:
    """Fingerprint of what gives text its ids; settings of padding and truncation are no part of it."""
    path = folder / "tokenizer.json"
    if path.is_file():
        content = _json(path)
        parts = {key: content.get(key) for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    files = [folder / name for name in _VOCABULARY if (folder / name).is_file()]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else None


def _labels(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    content = _json(path) if path.is_file() else {}
    if content.get("id2label"):
        return {str(key): value for key, value in content["id2label"].items()}
    if content.get("label2id"):
        return {str(value): key for key, value in content["label2id"].items()}
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def refuse_nonfinite(sources: Sequence[Weights]) -> None:
    """Raise ModelError naming every tensor that holds NaN or infinite values (the first 10)."""
    lines = []
    for source in sources:
        for name, spec in floating(source).items():
            bad = sum(int((~source.flat(name, *c).double().isfinite()).sum()) for c in source.chunks(name))
            if bad:
                lines.append(f"{name} of {source.label}: {bad} of {spec.entries} values")
    if lines:
        raise ModelError(f"weights that are NaN or infinite cannot be combined:{listed(lines)}")


def overflow(name: str, dtype: torch.dtype) -> NoReturn:
    """Raise ModelError for values that a type cannot hold."""
    raise ModelError(
        f"{name}: values beyond {torch.finfo(dtype).max:g}, the largest of {dtype}: use smaller coefficients or "
        "weights saved in float32"
    )


def sample(source: Weights, name: str) -> Tensor:
    """The first `SAMPLE` entries of a tensor in float64."""
    return source.flat(name, 0, min(SAMPLE, source.specs[name].entries)).double()


def kinship(sources: Sequence[Weights], base: Weights | None = None) -> list[float]:
    """Cosine of each model's weights with the base's or, without one, with the mean of the other models.

    Near 1 for models fine-tuned from one ancestor, near 0 for independent ones. Only matrices count (scales of norms
    are alike in any two models), and of each only the first `SAMPLE` entries.
    """
    names = [name for name, spec in floating(sources[0]).items() if len(spec.shape) > 1 and spec.entries]
    square, against, cross = (torch.zeros(len(sources), dtype=torch.float64) for _ in range(3))
    for name in names:
        rows = torch.stack([sample(source, name) for source in sources])
        other = rows.sum(0) - rows if base is None else sample(base, name).expand_as(rows)
        square += rows.square().sum(1)
        against += other.square().sum(1)
        cross += (rows * other).sum(1)
    cosines: list[float] = (cross / (square * against).sqrt().clamp(min=1e-300)).tolist()
    return cosines if names else [1.0] * len(sources)


def warn_of_strangers(sources: Sequence[Weights], base: Weights | None = None, *, stacklevel: int) -> None:
    """Warn of the models whose `kinship` is below 0.5, for the caller so many frames up."""
    kin = kinship(sources, base)
    strangers = [f"{s.label} (cosine {k:.2f})" for s, k in zip(sources, kin, strict=True) if k < 0.5]
    if strangers:
        relation = "the other models" if base is None else base.label
        warnings.warn(
            f"no common ancestor with {relation}: {', '.join(strangers)}. Averages of weights work for models "
            "fine-tuned from the same pre-trained weights and head; others end up near chance",
            stacklevel=stacklevel,
        )
