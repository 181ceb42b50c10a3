import json
import multiprocessing
import os
import time

import pytest
import torch
from evidence.small_systems import Failing, Killed, Rival, Slow, measure_endlessly

from leaven.errors import ConfigError
from leaven.evidence.compare import compare
from leaven.evidence.json_file import EvidenceError
from leaven.evidence.progress import Lines
from leaven.evidence.runner import run_claims


def test_seeds_side_by_side_give_what_seeds_in_a_row_give(tmp_path, capsys):
    Slow.measured.clear()
    run_claims(Slow, seeds=1, out=tmp_path / "some")
    alone = run_claims(Slow, seeds=4, out=tmp_path / "row")
    capsys.readouterr()
    before = list(Slow.measured)
    together = run_claims(Slow, seeds=4, jobs=2, out=tmp_path / "some", progress=Lines())
    assert together.claims == alone.claims and together.arms == alone.arms
    # In other processes, and each told once; what was there is not measured again.
    assert Slow.measured == before
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 12 and sum("kept from an earlier run" in line for line in lines) == 3
    made = json.loads((tmp_path / "some/seed-2/slca.json").read_text())["provenance"]
    assert made["machine"]["threads"] == max(1, torch.get_num_threads() // 2) and "torch" in made["versions"]


def test_a_comparison_may_be_measured_side_by_side(tmp_path):
    systems = {"slca:slca": Slow, "lae:adapters": Rival}
    alone = compare(systems, data="jsonl:mine", out=tmp_path / "row")
    together = compare(systems, data="jsonl:mine", jobs=3, out=tmp_path / "side")
    assert together.arms == alone.arms and together.pairs == alone.pairs


def test_an_error_names_arm_and_seed_and_the_rest_is_kept(tmp_path):
    with pytest.raises(EvidenceError, match=r"slca, seed 1: rows\.jsonl:3: broken JSON"):
        run_claims(Failing, seeds=3, jobs=2, out=tmp_path)
    assert (tmp_path / "seed-1/sequential.json").is_file()
    assert not (tmp_path / "seed-1/slca.json").exists()
    with pytest.raises(ConfigError, match="jobs=0"):
        run_claims(Slow, jobs=0, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_killed_process_ends_the_run_and_leaves_its_results(tmp_path):
    with pytest.raises(EvidenceError, match="the process of seed 1 ended with code -9"):
        run_claims(Killed, seeds=2, jobs=2, out=tmp_path)
    assert (tmp_path / "seed-1/sequential.json").is_file()
    assert not (tmp_path / "seed-1/slca.json").exists()


def exists(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def waited_for(condition):
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_its_processes_end_with_the_run_even_by_a_kill(tmp_path):
    run = multiprocessing.get_context("spawn").Process(target=measure_endlessly, args=(tmp_path,))
    run.start()
    assert waited_for(lambda: len(list(tmp_path.glob("seed-*/sequential/process"))) == 2)
    processes = [int(file.read_text()) for file in tmp_path.glob("seed-*/sequential/process")]
    assert all(exists(process) for process in processes)
    run.kill()
    run.join()
    assert waited_for(lambda: not any(exists(process) for process in processes))
