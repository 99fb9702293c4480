"""Every Vision Transformer of timm and transformers through the compiler: transformed, refused, or failed.

    python benchmarks/zoo.py                        # all; rows of the very same compiler are kept
    python benchmarks/zoo.py --only 'timm:vit_*'    # some
    python benchmarks/zoo.py --jobs 4               # four models at a time
    python benchmarks/zoo.py --fresh                # all, anew

A model is built small, its parameters are filled with numbers that matter, and it is recognised, transformed
at keep=1.0 and at keep=0.6, certified (identity and permutation), run at batches of one and three, and
differentiated. Each has a process of its own, so that a crash or an endless loop costs one row.

A row belongs to one commit of prunec/ and one version of each library. Rows of another are dropped, so that
the record is of one compiler; those of a changed working tree are never kept.

Writes results/zoo.json and docs/zoo.md. Exits with 1 where a row is "failed".
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import functools
import json
import multiprocessing
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # a process that is started for a model does not look here

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, fx, nn
from zoo_models import Built, Case, build, cases, randomise

from prunec import ops
from prunec.capture import capture
from prunec.compiler import plan
from prunec.errors import CaptureError, PolicyError, PruneError, VerificationError
from prunec.frontend import sources
from prunec.ir import graph
from prunec.ir.program import Planned, Program, ProgramModule, Recognised
from prunec.measure import cost
from prunec.passes import BACK, FRONT, lowering_passes, run_passes
from prunec.passes.repair_tokens import RepairTokens
from prunec.policy.lowering import choose
from prunec.policy.policy import Policy
from prunec.verify.agreement import agree
from prunec.verify.certificate import certify, relative_difference
from prunec.version import __version__

HERE = Path(__file__).parent
RECORD, TABLE = HERE / "results" / "zoo.json", HERE.parent / "docs" / "zoo.md"
POLICY, KEEP = "norm", 0.6
TIMEOUT = 240.0  # no row needs a quarter of it, unless the machine is busy
TOLERANCE = 1e-4  # captured / original: the operators are the same, their order of summation may not be
VERDICTS = ("transformed", "refused", "failed", "not built")

Row = dict[str, Any]


# --- one model ------------------------------------------------------------------------------


def examine(case: Case) -> Row:
    """One row: what was found, done and proved, or why not."""
    row: Row = {
        "name": case.name,
        "library": case.library,
        "family": case.family,
        "model": case.model,
        "shared_by": case.shared_by,
        "seconds": {},
    }
    warnings.simplefilter("ignore")
    try:
        with _clock(row, "build"):
            built = build(case)
            randomise(built.module)
    except Exception as error:  # noqa: BLE001  a model that cannot be made small is no model of the walk
        return {**row, "verdict": "not built", "reason": _line(error)}
    row |= {"built": built.how, "blocks_expected": built.blocks}
    row["input"] = [list(leaf.shape) for leaf in _tensors(built.example)]
    try:
        _through(built, row)
    except PruneError as error:
        verdict = "failed" if isinstance(error, VerificationError) else "refused"
        reason = f"{type(error).__name__}: {error.what}"
        return {**row, "verdict": verdict, "reason": reason, "where": _portable(error.where)}
    except Exception as error:  # noqa: BLE001  whatever else is raised is a fault of the compiler
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else None
        return {**row, "verdict": "failed", "reason": _line(error), "where": where}
    return {**row, "verdict": "transformed", "reason": ""}


def _through(built: Built, row: Row) -> None:
    model = built.module
    with _seeded(), torch.no_grad():
        expected = _tensors(_call(model, built.example))
    source = sources.from_module(model, built.example)
    with _clock(row, "capture"):
        captured = capture.capture(source.module, source.args, source.kwargs)
    row["operators"] = captured.stages[0].counts["operators"]
    _check_capture(captured, built.example, expected)
    notes = list(captured.stages[0].notes)
    with _clock(row, "recognise"):
        dense = run_passes(FRONT, captured)
    _describe(dense, row)
    free = dense.interface.batch is not None
    with _clock(row, "keep 1.0"):
        same = _pruned(dense, 1.0)
        row["captured_difference"] = _compare(same, built.example, expected)
    with _clock(row, "rewrite"):
        pruned = _pruned(dense, KEEP)
    if not pruned.plan.sites:
        raise PolicyError(f"no block has tokens to prune: {'; '.join(pruned.plan.notes)}")
    row["sites"] = [[site.tokens, site.leaves] for site in pruned.plan.sites]
    counts = next(stage.counts for stage in pruned.stages if stage.name == RepairTokens.name)
    row |= {key: counts[key] for key in ("literals", "gathered", "scatters", "region_ends")}
    row["ends_at"] = _ends(pruned)
    with _clock(row, "certify"), _seeded():
        certificate = certify(dense, pruned)
    row |= {"identity": certificate.identity, "permutation": certificate.permutation}
    row |= {"own_counts": certificate.own_counts, "unproven": _portable(certificate.unproven)}
    with _clock(row, "modes"):
        row["modes"] = {
            mode: _in_mode(dense, mode) for mode in ("packed", "masked") if free or mode == "masked"
        }
    row["batches"] = [size for size in (1, 2, 3) if _runs_at(model, built.example, size)] if free else [2]
    with _clock(row, "batches"):
        for size in row["batches"]:
            _check_shapes(model, pruned, _resized(built.example, size))
    with _clock(row, "gradients"):
        row["gradients"] = _check_gradients(model, pruned, built.example)
    refused = [f"not in mode {mode}: {why}" for mode, why in row["modes"].items() if isinstance(why, str)]
    notes = [*(_portable(note.splitlines()[0]) for note in notes), *row["notes"], *pruned.plan.notes]
    row["notes"] = [*notes, *refused]


def _runs_at(model: nn.Module, example: Any, size: int) -> bool:
    """Whether the model itself takes a batch of this size: videos want a multiple of their frames."""
    try:
        with _seeded(), torch.no_grad():
            _call(model, _resized(example, size))
    except Exception:  # noqa: BLE001  whatever the model raises
        return False
    return True


def _describe(dense: Recognised, row: Row) -> None:
    anatomy = dense.anatomy
    row |= {
        "blocks": anatomy.depth,
        "tokens": anatomy.tokens,
        "prefix": anatomy.prefix,
        "suffix": anatomy.suffix,
        "head": list(anatomy.head),
        "taps": len(anatomy.taps),
        "notes": sorted({miss.reason for miss in anatomy.unmatched}),
    }


def _in_mode(dense: Recognised, mode: str) -> float | str:
    """How far a mode's outputs are from the padded ones, each image keeping a share of its own; why not."""
    policy = Policy.load(POLICY).override(keep_per_site=KEEP)
    try:
        padded = run_passes(BACK, plan(dense, policy, choose(policy, mode)))
    except PolicyError as error:
        return error.what
    with _seeded():
        return agree(padded, run_passes(lowering_passes(choose(policy, mode)), padded)).difference


