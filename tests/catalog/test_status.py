import json

import pytest

from leaven.catalog import evidence_dir, status, statuses
from leaven.errors import CatalogError


@pytest.fixture
def layout(tmp_path):
    systems = tmp_path / "systems"
    evidence = tmp_path / "evidence"
    (systems / "continual").mkdir(parents=True)
    evidence.mkdir()
    return systems, evidence


def write_evidence(evidence, slug, tier, **claim):
    content = {"system": slug, "tier": tier, "claims": [{"says": "better", "metric": "accuracy", **claim}]}
    (evidence / f"{slug}.{tier}.json").write_text(json.dumps(content))


def test_planned_then_built_then_the_verdicts(layout):
    systems, evidence = layout
    assert str(status("adam-cil", systems=systems, evidence=evidence)) == "planned"
    (systems / "continual" / "adam_cil.py").write_text("raise RuntimeError('looked at, never imported')")
    assert str(status("adam-cil", systems=systems, evidence=evidence)) == "built"
    write_evidence(evidence, "adam-cil", "standard", verdict="undecided")
    write_evidence(evidence, "adam-cil", "embedded", verdict="holds", effect=0.25, bound=0.125)
    its = status("adam-cil", systems=systems, evidence=evidence)
    assert str(its) == "holds (embedded), undecided (standard)"
    assert (its.verdicts[0].effect, its.verdicts[0].bound) == (0.25, 0.125)
    assert its.verdicts[1].effect is None


def test_the_first_claim_is_the_headline(layout):
    systems, evidence = layout
    claims = [{"says": "first", "verdict": "reversed"}, {"says": "second", "verdict": "holds"}]
    (evidence / "slca.embedded.json").write_text(json.dumps({"claims": claims}))
    assert status("slca", systems=systems, evidence=evidence).verdicts[0].says == "first"


def test_other_systems_are_untouched(layout):
    systems, evidence = layout
    (systems / "continual" / "lae.py").touch()
    write_evidence(evidence, "lae", "embedded", verdict="holds")
    # One slug is the beginning of another; their files must not be mixed up.
    write_evidence(evidence, "uni-perceiver-v2", "embedded", verdict="holds")
    found = statuses(systems=systems, evidence=evidence)
    assert len(found) == 106
    assert {slug for slug, its in found.items() if str(its) != "planned"} == {"lae", "uni-perceiver-v2"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"claims": []}', b'{"claims": [{}]}', b"\xff", b'{"claims": 3}']
)
def test_a_damaged_evidence_file_is_shown_as_such(layout, content):
    systems, evidence = layout
    (evidence / "slca.embedded.json").write_bytes(content)
    its = status("slca", systems=systems, evidence=evidence)
    assert str(its) == "unreadable (embedded)"
    assert "slca.embedded.json" in its.verdicts[0].problem


def test_the_evidence_folder_can_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv("LEAVEN_EVIDENCE", str(tmp_path))
    assert evidence_dir() == tmp_path
    write_evidence(tmp_path, "ul2", "embedded", verdict="holds")
    assert str(status("ul2")) == "holds (embedded)"


def test_the_status_of_an_unknown_system():
    with pytest.raises(CatalogError, match="no system"):
        status("slcaa")
