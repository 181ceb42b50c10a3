"""Which nodes move data in each language.

The official evaluator has one function per language that differ in a few kinds of nodes; here they are one walk
(`data_flow`) with these tables. C, for which it has none, follows Java with C's node kinds.

Source: CodeT5 `evaluator/CodeBLEU/parser/DFG.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class FlowGrammar:
    """The node kinds that move data in a language.

    definitions: kind -> roles of name and value; None where they are the two children.
    assignments: statements with roles left and right.
    parallel: `a, b = c, d` pairs its sides, and all sources of a target make one flow.
    increments: statements like `x++`.
    branches: statements that choose. alternatives: their children that start from the state before. sticky: all
        children after the first alternative are alternatives too. keeps_before: the state before the statement
        survives it even when there is an else.
    loops: kind -> the child after which everything runs a second time.
    each_loops: kind -> roles of target and values; None where they are variables among the children.
    repeats: statements that run twice as a whole.
    first: children that are read before their elder siblings.
    shares_state: an assignment in a part of a statement is known to the parts beside it, as the evaluator copies no
        state in this language.
    """

    definitions: dict[str, tuple[str, str] | None]
    assignments: frozenset[str]
    branches: frozenset[str]
    alternatives: frozenset[str]
    parallel: bool = False
    increments: frozenset[str] = frozenset()
    sticky: bool = True
    keeps_before: bool = False
    loops: dict[str, str] = field(default_factory=dict)
    each_loops: dict[str, tuple[str, str] | None] = field(default_factory=dict)
    repeats: frozenset[str] = frozenset({"while_statement"})
    first: frozenset[str] = frozenset()
    shares_state: bool = False


_IF_ELSE = frozenset({"if_statement", "else"})
_ASSIGNMENT = frozenset({"assignment_expression"})
_UPDATE = frozenset({"update_expression"})
_RUBY_BRANCHES = frozenset({"if", "elsif", "else", "unless", "when"})

FLOW_GRAMMARS: dict[str, FlowGrammar] = {
    "python": FlowGrammar(
        definitions={"default_parameter": ("name", "value")},
        assignments=frozenset({"assignment", "augmented_assignment", "for_in_clause"}),
        parallel=True,
        branches=frozenset({"if_statement"}),
        alternatives=frozenset({"elif_clause", "else_clause"}),
        sticky=False,
        each_loops={"for_statement": ("left", "right")},
        first=frozenset({"for_in_clause"}),
    ),
    "java": FlowGrammar(
        definitions={"variable_declarator": ("name", "value")},
        assignments=_ASSIGNMENT,
        increments=_UPDATE,
        branches=_IF_ELSE,
        alternatives=_IF_ELSE,
        loops={"for_statement": "local_variable_declaration"},
        each_loops={"enhanced_for_statement": ("name", "value")},
    ),
    "c": FlowGrammar(
        definitions={"init_declarator": ("declarator", "value")},
        assignments=_ASSIGNMENT,
        increments=_UPDATE,
        branches=frozenset({"if_statement", "else_clause"}),
        alternatives=frozenset({"if_statement", "else_clause"}),
        loops={"for_statement": "declaration"},
    ),
    "c_sharp": FlowGrammar(
        definitions={"variable_declarator": None},
        assignments=_ASSIGNMENT,
        increments=frozenset({"postfix_unary_expression"}),
        branches=_IF_ELSE,
        alternatives=_IF_ELSE,
        loops={"for_statement": "local_variable_declaration"},
        each_loops={"for_each_statement": ("left", "right")},
    ),
    "javascript": FlowGrammar(
        definitions={"variable_declarator": ("name", "value")},
        assignments=frozenset({"assignment_pattern", "augmented_assignment_expression"}),
        increments=_UPDATE,
        branches=_IF_ELSE,
        alternatives=_IF_ELSE,
        keeps_before=True,
        loops={"for_statement": "variable_declaration"},
    ),
    "go": FlowGrammar(
        definitions={"var_spec": ("name", "value")},
        assignments=frozenset({"assignment_statement"}),
        increments=frozenset({"inc_statement"}),
        branches=_IF_ELSE,
        alternatives=_IF_ELSE,
        keeps_before=True,
        loops={"for_statement": "for_clause"},
        repeats=frozenset(),
    ),
    "php": FlowGrammar(
        definitions={"simple_parameter": ("name", "default_value")},
        assignments=frozenset({"assignment_expression", "augmented_assignment_expression"}),
        increments=_UPDATE,
        branches=frozenset({"if_statement", "else_clause"}),
        alternatives=frozenset({"if_statement", "else_clause"}),
        keeps_before=True,
        loops={"for_statement": "assignment_expression"},
        each_loops={"foreach_statement": None},
    ),
    "ruby": FlowGrammar(
        definitions={"keyword_parameter": ("name", "value")},
        assignments=frozenset({"assignment", "operator_assignment"}),
        parallel=True,
        branches=_RUBY_BRANCHES,
        alternatives=_RUBY_BRANCHES,
        sticky=False,
        each_loops={"for": ("pattern", "value")},
        repeats=frozenset({"while_modifier", "until"}),
        shares_state=True,
    ),
}
