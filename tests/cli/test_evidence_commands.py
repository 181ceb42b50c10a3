import json

import pytest
from evidence.small_systems import Rival, Slow, outcome

import leaven.systems
from leaven.cli import main
from leaven.errors import CatalogError


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    def find_system(slug):
        if slug not in ("slca", "lae"):
            raise CatalogError(f"no system {slug!r}; did you mean slca?")
        return {"slca": Slow, "lae": Rival}[slug]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEAVEN_EVIDENCE", str(tmp_path / "evidence"))
    monkeypatch.setattr(leaven.systems, "find_system", find_system, raising=False)
    Slow.measured.clear()
    return tmp_path


def refused(capsys, place, *argv):
    before = sorted(place.rglob("*"))
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("error: ") == 1 and "Traceback" not in err
    assert sorted(place.rglob("*")) == before
    return err


def test_a_claim_is_tested_and_listed(capsys, place):
    assert main(["claim", "slca"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("slca, embedded tier: 3 arms, 3 seeds\n")
    assert "margin 0.05: holds   paper: 91 vs 41" in out
    assert "slca.embedded.json written" in out and len(err.splitlines()) == 9
    assert (place / "evidence" / "slca.embedded.json").is_file()
    assert (place / "runs/claims/slca.embedded/seed-2/no-slow.json").is_file()
    assert main(["claims"]) == 0
    table = capsys.readouterr().out
    assert "91 vs 41" in table and "holds" in table and "against" in table
    assert main(["claims", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["system"], first["verdict"], first["seeds"], first["headline"]) == ("slca", "holds", 3, True)
    assert first["bound"] < first["effect"] and second["headline"] is False
    assert main(["info", "slca"]) == 0
    assert "holds (embedded)" in capsys.readouterr().out


def test_json_alone_on_stdout(capsys):
    assert main(["claim", "slca", "--seeds", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds"] == [0, 1]
    assert main(["compare", "slca", "lae", "--json", "--seeds", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == ["accuracy", "forgetting"]


def test_smoke_gives_no_evidence(capsys, place):
    assert main(["claim", "slca", "--smoke", "--tier", "standard"]) == 0
    out = capsys.readouterr().out
    assert "standard tier, smoke size" in out and "runs/claims/slca.standard.smoke/evidence.json written" in out
    assert not (place / "evidence").exists()
    assert json.loads((place / "runs/claims/slca.standard.smoke/evidence.json").read_text())["smoke"] is True


def test_fewer_seeds_do_not_replace_more(capsys, place):
    assert main(["claim", "slca"]) == 0
    capsys.readouterr()
    message = refused(capsys, place, "claim", "slca", "--seeds", "2")
    assert "rests on 3 seeds, which 2 would replace" in message
    (place / "evidence/slca.embedded.json").write_text("{")
    assert "cannot be read as JSON" in refused(capsys, place, "claim", "slca")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["claim"], "Missing argument"),
        (["claim", "slcaa"], "did you mean slca"),
        (["claim", "slca", "--tier", "standart"], "Did you mean standard?"),
        (["claim", "lae"], "lae has no claim in tier 'embedded'"),
        (["claim", "slca", "--seeds", "0"], "Invalid value for '--seeds'"),
        (["claim", "slca", "--seeds", "many"], "Invalid value for '--seeds'"),
        (["claim", "slca", "--smok"], "Did you mean --smoke?"),
        (["clam", "slca"], "Did you mean claim?"),
        (["compare", "slca"], "two systems or arms"),
        (["compare", "data=csv:x"], "two systems or arms"),
        (["compare", "slca", "slca"], "slca is given twice"),
        (["compare", "slca", "lea"], "no system 'lea'"),
        (["compare", "slca", "lae:adapter"], "Did you mean adapters?"),
        (["compare", "slca", "lae", "dta=csv:x"], "no option 'dta'"),
        (["compare", "slca", "lae", "steps=none"], "steps is 'none', expected int >= 1"),
        (["compare", "slca", "lae", "steps=0"], "steps is 0, expected int >= 1"),
        (["compare", "slca", "lae", "seed=1"], "seed cannot be set"),
        (["compare", "slca:slca", "lae", "gain=1"], "gain is what the arm slca:slca is about"),
        (["report"], "Missing argument"),
        (["report", "gone"], "gone: no such folder or file"),
        (["report", "."], "nothing to report on"),
    ],
)
def test_wrong_input_is_told_and_leaves_nothing(capsys, place, argv, says):
    assert says in refused(capsys, place, *argv)
    assert Slow.measured == []


def test_a_changed_system_is_told(capsys, place, monkeypatch):
    assert main(["claim", "slca", "--smoke"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(Slow, "smoke", {"steps": 6})
    assert main(["claim", "slca", "--smoke"]) == 2
    message = capsys.readouterr().err
    assert "sequential: steps was 5, is 6" in message and "choose another folder" in message
    assert main(["claim", "slca", "--smoke", "--out", "elsewhere"]) == 0


def test_a_comparison_on_the_users_data(capsys, place):
    argv = ["compare", "slca:slca", "lae:adapters", "data=jsonl:mine.jsonl", "steps=7"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "slca:slca - lae:adapters" in out
    (folder,) = (place / "runs/compare").iterdir()
    assert json.loads((folder / "comparison.json").read_text())["protocol"]["shared"]["data"] == "jsonl:mine.jsonl"
    count = len(Slow.measured)
    assert main(argv) == 0 and len(Slow.measured) == count
    # Other options are another run, in a folder of its own.
    assert main([*argv[:-1], "steps=8"]) == 0 and len(Slow.measured) == 2 * count
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").is_file()


def test_reports(capsys, place, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    outcome().save(place / "run")
    assert main(["report", "run", "--open"]) == 0
    assert "run/report.html written" in capsys.readouterr().out
    assert opened == [(place / "run/report.html").as_uri()]
    assert main(["claim", "slca"]) == 0
    assert main(["report", "evidence/slca.embedded.json"]) == 0
    page = (place / "runs/reports/slca.embedded.html").read_text()
    assert "training: loss" in page
    assert main(["report", "run", "--out", "other/page.html"]) == 0 and (place / "other/page.html").is_file()
    capsys.readouterr()
    assert "is a folder" in refused(capsys, place, "report", "run", "--out", "run")


def test_claims_without_evidence_and_with_a_damaged_file(capsys, place):
    assert main(["claims"]) == 0
    assert "no evidence in" in capsys.readouterr().out
    (place / "evidence").mkdir()
    (place / "evidence/lae.standard.json").write_text("{")
    assert main(["claims"]) == 0
    assert "unreadable" in capsys.readouterr().out
    assert main(["claims", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["system"], row["tier"], row["verdict"]) == ("lae", "standard", "unreadable")
