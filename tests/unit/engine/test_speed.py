"""``engine.speed``: what is chosen for which machine, and that it changes nothing but the time."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from locdistill.engine import compiled, speed
from locdistill.engine.compiled import Compiled, bucketed
from locdistill.engine.optim import build_optimizer, laid_out
from locdistill.engine.settings import EngineSettings, SpeedSettings
from locdistill.engine.speed import Machine, Speed, choose, own_backends, set_backends
from locdistill.errors import RecipeError
from locdistill.recipe.load import build_recipe, dump_recipe, load_recipe
from locdistill.recipe.overrides import apply_overrides
from locdistill.types import Instances
from tests.processes import printed_by

CPU, OLD_CPU = Machine(device="cpu", bf16=True), Machine(device="cpu", triton=True)
GPU, OLD_GPU = Machine(device="cuda", bf16=True, triton=True), Machine(device="cuda")
MAC = Machine(device="mps")
PARTS = tuple(SpeedSettings.model_fields)
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables that limit oneDNN to an instruction set; the second is the older name."""


@pytest.mark.parametrize(
    ("machine", "steps", "chosen"),
    [
        (CPU, 10**6, Speed(precision="bf16", teacher=True, fused=True)),
        (OLD_CPU, 10**6, Speed(teacher=True, fused=True)),
        (GPU, 1999, Speed(precision="bf16", channels_last=True, teacher=True, fused=True, tf32=True)),
        (GPU, 2000, Speed(precision="bf16", channels_last=True, teacher=True, fused=True, tf32=True, compile=True)),
        (OLD_GPU, 10**6, Speed(channels_last=True, teacher=True, fused=True, tf32=True)),
        (MAC, 10**6, Speed(teacher=True)),
    ],
)
def test_auto(machine: Machine, steps: int, chosen: Speed) -> None:
    assert choose(EngineSettings(), machine, steps=steps) == chosen


@pytest.mark.parametrize("machine", [CPU, OLD_CPU, GPU, OLD_GPU, MAC])
def test_off_is_plain_float32(machine: Machine) -> None:
    assert choose(EngineSettings(speed="off"), machine, steps=10**6, one_size=True) == Speed()
    assert choose(EngineSettings(speed="off", precision="bf16"), machine).precision == "bf16"


@pytest.mark.parametrize("part", PARTS)
def test_each_part_can_be_set(part: str) -> None:
    on = choose(EngineSettings(speed={part: True}), GPU)
    off = choose(EngineSettings(speed={part: False}), GPU, steps=10**6, one_size=True)
    assert getattr(on, part)
    assert not getattr(off, part)
    assert on.precision == off.precision == "bf16"
    assert any(getattr(off, other) for other in PARTS if other != part)
    below = {"compile"} if part == "cuda_graphs" else set()  # graphs record what is compiled
    rest = dict.fromkeys(set(PARTS) - {part} - below, False)
    only = choose(EngineSettings(speed=rest | {part: True}), GPU)
    assert {name for name in PARTS if getattr(only, name)} == {part} | below


def test_what_only_cuda_has_is_not_chosen_elsewhere() -> None:
    asked = EngineSettings(speed={"tf32": True, "cudnn_benchmark": True, "cuda_graphs": True})
    chosen = choose(asked, CPU)
    assert not any((chosen.tf32, chosen.cudnn_benchmark, chosen.cuda_graphs))
    assert choose(EngineSettings(), GPU, one_size=True).cudnn_benchmark
    assert not choose(EngineSettings(deterministic=True), GPU, one_size=True).cudnn_benchmark


def test_a_precision_that_is_named_is_kept() -> None:
    assert choose(EngineSettings(precision="32"), GPU).precision == "32"
    assert choose(EngineSettings(precision="fp16"), GPU).precision == "fp16"
    assert choose(EngineSettings(precision="fp16"), CPU).precision == "bf16"  # PyTorch has no fp16 training there
    assert choose(EngineSettings(precision="bf16"), OLD_CPU).dtype == torch.bfloat16
    assert not choose(EngineSettings(precision="fp16", clip_norm=1.0), GPU).fused
    assert not choose(EngineSettings(precision="bf16", clip_norm=1.0), CPU).fused
    assert choose(EngineSettings(precision="32", clip_norm=1.0), CPU).fused
    assert choose(EngineSettings(precision="fp16"), GPU).fused


def test_only_what_was_asked_for_must_compile() -> None:
    assert choose(EngineSettings(speed={"compile": True}), CPU).must_compile
    assert not choose(EngineSettings(), GPU, steps=10**6).must_compile


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"speed": "fast"}, "expected auto, off, or a group of channels_last, teacher"),
        ({"speed": {"compil": True}}, "Extra inputs"),
        ({"speed": {"compile": "perhaps"}}, "compile"),
        ({"speed": {"compile": False, "cuda_graphs": True}}, "record compiled functions"),
        ({"speed": {"fused": True}, "precision": "fp16", "clip_norm": 1.0}, "set speed.fused to false"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        EngineSettings(**wrong)


def test_a_misspelt_part_is_named_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match=r"engine\.speed\.compil: no such key; did you mean 'compile'"):
        build_recipe({"name": "x", "engine": {"speed": {"compil": True}}})


