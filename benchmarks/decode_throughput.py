"""Speed of cached beam search against `generate` of transformers, on the same T5 weights and sources.

Both must decode the same tokens. A random model does not end its sequences, so all of them run to the limit: what is
gained when entries of a batch end early and drop out is not in the figure. Runs alternate, so that a change in the
machine's load meets both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from leaven.generation.beam_search import beam_search
from leaven.models.bridge import load_huggingface

EOS = 2


def build(*, dim: int, layers: int, vocab: int, seed: int) -> tuple[Any, nn.Module]:
    """A random T5 of transformers, and the same weights in leaven's trunk."""
    from transformers import T5Config, T5ForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    heads = max(1, dim // 64)
    config = T5Config(
        vocab_size=vocab,
        d_model=dim,
        d_kv=dim // heads,
        d_ff=4 * dim,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=EOS,
        decoder_start_token_id=0,
    )
    theirs = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        # A random T5 repeats what it read, as the input's vector lives on in the residual: make that small.
        theirs.shared.weight.mul_(0.1)
        theirs.decoder.final_layer_norm.weight.mul_(10.0)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_huggingface(Path(folder)).model
    return theirs, ours


def sources(batch: int, shortest: int, longest: int, vocab: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random sources of evenly spread lengths, padded."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(shortest, longest, batch).long()
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return torch.randint(3, vocab, (batch, longest), generator=generator) * mask, mask


def _sequences(ids: Tensor) -> list[list[int]]:
    rows = ids.tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(
    *,
    beams: int = 5,
    batch: int = 16,
    max_length: int = 64,
    shortest: int = 64,
    longest: int = 128,
    dim: int = 256,
    layers: int = 4,
    vocab: int = 8000,
    runs: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Median seconds of both, their ratio, and whether the tokens agree."""
    theirs, ours = build(dim=dim, layers=layers, vocab=vocab, seed=seed)
    ids, mask = sources(batch, shortest, longest, vocab, seed)

    def run_ours() -> Tensor:
        return beam_search(ours, ids, mask, beams=beams, max_length=max_length).ids[:, 0]

    def run_theirs() -> Tensor:
        out: Tensor = theirs.generate(ids, attention_mask=mask, num_beams=beams, max_new_tokens=max_length)
        return out[:, 1:]

    found, expected = _sequences(run_ours()), _sequences(run_theirs())
    same = sum(mine == other[: len(mine)] for mine, other in zip(found, expected, strict=True))
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(runs):
        seconds["theirs"].append(_seconds(run_theirs))
        seconds["ours"].append(_seconds(run_ours))
    ours_median, theirs_median = statistics.median(seconds["ours"]), statistics.median(seconds["theirs"])
    tokens = sum(map(len, found))
    return {
        "sequences": len(found),
        "sequences_equal": same,
        "mean_length": tokens / len(found),
        "seconds": seconds,
        "leaven_seconds": ours_median,
        "transformers_seconds": theirs_median,
        "leaven_tokens_per_second": tokens / ours_median,
        "transformers_tokens_per_second": tokens / theirs_median,
        "ratio": theirs_median / ours_median,
        "threads": torch.get_num_threads(),
    }


def main(argv: list[str] | None = None) -> int:
    """Print the table, or json; exit code 1 when any sequence differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=8000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="threads of torch, as it chooses when absent")
    parser.add_argument("--json", action="store_true", help="print the figures as json")
    options = vars(parser.parse_args(argv))
    as_json, threads = options.pop("json"), options.pop("threads")
    if threads:
        torch.set_num_threads(threads)
    figures = measure(**options)
    if as_json:
        print(json.dumps(figures, indent=1))
    else:
        table = Table(title=f"Beam search, {options['beams']} beams, {options['batch']} sources")
        for column in ("", "seconds", "tokens/s"):
            table.add_column(column, justify="right" if column else "left")
        for name in ("transformers", "leaven"):
            table.add_row(name, f"{figures[f'{name}_seconds']:.2f}", f"{figures[f'{name}_tokens_per_second']:.0f}")
        table.add_row("ratio", f"{figures['ratio']:.2f}", "")
        table.caption = (
            f"{figures['sequences_equal']} of {figures['sequences']} sequences equal, mean length "
            f"{figures['mean_length']:.0f}, median of {options['runs']}, {figures['threads']} threads"
        )
        Console().print(table)
    return int(figures["sequences_equal"] != figures["sequences"])


if __name__ == "__main__":
    sys.exit(main())
