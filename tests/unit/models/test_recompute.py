"""Maps that are computed again instead of kept."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from locdistill.models.recompute import recompute


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, features_only=True).train()


def learned(net: nn.Module, images: Tensor) -> dict[str, Tensor | None]:
    sum(level.square().mean() for level in net(images)).backward()
    return {key: parameter.grad for key, parameter in net.named_parameters()}


@pytest.mark.parametrize(("name", "blocks"), [("resnet18", 8), ("convnext_atto", 4), ("vit_tiny_patch16_224", 13)])
def test_gradients_and_statistics_are_those_of_plain_training(name: str, blocks: int) -> None:
    """Batch normalisation is trained, and the stem is frozen: inputs of the first block have no gradient."""
    plain = network(name)
    next(plain.parameters()).requires_grad_(False)
    net = copy.deepcopy(plain)
    size = 224 if "vit" in name else 64
    images = torch.randn(2, 3, size, size)
    assert recompute(net) == blocks
    assert list(net.state_dict()) == list(plain.state_dict())
    expected = learned(plain, images)
    for key, gradient in learned(net, images).items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-5, atol=1e-6, msg=key)
    for key, value in net.state_dict().items():  # running statistics count an image once
        torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-6, atol=1e-7, msg=key)


def test_blocks_are_computed_twice_in_training_and_once_otherwise() -> None:
    net = network("resnet18")
    recompute(net)
    calls = []
    net.layer1[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(1, 3, 64, 64)
    learned(net, images)
    assert len(calls) == 2
    net.eval()
    net(images)
    with torch.no_grad():
        net.train()(images)
    assert len(calls) == 4


def test_a_copy_computes_with_its_own_weights() -> None:
    net = network("resnet18")
    recompute(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.layer1[0].bn2.bias.fill_(1.0)
    images = torch.randn(1, 3, 64, 64)
    assert not torch.equal(net(images)[1], other(images)[1])
    learned(other, images)
    assert all(parameter.grad is None for parameter in net.parameters())
