from pathlib import Path

import pytest

from asr_ws.doctor import Status, machine, ok, warning

HINT = "something else wants them: decodes will be slower, and are in what follows"


def test_a_folder_that_is_not_there_yet_is_judged_by_where_it_would_be(tmp_path: Path) -> None:
    found = machine.room(tmp_path / "a" / "b", 1, "hint")
    assert (found.status, found.fact.partition(" in ")[2]) == (Status.OK, str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_too_little_room_is_warned_of(tmp_path: Path) -> None:
    found = machine.room(tmp_path, 10**18, "elsewhere")
    assert (found.status, found.fact[:5], found.hint) == (Status.WARNING, "only ", "elsewhere")


def test_a_folder_that_cannot_be_written_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = machine.room(tmp_path / "file" / "folder", 1, "elsewhere")
    assert (found.status, found.fact[:16], found.hint) == (Status.WARNING, "cannot write to ", "elsewhere")


@pytest.mark.parametrize(("used", "is_busy"), [(0.5, False), (0.51, True)])
def test_a_machine_is_busy_where_more_than_half_of_its_time_is_taken(used: float, is_busy: bool) -> None:
    fact = f"4 usable, {used:.0%} in use now, load 1.2"
    numbers = {"cores": 4, "used_percent": round(100 * used), "load": 1.23}
    assert machine.busy(used, 4, 1.23) == (warning(fact, HINT, **numbers) if is_busy else ok(fact, **numbers))


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")


def test_of_control_groups_the_one_with_the_least_left_counts(tmp_path: Path) -> None:
    (own := tmp_path / "own").write_text("0::/outer/inner\n")
    group(tmp_path / "outer" / "inner", memory_max=3000, memory_current=900, memory_stat="anon 1\ninactive_file 100")
    group(tmp_path / "outer", memory_max=2000, memory_current=1500, memory_stat="anon 1\ninactive_file 200")
    assert machine.control_group(tmp_path, own) == (2000, 700)


def test_a_control_group_of_version_1_counts_also_where_its_own_name_is_not_seen(tmp_path: Path) -> None:
    (own := tmp_path / "own").write_text("2:cpu:/\n3:memory:/docker/0123\n")
    folder = tmp_path / "memory"
    group(folder, memory_limit_in_bytes=5000, memory_usage_in_bytes=6000, memory_stat="total_inactive_file 500")
    assert machine.control_group(tmp_path, own) == (5000, 0)


def test_a_control_group_without_a_limit_is_none(tmp_path: Path) -> None:
    (own := tmp_path / "own").write_text("0::/\n2:memory:/\n")
    group(tmp_path, memory_max="max", memory_current=1, memory_stat="inactive_file 0")
    huge = {"memory_limit_in_bytes": 2**63 - 4096, "memory_usage_in_bytes": 1}
    group(tmp_path / "memory", **huge, memory_stat="total_inactive_file 0")
    assert machine.control_group(tmp_path, own) == (None, None)


def test_elsewhere_than_on_linux_there_is_no_control_group(tmp_path: Path) -> None:
    assert machine.control_group(tmp_path, tmp_path / "none") == (None, None)
