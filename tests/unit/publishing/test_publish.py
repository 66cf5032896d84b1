"""From a run to files that can be given away, to a model hub and back; the hub is a server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import yaml

from locdistill.cli import main
from locdistill.errors import HubError, LocdistillError, RecipeError, RunError, TeacherError, WeightsError
from locdistill.inference.evaluate import evaluate
from locdistill.inference.predict import predict
from locdistill.models.checksum import check_checksum, split_checksum
from locdistill.models.detector import Detector
from locdistill.models.hub import find, pull
from locdistill.models.settings import DetectorSettings
from locdistill.models.weights import read_metadata, read_tensors
from locdistill.publishing.card import Card
from locdistill.publishing.publish import PublishedModel, publish, without_paths
from locdistill.publishing.push import push
from locdistill.recipe.defaults import resolve
from locdistill.recipe.load import load_recipe
from locdistill.recipe.request import Request
from locdistill.training.train import distill, train
from tests.unit.publishing.hub_fake import TOKEN, FakeHub, Repository

BACKBONE = "mobilenetv3_small_050"
SMALL = (
    "detector.channels=16",
    "detector.depth=1",
    "detector.norm_groups=4",
    "detector.levels=[3,4]",
    "detector.anchor_scale=4",
)
RUN = ("data.workers=0", "engine.accelerator=cpu", "engine.progress=false")
TINY = DetectorSettings(
    backbone=BACKBONE,
    pretrained=False,
    classes=("disc", "box", "bar"),
    channels=16,
    depth=1,
    norm_groups=4,
    levels=(3, 4),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("publish")


@pytest.fixture(scope="module")
def teacher(place: Path, tiny_coco: Path) -> Path:
    """A run of two epochs from weights in a file, with averaged weights."""
    weights = place / "imagenet.pth"
    torch.save(timm.create_model(BACKBONE).state_dict(), weights)
    words = (*SMALL, *RUN, "engine.ema=0.5", f"description=begun from {weights}, see https://example.org/a/b")
    return train(
        tiny_coco, backbone=BACKBONE, pretrained=str(weights), epochs=2, out=place / "teacher", overrides=words
    ).out


@pytest.fixture(scope="module")
def student(place: Path, tiny_coco: Path, teacher: Path) -> Path:
    words = (*SMALL[:3], *RUN, "engine.ema=null")
    made = distill(
        teacher, tiny_coco, backbone=BACKBONE, pretrained="none", epochs=1, out=place / "student", overrides=words
    )
    return made.out


@pytest.fixture(scope="module")
def published(student: Path, place: Path) -> PublishedModel:
    return publish(student, out=place / "shared", name="tiny", license="apache-2.0")


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return Detector(TINY).save(tmp_path / "my net.v1.safetensors")


# ------------------------------------------------------------------------------------------------------------ publish


def test_the_name_carries_the_digest_of_the_content(student: Path) -> None:
    made = publish(student)
    digest = hashlib.sha256(made.weights.read_bytes()).hexdigest()
    stem = f"ld_{BACKBONE}_from_{BACKBONE}-{digest[:8]}"
    assert made.sha256 == digest
    assert made.notes == ()
    assert sorted(path.name for path in (student / "published").iterdir()) == [
        f"{stem}.md",
        f"{stem}.safetensors",
        f"{stem}.yaml",
    ]


def test_a_run_gives_the_same_file_every_time(teacher: Path, tmp_path: Path) -> None:
    first, again, copied = publish(teacher), publish(teacher), tmp_path / "moved"
    shutil.copytree(teacher, copied, ignore=shutil.ignore_patterns("published"))
    moved = publish(copied, out=tmp_path / "out")
    assert first == again
    assert first.weights.name == moved.weights.name
    assert first.weights.read_bytes() == moved.weights.read_bytes()
    assert first.card.read_bytes() == moved.card.read_bytes()


def test_published_weights_predict_as_the_run_does(student: Path, published: PublishedModel) -> None:
    images = torch.rand(1, 3, 64, 96)
    ours, given = Detector.load(student), Detector.load(published.weights)
    with torch.no_grad():
        before, after = ours(images), given(images)
    assert torch.equal(before.cls_logits, after.cls_logits)
    assert torch.equal(before.edge_logits, after.edge_logits)
    assert ours.settings == given.settings


def test_the_student_alone_is_in_the_file(published: PublishedModel, student: Path) -> None:
    assert set(read_tensors(published.weights)) == set(Detector.load(student).state_dict())


def test_averaged_weights_are_published_where_the_run_kept_an_average(teacher: Path, published: PublishedModel) -> None:
    made = publish(teacher, which="last", out=teacher.parent / "last")
    text = (teacher / "last.ckpt").read_bytes()
    assert text  # the run is not over before its last checkpoint
    checkpoint = torch.load(teacher / "last.ckpt", weights_only=True)
    raw = {k.removeprefix("detector."): v for k, v in checkpoint["state_dict"].items() if k.startswith("detector.")}
    tensors = read_tensors(made.weights)
    differing = [key for key in raw if raw[key].is_floating_point() and not torch.equal(raw[key], tensors[key])]
    assert set(raw) == set(tensors)
    assert any("head" in key for key in differing)
    assert "| weights | running average (EMA) with decay 0.5 |" in made.card.read_text()
    assert "| weights | as trained, without averaging |" in published.card.read_text()


def test_no_path_of_this_machine_is_given_away(teacher: Path, student: Path, tiny_coco: Path, tmp_path: Path) -> None:
    assert str(teacher.parent) in (teacher / "recipe.yaml").read_text()  # there is something to leave out
    assert str(teacher.parent).encode() in (teacher / "best.safetensors").read_bytes()
    for run in (teacher, student):
        made = publish(run, out=tmp_path / run.name, evaluate_on=True)
        assert made.recipe is not None
        for file in (made.weights, made.card, made.recipe):
            content = file.read_bytes()
            for path in (Path.cwd(), Path.home() / "", tiny_coco, teacher.parent, tmp_path.parent):
                assert f"{path}/".encode() not in content, (file, path)
            assert b"/tmp" not in content
    kept = load_recipe(publish(teacher, out=tmp_path / "t").recipe)  # type: ignore[arg-type]
    assert kept.description == "begun from imagenet.pth, see https://example.org/a/b"
    assert kept.detector.pretrained == "imagenet.pth"
    assert kept.data.path == ""


def test_what_the_file_says_of_its_training(published: PublishedModel, student: Path, teacher: Path) -> None:
    extra = read_metadata(published.weights)["extra"]
    facts, metrics = (json.loads((student / name).read_text()) for name in ("run.json", "metrics.json"))
    assert extra["recipe"]["name"] == load_recipe(student).name
    assert (
        extra["recipe"]["teacher"]["sha256"] == hashlib.sha256((teacher / "best.safetensors").read_bytes()).hexdigest()
    )
    assert extra["recipe"]["teacher"]["weights"] is None
    assert extra["metrics"] == metrics["best"]
    assert (extra["which"], extra["finished"], extra["started"]) == ("best", True, facts["started"])
    assert extra["data"] == facts["data"]


def test_the_recipe_beside_the_file_gives_the_run_again(
    published: PublishedModel, student: Path, teacher: Path, tiny_coco: Path
) -> None:
    assert published.recipe is not None
    again = resolve(Request(recipe=published.recipe, data=tiny_coco, teacher=teacher / "best.safetensors"))
    assert again == load_recipe(student, [f"teacher.weights={teacher / 'best.safetensors'}"])


def test_the_card(published: PublishedModel, student: Path) -> None:
    text = published.card.read_text()
    _, front, body = text.split("---\n", 2)
    known = yaml.safe_load(front)
    assert known["license"] == "apache-2.0"
    assert (known["library_name"], known["pipeline_tag"]) == ("locdistill", "object-detection")
    assert {"object-detection", "gfl", "localization-distillation"} <= set(known["tags"])
    ap = json.loads((student / "metrics.json").read_text())["best"]["AP"]
    (result,) = known["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "AP", "name": "AP", "value": round(100 * ap, 2)}
    teacher = load_recipe(student).teacher
    assert teacher is not None
    detector = Detector.load(published.weights)
    for fact in (
        f"# {published.weights.stem}",
        "3, in the order of the labels: disc, box, bar",
        "mean 123.675, 116.28, 103.53, std 58.395, 57.12, 57.375",
        "RGB",
        "resized to fit 128 x 96, padded to multiples of 32",
        f"| parameters | {sum(p.numel() for p in detector.parameters()):,} |",
        f"SHA-256 {teacher.sha256} |",
        "| ld | edge_kl (temperature 1.0",
        "| license | apache-2.0 |",
        f"| date | {json.loads((student / 'run.json').read_text())['started'][:10]}, locdistill ",
        "(8 images)",
        f'Detector.load("{published.weights.name}")',
    ):
        assert fact in body, fact


def test_a_student_that_teaches_itself_from_given_weights(teacher: Path, tiny_coco: Path, tmp_path: Path) -> None:
    made = publish(distill("ema", tiny_coco, start=teacher, epochs=1, out=tmp_path / "run", overrides=RUN).out)
    recipe, text = load_recipe(made.recipe), made.card.read_text()  # type: ignore[arg-type]
    assert recipe.teacher is not None
    assert (recipe.teacher.weights, recipe.start) == ("ema", "./teacher")
    assert "| teacher | the running average of the student, with decay 0.999 |" in text
    digest = hashlib.sha256((teacher / "best.safetensors").read_bytes()).hexdigest()
    assert f"| begun with | the weights of SHA-256 {digest} |" in text
    assert str(teacher.parent).encode() not in made.weights.read_bytes()


def test_a_checkpoint_of_another_program(tmp_path: Path) -> None:
    from locdistill.models.mmdet import convert

    settings = DetectorSettings(backbone="resnet18", pretrained=False, classes=("a", "b"), channels=32, depth=1)
    detector = Detector(settings)
    file, _ = convert(detector.save(tmp_path / "ours"), tmp_path / "student.pth")
    made = publish(file, out=tmp_path / "out")
    assert split_checksum(made.weights.stem)[0] == "student"
    tensors = detector.state_dict()
    assert all(torch.equal(value, tensors[key]) for key, value in read_tensors(made.weights).items())


def test_the_card_of_a_network_that_takes_bgr() -> None:
    settings = TINY.model_copy(update={"bgr": True, "mean": (103.5, 116.3, 123.7), "std": (1.0, 1.0, 1.0)})
    text = Card(file="a-0.safetensors", sha256="0", settings=settings, parameters=5, record={}).text()
    assert "BGR values 0 to 255, mean 103.5, 116.3, 123.7, std 1, 1, 1" in text
    assert "No evaluation is recorded" in text
    assert "not stated by the publisher" in text
    for what in ("weights", "recipe", "date"):
        assert f"| {what} | not recorded |" in text
    assert "license" not in yaml.safe_load(text.split("---\n")[1])


def test_an_evaluation_for_the_card(student: Path, published: PublishedModel, tiny_coco: Path, tmp_path: Path) -> None:
    made = publish(student, out=tmp_path, name="tiny", evaluate_on=True)
    assert made.weights.read_bytes() == published.weights.read_bytes()  # the numbers are in the card alone
    text = made.card.read_text()
    assert f"## Evaluation on {tiny_coco.name}/val" in text
    counts = evaluate(student).per_class
    for name in ("disc", "box", "bar"):
        assert f"| {name} | {counts[name]['objects']:.0f} |" in text
        assert f"| {name} |" not in published.card.read_text()


def test_weights_without_their_run(untrained: Path, tmp_path: Path, tiny_coco: Path) -> None:
    made = publish(untrained)
    assert made.weights.parent == tmp_path
    assert split_checksum(made.weights.stem) == ("my_net.v1", made.sha256[:8])
    assert made.recipe is None
    assert "their training is not recorded" in made.notes[0]
    assert made.notes[0] in made.card.read_text()
    again = publish(made.weights)
    assert again.weights == made.weights
    with pytest.raises(RecipeError, match="--data FOLDER"):
        publish(untrained, evaluate_on=True)
    assert "## Evaluation on" in publish(untrained, evaluate_on=tiny_coco).card.read_text()


def test_a_published_file_published_again_keeps_what_it_says(published: PublishedModel, tmp_path: Path) -> None:
    again = publish(published.weights, out=tmp_path, license="apache-2.0")
    assert again.weights.name == published.weights.name
    assert again.weights.read_bytes() == published.weights.read_bytes()
    assert again.card.read_bytes() == published.card.read_bytes()
    assert again.recipe is not None


def test_a_run_that_has_not_ended_is_published_with_a_note(teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(teacher, run)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"stopped": None}))
    made = publish(run, out=tmp_path / "a")
    assert ["had not ended" in note for note in made.notes] == [True]
    assert read_metadata(made.weights)["extra"]["finished"] is False
    (run / "metrics.json").unlink()  # killed in its first epoch, after an evaluation
    made = publish(run, out=tmp_path / "b")
    assert len(made.notes) == 2
    assert "> The run has no evaluation of these weights." in made.card.read_text()


def test_what_cannot_be_published(teacher: Path, untrained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(WeightsError, match=r"is not a run folder: it has no recipe\.yaml"):
        publish(run)
    shutil.copy(teacher / "recipe.yaml", run)
    with pytest.raises(WeightsError, match="has saved no weights yet"):
        publish(run)
    shutil.copy(teacher / "last.safetensors", run)
    with pytest.raises(WeightsError, match="no best weights; publish its last weights with --which last"):
        publish(run)
    assert "last" in read_metadata(publish(run, which="last").weights)["extra"]["which"]
    with pytest.raises(RunError, match="expected best or last, came 'worst'"):
        publish(run, which="worst")
    with pytest.raises(RunError, match=r"'a/b' is not a valid name"):
        publish(teacher, name="a/b")
    with pytest.raises(WeightsError, match="no such weights"):
        publish(tmp_path / "absent")
    (tmp_path / "cut.safetensors").write_bytes(untrained.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="damaged"):
        publish(tmp_path / "cut.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be made"):
        publish(teacher, out=tmp_path / "file" / "x")
    with pytest.raises(LocdistillError):
        publish(teacher / "last.ckpt")


def test_a_teacher_in_the_file_is_noticed(untrained: Path, tmp_path: Path) -> None:
    from locdistill.models.weights import write

    tensors = read_tensors(untrained)
    both = tensors | {f"teacher.{key}": value.clone() for key, value in tensors.items()}
    path = write(tmp_path / "both", both, settings=read_metadata(untrained)["settings"])
    with pytest.raises(WeightsError, match=r"teacher\."):
        publish(path)


def test_nothing_is_left_behind_where_writing_fails(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if "-" in Path(target).name:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        publish(teacher, out=tmp_path / "out", name="tiny")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/home/me/data", "data"),
        ("/home/me/my data/x.pth", "x.pth"),
        ("C:\\Users\\me\\x.pth", "x.pth"),
        ("~/x.pth", "x.pth"),
        ("weights from /home/me/x.pth, and more", "weights from x.pth, and more"),
        ("see file:///home/me/x.txt", "see x.txt"),
        ("coco//data/me/val.json", "coco/val.json"),
        ("https://example.org/a/b/c", "https://example.org/a/b/c"),
        ("hf://owner/name/file.safetensors", "hf://owner/name/file.safetensors"),
        ("1333 x 800 and/or 1333/800/32", "1333 x 800 and/or 1333/800/32"),
        ("~3/4 of the data", "~3/4 of the data"),
        ("coco/val", "coco/val"),
    ],
)
def test_paths_are_cut_down_to_their_last_part(before: str, after: str) -> None:
    assert without_paths({"a": [before, 1, None]}) == {"a": [after, 1, None]}


def test_names_of_classes_are_no_paths() -> None:
    assert without_paths({"classes": ["/m/01g317"], "x": "/m/01g317"}) == {"classes": ["/m/01g317"], "x": "01g317"}


def test_checksums_in_names(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    good, bad, plain = (tmp_path / f"{stem}.pth" for stem in (f"a-b-{digest[:8]}", "a-00000000", "best"))
    for file in (good, bad, plain):
        file.write_bytes(b"x")
    assert check_checksum(good) == check_checksum(plain) == digest
    assert split_checksum(good.stem) == ("a-b", digest[:8])
    assert split_checksum("best") == ("best", None)
    with pytest.raises(WeightsError, match=f"begins with {digest[:8]}, expected 00000000"):
        check_checksum(bad)


# ---------------------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on this machine, as ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HOME`` would name it to a new process."""
    from huggingface_hub import constants

    with FakeHub() as fake:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", fake.address)
        template = fake.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield fake


