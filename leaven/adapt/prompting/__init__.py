"""Prompting of any language model: templates, verbalizers, tuning strategies, prompt search, several prompts.

`PromptedClassifier(model, tokenizer, "{text} This is about {mask}.", {"mail": "mail", "files": "disk"})` labels texts;
`find(shape="cloze", effort="continuous", tuning="fixed-LM")` lists ready methods.
"""

from leaven.adapt.prompting.automatic_verbalizers import (
    PrototypeVerbalizer,
    SoftVerbalizer,
    TaskHead,
    search_label_words,
)
from leaven.adapt.prompting.classifier import Prediction, PromptedClassifier
from leaven.adapt.prompting.multi_prompt import Demonstrations, PromptEnsemble, best_order, label_entropy
from leaven.adapt.prompting.recipes import PromptTask
from leaven.adapt.prompting.search import SelectedPerInput, log_likelihoods, rank_templates, search_trigger
from leaven.adapt.prompting.slots import SlotReader, Slots
from leaven.adapt.prompting.spans import Span, SpanClassifier, SpanLabeller
from leaven.adapt.prompting.strategies import STRATEGIES, Strategy
from leaven.adapt.prompting.template import Demonstration, Template
from leaven.adapt.prompting.tokenizer import PromptTokenizer, prompt_tokenizer
from leaven.adapt.prompting.typology import FACETS, METHODS, NONE, PromptMethod, find
from leaven.adapt.prompting.verbalizers import ComposedVerbalizer, ManualVerbalizer, Verbalizer, decomposed_words

__all__ = [
    "FACETS",
    "METHODS",
    "NONE",
    "STRATEGIES",
    "ComposedVerbalizer",
    "Demonstration",
    "Demonstrations",
    "ManualVerbalizer",
    "Prediction",
    "PromptEnsemble",
    "PromptMethod",
    "PromptTask",
    "PromptTokenizer",
    "PromptedClassifier",
    "PrototypeVerbalizer",
    "SelectedPerInput",
    "SlotReader",
    "Slots",
    "SoftVerbalizer",
    "Span",
    "SpanClassifier",
    "SpanLabeller",
    "Strategy",
    "TaskHead",
    "Template",
    "Verbalizer",
    "best_order",
    "decomposed_words",
    "find",
    "label_entropy",
    "log_likelihoods",
    "prompt_tokenizer",
    "rank_templates",
    "search_label_words",
    "search_trigger",
]
