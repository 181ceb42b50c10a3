"""CodeBLEU: BLEU, keywords, syntax and data flow of generated code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from leaven.errors import ConfigError
from leaven.metrics.ast_match import ast_match
from leaven.metrics.data_flow_match import data_flow_match
from leaven.metrics.ngram_match import ngram_match, weighted_ngram_match
from leaven.metrics.pairs import References


class CodeBLEUTerms(NamedTuple):
    """The four terms, each in [0, 100]."""

    ngram: float
    weighted_ngram: float
    syntax: float
    data_flow: float


def codebleu_terms(predictions: Sequence[str], references: References, language: str) -> CodeBLEUTerms:
    """The four terms of CodeBLEU. Arguments and errors as in `codebleu`."""
    return CodeBLEUTerms(
        ngram_match(predictions, references),
        weighted_ngram_match(predictions, references, language),
        ast_match(predictions, references, language),
        data_flow_match(predictions, references, language),
    )


def codebleu(
    predictions: Sequence[str],
    references: References,
    language: str,
    weights: tuple[float, float, float, float] = (0.25, 0.25, 0.25, 0.25),
) -> float:
    """CodeBLEU over a corpus, in [0, 100].

    Args:
        predictions: code. references: for each the right code, or several versions of it.
        language: any of the eight, by name or alias.
        weights: of BLEU, keyword-weighted n-grams, syntax and data flow; they sum to 1.

    The figures are those of the official evaluator for Python, Java and C#, as far as its old grammars parse the code
    (see `evaluator_grammar`), its known defects included: tokens are what stands between white space, so code
    must be tokenised the same way on both sides; comments are taken out as Java's; the data-flow term is 0 when no
    reference has any.

    Raises: DataError for unequal lengths, no predictions, or a prediction without a reference; ConfigError for an
    unknown language or weights that do not sum to 1.
    Source: arXiv 2009.10297; CodeT5 `evaluator/CodeBLEU/calc_code_bleu.py`.
    """
    if len(weights) != 4 or min(weights) < 0 or not math.isclose(sum(weights), 1):
        raise ConfigError(f"weights={weights}: expected four numbers of at least 0 whose sum is 1")
    terms = codebleu_terms(predictions, references, language)
    return math.fsum(weight * term for weight, term in zip(weights, terms, strict=True))
