"""Several processes as one: setting up, sharing a model out, adding up, and gathering whole tensors."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from leaven.contracts import Batch, Loss, Objective
from leaven.errors import ConfigError
from leaven.modalities.length_groups import groups_of_like_length

Parallel = Literal["ddp", "fsdp"]


class TrainingStep(nn.Module):
    """A model and its objective as one module, so that both are trained, shared out and saved together.

    With `length_groups` above 1 a batch is computed in groups of rows of like length, as one graph: bf16 casts a weight
    once for all groups, and its gradients are summed before they are cast back.
    """

    def __init__(self, model: nn.Module, objective: Objective, length_groups: int = 1) -> None:
        super().__init__()
        self.model = model
        self.length_groups = length_groups
        self._objective = objective
        if isinstance(objective, nn.Module):
            self.objective = objective

    def forward(self, batch: Batch) -> Loss:
        """The objective's loss on a prepared batch."""
        objective = self.objective if isinstance(self._objective, nn.Module) else self._objective
        return _joined([objective(self.model, group) for group in groups_of_like_length(batch, self.length_groups)])

    def named_weights(self) -> dict[str, Tensor]:
        """Parameters (tied ones once) and persistent buffers; the model's under its own names, the objective's with
        the prefix `objective.`.
        """
        kept = set(self.state_dict(keep_vars=True))
        tensors = {**dict(self.named_parameters()), **{n: b for n, b in self.named_buffers() if n in kept}}
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def _joined(losses: list[Loss]) -> Loss:
    """The loss over the terms of all groups of a batch; a part that some groups do not have is of those that do."""
    if len(losses) == 1:
        return losses[0]

    def mean(values: list[tuple[Tensor, Tensor]]) -> Tensor:
        counts = torch.stack([count for _, count in values])
        return (torch.stack([value for value, _ in values]) * counts).sum() / counts.sum().clamp(min=1)

    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for loss in losses:
        for name, value in loss.parts.items():
            parts.setdefault(name, []).append((value, loss.count))
    return Loss(
        mean([(loss.total, loss.count) for loss in losses]),
        torch.stack([loss.count for loss in losses]).sum(),
        {name: mean(values) for name, values in parts.items()},
    )


class Workers:
    """The processes of a run, as Hugging Face Accelerate started or found them.

    One process alone needs no launcher; `torchrun` and `accelerate launch` start several.
    """

    def __init__(self, parallel: Parallel) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.parallel = parallel
        self.device: torch.device = self._accelerator.device
        self.rank = int(self._accelerator.process_index)
        self.count = int(self._accelerator.num_processes)
        self.main = self.rank == 0
        self._sharded: nn.Module | None = None

    def share_out(self, step: TrainingStep) -> tuple[TrainingStep, nn.Module]:
        """The module whose weights are trained, and the module to call: the same, or wrapped for several processes.

        Under FSDP the weights are shards of a copy; `copy_back` fills the caller's model at the end.
        """
        step.to(self.device)
        if self.count == 1:
            return step, step
        if self.parallel == "ddp":
            # Alternating objectives leave parts of the model unused (tagging needs no decoder).
            wrapped = nn.parallel.DistributedDataParallel(
                step,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                find_unused_parameters=True,
            )
            return step, wrapped
        from torch.distributed.fsdp import fully_shard

        shard = copy.deepcopy(step)
        if not isinstance(step._objective, nn.Module):
            shard._objective = step._objective
        for block in _repeated_blocks(shard.model):
            fully_shard(block)
        fully_shard(shard)
        self._sharded = shard
        return shard, shard

    def whole_for_evaluation(self) -> AbstractContextManager[None]:
        """Within, the weights outside the repeated blocks are whole, so that methods of the model may be called."""
        return _Unsharded(self._sharded) if self._sharded is not None else nullcontext()

    def copy_back(self, trained: TrainingStep, original: TrainingStep) -> None:
        """Fill the caller's model with trained weights that lie in shards."""
        if trained is original:
            return
        target = original.named_weights()
        with torch.no_grad():
            for name, tensor in trained.named_weights().items():
                target[name].copy_(whole(tensor))

    def add_up(self, values: Iterable[float]) -> list[float]:
        """Sums over the processes, in float64."""
        vector = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        if self.count > 1:
            dist.all_reduce(vector)
        return cast("list[float]", vector.tolist())

    def gather(self, value: Any) -> list[Any]:
        """A JSON-like value of every process, by rank, on all of them."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """The main process's value, on all of them."""
        return self.gather(value)[0]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()


class _Unsharded:
    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    def __enter__(self) -> None:
        self._module.unshard()

    def __exit__(self, *exc: object) -> None:
        self._module.reshard()


def _repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The children of module lists: the layers of a stack, each gathered only while it computes."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inner = {id(child) for outer in lists for block in outer for child in block.modules() if child is not block}
    return [block for blocks in lists if id(blocks) not in inner for block in blocks]


def whole(tensor: Tensor) -> Tensor:
    """A plain tensor with all values: sharded ones are gathered (every process must call this)."""
    full = getattr(tensor, "full_tensor", None)
    return cast(Tensor, full()) if full is not None else tensor.detach()


@torch.no_grad()
def fill(target: Tensor, source: Tensor, name: str) -> None:
    """Copy a whole tensor into a plain or sharded one. Raises: ConfigError when the shapes differ."""
    if tuple(target.shape) != tuple(source.shape):
        raise ConfigError(f"{name}: the checkpoint has shape {tuple(source.shape)}, the model {tuple(target.shape)}")
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        sharded = cast(DTensor, target)
        source = distribute_tensor(source.to(sharded.device), sharded.device_mesh, sharded.placements)
    target.copy_(source)


def is_main_process() -> bool:
    """Whether this process is the one that writes: rank 0, or the only one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    # Before the first training the launcher's word is all there is.
    return os.environ.get("RANK", "0") == "0"
