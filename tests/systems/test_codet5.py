import json
from pathlib import Path

import pytest
import torch

from leaven.errors import CatalogError, ConfigError
from leaven.evidence.arenas.code_tasks import open_task, task_names
from leaven.evidence.arenas.fine_tuning import BestPerTask, trainer_for
from leaven.evidence.selection import ReadTwiceError
from leaven.models.loading import load_model_and_tokenizer
from leaven.systems import find_system
from leaven.systems.applying import apply_model
from leaven.systems.code.codet5 import CodeT5
from leaven.systems.running import run_in


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tasks = ("name", "summarize", "clone")
    run_in(CodeT5.configured(smoke=True, scratch=True, dual=0.4, tasks=tasks), folder)
    return folder


def test_the_whole_path_gives_a_table_samples_curves_and_models(finished: Path) -> None:
    outcome = json.loads((finished / "outcome.json").read_text())
    assert [row[:2] for row in outcome["rows"]] == [["name", "f1"], ["summarize", "bleu"], ["clone", "f1"]]
    assert all(0 <= figure <= 100 for row in outcome["rows"] for figure in row[2:])
    assert {sample["task"] for sample in outcome["samples"]} == {"name", "summarize"}
    steps = {stage: records[-1]["step"] for stage, records in outcome["curves"].items()}
    assert steps["pre-training"] == 4 and steps["dual generation"] == 2
    assert steps["name"] == 4 and steps["name without pre-training"] == 6 + 4
    for name in outcome["artefacts"].values():
        assert load_model_and_tokenizer(finished / name).tokenizer is not None


def test_a_finished_or_interrupted_run_is_gone_on_in(finished: Path) -> None:
    before = json.loads((finished / "outcome.json").read_text())
    again = run_in(
        CodeT5.configured(smoke=True, scratch=True, dual=0.4, tasks=("name", "summarize", "clone")), finished
    )
    assert again.rows == before["rows"]
    with pytest.raises(ConfigError, match=r"dual was 0.4, is 0.5"):
        run_in(CodeT5.configured(smoke=True, scratch=True, dual=0.5, tasks=("name", "summarize", "clone")), finished)


@pytest.mark.parametrize("task", ["name", "summarize"])
def test_a_trained_model_answers_per_function(finished: Path, task: str) -> None:
    rows = apply_model(str(finished), task, "def f(a):\n    return a\n\n\ndef g(b):\n    return f(b)\n")
    assert [(row["function"], row["line"]) for row in rows] == [("f", "1"), ("g", "5")]
    (filled,) = apply_model(str(finished), "fill", "def f(a):\n    return ???\n")
    assert "???" not in filled["answer"] and "<extra_id" not in filled["answer"] and "def f(a):" in filled["answer"]
    with pytest.raises(CatalogError, match="no model for the task 'refine'"):
        apply_model(str(finished), "refine", "def f(): pass")