def test_there_and_back(hub: FakeHub, published: PublishedModel, student: Path, tmp_path: Path) -> None:
    done = push(published.weights, "me/tiny")
    assert done.files == (published.weights.name, "README.md", "recipe.yaml")
    assert (done.url, done.others) == (f"{hub.address}/me/tiny", ())
    repository = hub.repositories["me/tiny"]
    assert not repository.private
    assert repository.messages == ["initial commit", f"locdistill: {published.weights.stem}"]
    files = repository.commits[done.commit]
    assert files["README.md"] == published.card.read_bytes()
    assert files[published.weights.name] == published.weights.read_bytes()
    assert files["recipe.yaml"] == published.recipe.read_bytes()  # type: ignore[union-attr]
    cached = pull("me/tiny")
    assert cached.name == published.weights.name
    assert tmp_path / "cache" in cached.parents
    copied = pull("me/tiny", out=tmp_path / "weights")
    assert copied == tmp_path / "weights" / published.weights.name
    assert copied.read_bytes() == published.weights.read_bytes()
    assert pull("me/tiny", out=tmp_path / "weights") == copied
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 64)
        assert torch.equal(Detector.load(cached)(images).edge_logits, Detector.load(student)(images).edge_logits)
    copied.write_bytes(b"mine")
    with pytest.raises(RunError, match="exists already, with other content"):
        pull("me/tiny", out=tmp_path / "weights")
    assert copied.read_bytes() == b"mine"


