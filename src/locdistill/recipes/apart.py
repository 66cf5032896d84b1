"""Many trainings, one after the other, each of which may take several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from locdistill.engine.trainer import started_by_command
from locdistill.errors import RunError
from locdistill.recipes.folder import make_folder, process_rank, write_text
from locdistill.recipes.load import dump_recipe
from locdistill.recipes.recipe import Recipe
from locdistill.recipes.run import run


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
        LocdistillError: As :func:`locdistill.recipes.run.run`.
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
