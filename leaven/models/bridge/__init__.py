"""Hugging Face checkpoints into the trunk and back, one module per family; any other model used as it is."""

from leaven.models.bridge.features import Features, as_features
from leaven.models.bridge.foreign import ForeignEncoder, ForeignEncoderDecoder, ForeignLanguageModel, wrap
from leaven.models.bridge.huggingface import FAMILIES, Opened, load_huggingface, save_huggingface
from leaven.models.bridge.weights import read_weights

__all__ = [
    "FAMILIES",
    "Features",
    "ForeignEncoder",
    "ForeignEncoderDecoder",
    "ForeignLanguageModel",
    "Opened",
    "as_features",
    "load_huggingface",
    "read_weights",
    "save_huggingface",
    "wrap",
]
