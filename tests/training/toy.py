"""A small task for the loop's tests: predict the next token of noisy sequences, with a random corruption."""

import torch
from torch import nn
from torch.nn import functional as F

from leaven.contracts import Batch, Loss, Tokens
from leaven.data.loader import Loader
from leaven.models.trunk import Trunk, TrunkConfig
from leaven.objectives.corruption import row_noise

VOCAB = 23


class Model(nn.Module):
    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCAB, 16)
        self.trunk = Trunk(TrunkConfig(dim=16, depth=2, heads=2, dropout=dropout))
        self.head = nn.Linear(16, VOCAB, bias=False)
        self.head.weight = self.embed.weight
        self.spare = nn.Linear(4, 4)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(Tokens(self.embed(ids)), "causal"))


class Corrupted(nn.Module):
    """Every token is replaced by token 0 with probability 0.1; a head of its own makes it a trained objective."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.scale = nn.Parameter(torch.ones(VOCAB))

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        noise = row_noise(batch, batch["ids"].shape[1], generator)
        return {**batch, "inputs": torch.where(noise < 0.1, 0, batch["ids"])}

    def forward(self, model: Model, batch: Batch) -> Loss:
        logits = model.logits(batch["inputs"])[:, :-1] * self.scale
        wanted = batch["mask"][:, 1:]
        total = F.cross_entropy(logits[wanted], batch["ids"][:, 1:][wanted])
        return Loss(total, wanted.sum(), {"lm": total.detach()})


def items(count: int = 96) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(count):
        length = int(torch.randint(6, 15, (), generator=generator))
        start = int(torch.randint(1, 8, (), generator=generator))
        made.append({"ids": (start + 3 * torch.arange(length)) % (VOCAB - 1) + 1})
    return made


def collate(rows: list) -> Batch:
    width = max(len(row["ids"]) for row in rows)
    ids = torch.stack([F.pad(row["ids"], (0, width - len(row["ids"]))) for row in rows])
    return {"ids": ids, "mask": ids > 0, "attention_mask": ids > 0}


def loader(batch_size: int = 8, seed: int = 0) -> Loader:
    return Loader(items(), collate, batch_size=batch_size, seed=seed)
