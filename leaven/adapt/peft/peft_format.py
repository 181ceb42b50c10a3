"""LoRA adapters in the files of Hugging Face's peft: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leaven.adapt.peft.bottleneck import Bottleneck
from leaven.adapt.peft.dsee import LowRankSparse
from leaven.adapt.peft.linear import LinearPatch, ReadWeightPatch
from leaven.adapt.peft.low_rank import LoRA, PrincipalLowRank
from leaven.adapt.peft.method import Adaptation
from leaven.adapt.peft.patches import Patch
from leaven.adapt.peft.sites import base_tensor, projections
from leaven.errors import ModelError
from leaven.training.checkpoint import replaced

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_ROOT = "base_model.model."
_PLAIN_STARTS = (True, False, "gaussian", "eva", "pissa")
_OTHER_METHODS = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "layer_replication", "trainable_token_indices",
    "target_parameters", "alora_invocation_tokens", "kasa_config", "arrow_config", "monteclora_config", "velora_config",
    "megatron_config", "loftq_config",
)  # fmt: skip


class PeftAdapter(NamedTuple):
    """A LoRA as described, its patches for the model, and the tensors to fill them with."""

    method: LoRA
    patches: list[Patch]
    state: dict[str, Tensor]


def read_peft(model: nn.Module, folder: Path) -> PeftAdapter:
    """The LoRA adapter of a folder that peft wrote, for its base model.

    Fused matrices are adapted whole, as peft does. An adapter that started at the principal part of the weights
    (PiSSA) takes that part off again.

    Raises: ModelError for other methods than LoRA and options of peft that this does not have.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder} holds no whole adapter of peft: {type(error).__name__}: {error}") from error
    _require_lora(config, folder)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    factors: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(_ROOT)}(.+)\.lora_([AB])\.weight", key)
        name = key.removeprefix(_ROOT)
        if match:
            factors.setdefault(match[1], {})[match[2]] = tensor
        elif "lora_" in key or name not in names:
            raise ModelError(f"{folder / TENSORS}: {key} has no place in this {type(model).__name__}")
        else:
            state[name] = tensor
    incomplete = [name for name, pair in factors.items() if len(pair) < 2]
    if incomplete or not factors:
        raise ModelError(f"{folder / TENSORS} lacks lora_A or lora_B of {', '.join(incomplete[:3]) or 'every module'}")
    known = {part.module for part in projections(model) if not part.parametrized}
    if missing := sorted(factors.keys() - known):
        raise ModelError(f"{folder} adapts {missing[0]}, which is no linear map of this {type(model).__name__}")
    method = LoRA(
        rank=config["r"],
        alpha=config["lora_alpha"],
        targets=tuple(factors),
        dropout=config.get("lora_dropout") or 0.0,
        init="pissa" if config.get("init_lora_weights") == "pissa" else "zero",
        split=False,
        overrides={name: _rank_and_alpha(config, name, pair["A"]) for name, pair in factors.items()},
        train=tuple(state),
    )
    patches = method.build(model, None)
    for patch in patches:
        (part,) = cast(LinearPatch, patch).parts
        at = f"{patch.path}.changes.{part.role or 'all'}"
        state |= {f"{at}.down": factors[patch.host]["A"], f"{at}.up": factors[patch.host]["B"]}
    return PeftAdapter(method, patches, state)


def _require_lora(config: Mapping[str, Any], folder: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{folder / CONFIG}: peft_type {kind!r}: only LORA adapters can be read")
    if missing := [name for name in ("r", "lora_alpha") if name not in config]:
        raise ModelError(f"{folder / CONFIG} lacks {', '.join(missing)}")
    used = [name for name in _OTHER_METHODS if config.get(name)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        used.append("init_lora_weights")
    if used:
        raise ModelError(
            f"{folder / CONFIG}: {used[0]}={config[used[0]]!r} is not plain LoRA and cannot be read: "
            "merge it with peft first"
        )


def _rank_and_alpha(config: Mapping[str, Any], name: str, down: Tensor) -> tuple[int, float]:
    rank = len(down)
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    return rank, alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


@torch.no_grad()
def write_peft(model: nn.Module, adaptation: Adaptation, folder: Path) -> Path:
    """Write a LoRA in peft's files.

    The parts of a fused matrix become one change of the whole, and one that started at the principal part becomes a
    plain one of twice the rank: the outputs stay the same.

    Raises: ModelError for what peft's LoRA cannot express.
    """
    tensors: dict[str, Tensor] = {f"{_ROOT}{name}": model.get_parameter(name) for name in adaptation.trained}
    ranks: dict[str, int] = {}
    dropout = 0.0
    transposed = False
    for patch in adaptation.modules(model):
        _require_low_rank(patch, adaptation)
        patch = cast(LinearPatch, patch)
        weight = base_tensor(model, patch.bases[0])
        outputs = weight.shape[1] if patch.transposed else weight.shape[0]
        downs, ups = [], []
        for part, change in patch.items():
            down, up = _factors(cast(Bottleneck, change))
            downs.append(down)
            ups.append(nn.functional.pad(up, (0, 0, part.start, outputs - part.stop)))
            dropout = cast(Bottleneck, change).dropout
        transposed |= patch.transposed
        ranks[patch.host] = sum(map(len, downs))
        tensors[f"{_ROOT}{patch.host}.lora_A.weight"] = torch.cat(downs)
        tensors[f"{_ROOT}{patch.host}.lora_B.weight"] = torch.cat(ups, dim=1)
    usual = max(set(ranks.values()), key=list(ranks.values()).count)
    other = {re.escape(name): rank for name, rank in ranks.items() if rank != usual}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": usual,
        "lora_alpha": usual,
        "lora_dropout": dropout,
        "target_modules": list(ranks),
        "rank_pattern": other,
        "alpha_pattern": other,
        "modules_to_save": list(dict.fromkeys(name.rpartition(".")[0] for name in adaptation.trained)) or None,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replaced(folder / TENSORS) as draft:
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, draft, metadata={"format": "pt"}
        )
    with replaced(folder / CONFIG) as draft:
        draft.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def _require_low_rank(patch: Patch, adaptation: Adaptation) -> None:
    plain = isinstance(patch, LinearPatch) and not isinstance(patch, ReadWeightPatch) and not patch.sequential
    if plain and not adaptation.masks and not adaptation.heads:
        changes = cast(LinearPatch, patch).changes.values()
        plain = all(
            isinstance(c, Bottleneck) and c.form == "linear" and not isinstance(c, LowRankSparse) for c in changes
        )
    else:
        plain = False
    if not plain:
        raise ModelError(
            f"{patch.path} is no plain LoRA of a linear module, which is all that peft's format holds: save it with "
            "format='leaven'"
        )


def _factors(change: Bottleneck) -> tuple[Tensor, Tensor]:
    """down (rank, inputs) and up (outputs, rank) whose product is the change, scale and all."""
    up, down = change.up * change.scale, change.down
    if isinstance(change, PrincipalLowRank):
        return torch.cat([down, change.down_start]), torch.cat([up, -change.up_start * change.scale], dim=1)
    return down, up
