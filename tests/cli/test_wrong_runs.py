"""Every wrong option and input of `run`, `apply` and `zoo`: exit code 2, one message, nothing left behind."""

import json
from pathlib import Path

import pytest

from leaven.cli import main

BAD_DATA = {
    "not_utf8.py": b"def f():\n    return '\xff'\n",
    "broken.jsonl": b'{"source": "a", "target": "b"}\n{"source": \n',
    "missing.jsonl": b'{"source": "a"}\n',
    "wrong.jsonl": b'{"source": "a", "target": 3}\n',
    "unparsable.py": b"def f(:\n",
    "empty.py": b"",
    "empty.jsonl": b"",
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, content in BAD_DATA.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "good.py").write_text("def f(a):\n    return a\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES = [
    ("run codet6", "no system 'codet6'", "did you mean codet5"),
    ("run unixcoder", "unixcoder is planned but not built", "built are adam-cil"),
    ("run", "name a system", "--resume DIR"),
    ("run codet5 dimm=3", "no option 'dimm'", "Did you mean dim?"),
    ("run codet5 dim=three", "dim is 'three'", "expected int >= 8"),
    ("run codet5 heads=0", "heads is 0", ">= 1"),
    ("run codet5 dim=30 heads=4", "dim=30 is not a multiple of heads=4", ""),
    ("run codet5 dual=1.5", "dual is 1.5", "< 1"),
    ("run codet5 dim", "'dim' is not of the form key=value", ""),
    ("run codet5 budget=5parsecs", "unknown unit 'parsecs'", "5min"),
    ('run codet5 objectives=["mlm"]', "there is no 'mlm'", "msp, it, mip"),
    ('run codet5 tasks=["nam"]', "no task 'nam'", "did you mean 'name'"),
    ("run codet5 precision=fp8", "precision is 'fp8'", "fp32"),
    ("run codet5 model=zoo:cod", "no zoo:cod", ""),
    ("run codet5 model=nowhere", "there is no model 'nowhere'", "a folder"),
    ("run codet5 data=stdlib-cod", "unknown data source 'stdlib-cod'", "Did you mean 'stdlib-code'"),
    ("run codet5 data=code:gone", "no such file or folder", "good.py"),
    ("run codet5 data=code:empty", "is empty", "python"),
    ("run codet5 data=code:not_utf8.py", "not UTF-8", "not_utf8.py:2"),
    ("run codet5 data=code:unparsable.py", "does not parse as python", "unparsable.py"),
    ("run codet5 data=code:empty.py", "empty file", "empty.py"),
    ('run codet5 tasks=["jsonl:broken.jsonl"]', "broken JSON", "broken.jsonl:2"),
    ('run codet5 tasks=["jsonl:missing.jsonl"]', "missing.jsonl:1", "{source, target}"),
    ('run codet5 tasks=["jsonl:wrong.jsonl"]', "wrong.jsonl:1", "expected text"),
    ('run codet5 tasks=["jsonl:empty.jsonl"]', "empty", ""),
    ("run codet5 --out other", "is not empty and holds no run", "another folder"),
    ("run codet5 --out good.py", "is a file", "--out"),
    ("run codet5 --resume gone", "no run of leaven", "config.json"),
    ("run codet5 --resum gone", "no option '--resum'", "--resume"),
    ("apply other summarize good.py", "config.json", ""),
    ("apply zoo:nothing summarize good.py", "no zoo:nothing", ""),
    ("apply other summarize gone.py", "gone.py: no such file", "standard input"),
    ("apply other summarize not_utf8.py", "not UTF-8 at byte", ""),
    ("zoo make cod-t5", "no recipe 'cod-t5'", "did you mean code-t5"),
]


@pytest.mark.parametrize(("line", "says", "helps"), CASES, ids=[case[0] for case in CASES])
def test_one_message_exit_code_2_and_nothing_left(
    line: str, says: str, helps: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in files.rglob("*"))
    code = main(line.split(" "))
    err = capsys.readouterr().err
    assert code == 2
    assert says in err and helps in err
    assert err.count("error:") == 1 and "Traceback" not in err
    assert sorted(path.name for path in files.rglob("*")) in (before, sorted([*before, "runs"]))


def test_a_run_leaves_what_was_there_and_says_where_its_result_is(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["dim=16", "depth=1", "heads=2", "vocab=400", "batch_size=4", "pretrain=2 steps", "finetune=2 steps"]
    limits = ["train_limit=20", "valid_limit=4", "test_limit=4", 'tasks=["name"]', "scratch=false"]
    assert main(["run", "codet5", *options, *limits, "--out", "mine", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["rows"][0][0] == "name" and (files / "mine" / "outcome.json").is_file()
    assert main(["run", "codet5", "--out", "mine"]) == 2
    assert "dim was 16, is 64" in capsys.readouterr().err
    assert main(["run", "--resume", "mine"]) == 0
    assert "outcome.json written" in capsys.readouterr().out
    assert main(["apply", "mine", "name", "good.py", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["function"] == "f"
    assert main(["apply", "mine", "sumarize", "good.py"]) == 2
    assert main(["report", "mine"]) == 0 and (files / "mine" / "report.html").is_file()
