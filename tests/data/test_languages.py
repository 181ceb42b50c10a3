import ast
import io
import keyword
import tokenize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.data.languages import (
    LANGUAGES,
    has_syntax_error,
    identifier_spans,
    language_of,
    parse,
    parse_fragment,
    resolve_language,
)
from leaven.data.stdlib_code import stdlib_code
from leaven.errors import ConfigError


def names(code, language):
    return [code[start:end] for start, end in identifier_spans(code, language)]


def soft_keyword_positions(tree):
    """(line, column) in characters of `match`, `case`, `type` used as keywords and of the wildcard `_`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Match):
            found.add((node.lineno, node.col_offset))
        if isinstance(node, ast.MatchAs) and node.name is None and node.pattern is None:
            found.add((node.lineno, node.col_offset))
        if type(node).__name__ == "TypeAlias":
            found.add((node.lineno, node.col_offset))
    return found


def tokenize_names(code):
    """Oracle: NAME tokens that are no keywords, as (start, end) in characters."""
    lines = code.splitlines(keepends=True)
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    soft = soft_keyword_positions(ast.parse(code))
    has_match = bool(soft)
    result = []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type != tokenize.NAME or keyword.iskeyword(token.string):
            continue
        row, column = token.start
        byte_column = len(lines[row - 1][:column].encode())
        if (row, byte_column) in soft:
            continue
        # `case` at the head of a line within a match statement is always the keyword.
        if has_match and token.string == "case" and not lines[row - 1][:column].strip():
            continue
        result.append((offsets[row - 1] + column, offsets[row - 1] + token.end[1]))
    return result


def test_python_names_equal_tokenize_over_the_standard_library():
    compared = 0
    for example in stdlib_code("all")[::24]:
        code = example.code + "\n"
        # Before 3.12 tokenize gives an f-string as one string; names inside are tested below against ast.
        if any(isinstance(node, ast.JoinedStr) for node in ast.walk(ast.parse(code))) or "\f" in code:
            continue
        assert identifier_spans(code, "python") == tokenize_names(code), (example.module, example.line)
        compared += 1
    assert compared >= 300


def test_names_inside_interpolations_equal_those_of_ast():
    compared = 0
    for example in stdlib_code("all")[::5]:
        code = example.code + "\n"
        tree = ast.parse(code)
        strings = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        if not strings:
            continue
        found = names(code, "python")
        inside = [node.id for string in strings for node in ast.walk(string) if isinstance(node, ast.Name)]
        assert all(name in found for name in inside)
        compared += 1
    assert compared >= 50


@pytest.mark.parametrize(
    ("language", "code", "expected"),
    [
        ("python", "def f(self, é): # x\n    return f'{é!r} y' + 'z' + None", ["f", "self", "é", "é"]),
        (
            "python",
            "match match:\n    case [type, _]:\n        case = type",
            ["match", "type", "case", "type"],
        ),
        (
            "java",
            "public int f(List<String> a) { /* b */ return this.c + a.d(\"é\") + 'x'; }",
            ["f", "List", "String", "a", "c", "a", "d"],
        ),
        ("java", "public Foo(int a) { super(a); }", ["Foo", "a", "a"]),
        ("c", "static struct s *f(int a) { return a->b + NULL + M(a); } // c", ["s", "f", "a", "a", "b", "M", "a"]),
        (
            "c_sharp",
            "public int F(List<string> a) { var x = 1; return this.y + x; }",
            ["F", "List", "a", "x", "y", "x"],
        ),
        (
            "javascript",
            "const f = (a, {b, c: d}) => { return undefined + this.e + `t${a}` + 'q'; }",
            ["f", "a", "b", "c", "d", "e", "a"],
        ),
        ("javascript", "const {a} = b;", ["a", "b"]),
        (
            "go",
            "func (r *T) f(b int) error { _, e := b.(string); goto L\nL: return nil }",
            ["r", "T", "f", "b", "int", "error", "_", "e", "b", "string", "L", "L"],
        ),
        (
            "ruby",
            'def f(a, k: 1)\n  @x = a ? Foo::Bar : :sym\n  $g = self\n  "é#{a}"\nend # c',
            ["f", "a", "k", "@x", "a", "Foo", "Bar", "$g", "a"],
        ),
        (
            "php",
            "function f($a) { $this->x = foo($a, 'é', PHP_EOL); return new B(self::A, true); }",
            ["f", "a", "x", "foo", "a", "PHP_EOL", "B", "A"],
        ),
        ("php", '<p>no</p><?php echo $a . "s $b"; ?>', ["a", "b"]),
        ("php", "public function f($a) { return '<?php'; }", ["f", "a"]),
    ],
)
def test_names_by_language(language, code, expected):
    assert names(code, language) == expected


@pytest.mark.parametrize("language", LANGUAGES)
def test_keywords_strings_numbers_and_comments_hold_no_names(language):
    code = {
        "python": "# name\nif True:\n    return 'name', 12, None\n",
        "java": 'int x() { /* name */ return "name".length() + 12; }',
        "c": 'int x(void) { /* name */ return sizeof("name") + 12; }',
        "c_sharp": 'int x() { /* name */ return "name" == null ? 12 : 0; }',
        "javascript": "function x() { /* name */ return 'name' + 12 + null; }",
        "go": 'func x() { /* name */ if "name" == "12" { return } }',
        "ruby": "def x\n  # name\n  return 'name', 12, nil, :name\nend",
        "php": "function x() { /* name */ return 'name' . 12 . null; }",
    }[language]
    assert set(names(code, language)) <= {"x", "length"}


@given(st.text(alphabet="éü漢😀ab \n", max_size=20))
def test_offsets_are_characters_whatever_stands_before(text):
    code = f"s = '''{text}'''\nvalue = s\n"
    assert names(code, "python") == ["s", "value", "s"]


def test_lone_surrogate_keeps_offsets():
    assert names("x = '\ud800'\ny = x", "python") == ["x", "y", "x"]


@given(st.text(max_size=60), st.sampled_from(LANGUAGES))
def test_spans_are_ascending_and_disjoint_for_any_text(text, language):
    spans = identifier_spans(text, language)
    flat = [offset for span in spans for offset in span]
    assert flat == sorted(flat) and all(start < end for start, end in spans)
    assert not flat or (flat[0] >= 0 and flat[-1] <= len(text))


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("Python", "python"),
        ("C#", "c_sharp"),
        ("csharp", "c_sharp"),
        ("cs", "c_sharp"),
        ("JS", "javascript"),
        (".rb", "ruby"),
    ],
)
def test_aliases(given_name, expected):
    assert resolve_language(given_name) == expected


def test_unknown_language_lists_those_that_exist_and_the_probable_one():
    with pytest.raises(ConfigError, match=r"'pyhton'.*python, java, c, c_sharp.*did you mean 'python'"):
        resolve_language("pyhton")
    with pytest.raises(ConfigError, match="supported are"):
        parse("x", "cobol")


def test_language_of_files():
    assert language_of("a/b.PY") == "python"
    assert language_of("x.cs") == "c_sharp"
    assert language_of("x.h") == "c"
    assert language_of("x.txt") is None


@pytest.mark.parametrize(
    ("language", "code", "wrong"),
    [
        ("python", "def f(:\n  pass", True),
        ("python", "def f(): pass", False),
        ("java", "public Foo(int a) { }", False),
        ("java", "public int f( { }", True),
        ("javascript", "foo(a) { return a }", False),
        ("c_sharp", "public Foo(int a) { }", False),
        ("php", "private static function f() { return 1; }", False),
        ("php", "function f( { }", True),
        ("go", "func f() {", True),
        ("ruby", "def f\n", True),
        ("c", "int f( { }", True),
    ],
)
def test_syntax_errors_but_not_for_a_method_without_its_class(language, code, wrong):
    assert has_syntax_error(code, language) is wrong


def test_fragment_shift_points_back_to_the_code():
    code = "public Foo(int a) { }"
    tree, shift = parse_fragment(code, "java")
    assert tree.root_node.text[shift : shift + len(code)].decode() == code and not tree.root_node.has_error
    assert parse_fragment("int f() { return 1; }", "c")[1] == 0


def test_bytes_and_text_parse_alike():
    assert str(parse("é = 1", "python").root_node) == str(parse("é = 1".encode(), "python").root_node)
