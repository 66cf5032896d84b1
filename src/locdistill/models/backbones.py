"""Backbones from timm: their maps for the pyramid, their weights, and their trainable parts."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import timm
import torch
from timm.layers import GroupNorm  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from locdistill.errors import RecipeError, WeightsError
from locdistill.interop.mmdet import rename, to_ours
from locdistill.models import download
from locdistill.models.residual import adapt
from locdistill.models.settings import DetectorSettings
from locdistill.models.weights import load_strict, read_state_dict
from locdistill.types import Triple

log = logging.getLogger("locdistill")
_KNOWN: dict[str, dict[int, int]] = {}
"""Positions of the maps of networks that were built before."""


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """Properties of a backbone that the rest of a detector depends on.

    Attributes:
        channels: Width of each map that the pyramid takes, finest first.
        outputs: Index of each of these maps among the outputs of the network.
        mean: Mean of the input channels in pretraining (RGB, 0 to 255).
        std: Standard deviation of the input channels in pretraining.
    """

    channels: tuple[int, ...]
    outputs: tuple[int, ...]
    mean: Triple
    std: Triple


def build_backbone(settings: DetectorSettings, *, weights: bool = True) -> tuple[nn.Module, BackboneInfo]:
    """Build a backbone whose parameters have timm's names (for ResNets: torchvision's).

    Maps are found by their stride, not by their position. With ``weights`` the weights are loaded as set in
    ``settings.pretrained``; otherwise, and from scratch, they are timm's initialisation (for ResNets: He et al. 2015
    over the fan-out, the last normalisation of each residual block starting at 0). Residual networks are those of
    MMDetection, numerically: see `residual`.

    Raises:
        RecipeError: The name is unknown, the arguments do not fit, or the backbone lacks a map of a needed stride.
        WeightsError: The pretrained weights are not available, or are of another architecture.
    """
    position = _positions(settings.backbone, settings.backbone_args)
    needed = [2**level for level in settings.levels if level <= 5]
    # The map that ends the frozen part is an output too, so that `Freezing` can find what it depends on.
    wanted = sorted({*needed, *([2 ** (settings.frozen_stages + 1)] if settings.frozen_stages >= 0 else [])})
    lacking = [stride for stride in wanted if stride not in position]
    if lacking:
        raise RecipeError(
            f"backbone '{settings.backbone}' has no map of stride {', '.join(map(str, lacking))} (it has "
            f"{', '.join(map(str, position))}); levels {list(settings.levels)} and frozen_stages="
            f"{settings.frozen_stages} need {', '.join(map(str, wanted))}: change them, or use another backbone"
        )
    hub = weights and settings.pretrained is True
    outputs = [position[stride] for stride in wanted]
    net = _create(settings.backbone, settings.backbone_args, hub=hub, out_indices=outputs)
    adapt(net, settings)
    if hub and settings.style == "caffe":
        log.warning(
            "backbone: timm's weights of '%s' were trained with the stride on the 3x3 convolutions (style 'pytorch'); "
            "for style 'caffe' give Detectron's as a file in 'detector.pretrained'",
            settings.backbone,
        )
    if weights and isinstance(settings.pretrained, str):
        _load_file(net, settings, settings.pretrained)
    config: dict[str, Any] = getattr(net, "pretrained_cfg", {})
    maps: Any = net.feature_info
    widths = maps.channels()
    mean, std = (
        cast(Triple, tuple(round(value * 255, 6) for value in config.get(name, usual)))
        for name, usual in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225)))
    )
    info = BackboneInfo(
        channels=tuple(widths[wanted.index(stride)] for stride in needed),
        outputs=tuple(wanted.index(stride) for stride in needed),
        mean=mean,
        std=std,
    )
    return net, info


def _positions(name: str, arguments: Mapping[str, Any]) -> dict[int, int]:
    """Return the index of each stride's map among all that timm lists; of several of one stride the deepest."""
    key = f"{name} {dict(arguments)}"
    if key not in _KNOWN:
        maps: Any = _to_look_at(lambda: _create(name, arguments)).feature_info
        _KNOWN[key] = {entry["reduction"]: index for index, entry in enumerate(maps.info)}
    return _KNOWN[key]


