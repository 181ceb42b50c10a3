"""leaven's own model folders: `leaven.json`, `model.safetensors` and tokenizer files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from leaven import __version__
from leaven.data.downloads import sha256_of
from leaven.errors import ConfigError, ModelError
from leaven.models.encoder import TextEncoder, TextEncoderConfig
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.models.language_model import LanguageModel, LanguageModelConfig
from leaven.models.vision import DualEncoder, DualEncoderConfig, ImageEncoder, ImageEncoderConfig

MANIFEST = "leaven.json"
WEIGHTS = "model.safetensors"


class _Architecture(NamedTuple):
    config: Any
    model: type[nn.Module]


ARCHITECTURES = {
    "encoder-decoder": _Architecture(EncoderDecoderConfig, EncoderDecoder),
    "language-model": _Architecture(LanguageModelConfig, LanguageModel),
    "text-encoder": _Architecture(TextEncoderConfig, TextEncoder),
    "image-encoder": _Architecture(ImageEncoderConfig, ImageEncoder),
    "dual-encoder": _Architecture(DualEncoderConfig, DualEncoder),
}
"""Every model that leaven can build from a configuration, by the `architecture` of that configuration."""


class SavesItself(Protocol):
    """A tokenizer, as far as saving is concerned."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into the folder."""
        ...


def build_model(config: Any) -> nn.Module:
    """A model of this configuration with initial weights; torch's global random state is left as it was.

    Raises: ModelError for an architecture that leaven does not have.
    """
    name = getattr(config, "architecture", None)
    if name not in ARCHITECTURES:
        raise ModelError(f"unknown architecture {name!r}: expected one of {', '.join(ARCHITECTURES)}")
    with torch.random.fork_rng(devices=[]):
        return ARCHITECTURES[name].model(config)


def tied_names(model: nn.Module) -> dict[str, str]:
    """Names of the state dict that share their tensor with an earlier name, and that name."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        original = first.setdefault(id(tensor), name)
        if original != name:
            tied[name] = original
    return tied


def fill_model(model: nn.Module, state: Mapping[str, Tensor], source: str) -> nn.Module:
    """Copy weights into a model, which keeps its dtype; tied names may be left out. The model is put in eval mode.

    Raises: ModelError naming the weights of `source` that are missing, left over or of another shape.
    """
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys() - tied_names(model).keys())
    if missing:
        raise ModelError(f"{source} lacks {_some(missing)}: it is incomplete or belongs to another configuration")
    extra = sorted(state.keys() - expected.keys())
    if extra:
        raise ModelError(f"{source} has {_some(extra)}, which the model has no place for: another configuration's?")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, "
                f"but the model's configuration says {tuple(expected[name].shape)}"
            )
    model.load_state_dict(state, strict=False)
    return model.eval()


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"the weight{'s' if len(names) > 1 else ''} {', '.join(names[:shown])}{more}"


def save_model(
    folder: Path | str,
    model: nn.Module,
    tokenizer: SavesItself | None = None,
    *,
    extra: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model folder whole or not at all; an earlier model folder of that name is replaced.

    Args:
        folder: where to; its parents are made.
        model: one of leaven's architectures, without adapters or other parts that its configuration does not name.
        tokenizer: saved beside the model.
        extra: anything json can hold, to be kept with the model.
        dtype: type to store floating-point weights in, for example torch.bfloat16; None keeps theirs.

    Raises: ModelError when the model is not its configuration's, or the folder holds something else than a model.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    config = getattr(model, "config", None)
    _require_own_parts(model, config)
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} exists and is no model of leaven ({MANIFEST} is missing): choose another folder")
    tied = tied_names(model)
    state = {
        name: (tensor.detach().to("cpu", dtype) if tensor.is_floating_point() else tensor.detach().cpu()).contiguous()
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".draft", dir=folder.parent))
    try:
        draft.chmod(0o755)
        save_file(state, str(draft / WEIGHTS), metadata={"format": "pt"})
        (draft / WEIGHTS).chmod(0o644)
        if tokenizer is not None:
            tokenizer.save(draft)
        manifest = {
            "leaven": __version__,
            "architecture": config.architecture,  # type: ignore[union-attr]  # checked by _require_own_parts
            "config": config.to_dict(),  # type: ignore[union-attr]
            "sha256": sha256_of(draft / WEIGHTS),
            "tied": tied,
            "extra": extra or {},
        }
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _put_in_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _require_own_parts(model: nn.Module, config: Any) -> None:
    """What `load_model` could not build again is refused when saving, while the weights are still at hand."""
    if getattr(config, "architecture", None) not in ARCHITECTURES:
        raise ModelError(
            f"{type(model).__name__} is no architecture of leaven ({', '.join(ARCHITECTURES)}): "
            "save it with its own library"
        )
    with torch.device("meta"):
        fresh = ARCHITECTURES[config.architecture].model(config)
    if difference := sorted(fresh.state_dict().keys() ^ model.state_dict().keys()):
        raise ModelError(
            f"the model differs from its configuration in {_some(difference)}: "
            "merge or remove adapters and added heads before saving"
        )


def _put_in_place(draft: Path, folder: Path) -> None:
    if not folder.exists():
        draft.rename(folder)
        return
    earlier = draft.with_suffix(".earlier")
    folder.rename(earlier)
    try:
        draft.rename(folder)
    except OSError:
        earlier.rename(folder)
        raise
    shutil.rmtree(earlier)


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The `leaven.json` of a model folder. Raises: ModelError when it is missing or not one."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is no model of leaven: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    missing = [
        name for name in ("architecture", "config", "sha256") if not isinstance(manifest, dict) or name not in manifest
    ]
    if missing:
        raise ModelError(f"{path} lacks {', '.join(missing)}: it was not written by leaven")
    return dict(manifest)


def load_model(folder: Path | str) -> nn.Module:
    """The model of a folder that `save_model` wrote, in float32 and eval mode, its checksum verified.

    Raises: ModelError when a file is missing or altered, the architecture is unknown or a weight has another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    manifest = read_manifest(folder)
    name = manifest["architecture"]
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{folder / MANIFEST}: unknown architecture {name!r}, expected one of {', '.join(ARCHITECTURES)}; "
            f"it was written by leaven {manifest.get('leaven', '?')}, this is {__version__}"
        )
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}: the model is incomplete")
    found = sha256_of(weights)
    if found != manifest["sha256"]:
        raise ModelError(
            f"{weights} is not the file that was saved: its sha256 is {found}, {MANIFEST} says {manifest['sha256']}"
        )
    try:
        config = ARCHITECTURES[name].config.from_dict(manifest["config"])
    except (TypeError, KeyError, AttributeError, ConfigError) as error:
        raise ModelError(f"{folder / MANIFEST}: the configuration is not one of {name}: {error}") from error
    try:
        state = load_file(str(weights))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{weights} is not a whole safetensors file: {error}") from error
    return fill_model(build_model(config), state, str(weights))
