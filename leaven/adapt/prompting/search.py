"""Discrete prompts that are found: a trigger by gradients, one of a list by validation, one per input by likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from leaven.adapt.prompting.classifier import PromptedClassifier
from leaven.adapt.prompting.multi_prompt import predicted
from leaven.adapt.prompting.slots import SlotReader, evaluating
from leaven.adapt.prompting.template import Encoded, Fields, Template
from leaven.adapt.prompting.verbalizers import ManualVerbalizer
from leaven.errors import ConfigError, DataError
from leaven.metrics.classification import accuracy


class Trigger(NamedTuple):
    """A searched template. losses: of the training examples, at the start and after each replacement tried."""

    template: Template
    ids: list[int]
    losses: list[float]


def hotflip(gradient: Tensor, embedded: Tensor, count: int, allowed: Tensor) -> Tensor:
    """The tokens that lower the loss most when they are put in a place, to first order: largest -e . gradient.

    Shapes: gradient (dim,) of the loss by the embedding in that place; embedded (vocab, dim); allowed (vocab,) bool.
    Returns: (count,) ids, best first.
    Source: arXiv 2010.15980 equation 2; arXiv 1712.06751 section 3.
    """
    return (-embedded @ gradient).masked_fill(~allowed, -torch.inf).topk(min(count, int(allowed.sum()))).indices


def search_trigger(
    classifier: PromptedClassifier,
    texts: Sequence[Fields],
    labels: Sequence[str],
    *,
    rounds: int = 3,
    candidates: int = 10,
    allowed: Sequence[int] | None = None,
) -> Trigger:
    """Ordinary tokens in the place of the template's soft ones, chosen by the loss on the examples; nothing trains.

    Each place in turn is given the best of the tokens that the gradient proposes, if that is better than what is there.

    Args:
        classifier: its template has soft tokens; they start as their words, or as mask or unknown tokens.
        texts, labels: training examples.
        rounds: times that every place is tried; a round without a change ends the search.
        candidates: tokens tried per place.
        allowed: ids to choose from; None takes all but special tokens and label words.

    Raises: ConfigError for a template without soft tokens, or nothing to choose from.
    Source: arXiv 2010.15980 section 2.2 (AutoPrompt).
    """
    reader, tokenizer = classifier.reader, classifier.reader.tokenizer
    starts = classifier.template.soft_ids(tokenizer)
    if not starts:
        raise ConfigError(f"template {classifier.template.text!r} has no soft tokens to search: write {{soft:3}}")
    if min(rounds, candidates) < 1:
        raise ConfigError(f"rounds={rounds}, candidates={candidates}: expected at least 1")
    filler = next(i for i in (tokenizer.mask_id, tokenizer.unknown_id, tokenizer.pad_id) if i is not None)
    ids = [filler if i is None else i for i in starts]
    embedded = reader.embedded()
    may = _allowed(classifier, allowed, len(embedded)).to(embedded.device)
    prompts, targets = classifier.encode(texts), classifier.targets(texts, labels)
    loss, _ = _loss(classifier, prompts, targets, embedded[ids])
    losses = [loss]
    for _ in range(rounds):
        before = list(ids)
        for place in range(len(ids)):
            _, gradient = _loss(classifier, prompts, targets, embedded[ids], gradient=True)
            for token in hotflip(gradient[place], embedded, candidates, may).tolist():
                tried = [*ids[:place], token, *ids[place + 1 :]]
                value, _ = _loss(classifier, prompts, targets, embedded[tried])
                if value < loss:
                    loss, ids = value, tried
            losses.append(loss)
        if ids == before:
            break
    return Trigger(classifier.template.filled(ids, tokenizer), ids, losses)


def _allowed(classifier: PromptedClassifier, allowed: Sequence[int] | None, vocab: int) -> Tensor:
    may = torch.zeros(vocab, dtype=torch.bool)
    if allowed is not None:
        may[list(allowed)] = True
    else:
        may[:] = True
        may[[i for i in classifier.reader.tokenizer.special_ids if i < vocab]] = False
        if isinstance(verbalizer := classifier.model.verbalizer, ManualVerbalizer):
            may[[i for ids in verbalizer.ids for i in ids]] = False
    if not may.any():
        raise ConfigError("there is no token to choose a trigger from: give allowed")
    return may


def _loss(
    classifier: PromptedClassifier, prompts: list[Encoded], targets: Tensor, soft: Tensor, *, gradient: bool = False
) -> tuple[float, Tensor]:
    """Mean cross-entropy of the examples and, if asked, its gradient by the soft tokens' embeddings."""
    reader, size = classifier.reader, classifier.batch_size
    soft = soft.detach().requires_grad_(gradient)
    total, slope = 0.0, torch.zeros_like(soft)
    with evaluating(classifier.model), torch.set_grad_enabled(gradient):
        for at in range(0, len(prompts), size):
            scores = classifier.model.verbalizer(reader(reader.batch(prompts[at : at + size]), soft))
            loss = F.cross_entropy(scores, targets[at : at + size].to(scores.device), reduction="sum") / len(prompts)
            total += float(loss.detach())
            if gradient:
                slope += torch.autograd.grad(loss, soft)[0]
    return total, slope