def _to_look_at(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network for inspection only, without values where possible, which takes no time.

    The state of the random generators stays.
    """
    try:
        with torch.device("meta"):
            return build()
    except Exception:  # some constructors compute with values; any other error is raised again below
        with torch.random.fork_rng(devices=[]):
            return build()


def _create(name: str, arguments: Mapping[str, Any], *, hub: bool = False, **extra: Any) -> nn.Module:
    if not timm.is_model(name.split(".", maxsplit=1)[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; timm.list_models() lists the names"
        raise RecipeError(f"backbone: timm has no model '{name}'{hint}")
    try:
        net: nn.Module = timm.create_model(name, pretrained=hub, features_only=True, **_arguments(arguments), **extra)
    except Exception as error:  # hubs, caches and constructors raise all kinds of errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if hub:
            raise WeightsError(
                f"backbone: the pretrained weights of '{name}' could not be downloaded from timm's hub "
                f"({reason}). Without a network, give a file with '--pretrained FILE' (the state dict of "
                "the timm model, .pth or .safetensors), or train from scratch with '--pretrained none'; in a recipe, "
                "'detector.pretrained: FILE' or 'false'"
            ) from error
        raise RecipeError(
            f"backbone: timm cannot build '{name}' with features_only and backbone_args {dict(arguments)}: {reason}"
        ) from error
    return net


def _arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments for timm, with ``groupnorm:G`` made a layer: timm's own ``groupnorm`` always has 32 groups."""
    norm = arguments.get("norm_layer")
    if not isinstance(norm, str) or not norm.startswith("groupnorm:"):
        return dict(arguments)
    groups = norm.removeprefix("groupnorm:")
    if not groups.isdigit() or int(groups) < 1:
        raise RecipeError(f"backbone_args: norm_layer 'groupnorm:G' needs a number of groups, got '{norm}'")
    return dict(arguments) | {"norm_layer": partial(GroupNorm, num_groups=int(groups))}


def _load_file(net: nn.Module, settings: DetectorSettings, path: str) -> None:
    """Load a state dict of the timm classifier (or of the bare backbone), without what the backbone does not have.

    Names may be those of MMDetection's backbone files, which differ for a stem of three convolutions. Only names of the
    classifier may be dropped: any other is an error, and so is any missing name. The offsets of deformable convolutions
    are 0 where the file has none.
    """
    tensors = read_state_dict(download.fetch(path) if download.is_url(path) else path)
    classifier = _to_look_at(
        lambda: timm.create_model(settings.backbone, pretrained=False, **_arguments(settings.backbone_args))
    )
    own = net.state_dict()
    if "conv1.0.weight" in own and "stem.0.weight" in tensors:
        whole, _ = rename({f"backbone.{key}": value for key, value in tensors.items()}, to_ours("gfl"))
        tensors = {key.removeprefix("backbone."): value for key, value in whole.items()}
    dropped = {_flat(key, own) for key in classifier.state_dict()} - set(own)
    renamed = {_flat(key, own): value for key, value in tensors.items()}
    kept = {key: value for key, value in renamed.items() if key not in dropped}
    # The first convolution of Detectron's ResNets has a bias, which goes into the mean of the next normalisation.
    bias, mean = kept.get("conv1.bias"), kept.get("bn1.running_mean")
    if "conv1.bias" not in own and bias is not None and mean is not None and bias.shape == mean.shape:
        kept["bn1.running_mean"] = mean - bias
        del kept["conv1.bias"]
    offsets = {key: value for key, value in own.items() if ".conv_offset." in key}
    load_strict(net, offsets | kept, f"{path} for backbone '{settings.backbone}'")


def _flat(key: str, own: Mapping[str, Tensor]) -> str:
    """Return a classifier tensor's name in the backbone: timm flattens containers, ``stages.0`` is ``stages_0``."""
    flat = key.replace(".", "_", 1)
    return flat if key not in own and flat in own else key


@dataclass(frozen=True, slots=True)
class Freezing:
    """Parts of a backbone that are not trained, and modules that stay in inference mode.

    In the frozen part no parameter is trained and all modules are in inference mode. If ``norm_eval``, all batch
    normalisation of the backbone keeps its statistics; outside the frozen part its scale and shift are still trained,
    unless ``norm_frozen``.

    Attributes:
        parameters: Names of the parameters of the frozen part.
        norm_eval: Whether all batch normalisation stays in inference mode.
        norm_frozen: Whether the scale and shift of all batch normalisation are not trained.
    """

    parameters: frozenset[str]
    norm_eval: bool
    norm_frozen: bool

    @classmethod
    def of(cls, net: nn.Module, settings: DetectorSettings) -> Freezing:
        """Find the frozen part: the parameters that the map of stride ``2 ** (frozen_stages + 1)`` depends on.

        They are found by the gradient of the map, for any architecture. For a ResNet and ``frozen_stages=1`` they are
        the stem and the first stage, as in the reference.
        """
        if settings.frozen_stages < 0:
            return cls(frozenset(), settings.norm_eval, settings.norm_frozen)
        maps: Any = net.feature_info
        last = maps.reduction().index(2 ** (settings.frozen_stages + 1))
        was_training = net.training
        parameters = dict(net.named_parameters())
        with torch.enable_grad():
            total = net.eval()(torch.zeros(1, 3, 64, 64))[last].sum()
            gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        net.train(was_training)
        fed = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        return cls(frozenset(fed), settings.norm_eval, settings.norm_frozen)

    def apply(self, net: nn.Module) -> None:
        """Enforce the policy; must be called after every change of mode."""
        for name, parameter in net.named_parameters():
            if name in self.parameters:
                parameter.requires_grad_(False)
        for name, module in net.named_modules():
            prefix = f"{name}." if name else ""
            own = [prefix + inner for inner, _ in module.named_parameters()]
            frozen = bool(own) and self.parameters.issuperset(own)
            norm = isinstance(module, _BatchNorm)
            if norm and self.norm_frozen:
                module.requires_grad_(False)
            if frozen or (norm and self.norm_eval):
                module.eval()
