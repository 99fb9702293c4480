"""Plant every mistake of tests/mutants, see who catches it, and write docs/mutants.md.

    python benchmarks/mutants.py                  # all
    python benchmarks/mutants.py --only 'fuse*'   # some; nothing is written

Exits with 1 where a mistake is not caught that is not listed as one that no certificate can see, or where a
program without a mistake is refused.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the mistakes are part of the tests

import torch

from prunec.verify.certificate import certify
from tests.mutants import MUTANTS, SCORING
from tests.mutants.judge import Verdict, judge
from tests.mutants.planting import Mutant
from tests.mutants.subjects import SUBJECTS, dense, lowered, plain

TABLE = Path(__file__).parent.parent / "docs" / "mutants.md"


def honest() -> Iterator[str]:
    """A line for each program without a mistake: what its certificate says."""
    for name, subject in SUBJECTS.items():
        lowered(name)
        certificate = certify(dense(subject.model), plain(name))
        assert certificate.own_counts is not None, f"{name} is not proven: {certificate.unproven}"
        yield f"| {name} | {subject.mode or 'left to prunec'} | {certificate.own_counts:.1e} |"


def judged(mutants: Sequence[Mutant]) -> Iterator[Verdict]:
    """Each mistake in each of its programs."""
    for mutant in mutants:
        for subject in mutant.subjects:
            verdict = judge(mutant, subject)
            print(f"{verdict.caught_by or 'NOT CAUGHT':<16} {mutant.name} ({subject})", flush=True)
            yield verdict


def page(verdicts: Sequence[Verdict], scoring: Sequence[Verdict], clean: Sequence[str]) -> str:
    """The whole of docs/mutants.md."""
    caught = [verdict for verdict in verdicts if verdict.caught_by]
    mutants = list(dict.fromkeys(verdict.mutant.name for verdict in verdicts))
    alive = {verdict.mutant.name for verdict in verdicts if not verdict.caught_by}
    by = Counter(verdict.caught_by for verdict in caught)
    lines = [
        "# Wrong rewrites, and who catches them",
        "",
        f"Written by `make mutants` ({date.today()}, torch {torch.__version__}). Each mistake is planted in",
        "a small model (four blocks, 25 or 36 patches) after it was rewritten: an operation of",
        "`prunec/ops` gets another body, an edge of the graph another end, or recognition another result.",
        "It counts as caught where the certificate or the comparison of modes raises a `VerificationError`,",
        "or a pass refuses. [design/011](design/011-certificate-at-real-counts.md) says what each part sees.",
        "",
        f"**{len(mutants) - len(alive)} of {len(mutants)} mistakes are caught**, in {len(caught)} of "
        f"{len(verdicts)} programs.",
        "",
        "| caught by | programs |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in by.most_common()),
        "",
        "| mistake | program | caught by |",
        "|---|---|---|",
    ]
    for verdict in verdicts:
        found = verdict.caught_by or f"no one: {verdict.mutant.cannot or 'UNEXPECTED'}"
        lines.append(f"| {verdict.mutant.name} | {verdict.subject} | {found} |")
    lines += [
        "",
        "## Scoring",
        "",
        "A wrong score chooses other tokens, and what is chosen is carried out faithfully. Which tokens to",
        "keep is the policy's business: no certificate can tell a bad choice from a strange one. The",
        "reference implementations in `tests/methods` check the scorers of all presets.",
        "",
        "| mistake | program | caught by |",
        "|---|---|---|",
        *(f"| {each.mutant.name} | {each.subject} | {each.caught_by or 'no one'} |" for each in scoring),
        "",
        "## The programs without a mistake",
        "",
        "None is refused; the figure is the largest relative difference at their own counts.",
        "",
        "| program | mode | own counts |",
        "|---|---|---|",
        *clean,
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="*", help="a pattern for the names of mistakes")
    pattern, start = parser.parse_args().only, time.perf_counter()
    chosen = [mutant for mutant in MUTANTS if fnmatch.fnmatch(mutant.name, pattern)]
    clean = list(honest()) if pattern == "*" else []
    verdicts = list(judged(chosen))
    surprises = [each for each in verdicts if not each.caught_by and not each.mutant.cannot]
    if pattern == "*":
        TABLE.write_text(page(verdicts, list(judged(SCORING)), clean), encoding="utf-8")
    caught = sum(each.caught_by is not None for each in verdicts)
    print(f"{caught} of {len(verdicts)} caught, {time.perf_counter() - start:.0f} s")
    return 1 if surprises else 0


if __name__ == "__main__":
    sys.exit(main())
