"""Templates against the tokenizer's own encoding of the finished sentence; truncation; what cannot be filled."""

from __future__ import annotations

import pytest
import transformers
from adapt.prompting.small_prompts import byte_tokenizer, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from leaven.adapt.prompting import Demonstration, PromptTokenizer, Template, prompt_tokenizer
from leaven.errors import ConfigError, DataError, ModelError

WORD = word_tokenizer()
TOKENS = prompt_tokenizer(WORD)
BYTES = prompt_tokenizer(byte_tokenizer())


@pytest.mark.parametrize(
    "template", ["{text} it is about {mask}.", "topic: {mask} {text}", "{mask}{text}", "{text} is {mask} is {mask} ."]
)
@pytest.mark.parametrize("text", ["the ice is cold.", "unkindly rain", "", " a [MASK] of ice "])
def test_words_equal_the_tokenizers_own_ids(template: str, text: str) -> None:
    made = Template(template).encode(TOKENS, text)
    whole = WORD(template.format(text=text.strip(), mask="[MASK]"))["input_ids"]
    assert made.ids == whole
    masks = [at for at, i in enumerate(whole) if i == 4]
    assert set(made.slots) <= set(masks) and len(made.slots) == template.count("{mask}")
    assert made.slots == masks or "[MASK]" in text


def test_bytes_keep_the_space_with_the_word() -> None:
    inner = byte_tokenizer()
    made = Template("{text} it is about {mask}.").encode(BYTES, "the ice")
    body = [*inner.encode(["the ice it is about"])[0].ids, BYTES.mask_id, *inner.encode(["."])[0].ids]
    assert made.ids == [inner.start_id, *body, inner.end_id]
    spaced, bare = (Template(t).answer_ids(BYTES, "cold") for t in ("{text} is {mask}", "{text} is ({mask})"))
    assert spaced == inner.encode([" cold"])[0].ids != inner.encode(["cold"])[0].ids
    assert bare == inner.encode(["(cold"])[0].ids[1:]


def test_pieces_that_start_words_keep_their_mark() -> None:
    pieces = ["<unk>", "<mask>", "▁ice", "▁is", "▁cold", "▁", "cold", "▁.", "."]
    inner = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", mask_token="<mask>")
    tokens = prompt_tokenizer(tokenizer)
    template = Template("{text} is {mask}")
    made = template.encode(tokens, "ice")
    assert [pieces[i] for i in made.ids] == ["▁ice", "▁is", "<mask>"]
    assert [pieces[i] for i in template.answer_ids(tokens, "cold")] == ["▁cold"]
    assert [pieces[i] for i in Template("{text} .{mask}").answer_ids(tokens, "cold")] == ["cold"]
    assert tokens.start_ids == tokens.end_ids == ()


def test_a_causal_prompt_ends_before_the_answer() -> None:
    made = Template("{text} is {mask}").encode(TOKENS, "ice", kind="causal")
    assert made.ids == WORD("ice is")["input_ids"][:-1] and made.slots == [len(made.ids) - 1]
    shot = Demonstration("rain", ((WORD.convert_tokens_to_ids("cold"),),))
    shown = Template("{text} is {mask}").encode(TOKENS, "ice", kind="causal", demonstrations=[shot])
    assert shown.ids == WORD("rain is cold ice is")["input_ids"][:-1]
    two = Template("{text} is {mask}").encode(
        BYTES, "ice", kind="causal", demonstrations=[Demonstration("rain", ((9,),))]
    )
    assert BYTES.decode(two.ids[two.ids.index(9) + 1 :]) == "\nice is"


