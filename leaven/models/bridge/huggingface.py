"""Folders of transformers: into the trunk and back, or used as they are."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leaven.errors import ConfigError, ModelError
from leaven.models.bridge.bert import BERT, ROBERTA
from leaven.models.bridge.clip import CLIP
from leaven.models.bridge.family import Family
from leaven.models.bridge.foreign import wrap
from leaven.models.bridge.gpt2 import GPT2
from leaven.models.bridge.names import InexpressibleError, read_rows, write_rows
from leaven.models.bridge.t5 import T5
from leaven.models.bridge.vit import VIT
from leaven.models.bridge.weights import SAFETENSORS, read_weights
from leaven.models.saved import build_model, fill_model

FAMILIES: dict[str, Family] = {family.model_type: family for family in (T5, BERT, ROBERTA, GPT2, VIT, CLIP)}
"""The families that the trunk expresses, by the `model_type` of their config.json."""

_log = logging.getLogger(__name__)


class Opened(NamedTuple):
    """A model of a Hugging Face folder. reason: why it is used as it is, or None when it is in the trunk."""

    model: nn.Module
    reason: str | None


def read_config(folder: Path) -> Any:
    """transformers' configuration of a folder. Code that the folder names is never run.

    Raises: ModelError when config.json is missing, broken, or of a model that transformers itself does not have.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no config.json: it is no Hugging Face model") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or "model_type" not in values:
        raise ModelError(f"{path} has no model_type: expected the configuration of a Hugging Face model")
    if values["model_type"] not in CONFIG_MAPPING:
        raise ModelError(
            f"{path}: transformers {transformers.__version__} has no model_type {values['model_type']!r}; "
            "a model that brings its own code is not run"
        )
    if values.get("quantization_config"):
        raise ModelError(f"{path}: quantised checkpoints are not read; use the model's full-precision weights")
    for name in ("auto_map", "dtype", "torch_dtype"):
        values.pop(name, None)
    try:
        return CONFIG_MAPPING[values["model_type"]].from_dict(values)
    except Exception as error:  # transformers checks values with exceptions of several libraries
        raise ModelError(f"{path} is not a configuration that transformers accepts: {error}") from error


def load_huggingface(folder: Path | str) -> Opened:
    """The model of a Hugging Face folder in float32 and eval mode: in the trunk if that can express it, else as it is.

    leaven has one dropout rate per model: the family's residual (hidden) rate, or in CLIP that of the attention.

    Raises: ModelError when a file is missing or damaged, weights are missing, or the folder needs code of its own.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder")
    config = read_config(folder)
    state = read_weights(folder)
    try:
        return Opened(_in_trunk(config, state, str(folder)), None)
    except (InexpressibleError, ConfigError) as error:
        reason = str(error)
    model, unused = _as_it_is(config, state, folder)
    if unused:
        reason += f"; transformers has no use for {len(unused)} of its weights ({', '.join(unused[:3])})"
        _log.warning("%s: transformers has no use for the weights %s", folder, ", ".join(unused))
    return Opened(wrap(model, reason), reason)


def _in_trunk(config: Any, state: dict[str, Tensor], source: str) -> nn.Module:
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise InexpressibleError(f"{config.model_type} is not one of the families of the trunk ({', '.join(FAMILIES)})")
    for name in config.architectures or ():
        if name not in family.architectures:
            raise InexpressibleError(f"{name} is not one of {', '.join(family.architectures)}")
    canonical = family.canonical(state)
    ours = family.read_config(config, canonical)
    rows = family.rows(ours)
    covered = {name for row in rows for name in row.theirs} | {family.output}
    if extra := sorted(canonical.keys() - covered):
        raise InexpressibleError(f"the trunk has no place for the weights {', '.join(extra[:3])}")
    return fill_model(build_model(ours), read_rows(rows, canonical, source), source)


def _as_it_is(config: Any, state: dict[str, Tensor], folder: Path) -> tuple[Any, list[str]]:
    """transformers' own model, filled with weights that were read safely, and the names it has no use for."""
    kind = _class_of(config)
    try:
        with torch.random.fork_rng(devices=[]), _without_progress_bar():
            model, told = kind.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    except Exception as error:  # whatever transformers finds wrong with the weights
        raise ModelError(f"{folder}: transformers cannot load it as {kind.__name__}: {error}") from error
    if missing := sorted(told["missing_keys"]):
        raise ModelError(f"{folder} lacks the weights {', '.join(missing[:3])} of a {kind.__name__}")
    return model.float().eval(), sorted(told["unexpected_keys"])


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging as their_logging

    shown = their_logging.is_progress_bar_enabled()
    their_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            their_logging.enable_progress_bar()


def _class_of(config: Any) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto as auto

    found: Any
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, nn.Module):
            can_generate: Any = getattr(found, "can_generate", None)
            if config.is_encoder_decoder and not (can_generate and can_generate()):
                continue
            return found
    if config.is_encoder_decoder and type(config) in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]
    if type(config) in auto.MODEL_MAPPING:
        return auto.MODEL_MAPPING[type(config)]
    raise ModelError(f"transformers has no model class for the configuration {type(config).__name__}")


def save_huggingface(model: nn.Module, folder: Path | str) -> Path:
    """Write config.json and model.safetensors (float32) such that transformers loads them and gives the same outputs.

    A text encoder with a pooler and a masked-token head is written as the masked model, which leaves the pooler unread;
    an image encoder without pooler as a classifier, of no classes where it has no head. The classes of the two families
    of text encoders are told apart by `position_offset`.

    Raises: ModelError when transformers has no counterpart of the model or a switch of it, or the folder is not empty;
    the folder is written whole or not at all.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    family = _family_of(model)
    values = family.write_config(model.config)
    state = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    rows = family.rows(model.config)
    if extra := sorted(state.keys() - {row.ours for row in rows} - {"head.proj.weight"}):
        raise ModelError(
            f"transformers' {family.model_type} has no place for {', '.join(extra[:3])}: merge adapters first"
        )
    theirs = write_rows(rows, state)
    if family.finish is not None:
        theirs = family.finish(model.config, theirs)
    theirs = family.dress(theirs, values["architectures"][0])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} is not empty: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".draft", dir=folder.parent))
    try:
        draft.chmod(0o755)
        save_file(
            {name: t.contiguous().clone() for name, t in theirs.items()}, str(draft / SAFETENSORS), {"format": "pt"}
        )
        (draft / "config.json").write_text(
            json.dumps({**values, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8"
        )
        draft.replace(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _family_of(model: nn.Module) -> Family:
    config: Any = getattr(model, "config", None)
    architecture = getattr(config, "architecture", None)
    for family in FAMILIES.values():
        if family.architecture == architecture and hasattr(config, "to_dict"):
            if family is BERT and config.position_offset:
                continue
            return family
    raise ModelError(f"{type(model).__name__} has no counterpart in transformers that the bridge knows")
