"""Seeds measured side by side, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch

from leaven.errors import LeavenError
from leaven.evidence.entrants import Entrant
from leaven.evidence.json_file import EvidenceError
from leaven.evidence.measuring import measure
from leaven.evidence.progress import Progress
from leaven.evidence.provenance import machine
from leaven.evidence.run_folder import RunFolder
from leaven.evidence.system import Measurement
from leaven.training.progress import ProgressBar

Told = tuple[str, Measurement | None] | LeavenError
"""An entrant that starts (None) or is measured, or what went wrong."""


@dataclass(frozen=True)
class Work:
    """What every process is given. needed: figures by label, as in `measure`; the machine is put into `provenance`."""

    entrants: Sequence[Entrant]
    folder: RunFolder
    needed: Mapping[str, Sequence[str]]
    provenance: Mapping[str, Any]


def measure_side_by_side(work: Work, seeds: Iterable[int], jobs: int, progress: Progress) -> set[tuple[int, str]]:
    """Measure what is missing of the seeds, up to `jobs` of them at a time; the cores are shared out among them.

    A process measures the entrants of its seed one after the other, and ends with this process, however that ends. The
    first error ends them all.

    Returns: seed and label of what the progress was told of: what was there, and what is measured now.
    Raises: what `measure` raises; EvidenceError for a process that was killed.
    """
    told = set()
    missing: dict[int, None] = {}
    for seed in seeds:
        for one in work.entrants:
            found = work.folder.finished(seed, one.label)
            if found is None:
                missing[seed] = None
            else:
                progress.finished(seed, one.label, found, reused=True)
                told.add((seed, one.label))
    waiting = list(missing)
    threads = max(1, torch.get_num_threads() // max(1, min(jobs, len(waiting))))
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                seed = waiting.pop(0)
                running.update([_start(work, seed, threads)])
            for connection in cast("list[Connection]", wait(list(running))):
                seed, process = running[connection]
                try:
                    news: Told = connection.recv()
                except EOFError:
                    del running[connection]
                    process.join()
                    if process.exitcode:
                        raise EvidenceError(
                            f"the process of seed {seed} ended with code {process.exitcode} (killed, perhaps for want "
                            "of memory): call again to go on from the last result, with fewer jobs"
                        ) from None
                    continue
                if isinstance(news, LeavenError):
                    raise news
                label, measurement = news
                if measurement is None:
                    progress.started(seed, label)
                else:
                    told.add((seed, label))
                    progress.finished(seed, label, measurement, reused=False)
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    return told


def _start(work: Work, seed: int, threads: int) -> tuple[Connection, tuple[int, BaseProcess]]:
    # A fork would inherit torch's threads in a state that it cannot use.
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure_seed, args=(work, seed, threads, theirs))
    process.start()
    theirs.close()
    return mine, (seed, process)


def _measure_seed(work: Work, seed: int, threads: int, tell: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    ProgressBar.hidden = True
    provenance = {**work.provenance, "machine": machine()}
    news: Told
    try:
        for one in work.entrants:
            if work.folder.finished(seed, one.label) is not None:
                continue
            tell.send((one.label, None))
            needed = work.needed.get(one.label, ())
            news = one.label, measure(one, work.folder, seed, needed=needed, provenance=provenance)
            tell.send(news)
    except LeavenError as error:
        tell.send(error)
    # Any other error is a fault of ours: it ends the process, with its traceback on standard error.


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
