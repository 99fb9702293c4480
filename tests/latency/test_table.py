from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from prunec.errors import TableError
from prunec.latency import table as module
from prunec.latency.table import LatencyTable, cache_folder, cached
from prunec.schedules.search import Limits, frontier

ROOT = Path(__file__).parents[2]
many = settings(max_examples=200, deadline=None, derandomize=True, database=None)

PLACE: dict[str, str | int] = {"device": "one", "threads": 2, "torch": "2.15.0", "python": "3.12.3"}
WORK: dict[str, str | int] = {"model": "ab12", "kind": "evit", "batch": 8, "dtype": "float32"}


def example(**changes: Any) -> LatencyTable:
    made = LatencyTable(
        place=PLACE,
        work=WORK,
        counts=(16, 8, 4),
        dense=5.2,
        fixed=0.1,
        blocks=((1.6, 0.8, 0.6), (1.4, 0.8, 0.4), (2.0, 1.0, 0.5)),
        sites=(0.01, 0.002, 0.001, 0.5),
        spread=0.02,
        seconds=3.5,
        date="2026-01-02",
        samples={"16": (5.0, 5.1), "8": (2.6, 1 / 3)},
    )
    return replace(made, **changes)


LOSSES = ((0.0, 1.0, 2.0), (0.0, 0.5, 1.5), (0.0, 0.25, 1.0))


# What things take -------------------------------------------------------------------------------------------


def test_a_block_takes_what_was_measured_and_the_line_between() -> None:
    table = example()
    assert [table.block(0, n) for n in (16, 8, 4)] == [1.6, 0.8, 0.6]
    assert table.block(0, 10) == pytest.approx(0.8 + 0.8 * 2 / 8)
    assert table.block(2, 5) == pytest.approx(0.5 + 0.5 * 1 / 4)


@pytest.mark.parametrize("length", [17, 3, 0, -8])
def test_nothing_is_reported_of_lengths_outside(length: int) -> None:
    with pytest.raises(ValueError, match=f"from 4 to 16 tokens, not to {length}"):
        example().block(0, length)


def test_a_site_by_hand() -> None:
    """The block in the middle takes 1.4, 0.8 and 0.4; the first and the last have other things in them."""
    assert example().site(16, 4) == pytest.approx(0.01 + 0.002 * 16 + 0.001 * 4 + 0.5 * (1.4 - 0.4))
    assert example().site(12, 8) == pytest.approx(0.01 + 0.002 * 12 + 0.001 * 8 + 0.5 * (1.1 - 0.8))


def test_the_only_block_is_the_one_in_the_middle() -> None:
    table = example(blocks=((1.6, 0.8, 0.6),))
    assert table.site(16, 8) == pytest.approx(0.01 + 0.002 * 16 + 0.001 * 8 + 0.5 * 0.8)


def test_predict_by_hand() -> None:
    assert example().predict((16, 16, 16), ()) == pytest.approx(0.1 + 1.6 + 1.4 + 2.0)
    with_site = example().predict((16, 6, 6), [(1, 16, 6)])
    site = 0.01 + 0.002 * 16 + 0.001 * 6 + 0.5 * (1.4 - 0.6)
    assert with_site == pytest.approx(0.1 + 1.6 + 0.6 + 0.75 + site)
    with pytest.raises(ValueError, match="2 counts for a table of 3 blocks"):
        example().predict((16, 16), ())


@pytest.mark.parametrize("limits", [Limits(first=0, sites=None), Limits(first=1, sites=None, returns=True)])
def test_predict_equals_the_time_of_the_search(limits: Limits) -> None:
    table = example()
    found = frontier(table.costs(LOSSES), limits)
    assert len(found) > 3
    for choice in found:
        assert table.predict(choice.counts, choice.sites) == pytest.approx(choice.time, rel=1e-12)


def test_a_scaled_table_predicts_as_many_times_as_much() -> None:
    table = example()
    for counts, sites in (((16, 16, 16), ()), ((16, 8, 5), ((1, 16, 8), (2, 8, 5)))):
        assert table.scaled(1.5).predict(counts, sites) == pytest.approx(1.5 * table.predict(counts, sites))
    assert (table.scaled(1.5).samples, table.scaled(1.5).dense) == (table.samples, table.dense)


@st.composite
def measured_rows(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[float, ...]]:
    counts = draw(st.lists(st.integers(1, 300), min_size=2, max_size=6, unique=True))
    seconds = st.floats(1e-6, 1.0)
    row = draw(st.lists(seconds, min_size=len(counts), max_size=len(counts)))
    return tuple(sorted(counts, reverse=True)), tuple(row)


