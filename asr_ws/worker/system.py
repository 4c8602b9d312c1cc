"""What a child process asks of the operating system, and how one tells why it ended: the same on each, by other means.

The worker is one, and so is what decodes an upload.

| | Linux | macOS | Windows |
|---|---|---|---|
| Ctrl-C in the terminal does not reach it | process group of its own | the same | the same |
| it ends with its server, whatever it is doing | PR_SET_PDEATHSIG | end of its input | job object, kill on close |
| the server goes first for the CPU | nice | nice | below normal priority |
| no core dump of gigabytes | RLIMIT_CORE | RLIMIT_CORE | there are none |
| out of memory, it goes first | oom_score_adj | | |
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from enum import StrEnum
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

NICE = 5  # of 19: gives way to the server, and still gets what an idle machine has
OOM_SCORE_ADJ = 500  # of 1000
PR_SET_PDEATHSIG = 1  # linux/prctl.h

CREATE_NEW_PROCESS_GROUP, BELOW_NORMAL_PRIORITY_CLASS = 0x200, 0x4000  # CreateProcess
PROCESS_TERMINATE, PROCESS_SET_QUOTA = 0x0001, 0x0100  # OpenProcess: what a job asks for
EXTENDED_LIMIT_INFORMATION, KILL_ON_JOB_CLOSE = 9, 0x2000  # SetInformationJobObject

EXIT_CANNOT_LOAD = 3  # the worker's own exit statuses
EXIT_CUDA = 70  # an error that sticks to the process


class Cause(StrEnum):
    """Why a worker was replaced; the values are those of metrics and logs."""

    SEGV = "segv"
    ABRT = "abrt"
    KILLED = "killed"  # by SIGKILL, not by us: possibly out of memory
    ILLEGAL_INSTRUCTION = "illegal_instruction"
    BUS = "bus"
    FPE = "fpe"
    HEAP_CORRUPTION = "heap_corruption"
    STACK_OVERFLOW = "stack_overflow"
    MISSING_DLL = "missing_dll"
    SIGNALLED = "signalled"  # by another
    CUDA = "cuda"
    CANNOT_LOAD = "cannot_load"
    NOT_STARTED = "not_started"  # there was no process
    EXITED = "exited"
    SLOW_START = "slow_start"  # these four it was ended for
    HUNG = "hung"
    GARBLED = "garbled"
    GROWN = "grown"


_CAUSES = {  # by exit status: signals on POSIX, NTSTATUS (unsigned) on Windows, our own
    -4: Cause.ILLEGAL_INSTRUCTION,
    -6: Cause.ABRT,
    -8: Cause.FPE,
    -9: Cause.KILLED,
    -11: Cause.SEGV,
    0xC0000005: Cause.SEGV,
    0xC0000409: Cause.ABRT,
    0xC0000374: Cause.HEAP_CORRUPTION,
    0xC00000FD: Cause.STACK_OVERFLOW,
    0xC000001D: Cause.ILLEGAL_INSTRUCTION,
    0xC0000135: Cause.MISSING_DLL,
    EXIT_CANNOT_LOAD: Cause.CANNOT_LOAD,
    EXIT_CUDA: Cause.CUDA,
}
if sys.platform != "win32":
    _CAUSES[-signal.SIGBUS] = Cause.BUS  # whose number differs


def cause_of(exit_status: int) -> Cause:
    """How a process ended, on any platform."""
    return _CAUSES.get(exit_status, Cause.SIGNALLED if exit_status < 0 else Cause.EXITED)


# ---------------------------------------------------------------- the server's side


def spawn_options(platform: str = sys.platform) -> dict[str, Any]:
    """For `asyncio.create_subprocess_exec`."""
    if platform == "win32":
        return {"creationflags": CREATE_NEW_PROCESS_GROUP | BELOW_NORMAL_PRIORITY_CLASS}
    return {"process_group": 0}


class Leash:
    """Ends the processes that are put on it when this one ends, however it does; does nothing where they see to that.

    Args: kernel32: Windows' library, with ``use_last_error``.
    """

    def __init__(self, kernel32: Any = None) -> None:
        if kernel32 is None and sys.platform == "win32":
            kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
        self._kernel32 = kernel32
        self._job: ctypes.c_void_p | None = None

    def hold(self, pid: int) -> None:
        """Raises: OSError: Windows refuses."""
        if self._kernel32 is None:
            return
        if self._job is None:
            self._job = self._new_job()
        access = PROCESS_SET_QUOTA | PROCESS_TERMINATE
        process = ctypes.c_void_p(self._did(self._kernel32.OpenProcess(access, False, pid)))
        try:
            self._did(self._kernel32.AssignProcessToJobObject(self._job, process))
        finally:
            self._kernel32.CloseHandle(process)

    def _new_job(self) -> ctypes.c_void_p:
        for name in ("CreateJobObjectW", "OpenProcess"):
            getattr(self._kernel32, name).restype = ctypes.c_void_p  # a handle: more than an int on 64 bits
        job = ctypes.c_void_p(self._did(self._kernel32.CreateJobObjectW(None, None)))
        limits = _ExtendedLimits()
        limits.basic.flags = KILL_ON_JOB_CLOSE
        given = ctypes.byref(limits), ctypes.sizeof(limits)
        try:
            self._did(self._kernel32.SetInformationJobObject(job, EXTENDED_LIMIT_INFORMATION, *given))
        except OSError:
            self._kernel32.CloseHandle(job)
            raise
        return job

    def _did(self, result: Any) -> Any:
        if not result:
            number = 0
            if sys.platform == "win32":
                number = ctypes.get_last_error()
            raise OSError(f"Windows refused a job object for the worker: error {number}")
        return result


class _BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION."""

    _fields_ = (
        ("per_process_user_time", ctypes.c_int64),
        ("per_job_user_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("minimum_working_set", ctypes.c_size_t),
        ("maximum_working_set", ctypes.c_size_t),
        ("active_processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority_class", ctypes.c_uint32),
        ("scheduling_class", ctypes.c_uint32),
    )


class _ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

    _fields_ = (
        ("basic", _BasicLimits),
        ("io", ctypes.c_uint64 * 6),
        ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t),
        ("peak_process_memory", ctypes.c_size_t),
        ("peak_job_memory", ctypes.c_size_t),
    )


# ---------------------------------------------------------------- the child's side


def claim_stdio() -> tuple[BufferedReader, BinaryIO]:
    """Standard input and output for ourselves: native libraries print to fd 1, which becomes standard error."""
    source, sink = os.dup(0), os.dup(1)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(source, os.O_BINARY)
        msvcrt.setmode(sink, os.O_BINARY)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(source, "rb"), os.fdopen(sink, "wb")


def become_child(server_pid: int, *, nice: int = NICE, oom_score_adj: int = OOM_SCORE_ADJ) -> None:
    """Give this process the manners of the table above; ends it if its server is gone already."""
    # The server decides when it ends: systemd and terminals signal all processes at once, and there is work to finish.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_IGN)
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(nice)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(oom_score_adj))
        end_with(server_pid)


def end_with(parent: int) -> None:
    """This process, when the thread that started it ends. Linux."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was too late for the signal
        os._exit(0)
