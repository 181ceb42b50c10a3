"""The typed examples that sources yield."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CodeExample:
    """A function.

    code: dedented source without its docstring.
    language: one of `leaven.data.languages.LANGUAGES`.
    docstring: first paragraph of the documentation, cleaned, or None.
    module, path, line: where it stands; line is 1-based, 0 when unknown.
    """

    code: str
    language: str
    name: str = ""
    docstring: str | None = None
    module: str = ""
    path: str = ""
    line: int = 0

    @property
    def summary(self) -> str | None:
        """First line of the docstring."""
        return self.docstring.split("\n", 1)[0].strip() if self.docstring else None


@dataclass(frozen=True, slots=True)
class Pair:
    """A text and what it is to become: translation, repair, generation, summary."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text with its class.

    label: an index >= 0, or the name of the class.
    where: file and line of its row, empty when unknown.
    """

    text: str
    label: int | str
    where: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two texts and how alike they are; more is more alike."""

    first: str
    second: str
    score: float


@dataclass(frozen=True, slots=True)
class ClonePair:
    """Two programs; label 1 when they do the same, else 0."""

    first: str
    second: str
    label: int


@dataclass(frozen=True, slots=True)
class Text:
    """A document or paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class TaggedTokens:
    """A tokenised sentence with one tag (`O`, `B-X`, `I-X`) per token."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image file and the name of its class."""

    path: str
    label: str


Example = CodeExample | Pair | Labelled | ScoredPair | ClonePair | Text | TaggedTokens | LabelledImage
ExampleKind = (
    type[CodeExample]
    | type[Pair]
    | type[Labelled]
    | type[ScoredPair]
    | type[ClonePair]
    | type[Text]
    | type[TaggedTokens]
    | type[LabelledImage]
)
KINDS: dict[str, ExampleKind] = {
    "code": CodeExample,
    "pair": Pair,
    "labelled": Labelled,
    "scored": ScoredPair,
    "clone": ClonePair,
    "text": Text,
    "tagged": TaggedTokens,
    "image": LabelledImage,
}
