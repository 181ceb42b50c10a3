import pytest

from leaven.metrics.data_flow_match import nameless_flows
from leaven.metrics.evaluator_code import evaluator_tree, without_comments

COMES, COMPUTED = "comesFrom", "computedFrom"


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("java", "class A { int f ( int n ) { int k = n ; return k ; } }"),
        ("c", "int f(int n) { int k = n; return k; }"),
        ("c_sharp", "class A { int F ( int n ) { int k = n ; return k ; } }"),
        ("javascript", "function f(n) { var k = n; return k; }"),
        ("go", "func f(n int) int { var k = n; return k }"),
    ],
)
def test_a_value_goes_through_a_variable(language: str, code: str) -> None:
    # The parameter, its use, the definition from that use, and the return of it.
    flows = nameless_flows(code, language)
    assert flows[-4:] == [
        ("var_0", COMES, ()),
        ("var_1", COMES, ("var_0",)),
        ("var_0", COMES, ("var_0",)),
        ("var_1", COMES, ("var_1",)),
    ]


def test_branches_join_and_loops_run_twice() -> None:
    joined = nameless_flows("def f(c):\n    x = 1\n    if c:\n        x = 2\n    return x", "python")
    assert joined[-1] == (joined[-1][0], COMES, (joined[-1][0],))
    looped = nameless_flows("def f(x, y):\n    while x:\n        x = y\n        y = x\n    return x", "python")
    # Before the loop and around it, `x` in the condition comes from the parameter and from the body.
    assert (looped[0][0], COMES, (looped[0][0],)) in looped


def test_parallel_assignment_pairs_its_sides() -> None:
    flows = nameless_flows("def f(a, b):\n    a, b = b, a\n    return a", "python")
    assert ("var_0", COMPUTED, ("var_1",)) in flows
    assert ("var_1", COMPUTED, ("var_0",)) in flows
    assert ("var_0", COMPUTED, ("var_0", "var_1")) not in flows


def test_code_without_variables_has_no_flow() -> None:
    assert nameless_flows("public boolean isEmpty ( ) { return size == 0 ; }", "java") == []
    assert nameless_flows("", "python") == []


def test_comments_are_those_of_java_in_every_language() -> None:
    assert without_comments("a = 1 // 2\nb = '// c' # d\n\n/* e\nf */ g") == "a = 1  \nb = '// c' # d\n  g"


@pytest.mark.parametrize(
    ("language", "code", "expression"),
    [
        (
            "python",
            "x = 'a'",
            "(module (expression_statement (assignment left: (expression_list (identifier)) right: "
            "(expression_list (string)))))",
        ),
        (
            "python",
            "for a, b in c:\n    pass",
            "(module (for_statement left: (variables (identifier) (identifier)) right: (expression_list (identifier)) "
            "body: (block (pass_statement))))",
        ),
        (
            "c_sharp",
            "public void F ( ) { x = 1 ; }",
            "(compilation_unit (method_declaration (modifier) type: (void_keyword) name: (identifier) parameters: "
            "(parameter_list) body: (block (expression_statement (assignment_expression left: (identifier) "
            "(assignment_operator) right: (integer_literal))))))",
        ),
        (
            "java",
            "public int f ( ) { return 1 ; }",
            "(program (local_variable_declaration (modifiers) type: (integral_type) declarator: (variable_declarator "
            'name: (identifier)) (MISSING ";")) (ERROR (formal_parameters)) (block (return_statement '
            "(decimal_integer_literal))))",
        ),
    ],
)
def test_trees_are_those_of_the_evaluators_grammars(language: str, code: str, expression: str) -> None:
    assert evaluator_tree(code, language)[0].expression() == expression