def _pruned(dense: Recognised, keep: float) -> Planned:
    return run_passes(BACK, plan(dense, Policy.load(POLICY).override(keep_per_site=keep)))


def _check_capture(captured: Program, example: Any, expected: Sequence[Tensor]) -> None:
    """A model may do something else while it is exported; no compiler behind that can be right."""
    worst = _difference(captured, example, expected)
    if worst > TOLERANCE:
        raise CaptureError(
            f"what torch.export captured differs from the model itself by {worst:.1e}: "
            "the model does something else while it is exported"
        )


def _compare(program: Program, example: Any, expected: Sequence[Tensor]) -> float:
    """The program that keeps every token beside the original model."""
    worst = _difference(program, example, expected)
    if worst > TOLERANCE:
        raise VerificationError(f"at keep=1.0 the result differs from the original model by {worst:.1e}")
    return worst


def _difference(program: Program, example: Any, expected: Sequence[Tensor]) -> float:
    with _seeded(), torch.no_grad():
        found = _tensors(_call(ProgramModule(program), example))
    pairs = list(zip(found, expected, strict=True))
    return max((relative_difference(one, other) for one, other in pairs), default=0.0)


def _check_shapes(model: nn.Module, pruned: Planned, example: Any) -> None:
    with _seeded(), torch.no_grad():
        wanted = [tuple(tensor.shape) for tensor in _tensors(_call(model, example))]
    with _seeded(), torch.no_grad():
        found = [tuple(tensor.shape) for tensor in _tensors(_call(ProgramModule(pruned), example))]
    if wanted != found:
        raise VerificationError(f"outputs have the shapes {found}, the original's have {wanted}")


def _check_gradients(model: nn.Module, pruned: Planned, example: Any) -> int:
    """How many parameters get a gradient; all that get one in the original must."""
    wanted = _with_gradient(model, model, example)
    found = _with_gradient(ProgramModule(pruned), model, example)
    if missing := sorted(wanted - found):
        raise VerificationError(f"no gradient reaches {missing[0]} and {len(missing) - 1} more parameters")
    return len(found)


