"""Many trainings: one after the other, each with one or more processes, or several in parallel."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType

import torch

from locdistill.data.resources import cores
from locdistill.dist import process_rank
from locdistill.engine.launch import launch_method
from locdistill.errors import RunError, RunInterrupted
from locdistill.files import make_folder, write_text
from locdistill.recipe.load import dump_recipe
from locdistill.recipe.recipe import Recipe
from locdistill.training.train import run

Train = Callable[[Recipe, Path, bool], object]
"""Function that trains a recipe into a folder, or resumes its run, and writes ``metrics.json`` at the end."""
_STOPPED = "stopped; start the same command again to continue"
_LOOK_EVERY = 0.5
"""Interval, in seconds, at which a training checks for a stop of the others."""


def run_apart(recipe: Recipe, out: Path, resume: bool = False) -> None:
    """Train a recipe into a folder as one of many trainings of this process.

    In distributed training, each process starts by running the original command again. A comparison of many trainings
    must not be repeated in this way. Such a training therefore runs as a command of its own, ``train`` or ``distill``
    with a recipe file beside its folder. All other trainings run in this process.

    Args:
        recipe: Recipe to train.
        out: Run folder.
        resume: Whether to resume the run in ``out``.

    Raises:
        RunError: An external launcher started several processes, each of which would train everything; or the command
            failed.
        LocdistillError: As for :func:`locdistill.training.train.run`.
    """
    if process_rank() > 0:
        raise RunError(
            "this command makes several trainings and was started as several processes; start it once, without "
            "torchrun or srun, and pass --set engine.devices=N: each training then starts its own processes"
        )
    if launch_method(recipe.engine) != "subprocess":
        run(recipe, out, resume)
        return
    file = out.with_name(f"{out.name}.yaml")
    make_folder(file.parent)
    write_text(file, dump_recipe(recipe))
    verb = ["distill", "--no-preflight"] if recipe.distils else ["train"]
    words = [*verb, "--out", str(out), *(["--resume"] if resume else ["--recipe", str(file)])]
    code = subprocess.run([sys.executable, "-m", "locdistill", *words], check=False).returncode  # noqa: S603
    if code:
        raise RunError(f"the training in {out} ended with exit code {code} (see above); start the same command again")


@contextmanager
def side_by_side(jobs: int) -> Iterator[Train]:
    """Train in up to ``jobs`` parallel processes that share the cores.

    On a CPU, small detectors do not keep several threads busy: two parallel trainings with one thread each take less
    time than two consecutive ones with two threads. If this process is interrupted or killed, each training writes its
    checkpoint and ends.

    Args:
        jobs: Number of processes; with one, trainings run in this process.

    Yields:
        A function like :func:`run_apart`, to be called from ``jobs`` threads.
    """
    if jobs == 1:
        yield run_apart
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    settings = (max(cores() // jobs, 1), os.getpid(), stop)

    def train(recipe: Recipe, out: Path, resume: bool = False) -> None:
        if stop.is_set():
            raise RunInterrupted(_STOPPED, signal.SIGTERM)
        try:
            pool.submit(run_apart, recipe, out, resume).result()
        except BrokenProcessPool as error:
            raise RunError(
                f"the process that trained in {out} was killed, perhaps for lack of memory; start the same command "
                "again with a smaller --jobs to continue"
            ) from error

    with ProcessPoolExecutor(jobs, context, _begin_beside, settings) as pool, _stopping(stop):
        yield train


@contextmanager
def _stopping(stop: Event) -> Iterator[None]:
    """Stop all trainings if this process receives a stop signal, or one of them fails."""

    def asked(number: int, _: FrameType | None) -> None:
        stop.set()
        raise RunInterrupted(_STOPPED, number)

    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM) if here}
    try:
        yield
    except BaseException:
        stop.set()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _begin_beside(threads: int, parent: int, stop: Event) -> None:
    """Limit the threads of this process, and stop it when its parent stops or has died."""
    torch.set_num_threads(threads)

    def watch() -> None:
        while not stop.is_set() and os.getppid() == parent:
            time.sleep(_LOOK_EVERY)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