def test_weights_by_their_name_on_the_hub(
    hub: FakeHub, published: PublishedModel, tiny_coco: Path, tmp_path: Path
) -> None:
    push(published.weights, "me/tiny")
    name = "hf://me/tiny"
    image = tiny_coco / "images" / "val_000.png"
    assert len(predict(name, image, threshold=0.0)[0].detections.scores) > 0
    assert evaluate(name, tiny_coco).metrics == evaluate(published.weights, tiny_coco).metrics
    words = (*SMALL[:3], *RUN, "engine.ema=null")
    made = distill(name, tiny_coco, backbone=BACKBONE, pretrained="none", epochs=1, out=tmp_path / "r", overrides=words)
    recipe = load_recipe(made.out)
    assert recipe.teacher is not None
    assert (recipe.teacher.weights, recipe.teacher.sha256) == (name, published.sha256)
    shared = load_recipe(publish(made.out).recipe)  # type: ignore[arg-type]
    assert shared.teacher == recipe.teacher  # a hub's name is for everybody
    hub.repositories["me/tiny"].commit("main", {published.weights.name: b"x"}, "changed")
    with pytest.raises(WeightsError):
        train(resume=True, out=made.out)


def test_addresses(hub: FakeHub, published: PublishedModel, tmp_path: Path) -> None:
    first = push(published.weights, "me/tiny").commit
    hub.repositories["me/tiny"].commit("main", {published.weights.name: b"x"}, "broken")
    found = find(f"hf://me/tiny@{first}")
    assert found.read_bytes() == published.weights.read_bytes()
    assert find(f"hf://me/tiny@{first}/{published.weights.name}") == found
    assert find(Path(f"hf://me/tiny@{first}")) == found  # a Path drops one of the slashes
    assert pull("me/tiny", revision=first) == pull(f"hf://me/tiny@{first}") == found
    assert find(published.weights) == published.weights
    for wrong in ("hf://tiny", "hf:///tiny", "hf://a/b@"):
        with pytest.raises(HubError, match="expected hf://OWNER/NAME"):
            find(wrong)
    with pytest.raises(HubError, match="no revision 'v9'"):
        find("hf://me/tiny@v9")