def _with_gradient(module: nn.Module, model: nn.Module, example: Any) -> set[str]:
    model.zero_grad()
    with _seeded():
        outputs = [out for out in _tensors(_call(module, example)) if out.requires_grad]
    if not outputs:
        return set()
    total = torch.stack([(out.float() ** 2).sum() for out in outputs]).sum()
    total.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def _ends(pruned: Planned) -> list[str]:
    """Where the whole stream is wanted again: the readers of each scatter."""
    readers = [user for node in pruned.graph.nodes if node.target is ops.scatter for user in node.users]
    names = [f"{graph.op(user) or 'output'} {graph.module_path(user)}".strip() for user in readers]
    return list(dict.fromkeys(names))


# --- small helpers ------------------------------------------------------------------------------


def _call(module: nn.Module, example: Any) -> Any:
    return module(**example) if isinstance(example, Mapping) else module(example)


def _resized(example: Any, size: int) -> Any:
    """The example with another number of images (a video's frames may stand in the batch)."""
    if isinstance(example, Mapping):
        return {key: _resized(value, size) for key, value in example.items()}
    images = len(example) // 2 * size
    return torch.cat([example, example])[:images]


def _tensors(outputs: Any) -> list[Tensor]:
    """The tensors of any output structure, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        return [tensor for value in outputs.values() for tensor in _tensors(value)]
    if isinstance(outputs, tuple | list):
        return [tensor for value in outputs for tensor in _tensors(value)]
    return []


@contextlib.contextmanager
def _clock(row: Row, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        row["seconds"][stage] = round(time.perf_counter() - start, 3)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Every run of a graph draws the same random numbers: a model with its own (masking) can be compared."""
    run = fx.Interpreter.run

    def seeded(self: fx.Interpreter, *args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        return run(self, *args, **kwargs)

    fx.Interpreter.run = seeded  # type: ignore[method-assign]
    torch.manual_seed(0)
    try:
        yield
    finally:
        fx.Interpreter.run = run  # type: ignore[method-assign]


def _line(error: BaseException) -> str:
    lines = (str(error).strip() or "no message").splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}"


def _portable(where: str | None) -> str | None:
    """A place without the folders of this machine."""
    if where is None:
        return None
    for package in ("timm", "transformers", "torch", "torchvision"):
        head, found, tail = where.partition(f"/site-packages/{package}/")
        if found:
            return f"{head.rpartition(' ')[0]} {package}/{tail}".strip()
    return where


# --- one process for each ------------------------------------------------------------------------------


def _work(case: Case, pipe: Connection) -> None:
    torch.set_num_threads(1)
    pipe.send(examine(case))


