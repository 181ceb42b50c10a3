"""Folders with tiny pre-trained models, and data that can be learnt in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from leaven.data.stdlib_code import stdlib_code
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.models.encoder import TextEncoder, TextEncoderConfig
from leaven.models.language_model import LanguageModel, LanguageModelConfig
from leaven.models.saved import save_model
from leaven.models.trunk import TrunkConfig
from leaven.models.vision import ImageEncoder, ImageEncoderConfig

DIM, DEPTH, HEADS = 32, 2, 4
WORDS = {
    0: ["ice", "snow", "winter", "frost", "chill", "cold"],
    1: ["sun", "fire", "summer", "heat", "flame", "warm"],
}


def sentences(per_class: int = 60) -> list[dict[str, object]]:
    """Texts of words that only one class has, all different."""
    rows: list[dict[str, object]] = []
    generator = np.random.default_rng(0)
    seen: set[str] = set()
    while len(rows) < 2 * per_class:
        label = len(rows) % 2
        text = " ".join(generator.choice(WORDS[label], 4)) + " " + " ".join(generator.choice(["is", "the", "it"], 2))
        if text not in seen:
            seen.add(text)
            rows.append({"text": text, "label": label})
    return rows


def jsonl(folder: Path, rows: list[dict[str, object]] | None = None) -> str:
    """A file of labelled texts, as a data source."""
    path = folder / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, sentences() if rows is None else rows)))
    return f"jsonl:{path}"


def image_folder(folder: Path, per_class: int = 45) -> str:
    """Dark and bright images, as a data source."""
    generator = np.random.default_rng(0)
    for label, low in (("bright", 150), ("dark", 0)):
        (folder / label).mkdir(parents=True)
        for at in range(per_class):
            pixels = generator.integers(low, low + 100, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{at:03d}.png")
    return f"imagefolder:{folder}"


def tokenizer() -> CodeTokenizer:
    texts = [str(row["text"]) for row in sentences()]
    return CodeTokenizer.train([*texts, " window thread message server number file test module"] * 3, 480, 2)


def text_folder(folder: Path, seed: int = 0) -> str:
    made = tokenizer()
    torch.manual_seed(seed)
    config = TextEncoderConfig(len(made), TrunkConfig(DIM, DEPTH, HEADS), embedding_positions=0, types=0, pooler=False)
    return str(save_model(folder, _larger(TextEncoder(config)), made))


def causal_folder(folder: Path) -> str:
    made = tokenizer()
    torch.manual_seed(0)
    config = LanguageModelConfig(len(made), TrunkConfig(DIM, DEPTH, HEADS))
    return str(save_model(folder, _larger(LanguageModel(config)), made))


def vision_folder(folder: Path) -> str:
    torch.manual_seed(0)
    config = ImageEncoderConfig(TrunkConfig(DIM, DEPTH, HEADS, positions="none"), size=16, patch=4)
    return str(save_model(folder, ImageEncoder(config)))


def _larger(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that a mistake shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return model


def docstring_encoder(folder: Path) -> str:
    """A text encoder of BERT's kind whose tokenizer knows the standard library's documentation."""
    documented = stdlib_code("train", with_docstring=True)[:200]
    known = CodeTokenizer.train([example.docstring or "" for example in documented], 400)
    torch.manual_seed(0)
    trunk = TrunkConfig(dim=16, depth=2, heads=2, positions="none", norm="layer", pre_norm=False, bias=True)
    encoder = TextEncoder(TextEncoderConfig(vocab=400, trunk=trunk, pooler=False, head=False))
    return str(save_model(folder, encoder, known))
