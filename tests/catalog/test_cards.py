import re

import pytest

from leaven.catalog import AREAS, MODALITIES, STAGES, card, cards, filter_cards, ideas
from leaven.errors import CatalogError


def test_the_page_has_106_systems_in_order_under_unique_slugs():
    found = cards()
    assert [one.number for one in found] == list(range(1, 107))
    assert len({one.slug for one in found}) == 106
    assert len({one.title for one in found}) == 106


@pytest.mark.parametrize("one", cards(), ids=lambda one: one.slug)
def test_a_card_keeps_to_the_vocabularies(one):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one.slug)
    assert one.area in AREAS
    assert one.stage in STAGES
    assert one.modalities and set(one.modalities) <= set(MODALITIES)
    assert len(set(one.modalities)) == len(one.modalities)
    assert 2 <= len(one.ideas) <= 6 and len(set(one.ideas)) == len(one.ideas)
    assert 20 <= len(one.does) <= 160 and one.does.endswith(".")
    assert one.arxiv == "" or re.fullmatch(r"\d{4}\.\d{5}", one.arxiv)


@pytest.mark.parametrize("one", [one for one in cards() if one.arxiv], ids=lambda one: one.slug)
def test_publication_is_not_before_the_preprint_nor_long_after(one):
    assert int(one.arxiv[2:4]) in range(1, 13)
    assert 0 <= one.year - (2000 + int(one.arxiv[:2])) <= 2


def test_every_value_of_a_vocabulary_is_used():
    assert {one.area for one in cards()} == set(AREAS)
    assert {one.stage for one in cards()} == set(STAGES)
    assert {modality for one in cards() for modality in one.modalities} == set(MODALITIES)


def test_filters_combine_and_keep_the_order():
    found = filter_cards(area="continual", stage="adapt", modality="image", idea="class-incremental")
    assert [one.slug for one in found] == ["adam-cil", "lae", "nmc", "slca"]
    assert filter_cards() == list(cards())
    assert filter_cards(area="audio", stage="merge") == []


@pytest.mark.parametrize(
    ("facet", "value", "meant"),
    [
        ("area", "contnual", "continual"),
        ("stage", "pre-train", "pretrain"),
        ("modality", "images", "image"),
        ("idea", "span corupton", "span corruption"),
    ],
)
def test_an_unknown_facet_value_says_which_exist_and_what_was_meant(facet, value, meant):
    with pytest.raises(CatalogError, match=f"no {facet} '{value}': there are .*Did you mean '{meant}'"):
        filter_cards(**{facet: value})


def test_a_facet_value_that_contains_the_word_is_offered():
    with pytest.raises(CatalogError, match="knowledge distillation"):
        filter_cards(idea="distillation")


@pytest.mark.parametrize(
    ("slug", "meant"), [("codt5", "codet5"), ("UL2", "ul2"), ("adam_cil", "adam-cil"), ("perceiver", "uni-perceiver")]
)
def test_an_unknown_slug_names_the_near_ones(slug, meant):
    with pytest.raises(CatalogError, match=f"did you mean .*{meant}"):
        card(slug)


def test_an_unknown_slug_without_a_near_one_points_to_the_search():
    with pytest.raises(CatalogError, match="leaven search"):
        card("qqqqqq")


def test_cards_are_plain_data():
    assert card("slca").to_json()["modalities"] == ["image"]
    assert card("adam-cil").module == "adam_cil"
    assert "span corruption" in ideas()
