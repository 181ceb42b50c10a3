"""The data-flow term of CodeBLEU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from leaven.data.grammars import resolve_language
from leaven.metrics.data_flow import data_flow
from leaven.metrics.evaluator_code import evaluator_tree
from leaven.metrics.pairs import References, reference_lists

NamelessFlow = tuple[str, str, tuple[str, ...]]


def data_flow_match(predictions: Sequence[str], references: References, language: str) -> float:
    """Share of the references' data flows that the prediction has as well, in [0, 100], over the corpus.

    Variables are compared by the order in which they appear, so renaming changes nothing. Without any flow in the
    references the evaluator gives 0, and so does this: a perfect prediction then has a CodeBLEU of 75.

    Raises: DataError for unequal lengths, no predictions, or a prediction without a reference; ConfigError for an
    unknown language. Source: CodeT5 `evaluator/CodeBLEU/dataflow_match.py`; arXiv 2009.10297 section 3.3.
    """
    language = resolve_language(language)
    matches = total = 0
    for prediction, texts in zip(predictions, reference_lists(predictions, references), strict=True):
        found = Counter(nameless_flows(prediction, language))
        for text in texts:
            wanted = Counter(nameless_flows(text, language))
            matches += (found & wanted).total()
            total += wanted.total()
    return 100 * matches / total if total else 0.0


def nameless_flows(code: str, language: str) -> list[NamelessFlow]:
    """Flows (variable, relation, sources) of code, in which variables are numbered as they appear."""
    tree, source = evaluator_tree(code, language)
    numbers: dict[str, str] = {}
    flows: list[NamelessFlow] = []
    for flow in data_flow(tree, source, language):
        for name in (*flow.sources, flow.name):
            numbers.setdefault(name, f"var_{len(numbers)}")
        flows.append((numbers[flow.name], flow.relation, tuple(numbers[name] for name in flow.sources)))
    return flows
