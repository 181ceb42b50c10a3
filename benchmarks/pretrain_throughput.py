"""Pre-training speed against transformers' T5 under its own Trainer: same weights, same batches, same steps.

    python benchmarks/pretrain_throughput.py [--steps 30] [--runs 5] [--order shuffled] [--json]

Both train a T5 of 4+4 layers, width 256, vocabulary 8,000 on span-corrupted functions of the standard library. Runs
alternate; the ratio is the median over runs. Batches are drawn at random, as the Trainer's own sampler draws them
(`shuffled`), and of functions of like length (`bucketed`); ours computes a shuffled batch in groups of rows of like
length, which gives the same gradient. The share of the peak is the operations of matrix products and attention per
second, padding not counted, over those of one large matrix product in the same precision.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from leaven.contracts import Batch
from leaven.data.loader import Loader
from leaven.data.stdlib_code import stdlib_code
from leaven.modalities.code import collate_functions, encode_functions
from leaven.modalities.code_tokenizer import CodeTokenizer
from leaven.modalities.length_groups import groups_of_like_length
from leaven.models.bridge.huggingface import save_huggingface
from leaven.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from leaven.objectives.sequence_to_sequence import SequenceToSequence
from leaven.objectives.span_corruption import SpanCorruption
from leaven.training.config import TrainingConfig
from leaven.training.loop import fit

VOCAB, BATCH, LONGEST = 8000, 16, 256
ORDERS = ("shuffled", "bucketed")
RATE = 1e-3
GROUPS = 4


class Recorded:
    """Batches made beforehand, so that corruption costs neither side anything."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.at = batches, 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.at += 1
            yield self.batches[(self.at - 1) % len(self.batches)]

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.at = state["at"]


def make_batches(count: int, bucket: int) -> list[Batch]:
    examples = stdlib_code("train")
    tokenizer = CodeTokenizer.train([e.code for e in examples] + [e.docstring or "" for e in examples], VOCAB)
    items = encode_functions(examples, tokenizer, max_tokens=LONGEST)
    loader = Loader(
        items,
        lambda rows: collate_functions(rows, tokenizer.pad_id),
        batch_size=BATCH,
        length=lambda item: len(item["input_ids"]),
        bucket=bucket,
    )
    objective = SpanCorruption(
        tokenizer.sentinel_ids, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id, max_inputs=LONGEST
    )
    made = []
    for step, batch in zip(range(count), loader, strict=False):
        corrupted = objective.prepare(batch, torch.Generator().manual_seed(step))
        made.append({name: corrupted[name] for name in ("input_ids", "attention_mask", "labels")})
    return made


def tokens_of(batches: list[Batch]) -> int:
    """Tokens that the encoder reads and the decoder predicts."""
    return sum(int(batch["attention_mask"].sum()) + int((batch["labels"] >= 0).sum()) for batch in batches)


def train_ours(start: EncoderDecoder, batches: list[Batch], precision: str, groups: int) -> tuple[float, float]:
    """Seconds of training and the mean loss of the last five steps."""
    model = EncoderDecoder(start.config)
    model.load_state_dict(start.state_dict())
    config = TrainingConfig(
        learning_rate=RATE,
        weight_decay=0.0,
        warmup=0,
        precision=precision,
        length_groups=groups,
        log_every=1,
        progress=False,
    )
    started = time.perf_counter()
    result = fit(model, SequenceToSequence(), Recorded(batches), len(batches), config)
    seconds = time.perf_counter() - started
    return seconds, sum(record["loss"] for record in result.records[-5:]) / 5


def train_theirs(folder: Path, batches: list[Batch], precision: str) -> tuple[float, float]:
    """The same under transformers."""
    from transformers import T5ForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    model = T5ForConditionalGeneration.from_pretrained(folder)
    losses: list[float] = []
    times: list[float] = []

    class Recorder(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    class Ready(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            max_steps=len(batches),
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            weight_decay=0.0,
            lr_scheduler_type="linear",
            warmup_steps=0,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=precision == "bf16",
            disable_tqdm=True,
        )
        Ready(model=model, args=arguments, train_dataset=batches, callbacks=[Recorder()]).train()
    return times[-1] - times[0], sum(losses[-5:]) / 5


def peak(dtype: torch.dtype) -> float:
    """Operations per second of a matrix product of 2048 x 2048."""
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return float(2 * 2048**3 / min(times))


def measure(steps: int = 30, runs: int = 5, order: str = "shuffled") -> dict[str, Any]:
    batches = make_batches(steps, bucket=20 if order == "bucketed" else 0)
    groups = 1 if order == "bucketed" else GROUPS
    torch.manual_seed(0)
    start = EncoderDecoder(EncoderDecoderConfig.t5(vocab=VOCAB, dim=256, depth=4, heads=4))
    tokens = tokens_of(batches)
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            for group in groups_of_like_length(batch, BATCH):
                SequenceToSequence()(start, group).total.backward()
    start.zero_grad()
    figures: dict[str, list[float]] = {}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(start, Path(folder))
        for run in range(runs + 1):
            for precision in ("fp32", "bf16"):
                ours, losses[f"ours {precision}"] = train_ours(start, batches, precision, groups)
                theirs, losses[f"theirs {precision}"] = train_theirs(Path(folder), batches, precision)
                if run:
                    figures.setdefault(f"ours {precision}", []).append(tokens / ours)
                    figures.setdefault(f"theirs {precision}", []).append(tokens / theirs)
    speed = {name: median(values) for name, values in figures.items()}
    best = max(("fp32", "bf16"), key=lambda precision: speed[f"ours {precision}"])

    def ratio(ours: str, theirs: str) -> float:
        return median(a / b for a, b in zip(figures[ours], figures[theirs], strict=True))

    operations = counter.get_total_flops() / tokens
    return {
        "tokens_per_second": speed,
        "faster_precision": best,
        "ratio_to_their_fp32": ratio(f"ours {best}", "theirs fp32"),
        "ratio_to_their_bf16": ratio(f"ours {best}", "theirs bf16"),
        "ratio_fp32_to_fp32": ratio("ours fp32", "theirs fp32"),
        "ratio_bf16_to_bf16": ratio("ours bf16", "theirs bf16"),
        "final_loss": losses,
        "loss_difference": abs(losses["ours fp32"] / losses["theirs fp32"] - 1),
        "share_of_peak": {
            precision: speed[f"ours {precision}"] * operations / peak(dtype)
            for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        },
        "threads": torch.get_num_threads(),
        "runs": runs,
        "steps": steps,
        "order": order,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--order", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    found = [measure(options.steps, options.runs, order) for order in options.order]
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for figures in found:
        print()
        for name, value in figures.items():
            print(f"{name:22} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
