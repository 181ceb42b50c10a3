"""The space of arXiv 2110.04366: every cell computes its closed form, and impossible cells say why."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from adapt.peft.small_models import DIM, FFN, HEADS, bert, disturb, ids, mask, text_encoder
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.adapt.peft import MAM, Adapter, Delta, LoRA, Prefix, adapter_parameters, cell, merge, trainable_report
from leaven.adapt.peft.delta import Form, Insertion
from leaven.adapt.peft.prefix import Composition
from leaven.errors import ConfigError, ModelError


def spied(module: nn.Module, calls: list[tuple[Tensor, Tensor]]) -> Any:
    def note(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.append((args[0].detach(), (output[0] if isinstance(output, tuple) else output).detach()))

    return module.register_forward_hook(note, prepend=True)


ACTIVATION = {"linear": lambda x: x, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@pytest.mark.parametrize("form", ACTIVATION)
@pytest.mark.parametrize("insertion", get_args(Insertion))
@pytest.mark.parametrize("family", ["trunk", "bert"])
@pytest.mark.parametrize("place", ["attention", "ffn", "v", "up"])
def test_bottlenecks_read_and_write_where_they_say(form: str, insertion: str, family: str, place: str) -> None:
    """h + s W_up act(W_down z), z the sub-layer's input x (parallel) or h (sequential), before residual and norm."""
    if family == "trunk":
        model: Any = text_encoder()
        layer = model.encoder.blocks[1]
        where = {
            "attention": (layer.attn.qkv_proj, layer.attn.out_proj),
            "ffn": (layer.ffn.up_proj, layer.ffn.down_proj),
            "v": (layer.attn.qkv_proj, layer.attn.qkv_proj),
            "up": (layer.ffn.up_proj, layer.ffn.up_proj),
        }[place]
    else:
        model = bert()
        layer = model.bert.encoder.layer[1]
        where = {
            "attention": (layer.attention.self.query, layer.attention.output.dense),
            "ffn": (layer.intermediate.dense, layer.output.dense),
            "v": (layer.attention.self.value, layer.attention.self.value),
            "up": (layer.intermediate.dense, layer.intermediate.dense),
        }[place]
    Delta(
        form=form, insertion=insertion, place=place, composition="scaled", bottleneck=5, scale=3.0, within="*.1.*"  # type: ignore[arg-type]
    ).apply(model)  # fmt: skip
    disturb(model)
    reading, writing = where
    entry: list[tuple[Tensor, Tensor]] = []
    exit_: list[tuple[Tensor, Tensor]] = []
    after: list[tuple[Tensor, Tensor]] = []
    spied(reading, entry), spied(writing, exit_)
    writing.register_forward_hook(lambda m, a, out: after.append((a[0], out.detach())))
    with torch.no_grad():
        model(ids(), mask())
    x, h, got = entry[0][0], exit_[0][1], after[0][1]
    change = writing.adapter.change if place in ("attention", "ffn") else writing.adapter.changes[place]
    rows = slice(2 * DIM, 3 * DIM) if (place, family) == ("v", "trunk") else slice(0, h.shape[-1])
    z = x if insertion == "parallel" else h[..., rows]
    down_bias, up_bias = (0.0, 0.0) if form == "linear" else (change.down_bias, change.up_bias)
    want = h.clone()
    with torch.no_grad():
        want[..., rows] += 3.0 * (ACTIVATION[form](z @ change.down.t() + down_bias) @ change.up.t() + up_bias)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["in", "out"])
@pytest.mark.parametrize("insertion", get_args(Insertion))
def test_a_layer_norm_stands_before_or_after_the_bottleneck(norm: Any, insertion: Insertion) -> None:
    model = text_encoder()
    plain = model.encode(ids()).x
    Adapter(bottleneck=5, insertion=insertion, scale=3.0, norm=norm, within="*.1.*").apply(model)
    # The bottleneck starts at zero, and the norm of zero is zero.
    assert model.encode(ids()).x.equal(plain)
    disturb(model)
    ffn, entry, exit_, after = model.encoder.blocks[1].ffn, [], [], []
    spied(ffn.up_proj, entry), spied(ffn.down_proj, exit_)
    ffn.down_proj.register_forward_hook(lambda m, a, out: after.append(out.detach()))
    model.encode(ids())
    h, change = exit_[0][1], ffn.down_proj.adapter.change
    z = entry[0][0] if insertion == "parallel" else h
    layer_norm = change.norm_in or change.norm_out
    assert float((layer_norm.weight - 1).abs().min()) > 0
    with torch.no_grad():
        z = layer_norm(z) if norm == "in" else z
        want = 3.0 * (F.relu(z @ change.down.t() + change.down_bias) @ change.up.t() + change.up_bias)
        want = h + (layer_norm(want) if norm == "out" else want)
    torch.testing.assert_close(after[0], want, rtol=1e-5, atol=1e-6)


