"""The pages of the documentation name files, rooms, links and line counts that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.test_floors import FLOOR_OF, PACKAGE

ROOT = PACKAGE.parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
HOUSE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CORE = re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", HOUSE, re.MULTILINE)
ROOMS = re.findall(r"^\| (\d+) \| `(\w+)` \| (.+) \| (.+) \|$", HOUSE, re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def _named_files(text: str) -> set[str]:
    files = set(re.findall(r"(?<![\w./-])((?:[\w-]+/)*[\w-]+\.py)\b", text))
    modules = re.findall(r"python -m (benchmarks|tests)\.(\w+)", text)
    return files | {f"{folder}/{name}.py" for folder, name in modules}


def _anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings; those of the same words are counted."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    again = {f"{anchor}-{anchors[:i].count(anchor)}" for i, anchor in enumerate(anchors) if anchor in anchors[:i]}
    return {*anchors, *again}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = _named_files(page.read_text(encoding="utf-8"))
    if page.name == "own_method.md":  # its reader writes files of their own
        named = {name for name in named if "/" in name}
    assert [name for name in sorted(named) if not (PACKAGE / name).is_file() and not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in _anchors(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


def test_every_room_has_its_line() -> None:
    # On the page, `errors` shares the lowest floor with what imports nothing but it.
    there = {room: str(max(floor - 1, 0)) for room, floor in FLOOR_OF.items() if room != "__main__"}
    written = {room: floor for floor, room, purpose, _ in ROOMS if "not there yet" not in purpose}
    assert written == there


def test_the_floors_are_drawn_as_they_are() -> None:
    drawing = HOUSE.split("## The floors")[1].split("```")[1]
    drawn = {room: line.split()[0] for line in drawing.strip().splitlines() for room in re.findall(r"[a-z]+", line)}
    assert drawn == {room: floor for floor, room, *_ in ROOMS}


@pytest.mark.parametrize(("path", "lines"), CORE, ids=[path for path, _ in CORE])
def test_lines_to_read_are_counted(path: str, lines: str) -> None:
    there = PACKAGE / path
    files = sorted(there.glob("*.py")) if there.is_dir() else [there]
    counted = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    assert counted == pytest.approx(int(lines), rel=0.2), f"{path} has {counted} lines"


def test_the_core_can_be_read_in_an_hour() -> None:
    assert len(CORE) >= 12
    assert sum(int(lines) for _, lines in CORE) < 4500


def test_the_readme_is_short_and_its_pictures_are_small_and_described() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    pictures = re.findall(r"!\[(.*?)\]\((.+?)\)", text)
    assert len(pictures) == 2
    for words, path in pictures:
        assert len(words.split()) > 5
        assert (ROOT / path).stat().st_size < 200_000
