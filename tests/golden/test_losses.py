"""Loss functions and their gradients against the arrays of the executed reference.

They are computed in float64, so that only the reference rounds: to the same numbers on every machine.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from locdistill.geometry.bins import Bins
from locdistill.geometry.boxes import centre_offset, clip, paired_giou, paired_iof, paired_iou, pairwise_iou
from locdistill.geometry.coding import decode, encode
from locdistill.losses.distribution import distribution_focal_loss, softened_kl
from locdistill.losses.focal import focal_loss, quality_focal_loss
from locdistill.losses.overlap import overlap_loss
from tests.rounding import EPS

pytestmark = pytest.mark.golden
RTOL, ATOL = 1e-5, 1e-6


def _close(got: torch.Tensor, want: np.ndarray, atol: float = ATOL) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=RTOL, atol=atol)


def _double(arrays, name, key):
    return torch.from_numpy(arrays[f"{name}/{key}"]).double()


def _reduce(values, arrays, name, factor, avg):
    """The reference's reductions, read off the case's name: none, mean, or weighted sum over a factor."""
    weight = _double(arrays, name, "weight") if f"{name}/weight" in arrays else None
    if name.endswith("_none"):
        return factor * values
    if weight is not None:
        values = values * weight
    return factor * (values.sum() / avg if avg else values.mean())


def _check(arrays, name, pred, loss, steepest=None):
    """Compare a loss and its gradient, of which ``steepest`` is the largest that there can be."""
    _close(loss, arrays[f"{name}/loss"])
    (grad,) = torch.autograd.grad(loss.sum(), pred)
    want = arrays[f"{name}/grad_pred"]
    atol = ATOL * max(1e-3, float(np.abs(want).max())) if steepest is None else EPS * steepest
    _close(grad, want, atol=atol)


ENDS = ("none", "mean", "w_avg4", "w_mean", "w0_avg16", "self")
KL = [f"kl_{kind}_{end}" for kind in ("T10_17", "T2_80", "T1_17", "T10_17_extreme") for end in ENDS]
QFL = [f"qfl_{c}_b{b}_{end}" for c in ("80", "1", "20_allneg") for b in ("2.0", "1.5") for end in ("w_avg7", "none")]
DFL = ["dfl_none", "dfl_w_avg4"]
GIOU = ["giou_none", "giou_mean", "giou_w_avg1", "giou_w0"]
FOCAL = ["focal_none", "focal_w_avg9", "focal_mean", "focal_mod_avg9"]


def test_every_array_of_the_file_is_looked_at(golden):
    cases = {name.split("/")[0] for name in golden("a_losses")}
    assert cases == {*KL, *QFL, *DFL, *GIOU, *FOCAL}


@pytest.mark.parametrize("name", KL)
def test_softened_kl(golden, name):
    arrays = golden("a_losses")
    temperature, factor = {"T10": (10.0, 0.25), "T2": (2.0, 10.0), "T1": (1.0, 1.0)}[name.split("_")[1]]
    pred = _double(arrays, name, "pred").requires_grad_()
    values = softened_kl(pred, _double(arrays, name, "soft"), temperature=temperature)
    avg = 4.0 if name.endswith("avg4") else 16.0 if name.endswith("avg16") else None
    # The gradient is a difference of two probabilities, each of which is rounded, times this.
    steepest = factor * temperature / pred.shape[-1]
    _check(arrays, name, pred, _reduce(values, arrays, name, factor, avg), steepest)


@pytest.mark.parametrize("name", QFL)
def test_quality_focal(golden, name):
    arrays = golden("a_losses")
    pred = _double(arrays, name, "pred").requires_grad_()
    label, score = (_double(arrays, name, key) for key in ("label", "score"))
    classes = pred.shape[-1]
    targets = pred.new_zeros(len(pred), classes + 1).scatter(1, label.long()[:, None], score[:, None])[:, :classes]
    values = quality_focal_loss(pred, targets, beta=float(name.split("_b")[1][:3]))
    _check(arrays, name, pred, _reduce(values, arrays, name, 1.0, 7.0 if "avg7" in name else None))


@pytest.mark.parametrize("name", DFL)
def test_distribution_focal(golden, name):
    arrays = golden("a_losses")
    pred = _double(arrays, name, "pred").requires_grad_()
    values = distribution_focal_loss(pred, Bins(16).two_hot(_double(arrays, name, "target")))
    _check(arrays, name, pred, _reduce(values, arrays, name, 0.25, 4.0 if "avg4" in name else None))


@pytest.mark.parametrize("name", GIOU)
def test_giou(golden, name):
    arrays = golden("a_losses")
    pred = _double(arrays, name, "pred").requires_grad_()
    values = overlap_loss(pred, _double(arrays, name, "target"), kind="giou")
    _check(arrays, name, pred, _reduce(values, arrays, name, 2.0, 1.0 if "w" in name else None))


@pytest.mark.parametrize("name", FOCAL)
def test_focal(golden, name):
    arrays = golden("a_losses")
    pred = _double(arrays, name, "pred").requires_grad_()
    labels = torch.from_numpy(arrays[f"{name}/label"]).long()
    targets = torch.nn.functional.one_hot(labels, 81)[:, :80].double()
    values = focal_loss(pred, targets)
    if name == "focal_none":  # the reference keeps the classes apart here
        _close(values, arrays[f"{name}/loss"].sum(-1))
        return
    loss = _reduce(values, arrays, name, 1.0, 9.0 if "avg9" in name else None)
    _check(arrays, name, pred, loss / 80 if name == "focal_mean" else loss)


def test_geometry(golden):
    arrays = {
        k.removeprefix("geom/"): torch.from_numpy(v) for k, v in golden("f_small_mmdet33").items() if "geom/" in k
    }
    bins, points, targets = Bins(16), arrays["points"], arrays["boxes2"]
    distances = bins.expect(arrays["logits"].view(-1, 4, 17))
    _close(distances.reshape(arrays["integral"].shape), arrays["integral"].numpy())
    boxes = decode(points, distances[None])[0]
    _close(boxes, arrays["distance2bbox"].numpy())
    _close(clip(boxes, torch.tensor([[30, 40]])), arrays["distance2bbox_clip_h30_w40"].numpy())
    _close(encode(points, targets[None])[0], arrays["bbox2distance"].numpy())
    _close(bins.clamp(encode(points, targets[None])[0]), arrays["bbox2distance_max16"].numpy())
    _close(pairwise_iou(boxes, targets), arrays["iou"].numpy())
    _close(paired_iof(boxes[:, None], targets), arrays["iof"].numpy())
    count = min(len(boxes), len(targets))
    _close(paired_iou(boxes[:count], targets[:count]), arrays["iou_aligned"].numpy())
    _close(paired_giou(boxes[:count], targets[:count]), arrays["giou_aligned"].numpy())


def test_diou_of_the_published_region_is_iof_based(golden):
    """The fork's "DIoU" is intersection over the first area less the centre offset; see ``ValuableLocations``."""
    arrays, other = golden("f_small_mmdet33"), golden("f_small_fork")
    boxes, targets = (torch.from_numpy(arrays[f"geom/{name}"]) for name in ("distance2bbox", "boxes2"))
    got = paired_iof(boxes[:, None], targets) - centre_offset(boxes[:, None], targets)
    _close(got, other["geom/diou"])
