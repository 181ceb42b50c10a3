"""The typology of prompting as a catalogue: facets, what runs under each of their values, and why some have nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leaven.adapt.prompting import recipes
from leaven.adapt.prompting.recipes import Predictor, PromptTask
from leaven.errors import ConfigError

FACETS: dict[str, tuple[str, ...]] = {
    "model": ("masked", "causal", "prefix", "seq2seq"),
    "shape": ("cloze", "prefix", "none"),
    "effort": (
        "none",
        "manual",
        "discrete:mining",
        "discrete:paraphrasing",
        "discrete:gradient-search",
        "discrete:generation",
        "discrete:scoring",
        "continuous:prefix-tuning",
        "continuous:prompt-tuning",
        "continuous:initialised",
        "continuous:hybrid",
    ),
    "answer_shape": ("token", "span", "sentence"),
    "answer": (
        "none",
        "manual",
        "discrete:paraphrasing",
        "discrete:prune-then-search",
        "discrete:label-decomposition",
        "continuous:label-vectors",
        "continuous:prototypes",
    ),
    "multi_prompt": (
        "single",
        "ensembling:uniform",
        "ensembling:weighted",
        "ensembling:majority",
        "ensembling:distillation",
        "augmentation:selection",
        "augmentation:ordering",
        "composition",
        "decomposition",
    ),
    "tuning": ("promptless", "tuning-free", "fixed-LM", "fixed-prompt", "prompt+LM"),
    "regime": ("zero", "few", "full"),
}
"""Facets and their leaves (arXiv 2107.13586 figure 1); "a:b" is leaf b of branch a."""

NONE: dict[tuple[str, str], str] = {
    (
        "model",
        "prefix",
    ): "has no reader of its own: such a model is read as a causal one, whose prompt is seen from left to right",
    ("effort", "discrete:mining"): "needs a corpus in which inputs and answers stand together; write what you find "
    "there as templates and give them to rank_templates",
    ("effort", "discrete:generation"): "needs a second model that fills spans, such as T5; give what it writes to "
    "rank_templates",
    ("answer_shape", "sentence"): "an unbounded answer is no label: decode it with leaven.generation from the prompt's "
    "ids",
    ("answer", "discrete:paraphrasing"): "needs a paraphraser or a translator; give the paraphrases as several words "
    "of a label",
}
"""Leaves without a method, and why."""

_BOTH = ("cloze", "prefix")
_ALL = ("masked", "causal", "seq2seq")
_NO_LABELS, _LABELLED = ("zero",), ("few", "full")


@dataclass(frozen=True)
class PromptMethod:
    """A method under the values of its facets.

    make: builds it for a task, trained under the row `tuning` of `STRATEGIES`; its `predict` then answers.
    regime: how many labelled examples it is for: "zero" reads no label at all, "few" and "full" learn from them.
    source: the arXiv id of the paper that it stands for.
    """

    name: str
    make: Callable[[PromptTask], Predictor]
    source: str
    tuning: str = "tuning-free"
    effort: str = "manual"
    answer: str = "manual"
    answer_shape: str = "token"
    multi_prompt: str = "single"
    shape: tuple[str, ...] = _BOTH
    model: tuple[str, ...] = _ALL
    regime: tuple[str, ...] = _LABELLED

    def values(self, facet: str) -> tuple[str, ...]:
        """Its values of a facet."""
        found: str | tuple[str, ...] = getattr(self, facet)
        return (found,) if isinstance(found, str) else found


METHODS: tuple[PromptMethod, ...] = (
    PromptMethod("fine-tuning", recipes.fine_tuning, "1810.04805", "promptless", "none", "none", shape=("none",)),
    PromptMethod("zero-shot", recipes.zero_shot, "2005.14165", regime=_NO_LABELS),
    PromptMethod("contextual-calibration", recipes.calibrated, "2102.09690", regime=_NO_LABELS),
    PromptMethod("pattern-tuning", recipes.pattern_tuning, "2001.07676", "fixed-prompt"),
    PromptMethod("prompt-tuning", recipes.prompt_tuning, "2104.08691", "fixed-LM", "continuous:prompt-tuning"),
    PromptMethod("prefix-tuning", recipes.prefix_tuning, "2101.00190", "fixed-LM", "continuous:prefix-tuning"),
    PromptMethod(
        "initialised-prompt",
        recipes.initialised_prompt,
        "2104.05240",
        "fixed-LM",
        "continuous:initialised",
    ),
    PromptMethod("p-tuning", recipes.hybrid_prompt, "2103.10385", "prompt+LM", "continuous:hybrid"),
    PromptMethod("autoprompt", recipes.gradient_search, "2010.15980", effort="discrete:gradient-search"),
    PromptMethod("ranked-paraphrases", recipes.ranked_templates, "1911.12543", effort="discrete:paraphrasing"),
    PromptMethod(
        "likeliest-prompt",
        recipes.likeliest_template,
        "1909.00505",
        effort="discrete:scoring",
        model=("masked", "causal"),
        regime=_NO_LABELS,
    ),
    PromptMethod("petal", recipes.searched_words, "2010.13641", "fixed-prompt", answer="discrete:prune-then-search"),
    PromptMethod(
        "label-decomposition",
        recipes.decomposed_labels,
        "2104.07650",
        answer="discrete:label-decomposition",
        regime=_NO_LABELS,
    ),
    PromptMethod("warp", recipes.label_vectors, "2101.00121", "fixed-LM", answer="continuous:label-vectors"),
    PromptMethod("protoverb", recipes.prototypes, "2203.09770", "prompt+LM", answer="continuous:prototypes"),
    PromptMethod("span-answers", recipes.span_answers, "2010.06189", answer_shape="span", regime=_NO_LABELS),
    PromptMethod(
        "uniform-ensemble", recipes.uniform_ensemble, "1911.12543", multi_prompt="ensembling:uniform", regime=_NO_LABELS
    ),
    PromptMethod("weighted-ensemble", recipes.weighted_ensemble, "2001.07676", multi_prompt="ensembling:weighted"),
    PromptMethod(
        "majority-vote", recipes.majority_vote, "2104.08691", multi_prompt="ensembling:majority", regime=_NO_LABELS
    ),
    PromptMethod(
        "distilled-ensemble",
        recipes.distilled_ensemble,
        "2001.07676",
        "promptless",
        multi_prompt="ensembling:distillation",
        regime=_NO_LABELS,
    ),
    PromptMethod("demonstrations", recipes.demonstrations, "2012.15723", multi_prompt="augmentation:selection"),
    PromptMethod(
        "ordered-demonstrations",
        recipes.ordered_demonstrations,
        "2104.08786",
        multi_prompt="augmentation:ordering",
        regime=("few",),
    ),
    PromptMethod(
        "ptr",
        recipes.composed_prompt,
        "2105.11259",
        "fixed-prompt",
        multi_prompt="composition",
        shape=("cloze",),
        model=("masked",),
    ),
    PromptMethod("template-ner", recipes.decomposed_prompt, "2106.01760", "fixed-prompt", multi_prompt="decomposition"),
)


def find(**facets: str) -> list[PromptMethod]:
    """Methods with these values of facets; a branch such as effort="continuous" stands for all of its leaves.

    A leaf that no method has is explained in `NONE`.

    Raises: ConfigError for an unknown facet or value, naming those there are.
    """
    for facet, value in facets.items():
        if facet not in FACETS:
            raise ConfigError(f"facet {facet!r}: expected one of {', '.join(FACETS)}")
        if not any(_under(leaf, value) for leaf in FACETS[facet]):
            raise ConfigError(f"{facet}={value!r}: expected one of {', '.join(FACETS[facet])}, or a branch of these")
    return [
        method
        for method in METHODS
        if all(any(_under(leaf, value) for leaf in method.values(facet)) for facet, value in facets.items())
    ]


def _under(leaf: str, value: str) -> bool:
    return leaf == value or leaf.startswith(f"{value}:")
