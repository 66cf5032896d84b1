"""Curves of a run and distributions of edges: what is read, and that something is drawn."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from locdistill.errors import RunError
from locdistill.geometry.bins import CircularBins, RowBins
from locdistill.geometry.coding import RotatedDistances
from locdistill.viz.curves import compare_runs, plot_run, read_metrics
from locdistill.viz.distributions import plot_edges
from locdistill.viz.style import INK, STUDENT, TEACHER, TRUTH

LOG = """step,epoch,lr,train/qfl,train/ld,val/AP,val/AP50
10,0,0.01,1.5,0.2,,
20,0,0.01,nan,0.1,,
20,0,,,,0.25,0.5
30,1,0.01,oops,0,,
40,1,,,,0.3,0.6
35,1,0.01,0.9
"""


def near(picture: Image.Image, colour: tuple[int, int, int], tolerance: int = 6) -> int:
    """Number of pixels of about that colour."""
    return int((np.abs(np.asarray(picture, int) - np.array(colour)).max(-1) <= tolerance).sum())


def test_the_log_is_read_column_by_column_without_blanks(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(LOG)
    curves = read_metrics(path)
    assert {name: (steps.tolist(), values.tolist()) for name, (steps, values) in curves.items()} == {
        "epoch": ([10, 20, 20, 30, 35, 40], [0, 0, 0, 1, 1, 1]),
        "lr": ([10, 20, 30, 35], [0.01] * 4),
        "train/qfl": ([10, 35], [1.5, 0.9]),
        "train/ld": ([10, 20, 30], [0.2, 0.1, 0.0]),
        "val/AP": ([20, 40], [0.25, 0.3]),
        "val/AP50": ([20, 40], [0.5, 0.6]),
    }


def test_a_log_cut_off_by_a_kill_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(LOG.encode() + b"50,1,0.0" + b"\0" * 20)
    assert read_metrics(path)["train/qfl"][0].tolist() == [10, 35]


def test_a_run_is_drawn_beside_its_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(LOG)
    picture = plot_run(path)
    assert picture == tmp_path / "curves.png"
    with Image.open(picture) as image:
        assert image.size == (2200, 840)
        left, right = (image.convert("RGB").crop(box) for box in ((0, 0, 1100, 680), (1100, 0, 2200, 680)))
    assert near(left, (31, 111, 210)) > 200
    assert near(left, (217, 95, 2)) > 200
    assert near(right, (31, 111, 210)) > 200


def test_the_total_is_black_and_takes_no_colour_from_a_term(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/total,train/qfl\n10,2.0,1.0\n20,1.0,0.5\n")
    with Image.open(plot_run(path)) as image:
        drawn = image.convert("RGB").crop((0, 60, 1100, 660))  # below the title
    assert near(drawn, (31, 111, 210)) > 200
    assert near(drawn, INK) > 200
    assert near(drawn, (217, 95, 2)) == 0


def test_agreement_with_a_teacher_has_a_panel_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,agree/edge_kl,agree/box_iou,val/AP\n10,2.0,0.5,\n20,1.0,0.8,\n20,,,0.1\n30,0.5,,\n")
    with Image.open(plot_run(path)) as image:
        assert image.size == (3300, 840)
        losses, right = (image.convert("RGB").crop(box) for box in ((0, 60, 1100, 680), (2200, 60, 3300, 680)))
    assert near(losses, STUDENT) == 0  # what is watched is no loss
    assert near(right, STUDENT) > 200
    assert near(right, TEACHER) > 200


@pytest.mark.parametrize("content", ["", "step,train/qfl\n", "step\n1\n", "step,agree/edge_kl,agree/box_iou\n1,,\n"])
def test_a_log_without_values_gives_a_picture_that_says_so(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with Image.open(plot_run(path, tmp_path / "new" / "c.png")) as image:
        assert near(image.convert("RGB"), (31, 111, 210)) == 0


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        plot_run(tmp_path / "absent.csv")
    path = tmp_path / "metrics.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(RunError, match="expected a column 'step', found a, b"):
        plot_run(path)


def test_seeds_of_a_setting_share_a_colour(tmp_path: Path) -> None:
    runs = {}
    for i, name in enumerate(("plain (seed 0)", "plain (seed 1)", "with LD (seed 0)")):
        runs[name] = tmp_path / f"{i}.csv"
        runs[name].write_text(f"step,val/AP75\n10,0.{i + 1}\n20,0.{i + 2}\n")
    with Image.open(compare_runs(runs, tmp_path / "c.png", metric="AP75")) as image:
        drawn = image.convert("RGB").crop((0, 0, 1440, 680))
    assert near(drawn, (31, 111, 210)) > 1.6 * near(drawn, (217, 95, 2)) > 0
    assert near(drawn, (26, 140, 80)) == 0


def test_drawing_leaves_no_global_state(tmp_path: Path) -> None:
    import sys

    before, loaded = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    path = tmp_path / "metrics.csv"
    path.write_text(LOG)
    plot_run(path)
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_edges_show_student_teacher_and_truth() -> None:
    logits = torch.zeros(4, 17)
    logits[:, 3] = 4.0
    alone = plot_edges(logits)
    both = plot_edges(logits, logits.roll(2, 1), truth=torch.tensor([3.0, 3.0, 3.0, 99.0]), title="RBC 87 %")
    faint = tuple(round(255 - 0.55 * (255 - v)) for v in STUDENT)
    assert alone.size == both.size == (1920, 500)
    assert near(alone, faint) > 1000
    assert near(both, faint) > 1000
    assert near(alone, TEACHER) == near(alone, TRUTH) == 0
    assert near(both, TEACHER) > 500
    assert near(both, TRUTH) > 500


def test_edges_of_a_rotated_box_have_five_panels() -> None:
    picture = plot_edges(torch.randn(5, 9), bins=CircularBins(RowBins(8, 4 * ((0, 8),))), coding=RotatedDistances())
    assert picture.size == (2400, 500)
