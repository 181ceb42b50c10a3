import json
import subprocess
import sys

import pytest
from evidence.small_systems import Slow

from leaven.catalog import status
from leaven.evidence.evidence_file import Spread, check_replaceable, read_evidence, read_folder, write_evidence
from leaven.evidence.json_file import EvidenceError, rounded
from leaven.evidence.provenance import commit, machine, versions
from leaven.evidence.readme_table import main, readme_table
from leaven.evidence.runner import run_claims
from leaven.evidence.tables import evidence_table, shown_time, spread_cells


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    return run_claims(Slow, out=tmp_path_factory.mktemp("run"))


@pytest.fixture
def written(evidence, tmp_path):
    return write_evidence(evidence, tmp_path / "evidence")


def edited(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_written_and_read_again(evidence, written):
    assert written.name == "slca.embedded.json"
    values = json.loads(written.read_text())
    assert list(values)[:6] == ["format", "system", "tier", "smoke", "seeds", "claims"]
    assert values["claims"][0]["says"] == Slow.claims[0].says
    found = read_evidence(written)
    assert found.to_json() == evidence.to_json()
    assert found.claims[0].effect == pytest.approx(evidence.claims[0].effect, rel=1e-5)
    # Written again, not a byte differs.
    before = written.read_bytes()
    write_evidence(found, written.parent)
    assert written.read_bytes() == before


def test_the_catalogue_reads_the_headline(written, evidence):
    verdict = status("slca", evidence=written.parent).verdicts[0]
    assert (verdict.verdict, verdict.metric, verdict.problem) == ("holds", "accuracy", "")
    assert verdict.effect == pytest.approx(evidence.claims[0].effect, rel=1e-5)
    assert verdict.bound == pytest.approx(evidence.claims[0].bound, rel=1e-5)


def test_the_note_is_kept(evidence, written):
    edited(written, lambda values: values.update(note="Two of five seeds\nwere slow."))
    write_evidence(evidence, written.parent)
    assert read_evidence(written).note == "Two of five seeds\nwere slow."
    written.write_text("{")
    with pytest.raises(EvidenceError, match="cannot be read as JSON"):
        write_evidence(evidence, written.parent)
    assert written.read_text() == "{"


def test_no_smoke_and_no_fewer_seeds(evidence, written):
    with pytest.raises(EvidenceError, match="smoke run of slca"):
        write_evidence(evidence.model_copy(update={"smoke": True}), written.parent)
    check_replaceable(written, 3)
    check_replaceable(written.with_name("other.json"), 1)
    with pytest.raises(EvidenceError, match="rests on 3 seeds, which 2 would replace"):
        check_replaceable(written, 2)


def claim(values):
    return values["claims"][0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: claim(v).update(verdict="reversed"), "do not follow from the figures per seed"),
        (lambda v: claim(v).update(effect=claim(v)["effect"] + 0.01), "do not follow"),
        (lambda v: claim(v).update(bound=claim(v)["bound"] + 0.01), "do not follow"),
        (lambda v: claim(v).update(bound=None), "do not follow"),
        (lambda v: claim(v).update(by=0.9), "do not follow"),
        (lambda v: v["arms"]["slca"]["metrics"]["accuracy"].update(per_seed=[0.9, 0.9, 0.1]), "do not follow"),
        (lambda v: v["arms"]["slca"]["metrics"].pop("accuracy"), "arm 'slca' has no 'accuracy'"),
        (lambda v: v["arms"].pop("slca"), "arm 'slca' has no 'accuracy'"),
        (lambda v: v["seeds"].append(3), "for each of the 4 seeds"),
        (lambda v: claim(v).update(verdict="wins"), r"claims\.0\.verdict"),
        (lambda v: v.pop("machine"), "machine: Field required"),
        (lambda v: v.update(format=2), "format"),
        (lambda v: v.update(extra=2), "extra"),
        (lambda v: v.update(claims=[]), "claims"),
    ],
)
def test_what_the_runner_did_not_write_is_refused(written, change, says):
    edited(written, change)
    with pytest.raises(EvidenceError, match=says) as caught:
        read_evidence(written)
    assert str(written) in str(caught.value)
    assert readme_main(written, "--check") == 2


@pytest.mark.parametrize("content", ["", "[]", "\x00", '{"claims": [{}]}', "[" * 100_000])
def test_damaged_files_are_listed_with_their_problem(written, content):
    written.write_text(content)
    (entry,) = read_folder(written.parent)
    assert entry.evidence is None and str(written) in entry.problem


def test_a_file_under_another_name_or_of_a_smoke_run(evidence, written):
    other = written.with_name("lae.embedded.json")
    other.write_bytes(written.read_bytes())
    edited(written, lambda values: values.update(smoke=True))
    first, second = read_folder(written.parent)
    assert "holds the evidence of slca.embedded.json" in first.problem
    assert "smoke run" in second.problem


def test_rounding_keeps_counts():
    assert rounded({"a": [1234567.0, 1234567, 0.123456789, float("inf"), True]}) == {
        "a": [1234567.0, 1234567, 0.123457, float("inf"), True]
    }


def test_spreads():
    found = Spread.of([1.0, float("nan"), None])
    assert (found.mean, found.sd, found.per_seed) == (None, None, [1.0, None, None])
    assert Spread.of([1.0]).sd is None


