"""Two gloo processes equal one with the doubled batch, replicated and sharded, and resume one another's checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("worker.py")
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2"],
    # On CPUs alone accelerate starts several processes only under this flag; they still find gloo.
    "accelerate": [
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
    ],
}


def launch(out: Path, *options: str, launcher: str | None = None, port: int = 29500) -> None:
    place = ["--main_process_port" if launcher == "accelerate" else "--master-port", str(port)]
    start = ["-m", *LAUNCHERS[launcher], *place] if launcher else []
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parent.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *start, str(WORKER), str(out), *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in json.loads((out / "records.json").read_text()) if "loss" in record]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    launch(out, "batch_size=16")
    return out


@pytest.mark.parametrize(
    ("options", "launcher", "port"),
    [
        (["parallel=ddp", "length_groups=3"], "torchrun", 29611),
        (["parallel=fsdp"], "accelerate", 29612),
        (["parallel=fsdp", "length_groups=3"], "torchrun", 29613),
    ],
)
def test_two_processes_equal_one(one: Path, tmp_path: Path, options: list[str], launcher: str, port: int) -> None:
    launch(tmp_path, *options, launcher=launcher, port=port)
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-4)
    mine, theirs = (torch.load(out / "weights.pt", weights_only=True) for out in (tmp_path, one))
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) < 1e-4
    last = json.loads((tmp_path / "records.json").read_text())[-1]
    assert last["valid/sharded"] == float("parallel=fsdp" in options)


@pytest.mark.parametrize(("first", "second", "port"), [("ddp", "fsdp", 29621), ("fsdp", "ddp", 29622)])
def test_a_checkpoint_of_one_form_resumes_under_the_other(
    one: Path, tmp_path: Path, first: str, second: str, port: int
) -> None:
    launch(tmp_path, f"parallel={first}", "die_at=22", launcher="torchrun", port=port)
    launch(tmp_path, f"parallel={second}", launcher="torchrun", port=port)
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-4)


def test_a_checkpoint_of_two_processes_resumes_in_one(one: Path, tmp_path: Path) -> None:
    launch(tmp_path, "parallel=fsdp", "die_at=22", launcher="torchrun", port=29631)
    launch(tmp_path, "batch_size=16")
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-4)
