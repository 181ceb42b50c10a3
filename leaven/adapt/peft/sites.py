"""The linear maps of a model, by role; fused ones by part."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize

ROLES = ("q", "k", "v", "o", "up", "gate", "down")
UNKNOWN_LAYOUT = "?"
_NAMES = {
    "q": r"q|q_proj|query|query_proj|q_lin|q_attn|to_q|wq",
    "k": r"k|k_proj|key|key_proj|k_lin|to_k|wk",
    "v": r"v|v_proj|value|value_proj|v_lin|to_v|wv",
    "qkv": r"qkv|qkv_proj|c_attn|to_qkv|Wqkv",
    "kv": r"kv|kv_proj|to_kv",
    UNKNOWN_LAYOUT: r"query_key_value|W_pack",
    "o": r"o|o_proj|out_lin",
    "up": r"up_proj|fc1|c_fc|lin1|linear1|wi|wi_1|w3|dense_h_to_4h",
    "gate": r"gate_proj|wi_0|w1",
    "down": r"down_proj|fc2|lin2|linear2|w2|dense_4h_to_h",
}
_OUTPUT_OF_ATTENTION = re.compile(r"out_proj|proj|c_proj|dense|wo")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


@dataclass(frozen=True)
class Projection:
    """A linear map of a model, or one part of a fused one.

    module, tensor: the module that holds the weight and the weight's name in it. role: one of `ROLES`, or "" where the
    name tells nothing. start, stop: rows of the fused weight, counted in output features. parts: how many are fused.
    transposed: the weight is (in, out), as in GPT-2. parametrized: the module's weight is read by another one, without
    a call, so that a hook would never run.
    """

    module: str
    tensor: str
    role: str
    start: int
    stop: int
    parts: int = 1
    transposed: bool = False
    parametrized: bool = False

    @property
    def name(self) -> str:
        """Name of the weight in the model's state dict, before anything is attached."""
        return f"{self.module}.{self.tensor}" if self.module else self.tensor

    def weight(self, model: nn.Module) -> Tensor:
        """The part as (out, in), a view of the frozen weight."""
        whole = base_tensor(model, self.name)
        return (whole.t() if self.transposed else whole)[self.start : self.stop]


def base_tensor(model: nn.Module, name: str) -> nn.Parameter:
    """A parameter by the name it has without anything attached."""
    owner, _, tensor = name.rpartition(".")
    module = model.get_submodule(owner)
    if parametrize.is_parametrized(module, tensor):
        found: nn.Parameter = module.parametrizations[tensor].original  # type: ignore[union-attr,index]
        return found
    return module.get_parameter(tensor)


def shared_weights(model: nn.Module) -> dict[int, list[str]]:
    """Names of each parameter that several modules hold, by the parameter's `id`."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return {key: names for key, names in owners.items() if len(names) > 1}


def projections(model: nn.Module) -> list[Projection]:
    """Every linear map of the model, fused ones by part, in the order of its modules."""
    found: list[Projection] = []
    inside: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            found += _of_multihead(name, module)
            inside.add(f"{name}.out_proj" if name else "out_proj")
        elif name not in inside and (isinstance(module, nn.Linear) or _is_conv1d(module)):
            found += _of_linear(model, name, module)
    return found


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _of_multihead(name: str, module: nn.MultiheadAttention) -> list[Projection]:
    dim = module.embed_dim
    if module._qkv_same_embed_dim:
        parts = [
            Projection(name, "in_proj_weight", role, i * dim, (i + 1) * dim, 3, parametrized=True)
            for i, role in enumerate("qkv")
        ]
    else:
        parts = [Projection(name, f"{role}_proj_weight", role, 0, dim, parametrized=True) for role in "qkv"]
    out = f"{name}.out_proj" if name else "out_proj"
    return [*parts, Projection(out, "weight", "o", 0, dim, parametrized=True)]


def _of_linear(model: nn.Module, name: str, module: nn.Module) -> list[Projection]:
    transposed = _is_conv1d(module)
    shape = base_tensor(model, f"{name}.weight" if name else "weight").shape
    # Packed quantised weights have another shape; they are refused by their type where they are used.
    out = int(shape[-1] if transposed else shape[0])
    parent = model.get_submodule(name.rpartition(".")[0]) if name else module
    role = _role(name, parent)
    if role == "qkv" and hasattr(parent, "q_attn"):
        role = "kv"
    if role not in ("qkv", "kv"):
        return [Projection(name, "weight", role, 0, out, transposed=transposed)]
    sizes = _fused_sizes(parent, out, len(role))
    if sizes is None:
        return [Projection(name, "weight", UNKNOWN_LAYOUT, 0, out, transposed=transposed)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        Projection(name, "weight", part, start, start + size, len(role), transposed=transposed)
        for part, start, size in zip(role, starts, sizes, strict=True)
    ]


def _role(name: str, parent: nn.Module) -> str:
    *path, last = name.split(".")
    for role, pattern in _NAMES.items():
        if re.fullmatch(pattern, last):
            return role
    siblings = {child for child, _ in parent.named_children()}
    beside_queries = any(re.fullmatch(_NAMES[r], s) for r in ("q", "qkv") for s in siblings)
    in_attention = beside_queries or any(_ATTENTION.search(part) for part in path[-2:])
    if (in_attention and _OUTPUT_OF_ATTENTION.fullmatch(last)) or path[-1:] == ["to_out"]:
        return "o"
    if last in ("c_proj", "wo"):
        return "down"
    if last == "dense" and path and path[-1] in ("intermediate", "output"):
        return "up" if path[-1] == "intermediate" else "down"
    return ""


def _fused_sizes(parent: nn.Module, out: int, parts: int) -> list[int] | None:
    """Rows of each part of a fused matrix whose parts follow one another; None where that is not known."""
    config = getattr(parent, "config", None)
    heads = heads_of(parent)
    shared = getattr(parent, "num_key_value_heads", None) or getattr(config, "num_key_value_heads", None)
    if heads is None or shared is None or shared == heads:
        return [out // parts] * parts if out % parts == 0 else None
    each = out // (heads * (parts - 2) + 2 * shared)
    sizes = [*[heads * each] * (parts - 2), shared * each, shared * each]
    return sizes if sum(sizes) == out else None


def heads_of(attention: nn.Module) -> int | None:
    """How many query heads an attention module has, by the usual names of that number."""
    names = ("heads", "num_heads", "num_attention_heads", "n_heads", "n_head")
    for holder in (attention, getattr(attention, "config", None)):
        for name in names:
            if isinstance(value := getattr(holder, name, None), int):
                return value
    return None
