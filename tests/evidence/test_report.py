import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from evidence.small_systems import Rival, Slow, outcome

from leaven.errors import ConfigError
from leaven.evidence.compare import compare
from leaven.evidence.evidence_file import write_evidence
from leaven.evidence.figures import Curve, curve_plot, effect_figure, mean_curve, strip_plot, thin, ticks
from leaven.evidence.json_file import EvidenceError
from leaven.evidence.report import page_of, write_report
from leaven.evidence.runner import run_claims

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Checked(HTMLParser):
    """Collects what a page holds, and refuses tags that do not match."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)


def checked(path):
    text = path.read_text(encoding="utf-8")
    page = Checked()
    page.feed(text)
    page.close()
    assert page.open == []
    assert text.startswith("<!doctype html>") and {"html", "head", "title", "main", "h1"} <= set(page.tags)
    # Nothing is loaded, from here or elsewhere, and nothing runs.
    assert not {"script", "link", "img", "iframe", "object", "embed", "image", "use"} & set(page.tags)
    assert not [one for one in page.attributes if one[1] in ("src", "href", "xlink:href", "srcset", "data", "action")]
    assert not [one for one in page.attributes if one[1].startswith("on")]
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    assert "nan" not in re.findall(r'="([^"]*)"', text)
    return page, " ".join(" ".join(page.text).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "slca.embedded"
    return folder, run_claims(Slow, out=folder)


def test_the_page_of_a_run(tmp_path):
    outcome().save(tmp_path / "run")
    page, text = checked(write_report(tmp_path / "run", tmp_path / "page.html"))
    assert "SLCA <b>on</b> code" in text and "b" not in page.tags
    assert "</pre><script>alert('x')</script>" in text and 'a "quoted" & <img src=x onerror=y>' in text
    assert "three rows were left out" in text and "stdlib-code" in text
    assert "name 0.125 - defect 0.5 0.75" in text
    assert "training: parts of the loss" in text
    assert page.tags.count("svg") == 2
    longest = max(value.count("L") for tag, name, value in page.attributes if (tag, name) == ("path", "d"))
    assert longest == 299


def test_the_page_of_a_claim_run(run, tmp_path):
    folder, evidence = run
    page, text = checked(write_report(folder, tmp_path / "page.html"))
    assert "headline claim: holds" in text and "1 more: holds" in text
    assert all(claim.says in text for claim in evidence.claims)
    assert "training: loss" in text and "training: valid/accuracy" in text
    # Two effects, two strips, two kinds of curves.
    assert page.tags.count("svg") == 6
    assert page.tags.count("circle") == 2 * (3 + 1) + 2 * 9 + 3 * 4
    for label in evidence.arms:
        assert f"{label} accuracy" in text
    assert evidence.machine["cpu"] in text and evidence.versions["torch"] in text
    for name in ("Configuration of all arms", "Configuration by arm", "Budgets by seed", "Test figures by seed"):
        assert name in text


def test_an_evidence_file_takes_its_curves_from_the_run_it_came_from(run, tmp_path):
    folder, evidence = run
    file = write_evidence(evidence.model_copy(update={"note": "slow <seeds>"}), tmp_path)
    page, text = checked(write_report(file, tmp_path / "page.html", runs=folder.parent))
    assert page.tags.count("svg") == 6 and "training: loss" in text
    assert "slow <seeds>" in text
    page, text = checked(write_report(file, tmp_path / "page.html", runs=tmp_path))
    assert "training: loss" not in text and page.tags.count("svg") == 4


def test_the_curves_of_another_run_are_not_taken(run, tmp_path):
    _, evidence = run
    file = write_evidence(evidence, tmp_path / "evidence")
    run_claims(Slow, seeds=2, out=tmp_path / "runs" / "slca.embedded")
    _, text = checked(write_report(file, tmp_path / "page.html", runs=tmp_path / "runs"))
    assert "training: loss" not in text


def test_one_seed_smoke_and_a_diverged_arm(tmp_path):
    system = type("Changed", (Slow,), {"arms": {**Slow.arms, "no-slow": {"broken": "nan"}}})
    run_claims(system, seeds=1, smoke=True, out=tmp_path / "run")
    _, text = checked(write_report(tmp_path / "run", tmp_path / "page.html"))
    assert "smoke run: no evidence" in text and "none for one seed" in text
    assert "headline claim: undecided" in text


def test_the_page_of_a_comparison(tmp_path):
    compare({"slca:slca": Slow, "lae": Rival}, seeds=2, out=tmp_path / "run")
    page, text = checked(write_report(tmp_path / "run", tmp_path / "page.html"))
    assert "slca:slca against lae" in text and "the budgets differ" in text and "training: loss" in text
    assert page.tags.count("svg") == 4


def test_what_there_is_no_page_of(tmp_path):
    with pytest.raises(ConfigError, match="no such folder or file"):
        page_of(tmp_path / "gone")
    with pytest.raises(ConfigError, match="nothing to report on"):
        page_of(tmp_path)
    (tmp_path / "protocol.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not finished"):
        page_of(tmp_path)
    for name in ("comparison.json", "evidence.json", "outcome.json"):
        for content in ("{", "{}", "[]", json.dumps({"arms": 3, "title": 1})):
            (tmp_path / name).write_text(content)
            with pytest.raises(EvidenceError, match=re.escape(name)):
                write_report(tmp_path, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_thinning_keeps_the_mean_and_the_end():
    line = [(float(at), float(at % 7)) for at in range(1, 1002)]
    short = thin(line, 101)
    assert len(short) == 101 and short[-1] == line[-1]
    assert sum(value for _, value in short[:-1]) / 100 == pytest.approx(sum(value for _, value in line[:-1]) / 1000)
    assert thin(line[:50], 50) == line[:50]


def test_the_mean_of_seeds_is_over_the_steps_they_share():
    assert mean_curve([[(1, 1.0), (2, 3.0), (3, 9.0)], [(1, 3.0), (2, 5.0)]]) == [(1, 2.0), (2, 4.0)]
    assert mean_curve([[(1, 1.0)], [(2, 5.0)]]) == [(1, 1.0)]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.3, 0.45), (1e-6, 3e-6), (1200, 98000), (-5, -4.9)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7 and all(low - 1e-9 <= one <= high + 1e-9 for one in found)
    steps = {round((b - a) / (high - low), 6) for a, b in pairwise(found)}
    assert len(steps) <= 1


def test_figures_of_odd_data(run):
    _, evidence = run
    assert strip_plot({"a": [None]}, {"a": 0}) == ""
    assert "<circle" in strip_plot({"a": [0.0, 0.0]}, {"a": 0})
    assert curve_plot([Curve("a", 0, [[]])]) == ""
    assert "<circle" in curve_plot([Curve("a", 0, [[(5.0, 1.0)]])])
    alike = evidence.claims[0].model_copy(
        update={"effect": 0.0, "interval": (0.0, 0.0), "differences": [0.0] * 3, "by": 0.0}
    )
    assert "nan" not in effect_figure(alike)
    assert "&lt;b&gt;" in strip_plot({"<b>": [1.0, 2.0]}, {"<b>": 9})
