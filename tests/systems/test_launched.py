"""`torchrun -m leaven run` on two processes equals one process with the doubled batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONS = ["dim=16", "depth=1", "heads=2", "vocab=400", "corpus_limit=200", "train_limit=60", "valid_limit=4"]
SIZES = ["test_limit=4", "pretrain=12 steps", "finetune=4 steps", 'tasks=["variable"]', "scratch=false", "dual=0.3"]


def run(out: Path, *options: str, port: int | None = None) -> dict[str, list[float]]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)] if port else []
    command = [
        sys.executable,
        *launcher,
        "-m",
        "leaven",
        "run",
        "codet5",
        *OPTIONS,
        *SIZES,
        *options,
        "--out",
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("outcome.json written") == 1
    curves = json.loads((out / "outcome.json").read_text())["curves"]
    return {stage: [r["loss"] for r in records if "loss" in r] for stage, records in curves.items()}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return run(tmp_path_factory.mktemp("one") / "run", "batch_size=8")


@pytest.mark.parametrize(("parallel", "port"), [("ddp", 29641), ("fsdp", 29642)])
def test_two_processes_give_the_curves_of_one(
    parallel: str, port: int, one: dict[str, list[float]], tmp_path: Path
) -> None:
    two = run(tmp_path / "run", "batch_size=4", f"parallel={parallel}", port=port)
    assert set(two) == {"pre-training", "dual generation", "variable"}
    for stage, losses in one.items():
        assert two[stage] == pytest.approx(losses, abs=1e-4)