def test_a_file_that_was_changed_is_not_taken(hub: FakeHub, published: PublishedModel, tmp_path: Path) -> None:
    push(published.weights, "me/tiny")
    content = bytearray(published.weights.read_bytes())
    content[-1] ^= 1
    hub.repositories["me/tiny"].commit("main", {published.weights.name: bytes(content)}, "one bit")
    with pytest.raises(WeightsError, match="the content does not match the name"):
        pull("me/tiny", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    changed = tmp_path / published.weights.name
    changed.write_bytes(content)
    with pytest.raises(WeightsError, match="the content does not match the name"):
        push(changed, "me/other")
    assert "me/other" not in hub.repositories


def test_which_weights_of_a_repository(hub: FakeHub, published: PublishedModel, untrained: Path) -> None:
    push(published.weights, "me/tiny")
    repository = hub.repositories["me/tiny"]
    repository.commit("main", {"best.safetensors": untrained.read_bytes()}, "by hand")
    assert pull("me/tiny").name == published.weights.name  # the only one that was published
    assert pull("me/tiny", file="best.safetensors").read_bytes() == untrained.read_bytes()
    other = publish(untrained, name="other")
    done = push(other.weights, "me/tiny")
    assert done.others == ("best.safetensors", published.weights.name)
    with pytest.raises(HubError, match=rf"(?s)several weights; choose one with --file.*{other.weights.name}"):
        pull("me/tiny")
    assert pull("me/tiny", file=other.weights.name).name == other.weights.name
    with pytest.raises(HubError, match="no such file"):
        pull("me/tiny", file="absent.safetensors")


def test_what_is_no_detector_of_ours(hub: FakeHub, tmp_path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    push_by_hand = {"x.safetensors": (tmp_path / "x.safetensors").read_bytes()}
    hub.repositories |= {"me/x": Repository(), "me/empty": Repository()}
    hub.repositories["me/x"].commit("main", push_by_hand, "by hand")
    with pytest.raises(WeightsError, match="not a detector saved by locdistill"):
        pull("me/x")
    with pytest.raises(HubError, match="has no weights"):
        pull("me/empty")


def test_what_can_be_pushed(hub: FakeHub, published: PublishedModel, student: Path, tmp_path: Path) -> None:
    bare = tmp_path / "run"
    shutil.copytree(student, bare, ignore=shutil.ignore_patterns("published"))
    with pytest.raises(WeightsError, match=f"'locdistill publish {bare}' makes them"):
        push(bare, "me/tiny")
    with pytest.raises(WeightsError, match="expected published weights"):
        push(bare / "best.safetensors", "me/tiny")
    with pytest.raises(WeightsError, match="no such file or folder"):
        push(tmp_path / "absent", "me/tiny")
    made = publish(bare)
    assert push(bare, "me/tiny").files[0] == made.weights.name
    assert push(bare / "published", "me/tiny").files[0] == made.weights.name
    publish(bare, name="again")
    with pytest.raises(WeightsError, match="several published weights; pass one of them"):
        push(bare, "me/tiny")
    made.card.unlink()
    with pytest.raises(WeightsError, match=r"model card .*\.md is missing; publish the weights again"):
        push(made.weights, "me/tiny")
    with pytest.raises(HubError, match="expected a model as OWNER/NAME"):
        push(published.weights, "me/tiny/x")


def test_private_repositories(hub: FakeHub, published: PublishedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    push(published.weights, "me/secret", private=True)
    assert hub.repositories["me/secret"].private
    assert pull("me/secret").is_file()
    push(published.weights, "me/open")
    before = dict(hub.repositories["me/open"].commits)
    with pytest.raises(HubError, match="exists already and is public, so nothing was uploaded"):
        push(published.weights, "me/open", private=True)
    assert hub.repositories["me/open"].commits == before
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match=r"no such model at http.*, or it is private: check the name, or log in"):
        pull("me/secret", revision=next(iter(hub.repositories["me/secret"].commits)))
    with pytest.raises(HubError, match=r"access denied .*hf auth login"):
        push(published.weights, "me/new")
    assert push(published.weights, "me/new", token=TOKEN).repo_id == "me/new"


def test_what_the_hub_refuses(hub: FakeHub, published: PublishedModel) -> None:
    with pytest.raises(HubError, match="me/absent: no such model"):
        pull("me/absent")
    with pytest.raises(HubError, match=r"others/tiny: access denied by the hub \(You do not have the rights"):
        push(published.weights, "others/tiny")
    push(published.weights, "me/tiny")
    with pytest.raises(HubError, match="no revision 'v2'"):
        push(published.weights, "me/tiny", revision="v2")
    hub.repositories["me/tiny"].commit("v2", {}, "a branch")
    assert push(published.weights, "me/tiny", revision="v2").commit == hub.repositories["me/tiny"].branches["v2"]


def test_without_a_network(hub: FakeHub, published: PublishedModel, tiny_coco: Path, tmp_path: Path) -> None:
    push(published.weights, "me/tiny")
    hub.repositories["me/never"] = Repository()
    fetched = pull("me/tiny")
    hub.stop()
    assert pull("me/tiny") == fetched  # from the cache
    assert find(f"hf://me/tiny/{published.weights.name}") == fetched
    with pytest.raises(
        HubError, match=r"no answer from the model hub at http.*refused.*copy the file here and give its path"
    ):
        pull("me/never")
    with pytest.raises(HubError, match="no answer from the model hub"):
        push(published.weights, "me/tiny")
    with pytest.raises(HubError, match="no answer from the model hub"):
        distill("hf://me/never", tiny_coco, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_the_hub_is_switched_off(
    hub: FakeHub, published: PublishedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    push(published.weights, "me/tiny")
    fetched = pull("me/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    assert pull("me/tiny") == fetched
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        pull("me/never")
    assert len(hub.requests) == before


def test_a_recipe_says_where_its_teacher_is_when_it_is_absent(hub: FakeHub, tiny_coco: Path, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="--teacher FILE"):
        distill(recipe="ld_r18_from_r101", data=tiny_coco, out=tmp_path / "a")
    with pytest.raises(HubError, match="no such model"):
        distill("hf://me/absent", recipe="ld_r18_from_r101", data=tiny_coco, out=tmp_path / "a")


# ------------------------------------------------------------------------------------------------------- command line


def here(*words: object) -> None:
    """The command line in this process."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert not stopped.value.code


def test_the_command_line_against_a_hub_named_by_the_environment(
    hub: FakeHub, published: PublishedModel, tmp_path: Path
) -> None:
    """A process of its own: nothing is replaced in the hub's library, all is said by its environment variables."""
    words = (["push", str(published.weights), "me/tiny", "--json"], ["pull", "me/tiny"], ["pull", "me/absent"])
    code = f"from locdistill.cli import main\nfor words in {words!r}:\n  try: main(words)\n  except SystemExit: pass\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    pushed, pulled = done.stdout.rsplit("}\n", 1)
    assert json.loads(pushed + "}")["files"] == [published.weights.name, "README.md", "recipe.yaml"]
    assert pulled == f"{published.weights.name}\n"
    assert (tmp_path / published.weights.name).read_bytes() == published.weights.read_bytes()
    assert f"HubError: me/absent: no such model at {hub.address}" in done.stderr


def test_what_the_command_line_prints(
    hub: FakeHub, student: Path, untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here("publish", student, "--out", tmp_path / "a", "--json")
    made = json.loads(capsys.readouterr().out)
    assert set(made) == {"weights", "card", "recipe", "sha256", "notes"}
    here("publish", untrained)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("no recipe")
    assert lines[2].startswith("note: These weights come without their run")
    for weights in (made["weights"], lines[0]):
        here("push", weights, "me/tiny", "--message", "mine")
    assert "the repository has other weights too, so 'pull' needs --file" in capsys.readouterr().out
    assert hub.repositories["me/tiny"].messages[-1] == "mine"
    here("pull", "me/tiny", "--file", Path(lines[0]).name, "--out", tmp_path / "b")
    assert capsys.readouterr().out == f"{tmp_path / 'b' / Path(lines[0]).name}\n"
    with pytest.raises(SystemExit):
        main(["publish", str(tmp_path / "absent")])
    assert capsys.readouterr().err.startswith("WeightsError: ")
