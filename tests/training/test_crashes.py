"""Killed at any moment, damaged on disk: the run goes on as if nothing had been."""

import json
import multiprocessing
import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from training.toy import Corrupted, Model, loader
from training.worker import main as worker

from leaven.errors import CheckpointError
from leaven.training.checkpoint import latest_good, listed, verify
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit

OPTIONS = ["steps=60", "sleep=0.02", "checkpoint_every=3", "dropout=0.2"]


def test_kill_9_at_twenty_random_moments(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["training.worker"])
    worker([str(tmp_path / "undisturbed"), *OPTIONS, "sleep=0"])
    out, moments = tmp_path / "killed", random.Random(4)
    kills = 0
    while kills < 20:
        process = processes.Process(target=worker, args=([str(out), *OPTIONS],))
        process.start()
        # A life of up to three checkpoints: some die before their first step, some while writing.
        process.join(0.05 + 0.3 * moments.random())
        if process.exitcode is None:
            process.kill()
            kills += 1
        process.join()
        if (out / "weights.pt").exists():
            shutil.rmtree(out)
    process = processes.Process(target=worker, args=([str(out), *OPTIONS],))
    process.start()
    process.join()
    assert process.exitcode == 0
    weights = [torch.load(tmp_path / run / "weights.pt", weights_only=True) for run in ("undisturbed", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    records = [json.loads((tmp_path / run / "records.json").read_text()) for run in ("undisturbed", "killed")]
    for record in (*records[0], *records[1]):
        record.pop("seconds", None)
    assert records[0] == records[1]
    assert not list(out.glob(".draft-*")) and not list(out.glob(".old-*"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _flip(path: Path, at: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "weights cut off": lambda c: _cut(c / "model.safetensors"),
    "one bit of the weights": lambda c: _flip(c / "model.safetensors"),
    "one bit of the header": lambda c: _flip(c / "model.safetensors", 10),
    "moments missing": lambda c: (c / "optimizer.safetensors").unlink(),
    "weights emptied": lambda c: (c / "model.safetensors").write_bytes(b""),
    "state cut off": lambda c: _cut(c / "state.json"),
    "state edited": lambda c: (c / "state.json").write_text((c / "state.json").read_text().replace("0", "1", 1)),
    "manifest missing": lambda c: (c / "manifest.json").unlink(),
    "manifest edited": lambda c: (c / "manifest.json").write_text(
        (c / "manifest.json").read_text().replace("a", "b", 1)
    ),
    "manifest not JSON": lambda c: (c / "manifest.json").write_text("{"),
    "a stranger's file": lambda c: (c / "extra.safetensors").write_bytes(b"x"),
    "files of another checkpoint": lambda c: shutil.copy(
        c.parent / "step-00000004" / "model.safetensors", c / "model.safetensors"
    ),
    "renamed": lambda c: c.rename(c.with_name("step-00000007")),
    "a file in place of the folder": lambda c: (shutil.rmtree(c), c.write_text("x")),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    out, model = tmp_path_factory.mktemp("run"), Model()
    fit(model, Corrupted(), loader(), "6 steps", TrainingConfig(checkpoint_every=2, keep=2, progress=False), out=out)
    return out, model.state_dict()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_the_previous_checkpoint_is_used(
    damage: str, finished: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    out, expected = tmp_path / "run", finished[1]
    shutil.copytree(finished[0], out)
    newest = listed(out, "step")[-1]
    DAMAGES[damage](newest)
    with pytest.raises(CheckpointError):
        verify(listed(out, "step")[-1])
    with pytest.warns(UserWarning, match="damaged checkpoint passed over, step-00000004 used"):
        checkpoint = latest_good(out)
    assert checkpoint is not None and checkpoint.step == 4
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = TrainingConfig(checkpoint_every=2, keep=2, progress=False)
        fit(model, Corrupted(), loader(), "6 steps", config, out=out)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert verify(listed(out, "step")[-1]).step == 6


def test_all_damaged_is_an_error_that_says_so(finished: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    for checkpoint in listed(out, "step"):
        _flip(checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used: .*sha256.*start in a new folder"):
        fit(Model(), Corrupted(), loader(), "6 steps", TrainingConfig(progress=False), out=out)
