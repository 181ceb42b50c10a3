import json
import math
import multiprocessing
import os
import random
import signal
import time

import pytest
from evidence.small_systems import Rival, Slow, Stranger
from pydantic import ValidationError

from leaven.errors import CatalogError, ConfigError, DataError
from leaven.evidence.claims import Claim
from leaven.evidence.compare import compare
from leaven.evidence.entrants import claim_entrants
from leaven.evidence.json_file import EvidenceError
from leaven.evidence.progress import Lines
from leaven.evidence.runner import check_budgets, compared, run_claims
from leaven.evidence.system import Measurement


@pytest.fixture(autouse=True)
def nothing_measured():
    Slow.measured.clear()


def changed(**attributes):
    return type("Changed", (Slow,), attributes)


def test_claims_are_measured_under_paired_seeds_from_zero(tmp_path):
    evidence = run_claims(Slow, out=tmp_path / "run")
    assert evidence.seeds == [0, 1, 2]
    # Seed by seed, the arms of the tier's claims and the ablation, not the arm that another tier's claim is about.
    assert Slow.measured == [("slca", gain, seed) for seed in range(3) for gain in (0.0, 0.4, 0.2)]
    assert list(evidence.arms) == ["sequential", "slca", "no-slow"]
    first, second = evidence.claims
    assert (first.verdict, second.verdict) == ("holds", "holds")
    figures = {arm: evidence.arms[arm].metrics["accuracy"].per_seed for arm in evidence.arms}
    expected = [a - b for a, b in zip(figures["slca"], figures["sequential"], strict=True)]
    assert first.differences == pytest.approx(expected)
    assert first.effect == pytest.approx(sum(expected) / 3)
    # Smaller forgetting counts as a gain.
    assert second.effect > 0.3
    assert evidence.protocol.shared["data"] == "stdlib-code" and "seed" not in evidence.protocol.shared
    assert evidence.protocol.arms == {"sequential": {"gain": 0.0}, "slca": {"gain": 0.4}, "no-slow": {"gain": 0.2}}
    assert evidence.arms["slca"].chosen == [{"learning_rate": 0.1}] * 3
    assert evidence.seconds == pytest.approx(9 * 1.5)


def test_what_is_finished_is_not_repeated(tmp_path):
    run_claims(Slow, seeds=2, out=tmp_path)
    before = list(Slow.measured)
    run_claims(Slow, seeds=2, out=tmp_path)
    assert Slow.measured == before
    more = run_claims(Slow, seeds=3, out=tmp_path)
    assert [seed for _, _, seed in Slow.measured[len(before) :]] == [2, 2, 2]
    fresh = run_claims(Slow, seeds=3, out=tmp_path / "fresh")
    assert more.claims == fresh.claims and more.arms == fresh.arms


def test_an_interrupted_run_loses_the_arm_in_progress_alone(tmp_path):
    def stops(self, out):
        if len(Slow.measured) == 4:
            raise KeyboardInterrupt
        return Slow.measure(self, out)

    with pytest.raises(KeyboardInterrupt):
        run_claims(changed(measure=stops), out=tmp_path)
    assert not (tmp_path / "evidence.json").exists()
    resumed = run_claims(Slow, out=tmp_path)
    assert len(Slow.measured) == 9
    assert resumed.claims == run_claims(Slow, out=tmp_path / "fresh").claims


