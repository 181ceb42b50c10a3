import pytest

from leaven.data.ledger import Ledger
from leaven.data.readers.code_folder import read_code
from leaven.data.readers.csv_file import read_csv
from leaven.data.readers.jsonl_file import read_jsonl
from leaven.data.readers.parquet_file import read_parquet
from leaven.data.readers.text_folder import read_paragraphs
from leaven.errors import DataError


@pytest.fixture
def ledger():
    return Ledger("test")


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines_and_reasons(ledger):
    return [(row.line, row.reason) for row in ledger.bad_rows]


def test_jsonl_reads_objects_and_reports_every_other_line(tmp_path, ledger):
    content = b"\xef\xbb\xbf" + '{"text": "é"}\n\n{"text": \n[1]\n'.encode() + b'{"text": "\xff"}\n"x"\n{"text": "end"}'
    rows = list(read_jsonl(write(tmp_path, "a.jsonl", content), ledger))
    assert [(row.line, row.fields.values["text"]) for row in rows] == [(1, "é"), (7, "end")]
    found = lines_and_reasons(ledger)
    assert [line for line, _ in found] == [3, 4, 5, 6]
    assert "broken JSON: Expecting value at column" in found[0][1]
    assert found[1][1] == "expected a JSON object, found list"
    assert found[2][1] == "not UTF-8 at byte 10 of the line"
    assert found[3][1] == "expected a JSON object, found str"


def test_jsonl_of_absurd_depth_is_a_bad_row(tmp_path, ledger):
    assert list(read_jsonl(write(tmp_path, "a.jsonl", "[" * 200_000 + "\n"), ledger)) == []
    assert ledger.bad_count == 1


def test_csv_with_quoted_line_breaks_keeps_line_numbers(tmp_path, ledger):
    content = 'source, target\n"a\nb, c",d\nonly\n"x ""y""",é\n\n1,2,3\nlast,one\n'
    rows = list(read_csv(write(tmp_path, "a.csv", content), ledger))
    assert [(row.line, row.fields.values) for row in rows] == [
        (2, {"source": "a\nb, c", "target": "d"}),
        (5, {"source": 'x "y"', "target": "é"}),
        (8, {"source": "last", "target": "one"}),
    ]
    assert lines_and_reasons(ledger) == [
        (4, "1 columns, expected 2 as in the header"),
        (7, "3 columns, expected 2 as in the header"),
    ]
    assert not rows[0].fields.typed


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.csv", "\t"), ("a.csv", ",")])
def test_csv_delimiters(tmp_path, ledger, name, mark):
    (row,) = read_csv(write(tmp_path, name, f"a{mark}b\n1{mark}2\n"), ledger)
    assert row.fields.values == {"a": "1", "b": "2"}


def test_csv_line_that_is_not_utf8(tmp_path, ledger):
    rows = list(read_csv(write(tmp_path, "a.csv", b"a,b\n1,2\n\xff,3\n4,5\n"), ledger))
    assert [(row.line, row.fields.values["a"]) for row in rows] == [(2, "1"), (4, "4")]
    assert lines_and_reasons(ledger) == [(3, "not UTF-8 at byte 0 of the line")]


def test_csv_quote_that_is_never_closed_counts_every_lost_line(tmp_path, ledger):
    rows = list(read_csv(write(tmp_path, "a.csv", 'a,b\n1,2\n"3,4\n5,6\n7,8\n'), ledger))
    assert [row.fields.values["a"] for row in rows] == ["1"]
    assert ledger.bad_count == 3 and ledger.bad_rows[0].line == 3 and "3 lines lost" in ledger.bad_rows[0].reason


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,a\n1,2\n", "column names must be given and differ"),
        ("a,\n1,2\n", "column names"),
        (b"\xff\n", "no readable header"),
    ],
)
def test_csv_header(tmp_path, ledger, content, says):
    with pytest.raises(DataError, match=says):
        list(read_csv(write(tmp_path, "a.csv", content), ledger))


def test_text_paragraphs(tmp_path, ledger):
    content = "\n# One\ntwo  \n\n  \nthree é\n\n".encode() + b"bad \xff\nline\n\nfour"
    found = list(read_paragraphs(write(tmp_path, "a.txt", content), ledger))
    assert [(text.text, line) for text, line in found] == [("# One\ntwo", 2), ("three é", 6), ("four", 11)]
    assert lines_and_reasons(ledger) == [(8, "paragraph left out: a line is not UTF-8")]


def test_text_file_without_text(tmp_path, ledger):
    assert list(read_paragraphs(write(tmp_path, "a.txt", " \n\n"), ledger)) == []
    assert lines_and_reasons(ledger) == [(0, "empty file")]


def test_parquet(tmp_path, ledger):
    pyarrow = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [0, 1]}), path)
    assert [(row.line, row.fields.values) for row in read_parquet(path, ledger)] == [
        (1, {"text": "a", "label": 0}),
        (2, {"text": "b", "label": 1}),
    ]
    damaged = write(tmp_path, "b.parquet", path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable parquet file"):
        list(read_parquet(damaged, ledger))


def test_parquet_without_its_library(tmp_path, ledger, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow.*leaven\[parquet\]"):
        list(read_parquet(tmp_path / "a.parquet", ledger))


def test_code_file(tmp_path, ledger):
    path = write(
        tmp_path, "a.py", '\ufeffclass A:\n    def f(self):\n        """Doc.\n\n        More."""\n        return "é"\n'
    )
    (example,) = read_code(path, ledger, tmp_path)
    assert (example.name, example.docstring, example.line, example.path) == ("f", "Doc.", 2, "a.py")
    assert example.code == 'def f(self):\n    return "é"' and example.module == "a" and ledger.bad_count == 0


def test_functions_beside_a_broken_one_are_used(tmp_path, ledger):
    path = write(tmp_path, "a.go", "package x\nfunc f() int { return 1 }\nfunc g() int { return ) }\nfunc h() {}\n")
    assert [example.name for example in read_code(path, ledger)] == ["f", "h"]
    assert lines_and_reasons(ledger) == [(3, "function 'g' does not parse as go")]


def test_file_that_does_not_parse(tmp_path, ledger):
    assert list(read_code(write(tmp_path, "a.py", "x = 1\ny = (((\n"), ledger)) == []
    (row,) = ledger.bad_rows
    assert row.line == 2 and "does not parse as python" in row.reason


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.py", b"# ok\nx = '\xff'\n", (2, "not UTF-8 at byte 10")),
        ("a.py", b"", (0, "empty file")),
        ("a.java", b" \n", (0, "empty file")),
        ("__init__.py", b"", None),
        ("a.py", b"x = 1\n", None),
    ],
)
def test_code_files_without_functions(tmp_path, ledger, name, content, expected):
    assert list(read_code(write(tmp_path, name, content), ledger)) == []
    assert lines_and_reasons(ledger) == ([expected] if expected else [])
