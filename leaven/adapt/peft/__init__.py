"""Parameter-efficient tuning of any model: attach a small learned part, train it, merge it or save it apart.

`model = LoRA(rank=8, targets="q,v", train=("head*",)).apply(model)`; then `merge(model)` or
`save_adapter(model, folder)`.
"""

from leaven.adapt.peft.cells import MAM, Adapter, Prefix, cell
from leaven.adapt.peft.delta import Delta
from leaven.adapt.peft.dsee import DSEE, low_rank_sparse
from leaven.adapt.peft.low_rank import LoRA
from leaven.adapt.peft.method import Merged, Method, adapter_parameters, detach, merge, settle, unmerge
from leaven.adapt.peft.prompts import PromptTuning
from leaven.adapt.peft.pruning import prune_heads, prune_weights, sparsity
from leaven.adapt.peft.report import Flops, Trainable, forward_flops, trainable_report
from leaven.adapt.peft.saving import adapter_state, load_adapter, load_adapter_state, save_adapter
from leaven.adapt.peft.scale_shift import SSF, BitFit
from leaven.adapt.peft.spectra import SVFit, spectra

__all__ = [
    "DSEE",
    "MAM",
    "SSF",
    "Adapter",
    "BitFit",
    "Delta",
    "Flops",
    "LoRA",
    "Merged",
    "Method",
    "Prefix",
    "PromptTuning",
    "SVFit",
    "Trainable",
    "adapter_parameters",
    "adapter_state",
    "cell",
    "detach",
    "forward_flops",
    "load_adapter",
    "load_adapter_state",
    "low_rank_sparse",
    "merge",
    "prune_heads",
    "prune_weights",
    "save_adapter",
    "settle",
    "sparsity",
    "spectra",
    "trainable_report",
    "unmerge",
]