def test_a_run_that_fails_before_its_first_result_leaves_no_trace(tmp_path):
    def fails(self, out):
        raise DataError("images: no such folder")

    with pytest.raises(EvidenceError, match="sequential, seed 0: images: no such folder"):
        run_claims(changed(measure=fails), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()

    def fails_later(self, out):
        return fails(self, out) if self.config.gain else Slow.measure(self, out)

    with pytest.raises(EvidenceError, match="slca, seed 0"):
        run_claims(changed(measure=fails_later), out=tmp_path / "run")
    assert sorted(one.name for one in (tmp_path / "run").rglob("*.json")) == ["protocol.json", "sequential.json"]
    assert not (tmp_path / "run" / "seed-0" / "slca").exists()


def test_killed_at_any_moment(tmp_path):
    log = tmp_path / "log"

    def slowly(self, out):
        with log.open("a") as stream:
            stream.write(f"{self.config.gain} {self.config.seed}\n")
        time.sleep(0.01)
        return Slow.measure(self, out)

    system = changed(measure=slowly)
    context, moments, kills = multiprocessing.get_context("fork"), random.Random(0), 0
    for _ in range(12):
        process = context.Process(target=run_claims, args=(system,), kwargs={"out": tmp_path / "run"})
        process.start()
        time.sleep(moments.uniform(0.0, 0.12))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
    assert kills
    assert run_claims(system, out=tmp_path / "run").claims == run_claims(Slow, out=tmp_path / "fresh").claims
    assert len(log.read_text().splitlines()) <= 9 + kills


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"arms": {**Slow.arms, "slca": {"gain": 0.5}}}, "slca: gain was 0.4, is 0.5"),
        ({"tiers": {"embedded": {"steps": 21}}}, "sequential: steps was 20, is 21"),
        ({"tiers": {"embedded": {"data": "jsonl:mine"}}}, "sequential: data was stdlib-code, is jsonl:mine"),
        ({"slug": "other"}, "sequential: system was slca, is other"),
    ],
)
def test_a_changed_configuration_is_told_and_its_results_left(tmp_path, attributes, says):
    run_claims(Slow, seeds=1, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="another configuration") as caught:
        run_claims(changed(**attributes), seeds=1, out=tmp_path)
    assert says in str(caught.value) and "choose another folder or remove this one" in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_smoke_and_tier_are_part_of_the_configuration(tmp_path):
    run_claims(Slow, seeds=1, smoke=True, out=tmp_path)
    with pytest.raises(ConfigError, match="smoke was true, is false"):
        run_claims(Slow, seeds=1, out=tmp_path)
    with pytest.raises(ConfigError, match="tier was embedded, is standard"):
        run_claims(Slow, seeds=1, smoke=True, tier="standard", out=tmp_path)


def test_an_added_ablation_is_measured_beside_the_others(tmp_path):
    run_claims(Slow, seeds=1, out=tmp_path)
    Slow.measured.clear()
    found = run_claims(changed(arms={**Slow.arms, "half": {"gain": 0.05}}), seeds=1, out=tmp_path)
    assert Slow.measured == [("slca", 0.05, 0)] and "half" in found.arms


def test_damaged_results_are_noticed(tmp_path):
    run_claims(Slow, seeds=1, out=tmp_path)
    file = tmp_path / "seed-0" / "slca.json"
    whole = file.read_text()
    file.write_text(whole[:-50])
    with pytest.raises(EvidenceError, match=r"slca\.json: cannot be read"):
        run_claims(Slow, seeds=1, out=tmp_path)
    values = json.loads(whole)
    file.write_text(json.dumps({**values, "measurement": {"metrics": {}}}))
    with pytest.raises(EvidenceError, match="remove it to measure again"):
        run_claims(Slow, seeds=1, out=tmp_path)
    file.write_text(json.dumps({**values, "digest": "x"}))
    with pytest.raises(ConfigError, match="another configuration"):
        run_claims(Slow, seeds=1, out=tmp_path)
    file.write_text(whole)
    (tmp_path / "protocol.json").unlink()
    with pytest.raises(ConfigError, match=r"no protocol\.json"):
        run_claims(Slow, seeds=1, out=tmp_path)


def test_unequal_budgets_are_no_evidence(tmp_path):
    unequal = changed(arms={"sequential": {"steps": 19}, "slca": {"gain": 0.4}}, claims=Slow.claims[:1])
    with pytest.raises(EvidenceError, match="same steps, but sequential has 19 and slca has 20"):
        run_claims(unequal, seeds=2, out=tmp_path)
    # After the first seed: the second is not spent on it.
    assert {seed for _, _, seed in Slow.measured} == {0}