def test_where_it_was_made(evidence, tmp_path):
    text = json.dumps(evidence.to_json())
    assert str(tmp_path) not in text and "/home" not in text
    assert machine()["cores"] >= 1 and machine()["memory_gib"] > 0 and machine()["cpu"]
    assert {"leaven", "python", "torch"} <= set(versions())
    assert commit(tmp_path) == {"commit": None, "dirty": None}


def test_the_commit_and_whether_the_package_differs_from_it(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "leaven").mkdir()
    (tmp_path / "leaven" / "a.py").write_text("1")
    git("init")
    git("add", "-A")
    git("commit", "-m", "x")
    clean = commit(tmp_path)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "evidence.json").write_text("{}")
    assert commit(tmp_path)["dirty"] is False
    (tmp_path / "leaven" / "b.py").write_text("2")
    assert commit(tmp_path)["dirty"] is True


def test_a_run_across_commits_says_so(tmp_path):
    run_claims(Slow, seeds=1, out=tmp_path)
    edited(tmp_path / "seed-0" / "slca.json", lambda v: v["provenance"].update(git={"commit": "older", "dirty": True}))
    git = run_claims(Slow, seeds=1, out=tmp_path).git
    assert "older" in git["commits"] and len(git["commits"]) == 2 and git["dirty"] is True


def test_the_terminal_table(evidence):
    lines = evidence_table(evidence).splitlines()
    assert lines[0].split() == ["arm", "accuracy", "forgetting", "time"]
    assert [line.split()[0] for line in lines[1:4]] == ["sequential", "slca", "no-slow"]
    assert "A slow representation beats sequential fine-tuning" in lines
    verdict = next(line for line in lines if line.startswith("effect"))
    assert verdict.startswith("effect +0.4") and verdict.endswith("margin 0.05: holds   paper: 91 vs 41")
    narrow = evidence_table(evidence, width=30)
    assert "forgetting" in narrow.splitlines()[0]


def test_a_narrow_terminal_leaves_out_what_no_claim_is_about(evidence):
    one = evidence.model_copy(update={"claims": evidence.claims[:1]})
    lines = evidence_table(one, width=40).splitlines()
    assert lines[0].split() == ["arm", "accuracy", "time"]
    assert lines[4] == "not shown: forgetting (in the report and with --json)"


def test_cells():
    column = [Spread(mean=12.3456, sd=0.0345, per_seed=[]), Spread(mean=1.0, sd=0.5, per_seed=[]), None]
    assert spread_cells(column) == ["12.35 ± 0.03", "1.00 ± 0.50", "-"]
    assert spread_cells([Spread(mean=0.5, sd=0.0, per_seed=[]), Spread(mean=20000.0, sd=None, per_seed=[])]) == [
        "0.5",
        "20,000",
    ]
    assert [shown_time(one) for one in (0.25, 61.4, 3700.0, None)] == ["0.2 s", "0:01:01", "1:01:40", "-"]


README = "# leaven\n\n<!-- evidence -->\nstale\n<!-- /evidence -->\nafter\n"


def readme_main(written, *options, text=README):
    readme = written.parent.parent / "README.md"
    readme.write_text(text)
    return main([str(readme), "--evidence", str(written.parent), *options])


def test_the_readme_table_is_written_and_checked(written, capsys):
    readme = written.parent.parent / "README.md"
    assert readme_main(written, "--check") == 1
    assert readme.read_text() == README and "not that of the evidence files" in capsys.readouterr().err
    assert readme_main(written) == 0
    text = readme.read_text()
    assert text.startswith("# leaven\n\n<!-- evidence -->\n| System |") and text.endswith("<!-- /evidence -->\nafter\n")
    assert "| **holds** | 3 | 1 holds |" in text and "stale" not in text
    assert readme_main(written, "--check", text=text) == 0
    # A figure changed by hand in the README is found.
    assert readme_main(written, "--check", text=text.replace("| 3 |", "| 5 |")) == 1
    assert readme_main(written, text=text) == 0 and readme.read_text() == text


@pytest.mark.parametrize("text", ["no marks", README + README, "<!-- /evidence -->\n<!-- evidence -->"])
def test_a_readme_without_its_marks(written, capsys, text):
    assert readme_main(written, text=text) == 2
    assert "expected one <!-- evidence -->" in capsys.readouterr().err


def test_no_evidence_yet_and_no_readme(tmp_path, capsys):
    assert readme_table(tmp_path) == "No claim has been measured yet."
    assert main([str(tmp_path / "README.md")]) == 2
    assert "README.md" in capsys.readouterr().err


def test_a_cell_cannot_break_the_table(evidence, tmp_path):
    odd = evidence.model_copy(update={"claims": [evidence.claims[0].model_copy(update={"says": "a | b\nc"})]})
    write_evidence(odd, tmp_path)
    assert "| a \\| b c |" in readme_table(tmp_path)


def test_it_runs_as_a_module(written):
    readme = written.parent.parent / "README.md"
    readme.write_text(README)
    command = [sys.executable, "-m", "leaven.evidence.readme_table", "--check", str(readme)]
    done = subprocess.run([*command, "--evidence", str(written.parent)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "run `python -m leaven.evidence.readme_table" in done.stderr