def run_apart(case: Case, timeout: float) -> Row:
    """The row of a case, examined in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "transformers", "zoo"])
    mine, yours = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(case, yours), daemon=True)
    process.start()
    yours.close()
    lost = {"name": case.name, "library": case.library, "family": case.family, "model": case.model}
    lost |= {"shared_by": case.shared_by, "verdict": "failed", "seconds": {}}
    try:
        if mine.poll(timeout):
            row: Row = mine.recv()
            process.join(5)
            return row
        return {**lost, "reason": f"not done after {timeout:.0f} s"}
    except EOFError:
        process.join(5)
        return {**lost, "reason": f"the process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


# --- the record and the table ------------------------------------------------------------------------------


@functools.cache
def versions() -> dict[str, str]:
    """What made a row: the commit of the compiler (with a + where it was changed since) and libraries."""
    import timm
    import transformers

    commit, changed = (
        _git("log", "-1", "--format=%h", "--", "prunec"),
        _git("status", "--porcelain", "--", "prunec"),
    )
    return {
        "prunec": f"{__version__} at {commit}{'+' if changed else ''}",
        "torch": torch.__version__,
        "timm": timm.__version__,
        "transformers": transformers.__version__,
    }


def _git(*words: str) -> str:
    command = ["git", "-C", str(HERE.parent), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write(rows: Mapping[str, Row], left: int) -> None:
    ordered = [rows[name] for name in sorted(rows)]
    facts = {**cost.device_facts(torch.device("cpu")), "date": date.today().isoformat()}
    record = {**facts, "versions": versions(), "policy": POLICY, "keep": KEEP, "left": left, "rows": ordered}
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    TABLE.write_text(markdown(record), encoding="utf-8")


def markdown(record: Mapping[str, Any]) -> str:
    rows = record["rows"]
    made = record["versions"]
    lines = [
        "# The zoo",
        "",
        "One model for each distinct structure of timm, and every vision class of transformers that takes an",
        "image alone, built small with parameters that matter. `make zoo` writes this page.",
        "",
        f"Policy `{record['policy']}`, keep_per_site {record['keep']}; identity and permutation certificates",
        f"in fp32, batches of one and three, gradients. prunec {made['prunec']}, torch {made['torch']},",
        f"timm {made['timm']}, transformers {made['transformers']}, {record['date']}.",
        "",
        "| | " + " | ".join(VERDICTS) + " |",
        "|---" * (len(VERDICTS) + 1) + "|",
    ]
    for library in ("timm", "hf"):
        counts = Counter(row["verdict"] for row in rows if row["library"] == library)
        lines.append(f"| {library} | " + " | ".join(str(counts[verdict]) for verdict in VERDICTS) + " |")
    lines += (
        ["", f"{record['left']} more were still waiting when this was written."] if record["left"] else []
    )
    lines += [
        "",
        "*Transformed*: returned with its proof. *Refused*: an error that names the reason and the place,",
        "and nothing returned. *Not built*: no small configuration was found by rule. *Blocks* are found /",
        "expected; *protected* are rows in front + at the end; *tables* are operands gathered with their",
        "tokens.",
        "",
    ]
    for verdict in VERDICTS:
        chosen = [row for row in rows if row["verdict"] == verdict]
        if chosen:
            lines += [f"## {verdict.capitalize()} ({len(chosen)})", "", *_table(verdict, chosen), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(verdict: str, rows: Sequence[Row]) -> list[str]:
    if verdict == "transformed":
        head = [
            "family",
            "model",
            "blocks",
            "tokens",
            "protected",
            "tables",
            "region ends at",
            "permutation",
            "notes",
        ]
        body = [_transformed(row) for row in rows]
    else:
        head = ["family", "model", "blocks", "reason", "where"]
        body = [
            [row["family"], row["model"], _of(row), row["reason"], str(row.get("where") or "")]
            for row in rows
        ]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in body]
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *escaped)]


def _transformed(row: Row) -> list[str]:
    ends = row["ends_at"]
    shown = ", ".join(ends[:3]) + (f" and {len(ends) - 3} more" if len(ends) > 3 else "")
    notes = [*row["notes"]] + ([f"shared by {row['shared_by']} models"] if row["shared_by"] > 1 else [])
    protected = f"{row['prefix']} + {row['suffix']}"
    figures = [str(row["tokens"]), protected, str(row["gathered"])]
    return [
        row["family"],
        row["model"],
        _of(row),
        *figures,
        shown,
        f"{row['permutation']:.0e}",
        "; ".join(notes),
    ]


def _of(row: Row) -> str:
    return f"{row.get('blocks', '-')} / {row.get('blocks_expected') or '?'}"


# --- the command ------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="names to run, such as 'timm:vit_*'")
    parser.add_argument("--limit", type=int, help="run at most so many")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for one model")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many models at a time")
    parser.add_argument("--fresh", action="store_true", help="run again what the record holds")
    given = parser.parse_args()
    rows = _known()
    everything = cases()
    chosen = [case for case in everything if fnmatch.fnmatch(case.name, given.only)]
    waiting = [case for case in chosen if given.fresh or case.name not in rows][: given.limit]
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor(given.jobs) as pool:
        task = progress.add_task("", total=len(waiting))
        for done in as_completed([pool.submit(run_apart, case, given.timeout) for case in waiting]):
            row = {**done.result(), "compiler": versions()["prunec"]}
            rows[row["name"]] = row
            write(rows, sum(case.name not in rows for case in everything))
            progress.update(task, advance=1, description=row["name"])
            if row["verdict"] != "transformed":
                progress.console.print(_said(row), markup=False, highlight=False)
    counts = Counter(rows[case.name]["verdict"] for case in chosen if case.name in rows)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))
    return 1 if counts["failed"] else 0


def _said(row: Row) -> str:
    return f"{row['verdict']:<10} {row['name']}: {row['reason']}"


def _known() -> dict[str, Row]:
    """The rows of the record, if this very compiler took them."""
    made = versions()
    if not RECORD.exists() or made["prunec"].endswith("+"):
        return {}
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    if record["versions"] != made:
        return {}
    return {row["name"]: row for row in record["rows"] if row.get("compiler") == made["prunec"]}


if __name__ == "__main__":
    sys.exit(main())