def test_a_budget_figure_that_an_arm_does_not_report():
    one = Measurement({}, {}, {"tokens": 5.0}, equal=("tokens",))
    with pytest.raises(EvidenceError, match=r"seed 3: .*tokens, but a has 5 and b has none"):
        check_budgets({"a": one, "b": Measurement({}, {}, {})}, 3, [["a", "b"]])
    # What no claim compares may be of another size: texts beside images.
    check_budgets({"a": one, "b": Measurement({}, {}, {})}, 3, [["a"], ["b"]])


def test_arms_that_claims_compare_are_a_group():
    arms = ["texts", "a", "b", "words", "c", "ablation"]
    claims = [Claim("", "m", better, than, 0.0) for better, than in (("a", "b"), ("texts", "words"), ("c", "b"))]
    assert compared(claims, arms) == [["texts", "words", "ablation"], ["a", "b", "c"]]
    assert compared(claims[:1], ["a", "b", "d"]) == [["a", "b", "d"]]


def test_figures_that_make_no_evidence(tmp_path):
    typo = changed(claims=(Claim("x", "acuracy", "slca", "sequential", 0.0),))
    with pytest.raises(EvidenceError, match=r"no 'acuracy'; it has accuracy, forgetting\. Did you mean accuracy\?"):
        run_claims(typo, out=tmp_path / "typo")
    diverged = changed(arms={**Slow.arms, "slca": {"broken": "nan"}})
    with pytest.raises(EvidenceError, match="slca, seed 0: accuracy is nan"):
        run_claims(diverged, out=tmp_path / "nan")
    failing = changed(arms={**Slow.arms, "slca": {"broken": "data"}})
    with pytest.raises(EvidenceError, match=r"slca, seed 0: rows.jsonl:3: broken JSON"):
        run_claims(failing, out=tmp_path / "data")


def test_a_diverged_ablation_is_shown_without_figures(tmp_path):
    found = run_claims(changed(arms={**Slow.arms, "no-slow": {"broken": "nan"}}), seeds=2, out=tmp_path)
    assert found.arms["no-slow"].metrics["accuracy"].mean is None
    assert "NaN" not in (tmp_path / "evidence.json").read_text()
    # Read back from the folder, it is the same.
    again = run_claims(changed(arms={**Slow.arms, "no-slow": {"broken": "nan"}}), seeds=2, out=tmp_path)
    assert again.arms == found.arms


def test_figures_of_numpy_become_numbers(tmp_path):
    import numpy as np

    def measure(self, out):
        return Measurement(
            {"accuracy": np.float32(self.config.gain)}, {}, {"steps": np.int64(3)}, chosen={"lr": {0.1: 2}}
        )

    system = changed(measure=measure, claims=Slow.claims[:1])
    first = run_claims(system, seeds=2, out=tmp_path)
    assert first.arms == run_claims(system, seeds=2, out=tmp_path).arms
    assert first.arms["slca"].chosen == [{"lr": {"0.1": 2}}] * 2
    # The system kept no time, so the runner's clock did.
    assert all(second > 0 for second in first.arms["slca"].seconds.per_seed)


