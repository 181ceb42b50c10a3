"""Verbalizers that are found rather than written: label words searched on a few examples, label vectors, prototypes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leaven.adapt.prompting.slots import SlotReader, Slots
from leaven.adapt.prompting.template import Fields, Template
from leaven.adapt.prompting.verbalizers import ManualVerbalizer, Verbalizer
from leaven.errors import ConfigError, DataError

_EXHAUSTIVE = 20_000


def likelihood_ratio(log_probs: Tensor, targets: Tensor, labels: int) -> Tensor:
    """How much more a word is predicted for one label's examples than for the others', by log odds (labels, words).

    The others count together as much as the label's own.

    Shapes: log_probs (examples, words), of distributions over the words; targets (examples,).
    Source: arXiv 2010.13641 equations 5 and 7.
    """
    odds = log_probs.double() - torch.log1p(-log_probs.double().exp().clamp(max=1 - 1e-12))
    own = F.one_hot(targets, labels).double()
    counts = own.sum(0)[:, None]
    return own.T @ odds - counts / (len(targets) - counts) * ((1 - own).T @ odds)


def best_assignment(log_probs: Tensor, targets: Tensor, shortlists: Sequence[Sequence[int]]) -> list[int]:
    """One word per label, all different, that classify the examples best; ties go to the likelier labels.

    All combinations are tried while there are at most 20000; beyond, one label's word is changed at a time.

    Shapes: log_probs (examples, words), targets (examples,); shortlists: word indices for each label.
    Raises: DataError when the shortlists leave no choice of different words.
    Source: arXiv 2012.15723 section 5.1.
    """

    def values(chosen: Tensor) -> Tensor:
        scores = F.log_softmax(log_probs[:, chosen].double(), -1)
        right = (scores.argmax(-1) == targets[:, None]).sum(0).double()
        true = scores.gather(-1, targets[:, None, None].expand(-1, len(chosen), 1))[..., 0].mean(0)
        repeated = (chosen.sort(1).values.diff(dim=1) == 0).any(1)
        return (right + true.exp()).masked_fill(repeated, -torch.inf)

    def best(candidates: list[tuple[int, ...]]) -> tuple[float, tuple[int, ...]]:
        found = torch.cat([values(torch.tensor(candidates[at : at + 512])) for at in range(0, len(candidates), 512)])
        at = int(found.argmax())
        return float(found[at]), candidates[at]

    sizes = torch.tensor([len(words) for words in shortlists], dtype=torch.float64)
    if float(sizes.prod()) <= _EXHAUSTIVE:
        value, chosen = best(list(itertools.product(*shortlists)))
    else:
        start: list[int] = []
        for words in shortlists:
            start.append(next((word for word in words if word not in start), words[0]))
        value, chosen, before = -torch.inf, tuple(start), None
        while chosen != before:
            before = chosen
            for at, words in enumerate(shortlists):
                value, chosen = best([(*chosen[:at], word, *chosen[at + 1 :]) for word in words])
    if value == -torch.inf:
        raise DataError("the candidates leave no different word for each label: allow more candidates")
    return list(chosen)


def search_label_words(
    reader: SlotReader,
    template: Template,
    texts: Sequence[Fields],
    labels: Sequence[str],
    *,
    words: int = 1,
    candidates: int = 1000,
    keep: int = 10,
) -> ManualVerbalizer:
    """Label words from a few examples: likely words, the most telling of them by likelihood ratio, a joint search.

    Only whole words of letters that are one token are considered.

    Args:
        texts, labels: training examples, of every label at least one.
        words: per label; those beyond the first follow the likelihood ratio.
        candidates: likeliest words per label that are ranked. keep: of these, how many the joint search tries.

    Raises: DataError for examples of less than two labels or too few words; ConfigError for numbers below 1.
    Source: arXiv 2010.13641 sections 4.1 and 4.2; arXiv 2012.15723 section 5.1.
    """
    if min(words, candidates, keep) < 1 or keep < words:
        raise ConfigError(f"words={words}, candidates={candidates}, keep={keep}: expected 1 or more, keep >= words")
    names = list(dict.fromkeys(labels))
    if len(texts) != len(labels) or len(names) < 2:
        raise DataError(
            f"{len(texts)} texts with {len(labels)} labels, {len(names)} of them different: label words are told apart "
            "on examples of two labels or more, one label per text"
        )
    targets = torch.tensor([names.index(label) for label in labels])
    prompts = [reader.encode(template, text) for text in texts]
    log_probs = torch.cat(reader.read(prompts, lambda slots: F.log_softmax(slots.logits[:, 0].float(), -1).cpu()))
    ratio = likelihood_ratio(log_probs, targets, len(names))
    shortlists = []
    for at, name in enumerate(names):
        likely = log_probs[targets == at].sum(0).topk(min(candidates, log_probs.shape[1])).indices
        ranked = likely[ratio[at, likely].argsort(descending=True, stable=True)].tolist()
        found = list(itertools.islice((i for i in ranked if _is_word(reader, template, i)), keep))
        if len(found) < words:
            raise DataError(f"label {name!r}: only {len(found)} of {len(ranked)} candidates are words; allow more")
        shortlists.append(found)
    chosen = [[word] for word in best_assignment(log_probs, targets, shortlists)]
    for _ in range(words - 1):
        for own, shortlist in zip(chosen, shortlists, strict=True):
            own.extend([word for word in shortlist if not any(word in other for other in chosen)][:1])
    texts_of = {name: [_text(reader, i) for i in own] for name, own in zip(names, chosen, strict=True)}
    return ManualVerbalizer(texts_of, reader.tokenizer, template).to(reader.device)


def _text(reader: SlotReader, token: int) -> str:
    return reader.tokenizer.decode([token]).strip()


def _is_word(reader: SlotReader, template: Template, token: int) -> bool:
    text = _text(reader, token)
    return (
        token not in reader.tokenizer.special_ids
        and text.isalpha()
        and template.answer_ids(reader.tokenizer, text) == [token]
    )


class SoftVerbalizer(Verbalizer):
    """Learned label vectors in the place of label words: the score is that of the output matrix with other rows.

    Args:
        labels: names. dim: of the states that the output matrix reads.

    Source: arXiv 2101.00121 section 3 (WARP).
    """

    def __init__(self, labels: Sequence[str], dim: int, generator: torch.Generator) -> None:
        super().__init__(labels)
        self.weight = nn.Parameter(torch.randn(len(labels), dim, generator=generator) * 0.02)
        self.bias = nn.Parameter(torch.zeros(len(labels)))

    @staticmethod
    def from_words(manual: ManualVerbalizer, reader: SlotReader) -> SoftVerbalizer:
        """Label vectors that start as the mean of the label's words, so that labels are as likely as with the words.

        Raises: ConfigError with multi_token="max", which is no mean.
        """
        if manual.multi_token == "max":
            raise ConfigError("multi_token='max' cannot be put into label vectors: take 'first' or 'mean'")
        made = SoftVerbalizer(manual.labels, reader.dim, torch.Generator())
        real = manual.real.cpu()
        real = real if manual.multi_token == "mean" else real & (torch.arange(real.shape[1]) < 1)
        share, mean = real / real.sum(-1, keepdim=True), manual.mean.cpu().T
        rows, bias = reader.output_rows(manual.tokens.cpu())
        with torch.no_grad():
            made.weight.copy_(mean @ (rows * share[..., None]).sum(1))
            made.bias.copy_(mean @ (bias * share).sum(1))
        return made

    def units(self, slots: Slots) -> Tensor:
        """Scores of labels."""
        return F.linear(slots.states[:, 0].to(self.weight.dtype), self.weight, self.bias)


class TaskHead(SoftVerbalizer):
    """A new linear head on the state at the first token (of a causal model, the last): fine-tuning without a prompt."""


class PrototypeVerbalizer(Verbalizer):
    """Scores by the cosine between the projected state and a learned prototype of each label.

    Prototypes start as the means of the training examples; cross-entropy over the scores is the paper's
    instance-prototype loss.

    Args:
        labels: names. dim: of the states. projection: width of the metric space, None for the states themselves.
        temperature: of the scores, > 0.

    Source: arXiv 2203.09770 section 3.2 (ProtoVerb).
    """

    def __init__(
        self,
        labels: Sequence[str],
        dim: int,
        generator: torch.Generator,
        *,
        projection: int | None = None,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(labels)
        if temperature <= 0:
            raise ConfigError(f"temperature={temperature}: expected above 0")
        width, self.temperature = projection or dim, temperature
        drawn = torch.randn(width, dim, generator=generator) / dim**0.5
        self.projection = nn.Parameter(drawn) if projection is not None else None
        self.prototypes = nn.Parameter(torch.randn(len(labels), width, generator=generator))

    def _embedded(self, states: Tensor) -> Tensor:
        states = states[:, 0].to(self.prototypes.dtype)
        return F.normalize(states if self.projection is None else F.linear(states, self.projection), dim=-1)

    @torch.no_grad()
    def start(self, states: Tensor, targets: Tensor) -> None:
        """Prototypes are the means of the labels' examples; a label without examples keeps its own.

        Shapes: states (examples, slots, dim); targets (examples,) int64.
        """
        embedded = self._embedded(states)
        for at in set(targets.tolist()):
            self.prototypes[at] = embedded[targets == at].mean(0)

    def units(self, slots: Slots) -> Tensor:
        """Scores of labels."""
        return self._embedded(slots.states) @ F.normalize(self.prototypes, dim=-1).T / self.temperature
