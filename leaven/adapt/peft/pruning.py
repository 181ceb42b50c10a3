"""Thinning an adapted model by its update (DSEE): masks on frozen weights, and removal of attention heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from leaven.adapt.peft.bottleneck import Bottleneck
from leaven.adapt.peft.dsee import LowRankSparse
from leaven.adapt.peft.linear import LinearChange, LinearPatch
from leaven.adapt.peft.method import Adaptation, adaptation_of
from leaven.adapt.peft.sites import Projection, heads_of, projections
from leaven.adapt.peft.sublayers import SubLayer, attention_layers
from leaven.errors import ConfigError, ModelError
from leaven.models.attention import Attention
from leaven.models.positions import RelativeBias

PruneMode = Literal["ABS", "WABS", "AB", "W", "NABS", "random"]


class Sparsity(NamedTuple):
    """Zeros among the entries of the projections' frozen weights, counted on the tensors."""

    zeros: int
    total: int

    @property
    def share(self) -> float:
        """Zeros over entries, in [0, 1]."""
        return self.zeros / max(self.total, 1)


def sparsity(model: nn.Module) -> Sparsity:
    """How many of the weights of attention and feed-forward projections are zero."""
    weights = [part.weight(model) for part in projections(model) if part.role]
    return Sparsity(sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights))


@torch.no_grad()
def prune_weights(
    model: nn.Module, amount: float, *, mode: PruneMode = "ABS", generator: torch.Generator | None = None
) -> Sparsity:
    """Zero a share of the frozen weights, for good; the update stays dense, and training may go on under this mask.

    There are two pools, each of which loses its share: the adapted matrices, ranked by what `mode` says, and all other
    attention and feed-forward matrices, ranked by their size.

    Args:
        amount: share, in (0, 1).
        mode: "ABS" size of the update, "NABS" the inverse, "AB" of its low-rank part, "WABS" of weight plus update, "W"
            of the weight, "random" (both pools; from the generator).

    Raises: ConfigError for an amount outside (0, 1); ModelError before any update was trained, when the score would be
        zero everywhere, and for a second pruning.
    Source: arXiv 2111.00160 section 3.3.
    """
    if not 0 < amount < 1:
        raise ConfigError(f"amount={amount}: expected a share of the weights in (0, 1)")
    if mode not in get_args(PruneMode):
        raise ConfigError(f"mode={mode!r}: expected one of {', '.join(get_args(PruneMode))}")
    adaptation = adaptation_of(model)
    if adaptation.masks:
        raise ModelError("the weights were pruned already: prune once, by the whole amount")
    adapted = dict(item for patch in _linear_patches(model, adaptation) for item in patch.items())
    if mode in ("ABS", "NABS", "AB", "WABS"):
        _require_trained(adapted)
    others = [part for part in projections(model) if part.role and part not in adapted]
    source = generator or torch.Generator().manual_seed(0)
    for pool in (list(adapted), others):
        scores = [_score(part.weight(model), adapted.get(part), mode, source) for part in pool]
        if pool:
            for part, kept in zip(pool, _kept(scores, amount), strict=True):
                adaptation.masks[f"{part.name}:{part.start}"] = kept
    apply_masks(model, adaptation)
    return sparsity(model)


@torch.no_grad()
def apply_masks(model: nn.Module, adaptation: Adaptation) -> None:
    """Zero what the masks leave out."""
    for part in projections(model):
        kept = adaptation.masks.get(f"{part.name}:{part.start}")
        if kept is not None:
            weight = part.weight(model)
            weight.masked_fill_(~kept.to(weight.device), 0.0)


def _linear_patches(model: nn.Module, adaptation: Adaptation) -> list[LinearPatch]:
    patches = adaptation.modules(model)
    if not all(isinstance(patch, LinearPatch) and not patch.sequential for patch in patches):
        raise ModelError(
            f"{type(adaptation.method).__name__} does not change weights, so there is no update to prune by: "
            "use DSEE or LoRA"
        )
    return cast(list[LinearPatch], patches)


def _require_trained(adapted: dict[Projection, LinearChange]) -> None:
    if not any(bool(change.matrix().any()) for change in adapted.values()):
        raise ModelError("the update is zero everywhere: train it before pruning by it, or prune with mode='W'")


def _score(weight: Tensor, change: LinearChange | None, mode: PruneMode, generator: torch.Generator) -> Tensor:
    if mode == "random":
        return torch.rand(weight.shape, generator=generator)
    if change is None or mode == "W":
        return weight.detach().abs().float().cpu()
    low = isinstance(change, LowRankSparse) and mode == "AB"
    update = change.low_rank() if low and isinstance(change, LowRankSparse) else change.matrix()
    size = (update + weight if mode == "WABS" else update).abs().float().cpu()
    return -size if mode == "NABS" else size


def _kept(scores: list[Tensor], amount: float) -> list[Tensor]:
    flat = torch.cat([score.flatten() for score in scores])
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[flat.topk(round(amount * len(flat)), largest=False, sorted=False).indices] = False
    return [
        part.view_as(score) for part, score in zip(torch.split(kept, [s.numel() for s in scores]), scores, strict=True)
    ]


