"""How the files of the standard sets of labelled and scored texts are read and, where a part is missing, divided."""

from __future__ import annotations

import csv
from pathlib import Path

from leaven.data.examples import Example, ExampleKind, Labelled, Pair, ScoredPair
from leaven.data.splits import SplitName, hash_share

Paths = tuple[Path, ...]

NEWS_TOPICS = ("World", "Sports", "Business", "Sci/Tech")
SENTIMENTS = ("negative", "positive")
QUESTION_TYPES = ("description", "entity", "abbreviation", "human", "location", "number")
_NEWS_TO_TRAIN = 6000


def _validates(key: str) -> bool:
    """A tenth of what trains is kept to validate by, whatever else there is."""
    return hash_share(key) >= 0.9


def _csv_rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def agnews(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`Labelled` title and text by topic, or `Pair` of title and text; one file: 6,000 rows to train, the others test.

    A backslash stands for a line break in the published file.
    """
    rows = [(label, *(" ".join(t.replace("\\", " ").split()) for t in texts)) for label, *texts in _csv_rows(paths[0])]
    if split == "test":
        mine = rows[_NEWS_TO_TRAIN:]
    else:
        mine = [row for row in rows[:_NEWS_TO_TRAIN] if _validates(f"{row[1]} {row[2]}") == (split == "valid")]
    if kind is Pair:
        return [Pair(title, text) for _, title, text in mine]
    return [Labelled(f"{title} {text}", NEWS_TOPICS[int(label) - 1]) for label, title, text in mine]


def sst2(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`Labelled` sentences of film reviews (sentence TAB 0 or 1) by sentiment."""
    lines = paths[0].read_text(encoding="utf-8").splitlines()
    rows = (line.rsplit("\t", 1) for line in lines if line.strip())
    return [Labelled(text.strip(), SENTIMENTS[int(label)]) for text, label in rows]


def stsb(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`ScoredPair` of sentences, alike from 0 to 5."""
    return [ScoredPair(first, second, float(score)) for first, second, score in _csv_rows(paths[0])]


def trec(paths: Paths, part: str, split: SplitName, kind: ExampleKind) -> list[Example]:
    """`Labelled` questions (0 to 5, space, question; latin-1) by what they ask for; a tenth of train validates."""
    lines = paths[0].read_bytes().decode("latin-1").split("\n")
    rows = (line.split(" ", 1) for line in lines if line.strip())
    found = [Labelled(text.strip(), QUESTION_TYPES[int(label)]) for label, text in rows]
    return [one for one in found if part == "test" or _validates(one.text) == (split == "valid")]
