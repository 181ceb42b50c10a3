import json

import pytest

from leaven.cli import main

GOOD = '{"source": "a", "target": "b"}\n'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *argv):
    assert main(["data", "check", *argv]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\nerror: ") == 0 and "Traceback" not in err
    return out, err


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("utf8.jsonl", GOOD.encode() + b'{"source": "\xff", "target": "b"}\n', "utf8.jsonl:2: not UTF-8"),
        ("broken.jsonl", GOOD.encode() + b'{"source": \n', "broken.jsonl:2: broken JSON"),
        ("missing.jsonl", GOOD.encode() + b'{"source": "a"}\n', "missing.jsonl:2: field 'target' is missing"),
        (
            "type.jsonl",
            b'{"text": "a", "label": 1}\n{"text": "a", "label": 0.5}\n',
            "type.jsonl:2: field 'label' is a number with a fraction (0.5), expected a whole number or a name",
        ),
        (
            "mixed.jsonl",
            b'{"text": "a", "label": 1}\n{"text": "a", "label": "x"}\n',
            "mixed.jsonl:2: field 'label' is 'x', and most rows have whole numbers there",
        ),
        ("short.csv", b"source,target\na,b\nc\n", "short.csv:3: 1 columns, expected 2"),
        ("bad.py", b"def f(x:\n    return x\n", "bad.py:1: syntax error: does not parse as python"),
        ("empty.py", b"", "empty.py: empty file"),
        ("empty.jsonl", b"", "the file 'empty.jsonl' is empty"),
        ("latin.txt", b"caf\xe9\n", "latin.txt:1: paragraph left out: a line is not UTF-8"),
    ],
)
def test_bad_files_are_refused_with_file_line_and_reason(capsys, folder, file, content, reason):
    (folder / file).write_bytes(content)
    suffix = file.rpartition(".")[2]
    scheme = {"py": "code", "txt": "text"}.get(suffix, suffix)
    _, message = refused(capsys, f"{scheme}:{file}")
    assert reason in message


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("jsonl:gone.jsonl", "no such file"),
        ("code:gone", "no such file or folder"),
        ("code:nothing", "is empty"),
        ("text:nothing", "is empty"),
        ("code:foreign", "expected source files of python"),
        ("parket:x", "unknown data source"),
        ("nonsense", "unknown data source"),
    ],
)
def test_missing_empty_and_unknown_sources(capsys, folder, spec, reason):
    (folder / "nothing").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "main.zig").write_text("x")
    out, message = refused(capsys, spec)
    assert out == "" and reason in message


def test_bad_rows_under_the_share_are_listed_but_accepted(capsys, folder):
    (folder / "rows.jsonl").write_text(GOOD * 39 + "{\n")
    assert main(["data", "check", "jsonl:rows.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert "40 rows read, 39 good, 1 bad" in out and "rows.jsonl:40: broken JSON" in out and err == ""
    refused(capsys, "jsonl:rows.jsonl", "--max-bad-share", "0.01")


def test_many_bad_rows_are_listed_beyond_the_message(capsys, folder):
    (folder / "rows.jsonl").write_text(GOOD + "{\n" * 9)
    out, message = refused(capsys, "jsonl:rows.jsonl")
    assert "rows.jsonl:10" in out and "and 4 more" in message


def test_json_is_complete_also_when_refused(capsys, folder):
    (folder / "rows.jsonl").write_text(GOOD + "{\n")
    out, _ = refused(capsys, "jsonl:rows.jsonl", "--json")
    account = json.loads(out)
    assert (account["good"], account["bad"], account["ok"]) == (1, 1, False)
    assert account["bad_rows"][0]["line"] == 2


def test_a_kind_that_the_rows_are_not(capsys, folder):
    (folder / "rows.jsonl").write_text(GOOD)
    _, message = refused(capsys, "jsonl:rows.jsonl", "--kind", "labelled")
    assert "rows.jsonl:1" in message


def test_sources_are_listed(capsys):
    assert main(["data", "list", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["stdlib-code"]["tier"] == "embedded" and "jsonl:" in found
    assert main(["data", "list"]) == 0
    assert "stdlib-code" in capsys.readouterr().out
