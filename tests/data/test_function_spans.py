import ast
import sysconfig
from pathlib import Path

import pytest

from leaven.data.languages import functions, has_syntax_error

CASES = {
    "python": (
        "import x\n\nclass A:\n    @dec\n    def f(self, é):\n"
        "        '''Doc é.\n\n        More.\n        '''\n        return é\n",
        ("f", "Doc é.\n\nMore.", "def f(self, é):\n    return é", 5, 10),
    ),
    "java": (
        "class A {\n  int z;\n\n  /**\n   * Adds é.\n   * @param a x\n   */\n"
        "  public int f(int a) {\n    return a;\n  }\n}\n",
        ("f", "Adds é.\n@param a x", "public int f(int a) {\n  return a;\n}", 8, 10),
    ),
    "c": (
        "int x; // no\n/* yes é */\nstatic struct s *f(int a)\n{\n  return 0;\n}\n",
        ("f", "yes é", "static struct s *f(int a)\n{\n  return 0;\n}", 3, 6),
    ),
    "c_sharp": (
        "class A {\n  /// <summary>\n  /// Adds.\n  /// </summary>\n  int F(int a) { return a; }\n}\n",
        ("F", "Adds.", "int F(int a) { return a; }", 5, 5),
    ),
    "javascript": (
        "// Adds.\n// More.\nexport const f = (a) => {\n  return a;\n}\n",
        ("f", "Adds.\nMore.", "const f = (a) => {\n  return a;\n}", 3, 5),
    ),
    "go": (
        "package x\n\n// F adds.\nfunc (t *T) F(a int) int {\n\treturn a\n}\n",
        ("F", "F adds.", "func (t *T) F(a int) int {\n\treturn a\n}", 4, 6),
    ),
    "ruby": (
        "class A\n  # Adds.\n  def self.f(a)\n    a\n  end\nend\n",
        ("f", "Adds.", "def self.f(a)\n  a\nend", 3, 5),
    ),
    "php": (
        "<?php\nclass A {\n  /** Adds. */\n  function f($a) { return $a; }\n}\n",
        ("f", "Adds.", "function f($a) { return $a; }", 4, 4),
    ),
}


@pytest.mark.parametrize("language", CASES)
def test_function_with_its_documentation(language):
    source, (name, docstring, code, first, last) = CASES[language]
    (span,) = functions(source, language)
    assert (span.name, span.docstring, span.code) == (name, docstring, code)
    assert (span.start_line, span.end_line) == (first, last)
    assert not has_syntax_error(span.code, language)
    whole = source[span.start : span.end]
    assert whole.startswith(code[:3]) or language == "javascript"
    assert source[: span.start].count("\n") + 1 == first
    assert source[: span.end].count("\n") + 1 == last


def test_comment_after_a_blank_line_or_behind_other_code_is_not_documentation():
    assert functions("// far\n\nint f() { return 1; }", "c")[0].docstring is None
    assert functions("int x; // trailing\nint f() { return 1; }", "c")[0].docstring is None


def test_functions_without_a_body_are_left_out_and_nested_ones_belong_to_the_outer():
    assert functions("abstract class A { abstract int f(); }", "java") == []
    assert functions("int f(int a);", "c") == []
    assert [span.name for span in functions("def f():\n    def g():\n        pass\n    return g\n", "python")] == ["f"]


def test_javascript_functions_inside_an_anonymous_module_are_found():
    body = "function f(a) { return a }\n  module.exports.g = function (b) { return b }\n  class C { m() {} }"
    source = "(function () {\n  " + body + "\n})()"
    assert [span.name for span in functions(source, "javascript")] == ["f", "g", "m"]


def test_a_body_of_docstring_alone_becomes_pass():
    (span,) = functions("def f(): 'Only.'\n", "python")
    assert (span.docstring, span.code) == ("Only.", "def f(): pass")
    (span,) = functions("def f():\n    '''Only.'''\n", "python")
    assert ast.parse(span.code) and span.docstring == "Only."


def test_a_text_line_at_column_zero_does_not_keep_a_method_indented():
    (span,) = functions("class A:\n    def f(self):\n        return '''\nabc'''\n", "python")
    assert ast.parse(span.code).body[0].name == "f"


def test_lone_method_lines_count_from_one():
    (span,) = functions("public Foo(int a) {\n}", "java")
    assert (span.start, span.start_line, span.end_line, span.name) == (0, 1, 2, "Foo")


def ast_functions(node):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif not isinstance(child, ast.Lambda):
            yield from ast_functions(child)


@pytest.mark.parametrize("module", ["heapq", "textwrap", "argparse", "json/decoder", "dataclasses", "fractions"])
def test_python_functions_equal_those_of_ast(module):
    source = (Path(sysconfig.get_path("stdlib")) / f"{module}.py").read_text(encoding="utf-8")
    expected = list(ast_functions(ast.parse(source)))
    found = functions(source, "python")
    assert [span.name for span in found] == [node.name for node in expected]
    for span, node in zip(found, expected, strict=True):
        segment = ast.get_source_segment(source, node)
        assert source[span.start : span.end].startswith(segment)
        # The grammar counts comments after the last statement into the body.
        rest = source[span.start : span.end][len(segment) :]
        assert all(not line.strip() or line.strip().startswith("#") for line in rest.splitlines())
        assert (span.docstring or None) == (ast.get_docstring(node) or None)
        bare = ast.parse(span.code).body[0]
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        if body:
            assert (
                [ast.dump(part) for part in bare.body] == [ast.dump(part) for part in body]
                or "'''" in span.code
                or '"""' in span.code
            )
