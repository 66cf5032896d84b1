"""Losses and gradients of the executed reference's GFL v2 heads, plain and distilling.

The reference's head hands out three maps: the joint probability ``p = sigmoid(a) sigmoid(b)`` of class logits ``a`` and
quality ``b``, the edge logits, and ``a`` itself, which only class distillation looks at; its gradients are with respect
to these three, as if they were independent. ``Dense`` holds ``a`` and ``b``, so the gradients are compared after the
chain rule: ``p (1 - sigmoid(a)) dL/dp + dL/da`` and, summed over classes, ``p (1 - sigmoid(b)) dL/dp``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from locdistill.assign.atss import ATSS
from locdistill.geometry.bins import Bins
from locdistill.objective.scene import Scene
from locdistill.types import Dense
from tests.scenes import dense_of, flatten, grid_of, instances_of, per_level, published_terms

pytestmark = pytest.mark.golden
SUPERVISED = ("cls", "bbox", "dfl")
DISTILLING = (*SUPERVISED, "ld", "ld_vlr", "kd")


def _maps(arrays: dict[str, np.ndarray], key: str) -> list[Tensor]:
    return [torch.from_numpy(arrays[f"{key}{level}"]) for level in range(5)]


def _student(arrays: dict[str, np.ndarray]) -> Dense:
    """The maps of the reference's head; the quality is what the joint probability has beside the class score."""
    probs, logits = flatten(_maps(arrays, "gflv2head/cls")), flatten(_maps(arrays, "gflv2head/out2"))
    quality = (probs.double() / logits.double().sigmoid()).mean(-1)
    edges = flatten(_maps(arrays, "gflv2head/box")).unflatten(-1, (4, -1))
    dense = Dense(logits, edges, quality.logit().float(), quality_in_score=True)
    torch.testing.assert_close(dense.score_logits.sigmoid(), probs, rtol=1e-5, atol=1e-7)
    return dense._replace(
        cls_logits=logits.requires_grad_(),
        edge_logits=edges.requires_grad_(),
        quality_logits=quality.logit().float().requires_grad_(),
    )


def _scene(arrays: dict[str, np.ndarray], student: Dense) -> Scene:
    instances = instances_of(
        [arrays[f"gflv2head/gt{i}"] for i in (0, 1)], [arrays[f"gflv2head/lab{i}"] for i in (0, 1)], [(64, 96)] * 2
    )
    teacher = dense_of(_maps(arrays, "ldv2/t_logit"), _maps(arrays, "ldv2/t_box"))
    grid = grid_of(_maps(arrays, "gflv2head/cls"))
    return Scene.build(student, teacher, grid=grid, instances=instances, assigner=ATSS(), bins=Bins())


@pytest.mark.parametrize(
    ("names", "losses", "gradients"),
    [(SUPERVISED, "gflv2head", "gflv2head"), (DISTILLING, "ldv2/finegrained", "ldv2")],
    ids=["GFocalHead", "LDv2Head"],
)
def test_losses_and_gradients(golden, names, losses, gradients):
    """Imitation, which the reference adds to the distilling head, does not touch these maps."""
    arrays = golden("f_small_fork")
    student = _student(arrays)
    scene, terms = _scene(arrays, student), published_terms("gflv2")
    total = torch.zeros(())
    for name in names:
        values = terms[name].per_location(scene)
        got = per_level(values.detach(), scene.grid).numpy()
        np.testing.assert_allclose(got, arrays[f"{losses}/loss_{name}"], rtol=1e-5, atol=1e-6, err_msg=name)
        total = total + values.sum()
    assert student.quality_logits is not None
    grads = torch.autograd.grad(total, (student.cls_logits, student.edge_logits, student.quality_logits))
    a, b = student.cls_logits.detach(), student.quality_logits.detach()[..., None]
    joint = a.sigmoid() * b.sigmoid()
    by_prob = flatten(_maps(arrays, f"{gradients}/grad_cls"))
    by_logit = flatten(_maps(arrays, f"{gradients}/grad_logit")) if "kd" in names else 0
    wanted = (
        joint * (-a).sigmoid() * by_prob + by_logit,
        flatten(_maps(arrays, f"{gradients}/grad_box")).unflatten(-1, (4, -1)),
        (joint * (-b).sigmoid() * by_prob).sum(-1),
    )
    for got_grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got_grad, want, rtol=1e-5, atol=1e-6 * max(1.0, float(want.abs().max())))
