from __future__ import annotations

import ctypes
from typing import Any

import pytest

from asr_ws.worker.system import Cause, Leash, cause_of, spawn_options


@pytest.mark.parametrize(
    ("exit_status", "cause"),
    [
        (-11, Cause.SEGV),
        (-6, Cause.ABRT),
        (-9, Cause.KILLED),
        (-4, Cause.ILLEGAL_INSTRUCTION),
        (-15, Cause.SIGNALLED),
        (-200, Cause.SIGNALLED),
        (0, Cause.EXITED),
        (1, Cause.EXITED),
        (3, Cause.CANNOT_LOAD),
        (70, Cause.CUDA),
        (3221225477, Cause.SEGV),
        (3221226505, Cause.ABRT),
        (3221226356, Cause.HEAP_CORRUPTION),
        (3221225725, Cause.STACK_OVERFLOW),
        (3221225501, Cause.ILLEGAL_INSTRUCTION),
        (3221225781, Cause.MISSING_DLL),
    ],
)
def test_exit_status_is_mapped_to_a_cause(exit_status: int, cause: Cause) -> None:
    assert cause_of(exit_status) is cause


def test_worker_is_spawned_out_of_the_reach_of_ctrl_c_on_each_platform() -> None:
    assert spawn_options("win32") == {"creationflags": 0x4200}
    assert spawn_options("linux") == spawn_options("darwin") == {"process_group": 0}


class Kernel32:
    """Windows' job objects, as they are documented. Unrealistic: a handle is a number that it counts up."""

    def __init__(self, refuses: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        for name in (
            "CreateJobObjectW",
            "SetInformationJobObject",
            "OpenProcess",
            "AssignProcessToJobObject",
            "CloseHandle",
        ):
            setattr(self, name, Function(self, name, refuses == name))


class Function:
    def __init__(self, kernel32: Kernel32, name: str, refuses: bool) -> None:
        self._kernel32, self._name, self._refuses = kernel32, name, refuses

    def __call__(self, *given: Any) -> int:
        plain: list[Any] = [each.value if isinstance(each, ctypes.c_void_p) else each for each in given]
        if self._name == "SetInformationJobObject":
            plain[2] = bytes(given[2]._obj)[16:20]  # LimitFlags
        self._kernel32.calls.append((self._name, tuple(plain)))
        return 0 if self._refuses else 100 + len(self._kernel32.calls)


def test_windows_ends_what_is_on_the_leash_when_the_handle_is_closed() -> None:
    kernel32 = Kernel32()
    Leash(kernel32).hold(4711)
    assert kernel32.calls == [
        ("CreateJobObjectW", (None, None)),
        ("SetInformationJobObject", (101, 9, (0x2000).to_bytes(4, "little"), 144)),
        ("OpenProcess", (0x0101, False, 4711)),
        ("AssignProcessToJobObject", (101, 103)),
        ("CloseHandle", (103,)),
    ]


def test_windows_job_is_made_once() -> None:
    kernel32 = Kernel32()
    leash = Leash(kernel32)
    leash.hold(4711)
    leash.hold(4712)
    assert [call for call, _ in kernel32.calls].count("CreateJobObjectW") == 1


@pytest.mark.parametrize("name", ["OpenProcess", "AssignProcessToJobObject"])
def test_refusal_by_windows_is_an_error_and_leaks_no_handle(name: str) -> None:
    kernel32 = Kernel32(refuses=name)
    with pytest.raises(OSError, match="job object"):
        Leash(kernel32).hold(4711)
    assert [call for call, _ in kernel32.calls].count("CloseHandle") == (name != "OpenProcess")


def test_elsewhere_a_leash_does_nothing() -> None:
    Leash().hold(4711)