@many
@given(measured_rows())
def test_between_two_counts_times_go_straight_from_one_to_the_other(
    measured: tuple[tuple[int, ...], tuple[float, ...]],
) -> None:
    counts, row = measured
    table = example(counts=counts, blocks=(row,))
    for i in range(len(counts) - 1):
        line = [table.block(0, n) for n in range(counts[i + 1], counts[i] + 1)]
        assert (line[0], line[-1]) == (row[i + 1], row[i])
        assert line == sorted(line, reverse=row[i] < row[i + 1])


@many
@given(measured_rows())
def test_more_tokens_never_take_less_where_no_count_did(
    measured: tuple[tuple[int, ...], tuple[float, ...]],
) -> None:
    counts, row = measured
    table = example(counts=counts, blocks=(tuple(sorted(row, reverse=True)),))
    line = [table.block(0, n) for n in range(counts[-1], counts[0] + 1)]
    assert line == sorted(line)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"counts": (8, 16, 4)}, "counts must fall"),
        ({"blocks": ()}, "blocks has 0 rows"),
        ({"blocks": ((1.0, 1.0),)}, r"blocks\[0\] has 2 numbers, not 3"),
        ({"sites": (0.0, 0.0)}, r"sites\[0\] has 2 numbers, not 4"),
        ({"fixed": math.inf}, "fixed is inf"),
        ({"dense": math.nan}, "dense is nan"),
        ({"dense": 0.0}, "dense is 0.0, and nothing takes no time"),
        ({"fixed": -1e7}, r"a number is 1e\+07, more than 1e\+06"),
    ],
)
def test_tables_that_do_not_fit_together(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        example(**wrong)


# Where it holds ---------------------------------------------------------------------------------------------


def test_the_same_place_and_work() -> None:
    assert example().differences(dict(PLACE), dict(WORK)) == ()
    example().check(dict(PLACE), dict(WORK))


@pytest.mark.parametrize("name", [*PLACE, *WORK])
def test_each_differing_field_is_named(name: str) -> None:
    place, work = dict(PLACE), dict(WORK)
    facts = place if name in place else work
    old, facts[name] = facts[name], "other"
    assert example().differences(place, work) == (f"{name} is {old} in the table, other here",)


def test_fields_that_only_one_side_has() -> None:
    place = {**PLACE, "cuda": "13.2"}
    del place["threads"]
    assert set(example().differences(place, WORK)) == {
        "threads is 2 in the table, not given here",
        "cuda is not given in the table, 13.2 here",
    }


def test_a_number_is_not_its_text() -> None:
    assert len(example().differences(PLACE, {**WORK, "batch": "8"})) == 1


def test_check_names_all_that_differs() -> None:
    with pytest.raises(TableError) as caught:
        example().check({**PLACE, "torch": "2.16.0"}, {**WORK, "batch": 1})
    assert "torch is 2.15.0 in the table, 2.16.0 here; batch is 8 in the table, 1 here" in caught.value.what
    assert "2026-01-02" in str(caught.value.where)
    assert caught.value.remedy
    assert caught.value.exit_code == 1


def test_a_foreign_table_may_be_of_another_place_but_not_of_other_work() -> None:
    there = {"device": "two"}
    example().check(there, WORK, foreign=True)
    with pytest.raises(TableError, match="batch is 8 in the table, 1 here") as caught:
        example().check(there, {**WORK, "batch": 1}, foreign=True)
    assert "device" not in caught.value.what


# Its file ---------------------------------------------------------------------------------------------------


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    table = example(estimated=True, error=0.3)
    table.write(tmp_path / "t.json")
    assert LatencyTable.read(tmp_path / "t.json") == table
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_the_file_holds_what_as_dict_tells(tmp_path: Path) -> None:
    example().write(tmp_path / "t.json")
    plain = json.loads((tmp_path / "t.json").read_text())
    assert len(plain.pop("checksum")) == 64
    assert plain == example().as_dict()
    assert set(plain) == {"format", *(field.name for field in fields(LatencyTable))}


def truncated(path: Path) -> None:
    path.write_text(path.read_text()[:-100])


def with_a_flipped_digit(path: Path) -> None:
    text = path.read_text()
    assert text.count("5.1") == 1
    path.write_text(text.replace("5.1", "5.2"))


def of_another_version(path: Path) -> None:
    rewritten(path, format=2)


def without_spread(path: Path) -> None:
    rewritten(path, spread=None)


def without_what_has_a_default(path: Path) -> None:
    rewritten(path, estimated=None)


def with_a_word_for_a_number(path: Path) -> None:
    rewritten(path, fixed="fast")


def with_a_short_row(path: Path) -> None:
    rewritten(path, blocks=[[1.0, 2.0]])


def without_checksum(path: Path) -> None:
    plain = json.loads(path.read_text())
    del plain["checksum"]
    path.write_text(json.dumps(plain))


def of_something_else(path: Path) -> None:
    path.write_text("[1, 2]")


def of_bytes(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


def rewritten(path: Path, **changes: Any) -> None:
    """With other content (None: without that) and the checksum that belongs to it."""
    plain = {**json.loads(path.read_text()), **changes}
    del plain["checksum"]
    plain = {name: value for name, value in plain.items() if value is not None}
    path.write_text(json.dumps({**plain, "checksum": module._digest(plain)}))


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (truncated, "line"),
    (with_a_flipped_digit, "checksum is wrong"),
    (of_another_version, "its format is 2, this prunec reads 1"),
    (without_spread, "it has no spread"),
    (without_what_has_a_default, "it has no estimated"),
    (with_a_word_for_a_number, "fixed: .* valid number"),
    (with_a_short_row, r"blocks\[0\] has 2 numbers"),
    (without_checksum, "checksum is wrong"),
    (of_something_else, "not a JSON object"),
    (of_bytes, "utf-8"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES)
def test_a_damaged_file_is_refused(damage: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    example().write(path)
    damage(path)
    with pytest.raises(TableError, match=says) as caught:
        LatencyTable.read(path)
    assert caught.value.what.startswith("t.json is not a latency table that can be used: ")
    assert caught.value.where == str(path)
    assert caught.value.remedy


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="No such file"):
        LatencyTable.read(tmp_path / "t.json")


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example().write(tmp_path / "t.json")

    def full(self: Path, text: str, encoding: str) -> None:
        with self.open("w") as file:
            file.write(text[:50])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        example(fixed=9.0).write(tmp_path / "t.json")
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    assert LatencyTable.read(tmp_path / "t.json") == example()


def test_who_is_reading_the_old_file_reads_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    example().write(path)
    old = path.read_text()
    with path.open() as reader:
        example(fixed=9.0).write(path)
        assert reader.read() == old
    assert LatencyTable.read(path).fixed == 9.0


# The cache --------------------------------------------------------------------------------------------------


class Lab:
    """A folder, a measurement that counts its runs, and the warnings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.measured = 0
        self.spread = 0.02
        self.warnings: list[str] = []

    def table(self, place: dict[str, str | int] = PLACE, work: dict[str, str | int] = WORK) -> LatencyTable:
        def measure() -> LatencyTable:
            self.measured += 1
            return example(place=place, work=work, date=f"run {self.measured}", spread=self.spread)

        return cached(place, work, measure, folder=self.folder, warn=self.warnings.append)

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.json"))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "below" / "latency")


def test_a_table_is_measured_once(lab: Lab) -> None:
    assert lab.table() == lab.table()
    assert (lab.measured, lab.warnings) == (1, [])
    (path,) = lab.files()
    assert LatencyTable.read(path).date == "run 1"


def test_a_table_measured_in_noise_is_not_kept(lab: Lab) -> None:
    lab.spread = 0.3
    assert lab.table().date == "run 1"
    assert lab.files() == []
    (warning,) = lab.warnings
    assert "its samples lie 30% apart" in warning
    lab.spread = 0.02
    assert lab.table().date == "run 2"
    assert len(lab.files()) == 1


def test_the_order_of_the_facts_does_not_matter(lab: Lab) -> None:
    lab.table()
    lab.table(dict(reversed(PLACE.items())), dict(reversed(WORK.items())))
    assert lab.measured == 1


@pytest.mark.parametrize("name", [*PLACE, *WORK])
def test_each_place_and_work_has_a_table_of_its_own(lab: Lab, name: str) -> None:
    """Another torch, another batch: the old table is stale, and stays for who comes back."""
    lab.table()
    place = {key: "other" if key == name else value for key, value in PLACE.items()}
    work = {key: "other" if key == name else value for key, value in WORK.items()}
    other = lab.table(place, work)
    assert (other.date, other.place, other.work) == ("run 2", place, work)
    assert lab.table().date == "run 1"
    assert (len(lab.files()), lab.warnings) == (2, [])


@pytest.mark.parametrize(("damage", "says"), DAMAGES)
def test_a_damaged_table_is_measured_again(lab: Lab, damage: Callable[[Path], None], says: str) -> None:
    lab.table()
    damage(lab.files()[0])
    assert lab.table().date == "run 2"
    assert lab.table().date == "run 2"
    (warning,) = lab.warnings
    assert warning.endswith("; measuring again")
    assert "is not a latency table that can be used" in warning


def test_a_table_under_the_name_of_another_is_measured_again(lab: Lab) -> None:
    lab.table()
    (mine,) = lab.files()
    lab.table({**PLACE, "device": "two"})
    (theirs,) = set(lab.files()) - {mine}
    theirs.replace(mine)
    assert lab.table().date == "run 3"
    (warning,) = lab.warnings
    assert "device is two in the table, one here" in warning


def test_what_was_measured_must_be_what_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="batch is 8 in the table, 1 here"):
        cached(PLACE, {**WORK, "batch": 1}, example, folder=tmp_path, warn=print)
    assert list(tmp_path.glob("*.json")) == []


def test_a_measurement_that_fails_gives_the_lock_back(lab: Lab) -> None:
    def fails() -> LatencyTable:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cached(PLACE, WORK, fails, folder=lab.folder, warn=lab.warnings.append)
    assert (lab.table().date, lab.warnings) == ("run 1", [])


def a_file_in_its_place(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("")


def a_lock_that_cannot_be_taken(folder: Path) -> None:
    (folder / "measuring.lock").mkdir(parents=True)


def a_table_that_cannot_be_replaced(folder: Path) -> None:
    name = module._digest([PLACE, WORK])
    (folder / f"{name}.json" / "full").mkdir(parents=True)


@pytest.mark.parametrize("obstacle", [a_file_in_its_place, a_lock_that_cannot_be_taken])
def test_a_folder_that_cannot_be_used_costs_a_warning(lab: Lab, obstacle: Callable[[Path], None]) -> None:
    obstacle(lab.folder)
    assert lab.table().date == "run 1"
    assert lab.table().date == "run 2"
    assert len(lab.warnings) == 2
    assert lab.warnings[0].startswith(f"the latency table is not kept, {lab.folder} cannot be used: ")


def test_a_table_that_cannot_be_written_is_returned_all_the_same(lab: Lab) -> None:
    a_table_that_cannot_be_replaced(lab.folder)
    assert lab.table().date == "run 1"
    assert "measuring again" in lab.warnings[0]
    assert "is not kept" in lab.warnings[1]
    assert {path.name for path in lab.folder.iterdir()} == {"measuring.lock", lab.files()[0].name}


def test_a_table_that_is_there_needs_no_lock(lab: Lab) -> None:
    """Another process may be measuring something else for a minute."""
    lab.table()
    with FileLock(lab.folder / "measuring.lock"):
        assert lab.table().date == "run 1"
    assert lab.warnings == []


def test_where_tables_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEC_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine" / "latency"
    cached(PLACE, WORK, example, warn=print)
    assert len(list((tmp_path / "mine" / "latency").glob("*.json"))) == 1
    monkeypatch.delenv("PRUNEC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    assert cache_folder().parts[-2:] == ("prunec", "latency")


# Two processes ----------------------------------------------------------------------------------------------

#: Says when it is ready and goes on when told; so too in the middle of its measurement.
CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from prunec.latency.table import LatencyTable, cached

folder, name, batch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
asked = LatencyTable.read(folder / "example.json")
asked = replace(asked, work={**asked.work, "batch": batch}, date=name)

def tell(word):
    print(word, flush=True)

def measure():
    tell("measuring")
    sys.stdin.readline()
    return asked

tell("ready")
sys.stdin.readline()
tell(cached(asked.place, asked.work, measure, folder=folder / "cache", warn=tell).date)
"""


class Child:
    """A process that asks for a table."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def goes_on(self) -> None:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)


@contextmanager
def both_inside(folder: Path, batches: tuple[int, int]) -> Iterator[tuple[Child, Child]]:
    """The process that measures and the one that waits for it, both in the middle of `cached`."""
    example().write(folder / "example.json")
    with ExitStack() as stack:  # at its end pipes are closed, which lets both go on, and both have ended
        children = []
        for name, batch in zip("ab", batches, strict=True):
            command = [sys.executable, "-c", CHILD, str(folder), f"{name}{batch}", str(batch)]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
            children.append(Child(stack.enter_context(process)))
        assert [child.says() for child in children] == ["ready", "ready"]
        for child in children:
            child.goes_on()
        said = {child.says(): child for child in children}
        assert set(said) == {"measuring", "another process is measuring; waiting for it"}
        yield said.pop("measuring"), said.popitem()[1]
    assert [child.process.returncode for child in children] == [0, 0]


def test_two_processes_measure_once_and_have_the_same_table(tmp_path: Path) -> None:
    with both_inside(tmp_path, (8, 8)) as (first, second):
        assert list((tmp_path / "cache").glob("*.json")) == []
        first.goes_on()
        date = first.says()
        assert second.says() == date
    assert date in ("a8", "b8")
    (path,) = (tmp_path / "cache").glob("*.json")
    assert LatencyTable.read(path).date == date


def test_two_processes_that_measure_different_things_take_turns(tmp_path: Path) -> None:
    with both_inside(tmp_path, (8, 1)) as (first, second):
        first.goes_on()
        assert second.says() == "measuring"
        second.goes_on()
        assert {first.says(), second.says()} == {"a8", "b1"}
    assert len(list((tmp_path / "cache").glob("*.json"))) == 2