def test_a_norm_cannot_be_merged_into_weights() -> None:
    model = text_encoder()
    Delta(form="linear", insertion="sequential", place="ffn", composition="add", bottleneck=3, norm="in").apply(model)
    with pytest.raises(ModelError, match="its layer norm is no linear function"):
        merge(model)


@pytest.mark.parametrize("insertion", get_args(Insertion))
def test_multi_head_adapter_changes_each_head_by_itself(insertion: str) -> None:
    model = text_encoder()
    cell("multi-head-parallel-adapter", 3, insertion=insertion).apply(model)
    disturb(model)
    attention = model.encoder.blocks[0].attn
    change = attention.out_proj.adapter.change
    entry: list[tuple[Tensor, Tensor]] = []
    spied(attention.qkv_proj, entry)
    inputs: list[Tensor] = []
    attention.out_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()), prepend=True)
    attention.out_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    with torch.no_grad():
        model.encode(ids())
        x, (h, got) = entry[0][0], inputs[:2]
        size = DIM // HEADS
        want = h.clone()
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            z = x if insertion == "parallel" else h[..., part]
            want[..., part] += F.relu(z @ change.down[head].t()) @ change.up[head].t()
    torch.testing.assert_close(got, want)


def test_named_cells_are_the_methods() -> None:
    """The same seed gives LoRA and its cell the same numbers; a cell and a class that name one thing agree."""
    states = []
    for method in (LoRA(rank=4, alpha=8), cell("lora", 4, scale=2.0)):
        model = text_encoder()
        method.apply(model, torch.Generator().manual_seed(3))
        disturb(model)
        states.append(model.encode(ids()).x)
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert Adapter(bottleneck=4)._deltas() == [cell("adapter", 4, init="lora")]
    assert Adapter(4, "parallel", scale=4.0)._deltas() == [cell("scaled-parallel-adapter", 4, scale=4.0, init="lora")]
    assert MAM(3, 4, 2.0)._cells()[0] == Prefix(3)._delta().__class__(**{**Prefix(3)._delta().__dict__, "init": None})
    with pytest.raises(ConfigError, match="there is no cell 'loha': expected one of prefix, adapter, lora"):
        cell("loha", 4)


