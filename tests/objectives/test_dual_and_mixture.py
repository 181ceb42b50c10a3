import pytest
import torch

from leaven.contracts import Batch, Loss
from leaven.data.examples import CodeExample
from leaven.errors import ConfigError, DataError
from leaven.modalities.code import collate_functions, encode_functions
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.objectives.dual_generation import DualGeneration
from leaven.objectives.mixture import Alternate, Weighted

CODE, DOC = "def add(a, b):\n    return a + b\n", "Add two numbers."


@pytest.fixture(scope="module")
def tokenizer() -> CodeTokenizer:
    return CodeTokenizer.train([CODE, DOC] * 3, 400, 2)


def dual(tokenizer: CodeTokenizer, **rest: int) -> DualGeneration:
    return DualGeneration(
        start_id=tokenizer.start_id,
        end_id=tokenizer.end_id,
        pad_id=tokenizer.pad_id,
        natural_tag=tokenizer.tag_id("en"),
        **rest,
    )


def batch_of(tokenizer: CodeTokenizer, *docs: str | None) -> Batch:
    examples = [CodeExample(CODE, "python", docstring=doc) for doc in docs]
    return collate_functions(encode_functions(examples, tokenizer), tokenizer.pad_id)


def test_both_directions_with_language_tags_from_pairs_alone(tokenizer: CodeTokenizer) -> None:
    made = dual(tokenizer).prepare(batch_of(tokenizer, DOC, None, DOC), torch.Generator())
    assert made["input_ids"].shape[0] == made["labels"].shape[0] == 4
    for row, (source, target, tag) in enumerate([(DOC, CODE, "<python>")] * 2 + [(CODE, DOC, "<en>")] * 2):
        labels = [i for i in made["labels"][row].tolist() if i >= 0]
        assert tokenizer.tokenizer.id_to_token(labels[0]) == tag
        assert labels[-1] == tokenizer.end_id
        assert tokenizer.decode(labels) == target
        assert made["input_ids"][row, 0] == tokenizer.start_id
        assert tokenizer.decode(made["input_ids"][row, 1:].tolist()) == source


def test_long_programs_are_cut_before_the_end_token(tokenizer: CodeTokenizer) -> None:
    made = dual(tokenizer, max_labels=5, max_inputs=4).prepare(batch_of(tokenizer, DOC), torch.Generator())
    assert made["labels"].shape[1] == 5 and made["input_ids"].shape[1] == 4
    assert made["labels"][0, -1] == tokenizer.end_id == made["input_ids"][0, -1]


def test_no_documentation_is_an_error(tokenizer: CodeTokenizer) -> None:
    with pytest.raises(DataError, match="no bimodal pairs"):
        dual(tokenizer).prepare(batch_of(tokenizer, None, None), torch.Generator())


class Constant:
    """Loss of a given size, noting in the batch who prepared it."""

    def __init__(self, name: str, value: float) -> None:
        self.name, self.value = name, value

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        return {**batch, "by": torch.tensor([self.value])}

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Loss:
        assert float(batch["by"]) == pytest.approx(self.value)
        return Loss(torch.tensor(self.value), torch.tensor(1), {self.name: torch.tensor(self.value)})


def test_alternation_draws_by_weight_and_only_one_objective_at_a_time() -> None:
    mixture = Alternate(
        {"a": Constant("a", 1.0), "b": Constant("b", 2.0), "c": Constant("c", 3.0)}, {"a": 1, "b": 1, "c": 2}
    )
    generator = torch.Generator().manual_seed(0)
    counts = dict.fromkeys("abc", 0)
    for _ in range(4000):
        loss = mixture(torch.nn.Identity(), mixture.prepare({}, generator))
        (name,) = loss.parts
        assert float(loss.total) == "abc".index(name) + 1
        counts[name] += 1
    assert [counts[n] / 4000 for n in "abc"] == pytest.approx([0.25, 0.25, 0.5], abs=0.03)


def test_weighted_sum_with_a_schedule() -> None:
    mixture = Weighted({"a": Constant("a", 1.0), "b": Constant("b", 2.0)}, {"a": 0.5, "b": lambda step: step / 10})
    loss = mixture(torch.nn.Identity(), mixture.prepare({"step": torch.tensor(5)}, torch.Generator()))
    assert float(loss.total) == pytest.approx(0.5 * 1 + 0.5 * 2)
    assert set(loss.parts) == {"a", "b"}


def test_bad_mixtures_are_named() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        Alternate({})
    with pytest.raises(ConfigError, match="differ in \\['b'\\]"):
        Alternate({"a": Constant("a", 1.0)}, {"a": 1, "b": 1})
    with pytest.raises(ConfigError, match="negative"):
        Weighted({"a": Constant("a", 1.0)}, {"a": -1})
    with pytest.raises(ConfigError, match="are 0 at step 0"):
        Alternate({"a": Constant("a", 1.0)}, {"a": 0}).prepare({}, torch.Generator())