def test_parts_are_laid_over_words() -> None:
    over_auto = apply_overrides({"engine": {"speed": "auto"}}, ["engine.speed.compile=true"])
    assert over_auto == {"engine": {"speed": {"compile": True}}}
    over_off = apply_overrides({"engine": {"speed": "off"}}, ["engine.speed.compile=true", "engine.lr=1"])
    assert over_off["engine"]["speed"] == dict.fromkeys(PARTS, False) | {"compile": True}
    assert apply_overrides({"engine": {"speed": {"fused": False}}}, ["engine.speed=off"])["engine"]["speed"] == "off"
    one = load_recipe("atss_r50_1x", ["engine.speed.fused=false"]).engine.speed
    assert one == SpeedSettings(fused=False)


def test_a_saved_recipe_gives_the_same_settings_again(tmp_path: Any) -> None:
    recipe = load_recipe("atss_r50_1x", ["engine.speed=off"])
    (tmp_path / "saved.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "saved.yaml") == recipe
    assert not any(recipe.engine.speed.model_dump().values())


def test_the_choice_in_words() -> None:
    chosen = replace(choose(EngineSettings(), CPU), checkpointing=True)
    assert chosen.words("sgd") == "bf16, fused SGD, frozen teacher folded, checkpointing"
    assert Speed().words("adamw") == "float32"
    assert Speed(fused=True, compile=True).words("adamw") == "float32, fused AdamW, compiled"


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """No instruction set that oneDNN is limited to."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("unlimited")
def test_this_machine_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    supported = speed.cpu_bf16()
    for gain in (1.9, 0.6):  # as measured on two processors with AVX-512 BF16
        monkeypatch.setattr(speed, "bf16_gain", lambda gain=gain: gain)
        here = Machine.here(EngineSettings(accelerator="cpu"))
        assert here.device == "cpu"
        assert here.bf16 == (supported == "AMX" or (supported == "AVX-512" and gain > 1))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert speed.cpu_bf16() == "AMX"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert speed.cpu_bf16() == "AVX-512"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not speed.cpu_bf16()
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")  # an older PyTorch: what the system says
    assert bool(speed.cpu_bf16()) == bool(supported)
    assert speed.bf16_gain() > 0


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        *((older, False) for older in ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")),
        *((older, False) for older in ("AVX512_CORE", "AVX512_CORE_VNNI", "avx512_core")),
        *((newer, True) for newer in ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "avx10_1_512_amx")),
        *((newer, True) for newer in ("AVX10_1_512", "AVX512_CORE_AMX_FP16", "AVX10_2_512", "DEFAULT", "ALL", "")),
    ],
)
def test_bf16_is_not_used_where_onednn_is_kept_from_it(
    monkeypatch: pytest.MonkeyPatch, name: str, limit: str, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(speed, "bf16_gain", lambda: 1.9)
    monkeypatch.setenv(name, limit)
    assert bool(speed.cpu_bf16()) == expected
    settings = EngineSettings(accelerator="cpu")
    assert choose(settings, Machine.here(settings)).precision == ("bf16" if expected else "32")
    assert choose(EngineSettings(precision="bf16"), Machine.here(settings)).precision == "bf16"  # asked for
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not speed.cpu_bf16()  # a limit adds nothing to a processor


@pytest.mark.usefixtures("unlimited")
def test_the_newer_name_of_the_limit_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert speed.cpu_bf16()


def test_what_is_set_for_the_process_is_taken_back() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    with own_backends():
        set_backends(tf32=True, cudnn_benchmark=True)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == ("high", True)
        with own_backends():
            set_backends(tf32=False, cudnn_benchmark=False)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == ("high", True)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == before


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_fused_optimiser_takes_the_same_steps(name: Any) -> None:
    nets, images = [], torch.randn(2, 3, 8, 8)
    for fused in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).to(memory_format=torch.channels_last)
        settings = EngineSettings(optimizer=name)
        groups = [{"params": list(net.parameters()), "lr": 0.1, "weight_decay": 1e-2}]
        optimizer = build_optimizer(groups, settings, fused=fused)
        assert bool(optimizer.param_groups[0]["fused"]) == fused
        for _ in range(5):
            optimizer.zero_grad()
            net(images).square().mean().backward()
            optimizer.step()
        nets.append(net)
    for ours, theirs in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_state_from_a_run_of_another_layout_is_laid_out_anew() -> None:
    """As when a run that was saved on a CPU in float32 goes on with channels-last weights."""
    nets = [nn.Conv2d(3, 8, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = []
    for net in nets:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        net(torch.ones(1, 3, 4, 4)).square().sum().backward()
        optimizer.step()
        optimizers.append(optimizer)
    nets[1].to(memory_format=torch.channels_last)
    saved = optimizers[0].state_dict()
    resumed = build_optimizer([{"params": list(nets[1].parameters()), "lr": 0.1}], EngineSettings(), fused=True)
    resumed.load_state_dict(saved)
    laid_out(resumed)
    momentum = resumed.state[nets[1].weight]["momentum_buffer"]
    assert momentum.stride() == nets[1].weight.stride()
    assert torch.equal(momentum, optimizers[0].state[nets[0].weight]["momentum_buffer"])


def broken(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no compiler to be found")


def test_what_cannot_be_compiled_goes_on_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", broken)
    call = Compiled(lambda x: 2 * x, "the student")
    with caplog.at_level(logging.WARNING, "locdistill.engine"):
        results = [call(torch.ones(2)) for _ in range(2)]
    assert all(torch.equal(result, torch.full((2,), 2.0)) for result in results)
    assert caplog.text.count("the student is not compiled") == 1
    assert "no compiler to be found" in caplog.text
    with pytest.raises(RuntimeError, match="no compiler to be found"):
        Compiled(lambda x: 3 * x, "the student", must=True)(torch.ones(2))


def test_errors_of_what_is_compiled_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    call = Compiled(lambda x: x.view(3), "the objective")
    with pytest.raises(Exception, match=r"shape|view|size"):
        call(torch.ones(2))


def test_code_is_compiled_once_for_one_size_and_once_for_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = []

    def backend(graph: Any, inputs: Any) -> Any:
        versions.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", backend)
    call = Compiled(lambda x: x.relu().sum(), "the student")
    for side in (4, 4, 6, 8, 10, 12):
        assert call(torch.ones(side, 3)) == 3 * side
    assert len(versions) == 2


COMPILE = """
import logging
import torch
from torch._dynamo.utils import counters
from locdistill.distillation.presets import supervised
from locdistill.engine import compiled
from locdistill.engine.module import TrainingModule
from locdistill.engine.settings import EngineSettings
from locdistill.objective.objective import Objective
from locdistill.types import Batch, Instances
from tests.journeys.engine_run import small_detector

logging.basicConfig(level=logging.WARNING)
compiled.BACKEND = "eager"

def module(**speed):
    student = small_detector(("a", "b"), 0)
    objective = Objective(terms=supervised(), bins=student.bins)
    settings = EngineSettings(accelerator="cpu", precision="32", speed=speed)
    made = TrainingModule(student, objective, None, settings)
    made.arrange()
    made.speed_up(torch.device("cpu"))
    return made

fast, plain = module(compile=True), module(compile=False)
assert list(fast.state_dict()) == list(plain.state_dict())
for height, width, objects in [(64, 96, 3), (96, 128, 3), (128, 160, 5), (96, 192, 8)]:
    corners = torch.rand(2, objects, 4) * 40
    boxes = torch.cat((corners[..., :2], corners[..., :2] + corners[..., 2:] + 10), -1)
    sizes = torch.tensor([[height, width]] * 2)
    there = torch.ones(2, objects, dtype=torch.bool)
    truth = Instances(boxes, torch.randint(0, 2, (2, objects)), there, ~there, sizes)
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    batch = Batch(images, sizes, sizes, torch.tensor([1, 2]), truth)
    results = [each(batch) for each in (fast, plain)]
    torch.testing.assert_close(results[0].terms, results[1].terms, rtol=1e-5, atol=1e-6)
    for each, result in zip((fast, plain), results):
        each.zero_grad()
        result.total.backward()
    for ours, theirs in zip(fast.parameters(), plain.parameters()):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
assert not counters["graph_break"], dict(counters["graph_break"])
assert counters["stats"]["unique_graphs"] <= 5, counters["stats"]
print("equal")
"""


def test_a_compiled_step_is_the_plain_one_for_images_of_any_size() -> None:
    """Student and objective: a graph each for the first size, and few for all others."""
    printed = printed_by(COMPILE)  # where no type checker wraps the functions
    assert "equal" in printed
    assert "is not compiled" not in printed


@pytest.mark.parametrize(("slots", "expected"), [(0, 8), (1, 8), (8, 8), (9, 16), (40, 64)])
def test_objects_come_in_powers_of_two(slots: int, expected: int) -> None:
    given = Instances(
        boxes=torch.rand(2, slots, 4),
        labels=torch.ones(2, slots, dtype=torch.long),
        present=torch.ones(2, slots, dtype=torch.bool),
        ignored=torch.ones(2, slots, dtype=torch.bool),
        extents=torch.tensor([[32, 32], [32, 64]]),
    )
    more = bucketed(given)
    assert more.labels.shape == more.present.shape == more.ignored.shape == (2, expected)
    assert torch.equal(more.boxes[:, :slots], given.boxes)
    assert more.present.sum() == more.ignored.sum() == more.labels.sum() == 2 * slots
    assert more.boxes[:, slots:].abs().sum() == 0
    assert torch.equal(more.extents, given.extents)