def test_the_whole_space_is_open_or_explained() -> None:
    """Every combination either runs or is refused with a reason."""
    options = itertools.product(
        get_args(Form), get_args(Insertion), ("attention", "ffn", "heads", "q,v"), get_args(Composition)
    )
    built = 0
    for form, insertion, place, composition in options:
        axes: dict[str, Any] = {"form": form, "insertion": insertion, "place": place, "composition": composition}
        possible = (form == "softmax") == (place == "heads" and insertion == "parallel" and form == "softmax")
        possible &= form == "softmax" or composition in ("add", "scaled")
        if not possible:
            with pytest.raises(ConfigError, match=r"there is no .* change: .+"):
                Delta(bottleneck=2, **axes)
            continue
        model = text_encoder()
        Delta(bottleneck=2, **axes).apply(model)
        assert model.encode(ids()).x.shape == (3, 7, DIM)
        built += 1
    assert built == 4 * 2 * 4 * 2 + 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"place": "ffn", "form": "softmax"}, "queries are there in the heads alone"),
        (
            {"insertion": "sequential", "form": "softmax", "place": "heads"},
            "from the input of attention, not from its output",
        ),
        ({"composition": "gated"}, "only a softmax form has keys"),
        ({"scale": 4.0}, "scale=4.0 would have no effect"),
        ({"learn_scale": True}, "nothing to learn"),
        ({"reparameterize": 800}, "for prefixes"),
        ({"form": "softmax", "place": "heads", "dropout": 0.1}, "neither hidden units"),
        ({"form": "tanh"}, "form='tanh': expected one of linear, relu"),
        ({"place": "mlp"}, "place='mlp': expected attention, ffn, heads or roles"),
        ({"bottleneck": 0}, "bottleneck=0"),
        ({"norm": "before"}, "norm='before': expected one of none, in, out"),
        ({"norm": "in", "place": "q,v"}, "goes with the output of a sub-layer"),
    ],
)
def test_impossible_descriptions(options: dict[str, Any], message: str) -> None:
    axes = {"form": "relu", "insertion": "parallel", "place": "ffn", "composition": "add", "bottleneck": 4}
    with pytest.raises(ConfigError, match=message):
        Delta(**{**axes, **options})


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            LoRA(rank=33),
            r"rank=33 for encoder.blocks.0.attn.qkv_proj \(q\), which maps 32 to 32 features: expected 1 to 32",
        ),
        (Adapter(bottleneck=33), "bottleneck=33 for encoder.blocks.0.ffn.down_proj"),
        (
            cell("multi-head-parallel-adapter", 9),
            "bottleneck=9 per head of encoder.blocks.0.attn: heads have 8 features",
        ),
        (MAM(bottleneck=512), "bottleneck=512"),
        (Adapter(within="decoder.*"), "no feed-forward sub-layer was found: within='decoder.*' names no module"),
        (LoRA(train=("clasifier*",)), "train='clasifier.' names no parameter of the model; the nearest names are"),
        (
            LoRA(train=("*.qkv_proj",)),
            "train='.*qkv_proj' names encoder.blocks.0.attn.qkv_proj.weight, which the method adapts",
        ),
    ],
)
def test_what_does_not_fit_the_model(method: Any, message: str) -> None:
    model = text_encoder()
    names = model.state_dict().keys()
    with pytest.raises(ConfigError, match=message):
        method.apply(model)
    assert model.state_dict().keys() == names and all(p.requires_grad for p in model.parameters())


def test_applying_twice_is_refused() -> None:
    model = text_encoder()
    LoRA().apply(model)
    with pytest.raises(ModelError, match=r"carries LoRA already: merge.model. or detach.model. first"):
        Adapter().apply(model)


def test_adapting_a_part_and_the_whole_is_refused() -> None:
    model = text_encoder()
    LoRA().apply(model.encoder)
    with pytest.raises(ModelError, match=r"a part of the model is adapted already \(encoder\.blocks\.0\.attn"):
        Adapter().apply(model)
    with pytest.raises(ModelError, match="a part of the model is adapted already"):
        Adapter().apply(model.encoder.blocks[0])


def test_two_parts_of_one_place_are_refused() -> None:
    with pytest.raises(ModelError, match=r"attn\.out_proj\.adapter is taken"):
        Adapter(places=("attention", "heads"), bottleneck=4).apply(text_encoder())


def test_counts_are_the_papers() -> None:
    """Trainables by the formulas of the paper, per layer; a head that trains along is counted apart."""
    width = 8
    biases = width + DIM
    for method, per_layer in (
        (LoRA(rank=4), 2 * 4 * 2 * DIM),
        (Adapter(bottleneck=width), 2 * width * DIM + biases),
        (Prefix(length=3, reparameterize=0), 3 * 2 * DIM),
        (MAM(prefix=3, bottleneck=width, reparameterize=0), 3 * 2 * DIM + 2 * width * DIM + biases),
        (LoRA(rank=4, targets="ffn"), 2 * 4 * (DIM + FFN)),
    ):
        model = bert()
        base = sum(p.numel() for p in model.parameters())
        head = sum(p.numel() for p in model.classifier.parameters())
        object.__setattr__(method, "train", ("classifier*",))
        report = trainable_report(method.apply(model))
        assert (report.adapter, report.head, report.base) == (2 * per_layer, head, base)
        assert report.percent == pytest.approx(100 * 2 * per_layer / (base - head))
        assert report.stored_bytes == 4 * report.adapter and sum(report.modules.values()) == report.adapter
        assert sum(p.numel() for p in adapter_parameters(model).values()) == report.adapter
        trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trains == report.adapter + head
