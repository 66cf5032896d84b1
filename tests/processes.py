"""Processes that tests start, kill and wait for, without the six seconds in which Python imports PyTorch and Lightning.

One server per test process imports them once, and each child is a fork of it: a process of its own, with its own
signals, exit code and environment, in which no type checker wraps the package. What is to be shown of the command
itself, or of launchers that begin it again, needs `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import chdir
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple, Protocol

STUCK = 3600.0
"""Seconds after which a process hangs for sure: a guard, which decides nothing on a machine that works."""
ROOT = Path(__file__).resolve().parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.journeys.engine_run", "torch._dynamo"])


class Running(Protocol):
    """A process that can be asked whether it ended."""

    def poll(self) -> int | None:
        """Its exit code, once it ended."""


def wait_until(happened: Callable[[], bool], process: Running) -> None:
    """Wait until something happened, as long as the process that does it runs. How long that takes decides nothing.

    Raises:
        AssertionError: The process ended before.
    """
    while not happened():
        assert process.poll() is None or happened(), "the process ended before"
        time.sleep(0.01)


class Ended(NamedTuple):
    """How a process ended: its exit code (negative: the signal that killed it), and what it printed."""

    code: int
    output: str


class Child:
    """A running process that calls a function, which has to be found by its name in a module.

    Args:
        function: What is called.
        arguments: Its arguments.
        variables: Added to the environment.
    """

    def __init__(self, function: Callable[..., object], *arguments: Any, variables: dict[str, str] | None = None):
        handle, name = tempfile.mkstemp(suffix=".log")
        os.close(handle)
        self.printed = Path(name)
        with chdir(ROOT):  # from where the server imports the tests
            forkserver.ensure_running()
        self.process = SERVER.Process(target=_call, args=(name, variables or {}, function, arguments))
        self.process.start()

    def poll(self) -> int | None:
        """Its exit code, once it ended."""
        return self.process.exitcode

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the process, or with ``group`` to its children too."""
        assert self.process.pid is not None
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self, timeout: float = STUCK) -> Ended:
        """Wait for its end; it is killed where that does not come in time."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        assert self.process.exitcode is not None
        output = self.printed.read_text()
        self.printed.unlink()
        return Ended(self.process.exitcode, output)


def _call(printed: str, variables: dict[str, str], function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    """Begin and end as a process does: a group of its own, its environment, its streams, its way to start others.

    What the function held on to, such as the workers of a loader, is gone before the exit, which waits for them.
    """
    multiprocessing.set_start_method(None, force=True)
    os.setsid()
    os.chdir(ROOT)
    os.environ.update(variables)
    sys.stdout = sys.stderr = open(printed, "w", buffering=1)  # noqa: SIM115 - until the process ends
    for number in (1, 2):
        os.dup2(sys.stdout.fileno(), number)
    code: Any = 0
    try:
        function(*arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.exit(code)


def _execute(script: str) -> None:
    exec(compile(script, "<script of a test>", "exec"), {"__name__": "__main__"})


def printed_by(script: str) -> str:
    """What a script prints, in a process of its own.

    Raises:
        AssertionError: It failed; the message ends with its traceback.
    """
    code, output = Child(_execute, script).end()
    assert code == 0, output[-3000:]
    return output


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(
    function: Callable[..., object], *arguments: Any, count: int = 2, variables: dict[str, str] | None = None
) -> Ended:
    """Call a function in several processes that find each other as those of ``torchrun`` do.

    Returns:
        The lowest exit code that is not 0, if any (killed comes before failed for want of the other), and what all of
        them printed.
    """
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "test"}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0"} | (variables or {})
    children = [
        Child(function, *arguments, variables=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    ends = [child.end() for child in children]
    return Ended(min((end.code for end in ends if end.code), default=0), "".join(end.output for end in ends))