def test_wrong_tiers_and_claims(tmp_path):
    with pytest.raises(CatalogError, match=r"no tier 'standart'; .* Did you mean standard\?"):
        run_claims(Slow, tier="standart", out=tmp_path / "x")
    with pytest.raises(CatalogError, match="lae has no claim in tier 'embedded'"):
        claim_entrants(Rival, "embedded")
    with pytest.raises(ConfigError, match="names the arm 'gone'"):
        claim_entrants(changed(claims=(Claim("x", "accuracy", "gone", "slca", 0.0),)), "embedded")
    with pytest.raises(ConfigError, match="seeds=0"):
        run_claims(Slow, seeds=0, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_progress_is_a_line_for_each_arm(tmp_path, capsys):
    run_claims(Slow, seeds=2, out=tmp_path, progress=Lines())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("seed 1/2  sequential  1.5 s  (0:00:00, about 0:00:07 left)")
    run_claims(Slow, seeds=2, out=tmp_path, progress=Lines())
    assert "kept from an earlier run" in capsys.readouterr().err


def test_rivals_are_compared_on_the_same_seeds(tmp_path):
    found = compare({"slca:slca": Slow, "lae:adapters": Rival, "slca": Slow}, data="jsonl:mine", seeds=4, out=tmp_path)
    assert found.metrics == ["accuracy", "forgetting"]
    verdicts = {(one.metric, one.one, one.other): one.better for one in found.pairs}
    assert verdicts["accuracy", "slca:slca", "slca"] == "slca:slca"
    # The claim of one of them says that smaller forgetting is better.
    assert verdicts["forgetting", "slca:slca", "slca"] == "slca:slca"
    assert len(found.pairs) == 6
    assert found.notes == ["the budgets differ: steps slca:slca 20, lae:adapters 30, slca 20"]
    assert found.protocol["shared"]["data"] == "jsonl:mine"
    assert "slca:slca is better" in found.table()
    count = len(Slow.measured)
    compare({"slca:slca": Slow, "lae:adapters": Rival, "slca": Slow}, data="jsonl:mine", seeds=4, out=tmp_path)
    assert len(Slow.measured) == count


def test_intervals_of_a_comparison_hold_together(tmp_path):
    from leaven.evidence.statistics import reach_of_all_pairs

    found = compare({"slca:slca": Slow, "lae": Rival, "slca": Slow}, seeds=5, out=tmp_path)
    pair = next(one for one in found.pairs if (one.metric, one.one, one.other) == ("accuracy", "slca:slca", "slca"))
    figures = [found.arms[label].metrics["accuracy"].per_seed for label in ("slca:slca", "lae", "slca")]
    reach = reach_of_all_pairs(figures)
    assert pair.interval == pytest.approx((pair.effect - reach, pair.effect + reach)) and reach > 0
    one_seed = compare({"slca:slca": Slow, "slca": Slow}, seeds=1, out=tmp_path / "one")
    assert one_seed.pairs[0].interval is None and one_seed.pairs[0].better is None
    assert "one seed" in one_seed.table()


@pytest.mark.parametrize(
    ("systems", "options", "error", "says"),
    [
        ({"slca": Slow}, {}, ConfigError, "two systems or arms"),
        ({"slca": Slow, "slca:slow": Slow}, {}, CatalogError, "no arm 'slow'; it has .* Did you mean no-slow?"),
        ({"slca": Slow, "lae:": Rival}, {}, CatalogError, "no arm ''"),
        ({"slca": Slow, "slerp": Stranger}, {}, ConfigError, "no metric in common: slca reports accuracy, forgetting;"),
        ({"slca": Slow, "lae": Rival}, {"seed": 3}, ConfigError, "seed cannot be set"),
        ({"slca:slca": Slow, "lae": Rival}, {"gain": 1.0}, ConfigError, "gain is what the arm slca:slca is about"),
        ({"slca": Slow, "lae": Rival}, {"gian": 1.0}, ValidationError, "gian"),
        ({"slca": Slow, "lae": Rival}, {"steps": 0}, ValidationError, "steps"),
        ({"slca": Slow, "lae": Rival}, {"tier": "standard"}, CatalogError, "lae has no tier 'standard'"),
    ],
)
def test_comparisons_that_cannot_be_made(tmp_path, systems, options, error, says):
    with pytest.raises(error, match=says):
        compare(systems, out=tmp_path / "run", **options)
    assert not (tmp_path / "run" / "comparison.json").exists()


def test_systems_that_disagree_about_the_direction(tmp_path):
    other = type("Other", (Rival,), {"claims": (Claim("x", "forgetting", "adapters", "adapters", 0.0),)})
    with pytest.raises(ConfigError, match="forgetting: some of these systems say that smaller is better"):
        compare({"slca": Slow, "lae": other}, out=tmp_path)
    assert Slow.measured == []


def test_a_result_is_not_rounded_on_the_way_through_the_folder(tmp_path):
    first = run_claims(Slow, seeds=2, out=tmp_path)
    assert run_claims(Slow, seeds=2, out=tmp_path).arms == first.arms
    value = first.arms["slca"].metrics["accuracy"].per_seed[0]
    assert value != float(f"{value:.6g}") and not math.isnan(value)
