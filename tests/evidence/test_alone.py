import json
import multiprocessing

import pytest
from evidence.small_systems import Rival, Slow, stay_in

from leaven.errors import ConfigError
from leaven.evidence.alone import alone_in
from leaven.evidence.compare import compare
from leaven.evidence.runner import run_claims
from leaven.systems.running import run_in


class Quick(Slow):
    def run(self, out):
        (out / "made").touch()
        raise ConfigError("as far as it goes")


@pytest.fixture
def busy(tmp_path):
    """A folder in which another process is at work, and that process."""
    run_claims(Slow, seeds=1, out=tmp_path)
    start = multiprocessing.get_context("spawn")
    arrived = start.Event()
    process = start.Process(target=stay_in, args=(tmp_path, arrived))
    process.start()
    assert arrived.wait(60)
    yield tmp_path, process
    process.kill()
    process.join()


def test_a_second_process_is_refused_until_the_first_ends_even_by_a_kill(busy):
    folder, process = busy
    Slow.measured.clear()
    with pytest.raises(ConfigError, match="another process is at work in this folder"):
        run_claims(Slow, seeds=2, out=folder)
    with pytest.raises(ConfigError, match="another process"):
        compare({"lae:adapters": Rival, "lae": Rival}, out=folder)
    assert Slow.measured == [] and set(json.loads((folder / "protocol.json").read_text())["entrants"]) == {
        "sequential",
        "slca",
        "no-slow",
    }
    process.kill()
    process.join()
    assert run_claims(Slow, seeds=2, out=folder).seeds == [0, 1]
    assert {seed for _, _, seed in Slow.measured} == {1}


def test_a_run_is_kept_out_too(busy, tmp_path_factory):
    folder, process = busy
    other = tmp_path_factory.mktemp("run")
    with pytest.raises(ConfigError, match="as far as it goes"):
        run_in(Quick.configured(), other)
    with alone_in(other), pytest.raises(ConfigError, match="another process"):
        run_in(Quick.configured(), other)
    with pytest.raises(ConfigError, match="another process"), alone_in(folder):
        pass
    assert process.is_alive()


def test_the_lock_leaves_no_file(tmp_path):
    with alone_in(tmp_path):
        assert list(tmp_path.iterdir()) == []
    with alone_in(tmp_path):
        pass
