"""Code as CodeBLEU's official evaluator reads it."""

from __future__ import annotations

import re

from leaven.metrics.evaluator_grammar import as_evaluator_tree
from leaven.metrics.syntax_tree import SyntaxNode, syntax_tree

_COMMENT_OR_STRING = re.compile(r"//.*?$|/\*.*?\*/|'(?:\\.|[^\\'])*'|\"(?:\\.|[^\\\"])*\"", re.DOTALL | re.MULTILINE)


def without_comments(code: str) -> str:
    """Code without `//` and `/* */` comments and without empty lines.

    The evaluator takes the comments of Java for those of every language: `#` comments stay, and what follows Python's
    `//` goes.
    """
    text = _COMMENT_OR_STRING.sub(lambda found: " " if found[0].startswith("/") else found[0], code.strip())
    return "\n".join(line for line in text.split("\n") if line.strip())


def evaluator_tree(code: str, language: str) -> tuple[SyntaxNode, bytes]:
    """Tree of the code without comments, in the evaluator's form, and its source; `language` is a canonical name."""
    root, source = syntax_tree(without_comments(code), language)
    return as_evaluator_tree(root, source, language), source
