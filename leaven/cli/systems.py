"""`leaven run` and `leaven apply`: a system from data to result, and a trained model on an input."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from leaven.cli.listing import AsJson
from leaven.cli.output import print_json, print_table
from leaven.errors import ConfigError, DataError

_OVERRIDES: list[str] | None = typer.Argument(None, help="Options as key=value; `leaven info SLUG` lists them.")


def run(
    slug: str | None = typer.Argument(None, help="The system's short name."),
    overrides: list[str] | None = _OVERRIDES,
    *,
    out: Path | None = typer.Option(None, help="Folder for what the run makes; by default runs/SLUG."),  # noqa: B008
    resume: Path | None = typer.Option(None, help="Go on with the run of this folder, with its options."),  # noqa: B008
    as_json: bool = AsJson,
) -> None:
    """Run a system: leaven run codet5 data=code:DIR pretrain='2000 steps' --out runs/mine."""
    from leaven.cli.overrides import parse_overrides
    from leaven.systems import find_system
    from leaven.systems.running import read_run, run_in
    from leaven.training.distributed import is_main_process

    if resume is not None:
        before = read_run(resume)
        if overrides or out is not None or slug not in (None, before["system"]):
            raise ConfigError(f"--resume {resume} goes on with the options of that run: give nothing beside it")
        system = find_system(before["system"])
        config, folder = system.Config.model_validate(before["config"]), resume
    elif slug is None:
        raise ConfigError("leaven run: name a system (`leaven list`), or a run to go on with by --resume DIR")
    else:
        system = find_system(slug)
        config, folder = parse_overrides(system.Config, overrides or []), out or Path("runs") / slug
    outcome = run_in(system(config), folder)
    if not is_main_process():
        return
    if as_json:
        print_json({name: value for name, value in vars(outcome).items() if name != "model"})
        return
    print_table(outcome.columns, [[_cell(value) for value in row] for row in outcome.rows])
    for sample in outcome.samples:
        print(f"\n{sample['task']}: {sample['answer']!r}  (reference: {sample['reference']!r})")
        print("\n".join(f"    {line}" for line in sample["input"].splitlines()[:12]))
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in outcome.timings.items())
    print(f"\ntime: {spent}\n{folder / 'outcome.json'} written; `leaven report {folder}` makes a page with the curves")


def apply(
    model: str = typer.Argument(help="Folder of a run or model, zoo:NAME or hf:ID."),
    task: str = typer.Argument(help="What to do, such as summarize, name, defect, refine, translate, fill."),
    source: str = typer.Argument(metavar="INPUT", help="A file, or - for standard input."),
    *,
    language: str | None = typer.Option(None, help="Of the input; by default that of the file's suffix, else Python."),
    beams: int = typer.Option(5, min=1, max=50, help="Beams of the search."),
    as_json: bool = AsJson,
) -> None:
    """Use a trained model: leaven apply runs/codet5 summarize FILE.py."""
    from leaven.data.languages import language_of
    from leaven.systems.applying import apply_model

    text = _read(source)
    spoken = language or (language_of(source) if source != "-" else None) or "python"
    rows = apply_model(model, task, text, language=spoken, beams=beams)
    if as_json:
        print_json(rows)
    elif "function" in rows[0]:
        print_table(
            ("line", "function", task), [(row["line"], row["function"], row["answer"]) for row in rows], wrap=True
        )
    else:
        for row in rows:
            print(row["answer"])


def _read(source: str) -> str:
    if source == "-":
        return sys.stdin.read()
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{source}: no such file; give a file with the input, or - for standard input")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: not UTF-8 at byte {error.start}") from error


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