def test_soft_tokens_are_numbered_and_can_be_filled() -> None:
    template = Template("{soft:2} {text} {soft:it is} {mask}")
    made = template.encode(TOKENS, "ice")
    assert made.soft == [-1, 0, 1, -1, 2, 3, -1, -1]
    assert TOKENS.pad_id not in made.ids[1:6]
    assert template.soft_ids(TOKENS) == [None, None, *TOKENS.encode("it is")]
    shot = template.encode(TOKENS, "ice", demonstrations=[Demonstration("sun", ((9,),))])
    assert shot.soft == [-1, 0, 1, -1, 2, 3, -1, 0, 1, -1, 2, 3, -1, -1]
    filled = template.filled(TOKENS.encode("the topic this was"), TOKENS)
    assert filled.encode(TOKENS, "ice").ids == WORD("the topic ice this was [MASK]")["input_ids"]
    assert filled.text == "the topic {text} this was {mask}" and not filled.soft_ids(TOKENS)
    with pytest.raises(ConfigError, match="has 4 soft tokens"):
        template.filled([7], TOKENS)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(10, 50))
def test_only_the_input_is_cut_and_the_longest_first(first: int, second: int, limit: int) -> None:
    template = Template("topic : {a} , {b} is {mask} .")
    fields = {"a": " ".join(["ice"] * first), "b": " ".join(["sun"] * second)}
    made = template.encode(TOKENS, fields, max_length=limit)
    bare = template.encode(TOKENS, {"a": "", "b": ""}).ids
    ice, sun = TOKENS.encode("ice")[0], TOKENS.encode("sun")[0]
    assert [i for i in made.ids if i not in (ice, sun)] == bare
    assert len(made.ids) == min(limit, len(bare) + first + second) and made.ids[made.slots[0]] == 4
    kept = made.ids.count(ice), made.ids.count(sun)
    assert made.cut == first + second - sum(kept)
    longer, shorter = sorted(zip((first, second), kept, strict=True), reverse=True)
    assert shorter[1] == shorter[0] or longer[1] - shorter[1] in (-1, 0, 1)


def test_what_would_be_cut_is_refused() -> None:
    template = Template("the topic of this text is {mask} . {text}")
    with pytest.raises(ConfigError, match="truncation would delete the template or its mask"):
        template.encode(TOKENS, "ice", max_length=8)
    shots = [Demonstration("ice snow rain", ((9,),))] * 3
    with pytest.raises(DataError, match=r"demonstrations of 33 tokens .* the 40 tokens of the context"):
        template.encode(TOKENS, "ice", max_length=40, demonstrations=shots)
    assert len(template.encode(TOKENS, "ice", max_length=44, demonstrations=shots).ids) == 44


def test_what_cannot_be_filled_is_refused() -> None:
    for text, message in {
        "{text} is cold": "no answer slot",
        "it is {mask}": "has no input",
        "{text} {mask} {": "braces",
        "{text} {soft:0} {mask}": "cannot read",
        "{text} {soft} {mask}": "cannot read",
        "{text} {mask:3}": "cannot read",
    }.items():
        with pytest.raises(ConfigError, match=message):
            Template(text)
    with pytest.raises(ConfigError, match="promptless"):
        Template("{text} {mask}", promptless=True)
    without = prompt_tokenizer(word_tokenizer(mask=False))
    for text in ("{text} is {mask}", "{text} is {mask} ."):
        with pytest.raises(ModelError, match="needs a mask token"):
            Template(text).encode(without, "ice")
    with pytest.raises(ConfigError, match="is a cloze"):
        Template("{text} is {mask} .").encode(TOKENS, "ice", kind="causal")
    with pytest.raises(DataError, match="field 'span', got None"):
        Template("{text} {span} is {mask} .").encode(TOKENS, "ice")
    with pytest.raises(ConfigError, match="expected one"):
        Template("{text} {mask} {mask}").encode(TOKENS, "ice", kind="seq2seq")
    with pytest.raises(ModelError, match="no tokenizer that prompts can use"):
        prompt_tokenizer(object())
    bare = PromptTokenizer(encode=lambda text: [], decode=lambda ids: "", pad_id=0)
    with pytest.raises(DataError, match="has no tokens"):
        Template("{text}{mask}").encode(bare, "", kind="causal")


def test_shapes() -> None:
    assert Template("{text} is {mask} ").shape == "prefix" == Template("{text}", promptless=True).shape
    assert Template("{text} is {mask} .").shape == "cloze" == Template("{mask} {text}").shape
    assert Template("{{x}} {text} {mask}").encode(TOKENS, "ice").ids.count(TOKENS.unknown_id) == 2
