import subprocess
import sys

import pytest
from pydantic import BaseModel, Field

from leaven.cli import listing, main


def refused(capsys, *argv):
    """Run a command that must be refused; give its message."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("error: ") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("argv", "says", "meant"),
    [
        (["lst"], "no command 'lst'", "Did you mean list?"),
        (["data", "chek", "x"], "no command 'chek'", "Did you mean check?"),
        (["list", "--stag", "adapt"], "no option '--stag'", "Did you mean --stage?"),
        (["list", "--json", "--aera=code"], "no option '--aera'", "Did you mean --area?"),
        (["--versoin"], "no option '--versoin'", "Did you mean --version?"),
        (["list", "--area", "cod"], "no area 'cod'", "Did you mean 'code'"),
        (["list", "--stage", "pretraining"], "no stage 'pretraining'", "Did you mean 'pretrain'"),
        (["list", "--modality", "images"], "no modality 'images'", "Did you mean 'image'"),
        (["list", "--idea", "model soup"], "no idea 'model soup'", "Did you mean 'model soups'"),
        (["info", "codet6"], "no system 'codet6'", "did you mean codet5"),
        (["bench", "catalog_serch"], "no benchmark 'catalog_serch'", "Did you mean catalog_search?"),
        (["data", "check", "stdlib-code", "--kind", "cod"], "no kind 'cod'", "Did you mean code?"),
        (["data", "check", "jsnl:x"], "unknown data source", "Did you mean 'jsonl:x'?"),
    ],
)
def test_a_wrong_name_is_told_with_what_was_meant(capsys, argv, says, meant):
    message = refused(capsys, *argv)
    assert says in message and meant in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["info"], "Missing argument"),
        (["search"], "Missing argument"),
        (["search", ""], "nothing to search for"),
        (["search", "soup", "--top", "many"], "--top"),
        (["search", "soup", "--top", "0"], "top is 0"),
        (["list", "--area"], "--area"),
        (["list", "code"], "unexpected extra argument"),
        (["data"], "there are check, list"),
        (["data", "check"], "Missing argument"),
        (["data", "check", "stdlib-code", "--max-bad-share", "5%"], "--max-bad-share"),
        (["data", "check", "stdlib-code", "--max-bad-share", "5"], "from 0 to 1"),
    ],
)
def test_what_is_missing_or_malformed_is_told(capsys, argv, says):
    assert says in refused(capsys, *argv)


def test_commands_that_exist_are_listed(capsys):
    assert "there are apply, bench, " in refused(capsys, "frobnicate")
    assert "--area, --help, --idea, --json" in refused(capsys, "list", "--frobnicate")


def test_without_a_source_tree_there_are_no_benchmarks(capsys, monkeypatch, tmp_path):
    from leaven.cli import bench

    monkeypatch.setattr(bench, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert "come with the source tree" in refused(capsys, "bench")


def test_ctrl_c_ends_with_130(capsys, monkeypatch):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "filter_cards", interrupt)
    assert main(["list"]) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"


def test_an_invalid_config_names_field_and_value(capsys, monkeypatch):
    class Config(BaseModel):
        slow: float = Field(0.1, gt=0)

    monkeypatch.setattr(listing, "filter_cards", lambda **_: Config(slow=-3))
    message = refused(capsys, "list")
    assert "Config: slow is -3" in message and "greater than 0" in message


def test_a_file_that_cannot_be_opened_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(listing, "filter_cards", lambda **_: (tmp_path / "gone").read_text())
    assert f"{tmp_path / 'gone'}: No such file" in refused(capsys, "list")


def test_a_defect_of_leaven_itself_is_not_hidden(monkeypatch):
    def defect(**_):
        raise ZeroDivisionError

    monkeypatch.setattr(listing, "filter_cards", defect)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


def test_the_exit_code_reaches_the_shell():
    done = subprocess.run([sys.executable, "-m", "leaven", "lst"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "" and "Did you mean list?" in done.stderr and "Traceback" not in done.stderr
