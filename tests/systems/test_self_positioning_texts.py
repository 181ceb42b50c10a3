"""Texts, probe set and specialists of Self Positioning: nothing is trained on and asked, nothing is out of balance."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from evidence.small_backbones import docstring_encoder

from leaven.errors import ConfigError, ModelError
from leaven.evidence.arenas.merge_embedders import open_text_model
from leaven.evidence.arenas.merge_text_ground import TextGround
from leaven.evidence.arenas.merge_texts import _documented
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.models.saved import save_model
from leaven.systems.merge.self_positioning import SelfPositioning


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return docstring_encoder(tmp_path_factory.mktemp("texts") / "encoder")


def ground(model: str, place: Path, **options: Any) -> TextGround:
    return TextGround(SelfPositioning.configured(smoke=True, model=model, **options).config, place)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_no_text_that_is_asked_for_is_one_to_train_on(split: Any) -> None:
    trained, asked = ({text for text, _ in _documented(one, 0)} for one in ("train", split))
    assert asked and not trained & asked


@pytest.mark.parametrize("seed", range(3))
def test_a_search_that_ends_early_has_seen_as_much_of_each_task(seed: int, model: str, tmp_path: Path) -> None:
    both = ground(model, tmp_path, seed=seed, probe=(32, 32))
    first, second = both.config.tasks

    def batches(task: str) -> list[bytes]:
        rows, size = both.probe[task], both.config.text_batch
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        return [both.store.fields([row.positive for row in part])[0].numpy().tobytes() for part in parts]

    own = batches(first)
    drawn = [batch["positive"].numpy().tobytes() for batch in both.probe_batches()]
    assert sorted(drawn) == sorted([*own, *batches(second)])
    for end in range(2, len(drawn) + 1, 2):
        assert sum(one in own for one in drawn[:end]) == end / 2
    few = ground(model, tmp_path, seed=seed, probe=(8, 32))
    shares = [batch["positive"].numpy().tobytes() for batch in few.probe_batches()]
    own = [
        few.store.fields([row.positive for row in few.probe[first][at : at + 4]])[0].numpy().tobytes() for at in (0, 4)
    ]
    assert len(shares) == 10 and [sum(one in own for one in part) for part in (shares[:5], shares[5:])] == [1, 1]


def test_a_probe_set_that_is_short_of_a_task_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"probe=100000,8: the validation split has \d+ rows for \w+"):
        _ = ground(model, tmp_path, probe=(100_000, 8)).probe


def test_an_encoder_that_pools_otherwise_is_refused(model: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "cls"))
    (folder / "1_Pooling").mkdir()
    for token, accepted in (("mean_tokens", True), ("cls_token", False)):
        modes = {"word_embedding_dimension": 16, f"pooling_mode_{token}": True, "include_prompt": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
        if accepted:
            assert open_text_model(str(folder), 16).folder == folder
        else:
            with pytest.raises(ModelError, match=r"pools its states by cls_token.*expected mean_tokens"):
                open_text_model(str(folder), 16)


@pytest.mark.filterwarnings("ignore:no common ancestor")
def test_specialists_are_paired_with_tasks_by_their_names(model: str, tmp_path: Path) -> None:
    tokenizer = CodeTokenizer.load(Path(model))
    tasks = SelfPositioning.configured(smoke=True).config.tasks

    def write(name: str, shift: float) -> None:
        encoder = open_text_model(model, 16).encoder
        with torch.no_grad():
            encoder.encoder.blocks[1].ffn.up_proj.weight += shift
        save_model(tmp_path / "own" / name, encoder, tokenizer)

    for place, task in enumerate(tasks):
        write(task, 0.1 * (place + 1))
    named = ground(model, tmp_path / "a", ingredients=str(tmp_path / "own"), layers=1)
    assert [Path(one.label).stem for one in named.specialists] == list(tasks) != sorted(tasks)
    assert (
        named.paired
        and "worst drop"
        in SelfPositioning.configured(smoke=True, model=model, ingredients=str(tmp_path / "own"), layers=1)
        .measure(tmp_path / "m" / "arm")
        .metrics
    )
    (tmp_path / "own" / tasks[0]).rename(tmp_path / "own" / "other")
    options: dict[str, Any] = {"model": model, "ingredients": str(tmp_path / "own"), "layers": 1}
    assert not ground(model, tmp_path / "b", **{key: options[key] for key in ("ingredients", "layers")}).paired
    system = SelfPositioning.configured(smoke=True, **options)
    assert "worst drop" not in system.measure(tmp_path / "n" / "arm").metrics
    assert "specialists" not in system.shown(system.ground(tmp_path / "o"))
    with pytest.raises(ConfigError, match=r"name the checkpoints of .* as the tasks are"):
        SelfPositioning.configured(smoke=True, recipe="specialists", **options).measure(tmp_path / "p" / "arm")