class Ranked(NamedTuple):
    """A template with its accuracy on validation texts, in percent, and the mean log-probability of their labels."""

    template: Template
    accuracy: float
    log_likelihood: float


def rank_templates(
    templates: Sequence[Template | str],
    make: Callable[[Template], PromptedClassifier],
    dev_texts: Sequence[Fields],
    dev_labels: Sequence[str],
) -> list[Ranked]:
    """Templates by their accuracy on validation texts, best first; ties go to the likelier labels.

    Args:
        templates: written, paraphrased or generated elsewhere.
        make: the classifier of a template, trained or not.
        dev_texts, dev_labels: held-out examples that are neither trained nor tested on.

    Source: arXiv 2107.13586 section 4.3.1; arXiv 2012.15723 section 5.2.
    """
    if not templates:
        raise ConfigError("there are no templates to rank")
    found = []
    for template in (t if isinstance(t, Template) else Template(t) for t in templates):
        classifier = make(template)
        targets, scores = classifier.targets(dev_texts, dev_labels), classifier.scores(dev_texts)
        said = [classifier.labels[at] for at in scores.argmax(-1).tolist()]
        found.append(Ranked(template, accuracy(said, dev_labels), -float(F.nll_loss(scores, targets))))
    return sorted(found, key=lambda one: (-one.accuracy, -one.log_likelihood))


def log_likelihoods(reader: SlotReader, prompts: Sequence[Encoded]) -> Tensor:
    """How natural each prompt is to the model (prompts,): the mean log-probability of its tokens, slots left out.

    A causal model predicts each token from those before; in a masked model each is masked in its turn.

    Raises: ConfigError for a sequence-to-sequence model, which gives its input no probability; DataError for a prompt
    without a token to predict.
    Source: arXiv 1910.14659 section 2 (pseudo-likelihood).
    """
    if reader.kind == "seq2seq":
        raise ConfigError("a sequence-to-sequence model gives prompts no probability: use a masked or a causal model")
    return torch.stack([_log_likelihood(reader, prompt) for prompt in prompts])


def _log_likelihood(reader: SlotReader, prompt: Encoded) -> Tensor:
    causal = reader.kind == "causal"
    apart = set() if causal else set(prompt.slots)
    places = [at for at, token in enumerate(prompt.ids)
              if token not in reader.tokenizer.special_ids and prompt.soft[at] < 0 and at not in apart
              and at >= causal]  # fmt: skip
    if not places:
        raise DataError("a prompt has no token that the model could predict: give it some text")
    wanted = torch.tensor([prompt.ids[at] for at in places], device=reader.device)
    if causal:
        rows = [prompt._replace(slots=[at - 1 for at in places])]
    else:
        mask = [i for i in (reader.tokenizer.mask_id,) if i is not None]
        rows = [prompt._replace(ids=[*prompt.ids[:at], *mask, *prompt.ids[at + 1 :]], slots=[at]) for at in places]
    logits = torch.cat(reader.read(rows, lambda slots: slots.logits.flatten(0, 1)))
    return F.log_softmax(logits.float(), -1).gather(1, wanted[:, None]).mean().cpu()


class SelectedPerInput:
    """For each text the classifier whose prompt the language model finds most natural, with that text in it.

    Raises: ConfigError for classifiers of different labels.
    Source: arXiv 2107.13586 section 4.3.1 (prompt scoring); 1909.00505 section 3.1.
    """

    def __init__(self, classifiers: Sequence[PromptedClassifier]) -> None:
        if not classifiers or any(one.labels != classifiers[0].labels for one in classifiers):
            raise ConfigError("expected one or more classifiers of the same labels")
        self.classifiers, self.labels = tuple(classifiers), classifiers[0].labels

    def chosen(self, texts: Sequence[Fields]) -> Tensor:
        """Index of each text's classifier (texts,)."""
        return torch.stack([log_likelihoods(one.reader, one.encode(texts)) for one in self.classifiers]).argmax(0)

    def scores(self, texts: Sequence[Fields]) -> Tensor:
        """Log-probabilities (texts, labels)."""
        chosen = self.chosen(texts)
        found = torch.zeros(len(texts), len(self.labels))
        for at, one in enumerate(self.classifiers):
            rows = (chosen == at).nonzero().flatten().tolist()
            found[rows] = one.scores([texts[row] for row in rows])
        return found

    def predict(self, texts: Sequence[Fields]) -> list[str]:
        """The likeliest label of each text."""
        return predicted(self, texts)
