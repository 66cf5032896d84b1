"""Many trainings: one after the other, each of which may take several processes, or some side by side."""

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
from locdistill.engine.launch import started_by_command
from locdistill.errors import RunError, RunInterrupted
from locdistill.files import make_folder, write_text
from locdistill.recipe.load import dump_recipe
from locdistill.recipe.recipe import Recipe
from locdistill.training.train import run

Train = Callable[[Recipe, Path, bool], object]
"""Trains a recipe into a folder, or goes on with what is there, and leaves ``metrics.json`` when it has finished."""
_STOPPED = "stopped; start the same command again to go on"
_LOOK_EVERY = 0.5
"""Seconds between two looks of a training whether the others were asked to stop."""


def run_apart(recipe: Recipe, out: Path, resume: bool = False) -> None:
    """Train a recipe into a folder as one of many trainings of this process.

    Where several processes train together, each of them begins with the command that was given; of a comparison of many
    trainings only one may be begun so. Such a training therefore gets a command of its own, ``train`` or ``distill``
    with a file of the recipe that lies beside its folder. All others happen here.

    Args:
        recipe: What to train.
        out: Its folder.
        resume: Whether to go on with what is there.

    Raises:
        RunError: Several processes were started from outside, each of which would train everything; or the command did
            not succeed.
        LocdistillError: As :func:`locdistill.training.train.run`.
    """
    if process_rank() > 0:
        raise RunError(
            "this command trains many times and was started as several processes; start it once, without torchrun or "
            "srun, with --set engine.devices=N: each training then starts its own"
        )
    if not started_by_command(recipe.engine):
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
    """Train in processes of their own, so many at a time; the cores are shared among them.

    On a CPU, small detectors do not keep several threads busy: two trainings of one thread each take less time than one
    after the other with two. Where this process is interrupted or killed, each training writes its checkpoint and ends.

    Args:
        jobs: Processes; with one, trainings happen here.

    Yields:
        A function like :func:`run_apart`, to be called from as many threads.
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
                f"the process that trained in {out} was killed, perhaps for want of memory; start the same command "
                "again to go on, with a smaller --jobs"
            ) from error

    with ProcessPoolExecutor(jobs, context, _begin_beside, settings) as pool, _stopping(stop):
        yield train


@contextmanager
def _stopping(stop: Event) -> Iterator[None]:
    """Let the trainings stop where this process is asked to, or one of them failed."""

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
    """Share the cores with the other trainings, and stop when their parent stops or is gone."""
    torch.set_num_threads(threads)

    def watch() -> None:
        while not stop.is_set() and os.getppid() == parent:
            time.sleep(_LOOK_EVERY)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
