import json
import subprocess
import sys

import pytest

from leaven.catalog import meaning
from leaven.cli import main


@pytest.fixture(autouse=True)
def words_only(monkeypatch, tmp_path):
    """Ranking by meaning costs seconds and has its own tests; evidence of the source tree stays out."""
    monkeypatch.setattr(meaning, "available", lambda: False)
    monkeypatch.setenv("LEAVEN_EVIDENCE", str(tmp_path))
    return tmp_path


def ok(capsys, *argv):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_list_shows_every_system(capsys):
    out = ok(capsys, "list")
    assert "codet5" in out and "gpd" in out
    assert len(json.loads(ok(capsys, "list", "--json"))) == 106


def test_list_by_facets(capsys):
    found = json.loads(ok(capsys, "list", "--area", "code", "--stage", "pretrain", "--modality", "text", "--json"))
    assert [one["slug"] for one in found] == ["codet5", "unixcoder", "codegen2", "sobert"]
    found = json.loads(ok(capsys, "list", "--idea", "model soups", "--json"))
    assert [one["slug"] for one in found] == ["model-soups", "points"]
    assert "no system" in ok(capsys, "list", "--area", "audio", "--stage", "merge")
    assert json.loads(ok(capsys, "list", "--area", "audio", "--stage", "merge", "--json")) == []


def test_search(capsys):
    found = json.loads(ok(capsys, "search", "average fine-tuned weights", "--top", "2", "--json"))
    assert [one["rank"] for one in found] == [1, 2]
    assert found[0]["slug"] == "model-soups"
    assert "model-soups" in ok(capsys, "search", "average fine-tuned weights")
    assert json.loads(ok(capsys, "search", "zzz", "--json")) == []
    assert "other words" in ok(capsys, "search", "zzz")


def test_info_with_evidence(capsys, words_only):
    claim = {"says": "it is better", "metric": "accuracy", "verdict": "holds", "effect": 0.25, "bound": 0.2}
    (words_only / "slca.embedded.json").write_text(json.dumps({"claims": [claim]}))
    (words_only / "slca.standard.json").write_text("{")
    out = ok(capsys, "info", "slca")
    assert "arXiv 2303.05118" in out
    assert "it is better: holds (accuracy +0.25, 95% bound +0.2)" in out
    assert "evidence cannot be read" in out
    found = json.loads(ok(capsys, "info", "slca", "--json"))
    assert found["status"] == "holds (embedded), unreadable (standard)"
    assert found["verdicts"][0]["effect"] == 0.25


def test_bench_lists_the_benchmarks(capsys):
    assert "catalog_search" in [one["name"] for one in json.loads(ok(capsys, "bench", "--json"))]


def test_bench_runs_one_with_its_arguments_and_exit_code(capsys, tmp_path, monkeypatch):
    from leaven.cli import bench

    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "toy.py").write_text("'''A toy.'''\nimport sys\nsys.exit(3 if sys.argv[1:] == ['--runs', '2'] else 4)\n")
    monkeypatch.setattr(bench, "checkout", lambda: tmp_path)
    assert "A toy." in ok(capsys, "bench")
    assert main(["bench", "toy", "--", "--runs", "2"]) == 3


def test_help_and_version(capsys):
    assert "search" in ok(capsys)
    assert "--stage" in ok(capsys, "list", "--help")
    assert ok(capsys, "--version").startswith("leaven ")


def test_list_needs_no_heavy_library():
    script = (
        "import sys; from leaven.cli import main; code = main(['list']); "
        "heavy = {'torch', 'sklearn', 'numpy', 'transformers', 'tokenizers'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "leaven", "list", "--area", "series", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [one["slug"] for one in json.loads(done.stdout)] == ["gpd"]
