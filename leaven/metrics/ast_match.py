"""The syntax term of CodeBLEU."""

from __future__ import annotations

from collections.abc import Sequence

from leaven.data.grammars import resolve_language
from leaven.metrics.evaluator_code import evaluator_tree
from leaven.metrics.pairs import References, reference_lists


def ast_match(predictions: Sequence[str], references: References, language: str) -> float:
    """Share of the references' sub-trees that the prediction holds as well, in [0, 100], over the corpus.

    A sub-tree is a node with all below it, by the kinds of nodes alone: names and values do not count. A node without
    children is none. One sub-tree of the prediction may match many of the reference.

    Raises: DataError for unequal lengths, no predictions, or a prediction without a reference; ConfigError for an
    unknown language. Source: CodeT5 `evaluator/CodeBLEU/syntax_match.py`; arXiv 2009.10297 section 3.2.
    """
    language = resolve_language(language)
    matches = total = 0
    for prediction, texts in zip(predictions, reference_lists(predictions, references), strict=True):
        found = set(evaluator_tree(prediction, language)[0].subtree_expressions())
        for text in texts:
            wanted = evaluator_tree(text, language)[0].subtree_expressions()
            matches += sum(expression in found for expression in wanted)
            total += len(wanted)
    return 100 * matches / total
