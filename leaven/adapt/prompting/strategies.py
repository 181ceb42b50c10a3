"""Tuning strategies: which parameters train, as one table that is enforced by `requires_grad`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from leaven.adapt.peft.method import adaptation_of
from leaven.adapt.peft.patches import Patch
from leaven.adapt.peft.prefix import PrefixPatch
from leaven.adapt.peft.prompts import PromptPatch
from leaven.adapt.prompting.automatic_verbalizers import TaskHead
from leaven.adapt.prompting.slots import SoftTokens
from leaven.adapt.prompting.verbalizers import Verbalizer
from leaven.contracts import Batch
from leaven.errors import ConfigError


class Strategy(NamedTuple):
    """A row of the table. prompt_parameters: whether there are any; they train where there are."""

    language_model_trains: bool
    prompt_parameters: bool
    template: bool = True


STRATEGIES: dict[str, Strategy] = {
    "promptless": Strategy(language_model_trains=True, prompt_parameters=False, template=False),
    "tuning-free": Strategy(language_model_trains=False, prompt_parameters=False),
    "fixed-LM": Strategy(language_model_trains=False, prompt_parameters=True),
    "fixed-prompt": Strategy(language_model_trains=True, prompt_parameters=False),
    "prompt+LM": Strategy(language_model_trains=True, prompt_parameters=True),
}
"""The table of arXiv 2107.13586 section 7.2."""


class PromptedModel(nn.Module):
    """A language model with the learned parts of its prompt: what `fit` trains and a checkpoint holds.

    Shapes: a batch of `SlotReader.collate` -> (batch, labels) scores.
    """

    def __init__(self, language_model: nn.Module, soft: SoftTokens | None, verbalizer: Verbalizer, reader: object):
        super().__init__()
        self.language_model, self.soft, self.verbalizer = language_model, soft, verbalizer
        self._reader = reader

    def forward(self, batch: Batch) -> Tensor:
        """Scores of labels."""
        slots = self._reader(batch, None if self.soft is None else self.soft.weight)  # type: ignore[operator]
        scores: Tensor = self.verbalizer(slots)
        return scores


class Parts(NamedTuple):
    """Parameters by name: of the language model, of the prompt and its answers, and of a task head."""

    language_model: dict[str, nn.Parameter]
    prompt: dict[str, nn.Parameter]
    head: dict[str, nn.Parameter]


def parts_of(model: PromptedModel) -> Parts:
    """The parameters of a prompted model by what they belong to.

    Of the prompt are soft tokens, learned verbalizers, and the patches of `PromptTuning` and `Prefix`. Where the model
    carries another adapter, such as LoRA, that is what counts as the language model's: its base stays as it is.
    """
    patches = {f"{name}.": m for name, m in model.named_modules() if isinstance(m, Patch)}
    prompts = tuple(name for name, m in patches.items() if isinstance(m, PromptPatch | PrefixPatch))
    adapters = tuple(name for name in patches if name not in prompts)
    found = Parts({}, {}, {})
    beside: set[str] = set()
    if adapters:
        beside = {f"language_model.{name}" for name in adaptation_of(model.language_model).trained}
    for name, parameter in model.named_parameters():
        if name.startswith("verbalizer.") and isinstance(model.verbalizer, TaskHead):
            found.head[name] = parameter
        elif name.startswith(("soft.", "verbalizer.", *prompts)):
            found.prompt[name] = parameter
        elif not adapters or name.startswith(adapters) or name in beside:
            found.language_model[name] = parameter
    return found


def check(name: str, model: PromptedModel, promptless: bool) -> Strategy:
    """The row of the table, if the model has the parts that it asks for.

    Raises: ConfigError naming what is missing or too much.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"strategy={name!r}: expected one of {', '.join(STRATEGIES)}")
    strategy, parts = STRATEGIES[name], parts_of(model)
    if strategy.template == promptless or strategy.template == bool(parts.head):
        raise ConfigError(
            f"strategy={name!r} goes with {'a template and a verbalizer' if strategy.template else 'a TaskHead'}, and "
            f"{'no ' if strategy.template else 'a '}promptless template; got {'a' if promptless else 'no'} promptless "
            f"template and a {type(model.verbalizer).__name__}"
        )
    if strategy.prompt_parameters and not parts.prompt:
        raise ConfigError(
            f"strategy={name!r} trains a prompt, and there are no prompt parameters: write {{soft:5}} into the "
            "template, give a SoftVerbalizer, or apply PromptTuning or Prefix to the model first"
        )
    if parts.prompt and not strategy.prompt_parameters:
        raise ConfigError(
            f"strategy={name!r} has no prompt parameters, and there are {', '.join(list(parts.prompt)[:3])}: "
            "take strategy='fixed-LM' or 'prompt+LM', or leave them out"
        )
    return strategy


@contextmanager
def training(strategy: Strategy, model: PromptedModel) -> Iterator[None]:
    """Within the block exactly the parameters of the strategy require gradients; afterwards those that did before.

    Raises: ConfigError when nothing would train.
    """
    parts = parts_of(model)
    chosen = {id(p) for p in (*parts.prompt.values(), *parts.head.values())}
    if strategy.language_model_trains:
        chosen |= {id(p) for p in parts.language_model.values()}
    if not chosen:
        raise ConfigError("strategy='tuning-free' trains nothing: predict without fit, or take another strategy")
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
