import ast

import pytest

from leaven.data.examples import CodeExample
from leaven.data.python_functions import first_paragraph, python_functions
from leaven.data.stdlib_code import stdlib_code


@pytest.mark.parametrize(
    ("source", "code", "docstring"),
    [
        (
            "def f(a):\n    '''Sum é.\n    Two.\n\n    More.\n    '''\n    return a\n",
            "def f(a):\n    return a",
            "Sum é.\nTwo.",
        ),
        ("class é:\n  def f(a): 'Doc.'; return a # x\n", "def f(a): return a", "Doc."),
        ("def f(): 'Doc.'\n", "def f(): pass", "Doc."),
        ("def f():\n    'Doc.'\n", "def f():\n    pass", "Doc."),
        ("def f():\n    'Doc.' # why\n    return 1\n", "def f():\n    return 1", "Doc."),
        ("def f():\n    'Doc.'; x = 1\n    return x\n", "def f():\n    x = 1\n    return x", "Doc."),
        ("def f():\n    # first\n    'Doc.'\n    return 1\n", "def f():\n    # first\n    return 1", "Doc."),
        ("@d\nasync def f():\n    return 1\n", "async def f():\n    return 1", None),
        ("def f():\n    ''\n    return 1\n", "def f():\n    return 1", None),
        ("if 1:\n  try:\n    pass\n  except E:\n    def f(): return 1\n", "def f(): return 1", None),
        ("def é(): x = 'ü'; return x", "def é(): x = 'ü'; return x", None),
    ],
)
def test_code_and_docstring(source, code, docstring):
    (example,) = python_functions(source, "m", "m.py")
    assert (example.code, example.docstring) == (code, docstring)
    ast.parse(example.code)


def test_position_and_summary():
    (example,) = python_functions("\n\n@d\ndef f():\n    'One.\\nTwo.'\n    return 1\n", "pkg.m", "pkg/m.py")
    assert (example.name, example.line, example.module, example.path) == ("f", 4, "pkg.m", "pkg/m.py")
    assert example.summary == "One." and CodeExample("x", "python").summary is None


def test_nested_functions_stay_inside():
    assert [
        e.name
        for e in python_functions("class A:\n class B:\n  def f(s):\n   def g(): pass\n   return g\ndef h(): pass\n")
    ] == ["f", "h"]


def test_syntax_error_is_raised():
    with pytest.raises(SyntaxError):
        python_functions("def f(:")


def test_first_paragraph():
    assert first_paragraph("\n  A b\n  c.\n\n  d") == "A b\nc."
    assert first_paragraph("   ") == ""


def test_every_function_of_the_library_parses_alone_under_its_name():
    for example in stdlib_code("all"):
        (node,) = ast.parse(example.code).body
        assert node.name == example.name
        assert (
            ast.get_docstring(node) is None or example.docstring is None or ast.get_docstring(node) != example.docstring
        )
