"""Features of any encoder: a callable or module that turns a batch of inputs into vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from leaven.contracts import Batch
from leaven.errors import DataError, ModelError

Inputs = Tensor | Batch | Sequence[Any]
"""A tensor (rows, ...), named tensors with rows first, or any sequence (such as texts) that the encoder can read."""

Encoder = Callable[[Any], Any]
"""Turns inputs into features (rows, dim), a tensor or an array."""

_RATES = ("dropout", "dropout_p", "drop_prob", "drop_path", "drop_path_prob", "attention_dropout", "attn_dropout")


def rows_in(inputs: Inputs) -> int:
    """How many inputs there are. Raises: DataError when there is none, or fields differ in length."""
    if isinstance(inputs, dict):
        lengths = {name: len(field) for name, field in inputs.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the fields of the inputs have different lengths: {lengths}; expected one row per input")
        rows = next(iter(lengths.values()), 0)
    elif isinstance(inputs, Tensor) and inputs.ndim == 0:
        raise DataError("the inputs are a single number; expected a tensor (rows, ...)")
    else:
        rows = len(inputs)
    if rows == 0:
        raise DataError("there are no inputs; expected at least one")
    return rows


def take(inputs: Inputs, rows: Sequence[int] | Tensor | slice) -> Inputs:
    """Some of the inputs, in the order of the rows."""
    if isinstance(inputs, dict):
        return {name: field[rows] for name, field in inputs.items()}
    if isinstance(inputs, Tensor) or isinstance(rows, slice):
        return cast(Inputs, inputs[cast(Any, rows)])
    return [inputs[int(row)] for row in rows]


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Inputs of one kind behind one another. Raises: DataError when they are of different kinds."""
    first = parts[0]
    if isinstance(first, Tensor) and all(isinstance(part, Tensor) for part in parts):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    if isinstance(first, dict) and all(isinstance(part, dict) and part.keys() == first.keys() for part in parts):
        named = cast("Sequence[Batch]", parts)
        return {name: torch.cat([part[name] for part in named]) for name in first}
    if any(isinstance(part, Tensor | dict) for part in parts):
        raise DataError("inputs of different kinds or fields follow one another; give all of them the same form")
    return [item for part in parts for item in part]


def device_of(encoder: Encoder) -> torch.device | None:
    """Where the encoder computes, None where that cannot be told."""
    if not isinstance(encoder, nn.Module):
        return None
    tensor = next(encoder.parameters(), next(encoder.buffers(), None))
    return None if tensor is None else tensor.device


def require_settled(encoder: Encoder) -> None:
    """Refuse an encoder whose features depend on chance or on the rest of the batch.

    Raises: ModelError when a part of it is in training mode and drops units or normalises over the batch.
    """
    if not isinstance(encoder, nn.Module):
        return
    for name, module in encoder.named_modules():
        if not module.training:
            continue
        # `p` is a rate in torch's own dropout, elsewhere often the order of a norm.
        names = ("p", *_RATES) if "drop" in type(module).__name__.lower() else _RATES
        rate = next((value for at in names if isinstance(value := getattr(module, at, None), float) and value > 0), 0)
        over_batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if rate or over_batch:
            why = "normalises over the batch" if over_batch else f"drops units with probability {rate:g}"
            raise ModelError(
                f"the encoder is in training mode: {name or 'it'} ({type(module).__name__}) {why}, so that its "
                "features are not those of the input alone; call encoder.eval() first"
            )


def read_features(
    encoder: Encoder, inputs: Inputs, *, chunk: int = 256, width: int | None = None, nonzero: bool = False
) -> Tensor:
    """Features of the inputs (rows, dim), float32, on the CPU, without gradients.

    Args:
        encoder: in evaluation mode; see `leaven.models.bridge.as_features` for models that give states or outputs.
        inputs: what the encoder reads.
        chunk: inputs that are encoded at a time.
        width: the dimension that the features must have, None for any.
        nonzero: refuse features of norm 0, which have no direction.

    Raises: DataError naming the rows whose features are not finite (or are zero); ModelError when the encoder is in
    training mode, fails on inputs of this shape, gives something else than (rows, dim), or features of another width.
    """
    require_settled(encoder)
    rows, device = rows_in(inputs), device_of(encoder)
    parts = [_encoded(encoder, take(inputs, slice(at, at + chunk)), device) for at in range(0, rows, chunk)]
    features = torch.cat(parts) if len(parts) > 1 else parts[0]
    if len(features) != rows:
        raise ModelError(f"the encoder gave {len(features)} features for {rows} inputs; expected one for each")
    if width is not None and features.shape[1] != width:
        raise ModelError(
            f"the features have {features.shape[1]} dimensions, those learnt before {width}: is this another encoder?"
        )
    norms = features.norm(dim=1)
    if not bool(norms.isfinite().all()):
        # A norm can overflow where every number is finite, so look at the numbers.
        _refuse_rows(~features.isfinite().all(1), "are not finite (NaN or infinite); repair or leave out these inputs")
    if nonzero:
        _refuse_rows(norms == 0, "are all zero and have no direction; repair or leave out these inputs")
    return features


def _shapes(inputs: Inputs) -> str:
    if isinstance(inputs, Tensor):
        return f"inputs of shape {tuple(inputs.shape)}"
    if isinstance(inputs, dict):
        return "inputs " + ", ".join(f"{name} {tuple(field.shape)}" for name, field in inputs.items())
    return f"{len(inputs)} inputs"


def _encoded(encoder: Encoder, inputs: Inputs, device: torch.device | None) -> Tensor:
    if device is not None:
        if isinstance(inputs, dict):
            inputs = {name: field.to(device) for name, field in inputs.items()}
        elif isinstance(inputs, Tensor):
            inputs = inputs.to(device)
    try:
        with torch.no_grad():
            out = encoder(inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ModelError(
            f"the encoder fails on {_shapes(inputs)}: {str(error).splitlines()[0]}; are the inputs of the size that it "
            "reads?"
        ) from error
    try:
        features = torch.as_tensor(out)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"the encoder gave a {type(out).__name__}; expected a tensor (rows, dim): wrap it with "
            "leaven.models.bridge.as_features"
        ) from error
    if features.ndim != 2:
        raise ModelError(
            f"the encoder gave features of shape {tuple(features.shape)}; expected (rows, dim): wrap it with "
            "leaven.models.bridge.as_features, which pools states"
        )
    return features.detach().to("cpu", torch.float32)


def _refuse_rows(wrong: Tensor, what: str) -> None:
    rows = wrong.nonzero().flatten().tolist()
    if rows:
        more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
        raise DataError(
            f"the features of row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:8]))}{more} {what}"
        )