def test_the_arms_share_initial_weights_and_budget(tmp_path: Path) -> None:
    measured = {
        arm: CodeT5.configured(arm=arm, smoke=True, tasks=("name",), seed=3).measure(tmp_path / arm)
        for arm in ("scratch", "codet5", "codet5-dual")
    }
    assert {tuple(sorted(m.budget.items())) for m in measured.values()} == {(("steps: name", 10.0),)}
    assert all(m.equal == ("steps: name",) for m in measured.values())
    models = []
    for arm in ("scratch", "codet5"):
        system = CodeT5.configured(arm=arm, smoke=True, seed=3)
        models.append(system.model(system.corpus()).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_objectives_alternate_and_are_never_summed(tmp_path: Path) -> None:
    system = CodeT5.configured(smoke=True, tasks=("name",), pretrain="40 steps")
    corpus = system.corpus()
    curves = system.pretrain(system.model(corpus), corpus, tmp_path)
    records = curves["pre-training"]
    assert {"msp", "it", "mip"} <= {name for record in records for name in record}
    # One objective per step: the mean loss is a mixture of the three, so it lies between the smallest and the largest.
    for record in records:
        parts = [record[name] for name in ("msp", "it", "mip") if name in record]
        assert min(parts) - 1e-6 <= record["loss"] <= max(parts) + 1e-6


def test_a_model_of_ones_own_is_gone_on_from(finished: Path, tmp_path: Path) -> None:
    system = CodeT5.configured(smoke=True, model=str(finished / "pretrained"), objectives=(), tasks=("defect",))
    outcome = run_in(system, tmp_path / "own")
    assert outcome.rows[0][0] == "defect"


def test_multi_task_keeps_the_best_weights_of_each_task(tmp_path: Path) -> None:
    system = CodeT5.configured(smoke=True, multi_task=True, tasks=("name", "generate"), finetune="10 steps", patience=2)
    outcome = run_in(system, tmp_path / "together")
    assert outcome.artefacts["all tasks"] == "all-tasks"
    assert [row[0] for row in outcome.rows] == ["name", "generate"]
    assert {path.stem for path in (tmp_path / "together" / "all-tasks-training" / "best").glob("*.safetensors")} == {
        "name",
        "generate",
    }
    rows = apply_model(str(tmp_path / "together"), "name", "def f(a):\n    return a\n")
    assert rows[0]["function"] == "f"


def test_patience_stops_a_task(tmp_path: Path) -> None:
    system = CodeT5.configured(smoke=True, tasks=("name",))
    (trainer,) = system.trainers(system.corpus()).values()

    class Stream:
        stopped: set[str] = set()  # noqa: RUF012

        def stop(self, task: str) -> None:
            self.stopped.add(task)

    scores = iter([{"f1": 1.0}, {"f1": 3.0}, {"f1": 2.0}, {"f1": 3.0}])
    trainer.judge = lambda model, pairs, beams=1: next(scores)  # type: ignore[method-assign]
    stream = Stream()
    best = BestPerTask({"name": trainer}, stream, 2, tmp_path)  # type: ignore[arg-type]
    model = torch.nn.Linear(1, 1)
    kept = []
    for value in range(4):
        torch.nn.init.constant_(model.weight, value)
        best(model)
        kept.append(float(best.weights["name"]["weight"]))
    assert kept == [0.0, 1.0, 1.0, 1.0] and stream.stopped == {"name"} and best.scores == {"name": 3.0}
    again = BestPerTask({"name": trainer}, stream, 2, tmp_path)  # type: ignore[arg-type]
    assert float(again.weights["name"]["weight"]) == 1.0 and again.scores == best.scores


def test_the_test_split_is_read_once() -> None:
    data = open_task("name", "stdlib-code", limits=(10, 10, 10))
    assert len(data.test.read()) == 10
    with pytest.raises(ReadTwiceError, match="task 'name'"):
        data.test.read()


def test_own_pairs_labels_and_clones(tmp_path: Path) -> None:
    rows = {
        "pairs": [{"source": f"text {i}", "target": f"code {i}"} for i in range(30)],
        "labels": [{"code": f"x = {i}", "label": i % 2} for i in range(30)],
        "clones": [{"code1": f"x = {i}", "code2": f"y = {i}", "label": i % 2} for i in range(30)],
    }
    metrics = {"pairs": "bleu", "labels": "accuracy", "clones": "f1"}
    for name, lines in rows.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        data = open_task(f"jsonl:{path}", "stdlib-code")
        assert data.task.metric == metrics[name] and len(data.train) + len(data.valid) + len(data.test.read()) == 30
        trainer = trainer_for(data, CodeT5.configured(smoke=True).corpus().tokenizer, data.task.form(32), batch_size=4)
        assert next(iter(trainer.loader(0)))["row"].tolist() == [0, 1, 2, 3]
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "x"}\n')
    with pytest.raises(ConfigError, match="its rows are Text"):
        open_task(f"jsonl:{texts}", "stdlib-code")


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match="there is no 'mlm'; there are msp, it, mip"):
        CodeT5.configured(objectives=("mlm",))
    with pytest.raises(ConfigError, match=r"no task 'sumarize'.*did you mean 'summarize'"):
        open_task("sumarize", "stdlib-code")
    with pytest.raises(ConfigError, match="did you mean 'set:java2cs'"):
        open_task("java2c", "stdlib-code")
    with pytest.raises(CatalogError, match="no arm 'codet'"):
        CodeT5.configured(arm="codet")
    assert find_system("codet5") is CodeT5
    with pytest.raises(CatalogError, match="unixcoder is planned but not built"):
        find_system("unixcoder")
    assert "set:java2cs" in task_names()
