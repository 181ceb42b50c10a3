"""Seconds to learn prototypes class by class against one matrix product over the same features.

100,000 features of 768 dimensions in 100 classes are given to a learner one class after the other, as they would come
in a stream. The peer is the product of all features (100,000 x 768) with a matrix (768 x 100): what it costs to score
them once against 100 prototypes. It is made in the same run and in the same pieces, one product before each class, so
that a change in the machine's load meets both. Learning must not take longer for late classes than for early ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from leaven.adapt.continual import NearestMean, SimpleCIL

TARGET = 3.0
FLAT = 1.5
LEARNERS: dict[str, Callable[[], Any]] = {
    "nearest mean": lambda: NearestMean(nn.Identity()),
    "simple-cil": lambda: SimpleCIL(nn.Identity()),
}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(
    *, classes: int = 100, per_class: int = 1000, dim: int = 768, runs: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Median seconds of both over the runs, their ratio, and the time of the last tenth of the classes over the first.

    Growth is judged by each class's shortest time over the runs, so that a pause of the machine does not count as such.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(classes, per_class, dim, generator=generator)
    matrix = torch.randn(dim, classes, generator=generator)
    results: dict[str, Any] = {}
    for name, make in LEARNERS.items():
        products, spent = [], []
        for _ in range(runs + 1):
            learner = make()
            product, learning = [], []
            for at, rows in enumerate(features):
                labels = [at] * per_class
                product.append(_seconds(lambda rows=rows: rows @ matrix))  # type: ignore[misc]
                learning.append(_seconds(lambda rows=rows, labels=labels, to=learner: to.learn(rows, labels)))  # type: ignore[misc]
            products.append(product)
            spent.append(learning)
        # The first run warms up.
        products, spent = products[1:], spent[1:]
        each = [min(run[at] for run in spent) for at in range(classes)]
        tenth = max(1, classes // 10)
        ours, theirs = (statistics.median(map(sum, side)) for side in (spent, products))
        results[name] = {
            "learning_seconds": ours,
            "product_seconds": theirs,
            "ratio": ours / theirs,
            "seconds_per_class": ours / classes,
            "last_over_first": sum(each[-tenth:]) / sum(each[:tenth]),
        }
    return {
        "features": classes * per_class,
        "dim": dim,
        "classes": classes,
        "learners": results,
        "target": TARGET,
        "flat": FLAT,
        "threads": torch.get_num_threads(),
    }


def main(argv: list[str] | None = None) -> int:
    """Print the table, or json; exit code 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--per-class", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, for both sides")
    parser.add_argument("--json", action="store_true", help="print the figures as json")
    options = vars(parser.parse_args(argv))
    as_json, threads = options.pop("json"), options.pop("threads")
    torch.set_num_threads(threads)
    figures = measure(**options)
    if as_json:
        print(json.dumps(figures, indent=1))
    else:
        title = f"{figures['features']:,} features of {figures['dim']} dimensions, {figures['classes']} classes"
        table = Table(title=title)
        for column in ("", "learning s", "one product s", "ratio", "ms per class", "last / first tenth"):
            table.add_column(column, justify="right" if column else "left")
        for name, row in figures["learners"].items():
            numbers = (row["learning_seconds"], row["product_seconds"], row["ratio"], 1e3 * row["seconds_per_class"])
            table.add_row(name, *(f"{number:.3f}" for number in numbers), f"{row['last_over_first']:.2f}")
        table.caption = f"targets: ratio {TARGET:g}, last over first {FLAT:g}; {figures['threads']} threads"
        Console().print(table)
    rows = figures["learners"].values()
    return int(any(row["ratio"] > TARGET or row["last_over_first"] > FLAT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
