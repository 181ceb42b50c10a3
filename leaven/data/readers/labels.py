"""Labels of the user's rows: whole numbers or names of classes, not both."""

from __future__ import annotations

from leaven.data.examples import Example, Labelled
from leaven.data.ledger import Ledger


def labels_of_one_kind(keyed: list[tuple[str, Example]], ledger: Ledger) -> list[tuple[str, Example]]:
    """The rows without those labelled in another way than most: a name among whole numbers, or a number among names.

    They go to the ledger; rows without a label stay.
    """
    named = [isinstance(example, Labelled) and isinstance(example.label, str) for _, example in keyed]
    if not any(named) or all(named):
        return keyed
    names = 2 * sum(named) > len(named)
    most = "names" if names else "whole numbers"
    for (_, example), is_name in zip(keyed, named, strict=True):
        if is_name != names and isinstance(example, Labelled):
            file, _, line = example.where.rpartition(":")
            ledger.bad(file, int(line), f"field 'label' is {example.label!r}, and most rows have {most} there")
    return [one for one, is_name in zip(keyed, named, strict=True) if is_name == names]
