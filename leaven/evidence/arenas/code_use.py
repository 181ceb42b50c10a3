"""Using a model of the code family on source text: one answer per function."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import torch

from leaven.data.code_tasks.understanding import HIDDEN
from leaven.data.languages import functions, resolve_language
from leaven.errors import CatalogError, DataError, ModelError
from leaven.evidence.arenas.code_tasks import TASKS
from leaven.evidence.arenas.fine_tuning import predict
from leaven.generation.beam_search import beam_search
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.modalities.pairs import PairFormat
from leaven.models.loading import Loaded

Answers = list[dict[str, str]]
FILL = "fill"
_BLANK = re.compile(r"<extra_id_\d+>|\?\?\?")


def apply_code_model(
    loaded: Loaded, extra: Mapping[str, Any], task: str, text: str, *, language: str = "python", beams: int = 5
) -> Answers:
    """Answers of a model.

    Tasks on functions (summarize, name, defect, translate, refine) give a row per function of the text, or one for a
    text without functions. `fill` replaces `<extra_id_0>`, `<extra_id_1>`, ... (or `???`) in the text. Any other task
    takes the text as it is.

    Args:
        extra: what was saved with the model: `tasks` by name with their formats. A model of another maker has no such
            note; it is asked in the plain format of the task.
        language: of the text. beams: of the search, >= 1.

    Raises: CatalogError for a task that the model was not trained for; ModelError for a model that cannot write;
    DataError for an empty text.
    """
    if loaded.tokenizer is None or not hasattr(loaded.model, "decode"):
        why = "; ".join(loaded.notes) or f"it is a {loaded.kind}"
        raise ModelError(
            f"{loaded.origin} cannot write code: a sequence-to-sequence model with a tokenizer is needed ({why})"
        )
    if not text.strip():
        raise DataError("the input is empty: give a file with code, or - and the code on standard input")
    language = resolve_language(language)
    if task == FILL:
        return [{"answer": _fill(loaded, text, beams)}]
    form = _form(extra, task, loaded.origin)
    sources = _sources(task, text, language)
    answers = predict(loaded.model, loaded.tokenizer, form, [source for _, _, source in sources], beams=beams)
    return [
        {"function": name, "line": str(line), "answer": answer.strip()}
        for (name, line, _), answer in zip(sources, answers, strict=True)
    ]


def _form(extra: Mapping[str, Any], task: str, origin: str) -> PairFormat:
    trained: Mapping[str, Any] | None = extra.get("tasks")
    if trained is None:
        if task not in TASKS:
            raise _no_task(origin, task, TASKS)
        return PairFormat("", None, 512, TASKS[task].max_target)
    if task not in trained:
        raise _no_task(origin, task, [*trained, FILL])
    return PairFormat(**trained[task])


def _no_task(origin: str, task: str, known: Any) -> CatalogError:
    near = difflib.get_close_matches(task, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return CatalogError(f"{origin} was not trained for the task {task!r}; it has {', '.join(known)}{hint}")


def _without_name(code: str, name: str) -> str:
    return re.sub(rf"\b{re.escape(name)}\b", HIDDEN, code) if name else code


def _sources(task: str, text: str, language: str) -> list[tuple[str, int, str]]:
    """Name, line and source of each function; the text itself for tasks that read no functions."""
    found = functions(text, language) if task in TASKS and task != "generate" else []
    if not found:
        return [("", 1, text.strip())]
    return [
        (span.name, span.start_line, _without_name(span.code, span.name) if task == "name" else span.code)
        for span in found
    ]


def _fill(loaded: Loaded, text: str, beams: int) -> str:
    """The text with its blanks filled by what the pre-trained model predicts for them."""
    tokenizer = loaded.tokenizer
    assert isinstance(tokenizer, CodeTokenizer)
    blanks = _BLANK.findall(text)
    if not blanks:
        raise DataError("nothing to fill: mark what is missing by <extra_id_0>, <extra_id_1>, ... or by ???")
    sentinels = tokenizer.require_sentinels(len(blanks))
    names = [str(tokenizer.tokenizer.id_to_token(sentinel)) for sentinel in sentinels]
    order = iter(names)
    marked = _BLANK.sub(lambda match: next(order), text)
    ids = [tokenizer.start_id, *tokenizer.encode([marked])[0].ids, tokenizer.end_id]
    device = next(loaded.model.parameters()).device
    best = beam_search(loaded.model, torch.tensor([ids], device=device), beams=beams, max_length=16 * len(blanks) + 8)
    written = best.ids[0, 0].tolist()
    pieces: dict[int, list[int]] = {}
    current = -1
    for token in written:
        if token in sentinels:
            current = token
        elif token == tokenizer.end_id:
            break
        elif current >= 0:
            pieces.setdefault(current, []).append(token)
    for sentinel, name in zip(sentinels, names, strict=True):
        marked = marked.replace(name, tokenizer.decode(pieces.get(sentinel, [])).strip(), 1)
    return marked
