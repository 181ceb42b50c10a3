"""The README's table of claims, generated from the evidence files.

`python -m leaven.evidence.readme_table README.md` writes it between its two marks; with `--check` it exits with 1 where
README and evidence differ.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from leaven.catalog import evidence_dir
from leaven.errors import LeavenError
from leaven.evidence.evidence_file import Evidence, read_folder
from leaven.evidence.json_file import EvidenceError, write_text
from leaven.evidence.statistics import Verdict
from leaven.evidence.tables import effect_text, margin_text, ours, words

BEGIN, END = "<!-- evidence -->", "<!-- /evidence -->"
_ORDER: tuple[Verdict, ...] = ("holds", "reversed", "undecided")
_COLUMNS = ("System", "Tier", "Claim", "Paper", "Here", "Effect", "Verdict", "Seeds", "Further claims")


def readme_table(folder: Path) -> str:
    """The headline claim of every evidence file as a Markdown table.

    Raises: EvidenceError for a file that cannot be used.
    """
    entries = read_folder(folder)
    for entry in entries:
        if entry.evidence is None:
            raise EvidenceError(entry.problem)
    rows = [_row(entry.evidence) for entry in entries if entry.evidence is not None]
    if not rows:
        return "No claim has been measured yet."
    return "\n".join(_line(cells) for cells in (_COLUMNS, ["---"] * len(_COLUMNS), *rows))


def with_table(readme: str, table: str, name: str) -> str:
    """The text with the table between the marks. Raises: EvidenceError where the marks are missing or doubled."""
    if (readme.count(BEGIN), readme.count(END)) != (1, 1) or readme.index(BEGIN) > readme.index(END):
        raise EvidenceError(f"{name}: expected one {BEGIN} and, after it, one {END}; the table is written between them")
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the table: 0 for agreement, 1 for a README that differs, 2 for what cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m leaven.evidence.readme_table", description=__doc__)
    parser.add_argument("readme", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 on a difference")
    parser.add_argument("--evidence", type=Path, help="folder of the evidence files")
    given = parser.parse_args(argv)
    try:
        text = given.readme.read_text(encoding="utf-8")
        table = readme_table(given.evidence or evidence_dir())
        right = with_table(text, table, str(given.readme))
    except (LeavenError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.check:
        if text != right:
            command = f"python -m leaven.evidence.readme_table {given.readme}"
            print(f"{given.readme}: its table is not that of the evidence files; run `{command}`", file=sys.stderr)
            return 1
    elif text != right:
        write_text(given.readme, right)
    return 0


def _row(evidence: Evidence) -> list[str]:
    claim, *others = evidence.claims
    counts = Counter(one.verdict for one in others)
    further = ", ".join(f"{counts[name]} {name}" for name in _ORDER if counts[name]) or "-"
    return [
        evidence.system,
        evidence.tier,
        claim.says,
        claim.paper or "-",
        f"{words(claim.metric)} {ours(evidence, claim)}",
        f"{effect_text(claim).removeprefix('effect ')}, {margin_text(claim)}",
        f"**{claim.verdict}**",
        str(len(evidence.seeds)),
        further,
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"


if __name__ == "__main__":
    sys.exit(main())