@torch.no_grad()
def prune_heads(
    model: nn.Module,
    count: int,
    *,
    by: Literal["update", "random"] = "update",
    generator: torch.Generator | None = None,
) -> dict[str, list[int]]:
    """Cut the heads with the smallest update out of every adapted attention module: the matrices get smaller.

    Args:
        count: heads to remove per module, at least 1 and fewer than there are.
        by: "update" ranks by the sum of sizes of the updates of queries and values, "random" by the generator.

    Returns: indices of the heads that are left, by attention module.
    Raises: ConfigError when no head would be left; ModelError before any update was trained, and for attention whose
        heads cannot be cut (shared keys, T5's bias per head, an adapted output projection, an unknown module).
    Source: arXiv 2111.00160 section 3.3.
    """
    adaptation = adaptation_of(model)
    if adaptation.masks or adaptation.heads:
        raise ModelError("the model was pruned already: cut heads once, and before weights are pruned")
    adapted = dict(item for patch in _linear_patches(model, adaptation) for item in patch.items())
    if by == "update":
        _require_trained(adapted)
    source = generator or torch.Generator().manual_seed(0)
    plan: dict[str, list[int]] = {}
    for layer in attention_layers(model):
        updates = [adapted[layer.parts[role]].matrix() for role in "qv" if layer.parts[role] in adapted]
        if not updates:
            continue
        heads = heads_of(model.get_submodule(layer.core)) or 0
        if not 1 <= count < heads:
            raise ConfigError(f"count={count}: {layer.core} has {heads} heads, remove 1 to {heads - 1}")
        if by == "random":
            score = torch.rand(heads, generator=source)
        else:
            score = torch.stack([update.abs().view(heads, -1).sum(1) for update in updates]).sum(0).cpu()
        plan[layer.core] = sorted(score.topk(heads - count).indices.tolist())
    if not plan:
        raise ModelError("no query or value projection is adapted, so no head has an update to be ranked by")
    cut_heads(model, adaptation, plan)
    return plan


@torch.no_grad()
def cut_heads(model: nn.Module, adaptation: Adaptation, plan: dict[str, list[int]]) -> None:
    """Keep the heads of the plan in each attention module. Nothing is changed when it raises."""
    layers = {layer.core: layer for layer in attention_layers(model)}
    patches = {patch.host: patch for patch in _linear_patches(model, adaptation)}
    for core, kept in plan.items():
        heads = heads_of(model.get_submodule(core)) if core in layers else None
        if not kept or not set(kept) <= set(range(heads or 0)):
            raise ModelError(f"heads {kept} of {core!r} cannot be kept: the model has {heads or 'no'} heads there")
        _require_cuttable(model, layers[core], patches)
    for core, kept in plan.items():
        _cut(model, layers[core], kept, patches)
    adaptation.heads = dict(plan)


def _require_cuttable(model: nn.Module, layer: SubLayer, patches: dict[str, LinearPatch]) -> None:
    core, parts = model.get_submodule(layer.core), layer.parts
    reason = ""
    if len({parts[role].stop - parts[role].start for role in "qkv"}) > 1:
        reason = "queries share keys, so that one head cannot be cut alone"
    elif not isinstance(core, Attention) and not (
        hasattr(core, "all_head_size") and hasattr(core, "attention_head_size")
    ):
        reason = f"{type(core).__name__} is neither the trunk's attention nor BERT's"
    elif any(isinstance(module, RelativeBias) for module in model.modules()):
        reason = "the relative bias is shared by all layers and has a column per head"
    elif parts["o"].module in patches:
        reason = "its output projection is adapted: choose targets among q, k and v"
    else:
        changes = [c for p in layer.parts.values() if p.module in patches for c in patches[p.module].changes.values()]
        if not all(isinstance(change, Bottleneck) for change in changes):
            reason = "its update is one of singular values, which is not cut by rows"
    if reason:
        raise ModelError(f"heads of {layer.core} cannot be cut: {reason}")


def _cut(model: nn.Module, layer: SubLayer, kept: list[int], patches: dict[str, LinearPatch]) -> None:
    core = model.get_submodule(layer.core)
    heads = cast(int, heads_of(core))
    inner = layer.parts["q"].stop - layer.parts["q"].start
    device = layer.parts["q"].weight(model).device
    inside = torch.arange(inner, device=device).view(heads, -1)[torch.tensor(kept, device=device)].flatten()
    for name in dict.fromkeys(layer.parts[role].module for role in "qkv"):
        linear = cast(nn.Linear, model.get_submodule(name))
        of_module = len(linear.weight) // inner
        rows = torch.cat([inside + i * inner for i in range(of_module)])
        linear.weight = nn.Parameter(linear.weight[rows], requires_grad=False)
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias[rows], requires_grad=False)
        linear.out_features = len(rows)
        if name in patches:
            patch = patches[name]
            for change in patch.changes.values():
                cast(Bottleneck, change).keep_rows(inside)
            step = len(inside)
            patch.parts = [
                replace(p, start=p.start // inner * step, stop=p.start // inner * step + step) for p in patch.parts
            ]
    out = cast(nn.Linear, model.get_submodule(layer.parts["o"].module))
    out.weight = nn.Parameter(out.weight[:, inside], requires_grad=False)
    out.in_features = len(inside)
    if isinstance(core, Attention):
        core.heads = len(kept)
    else:
        vars(core).update(num_attention_heads=len(kept), all_head_size=len(inside))
