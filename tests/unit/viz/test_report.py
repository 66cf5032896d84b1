"""The page: self-contained, escaped, well-formed."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from locdistill.viz.report import Picture, Preformatted, Section, Table, Text, render_page, write_page

EVIL = "<script>alert('x')</script> & \"quoted\""


class Outline(HTMLParser):
    """Checks that every element is closed in order, and keeps texts by tag."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))


def parse(page: str) -> Outline:
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    return outline


def full_page() -> str:
    picture = Image.new("RGB", (40, 20), (10, 200, 30))
    blocks = [
        Text(f"{EVIL}\n\nsecond paragraph"),
        Text("small print", note=True),
        Table(("name", EVIL), ((EVIL, "1.0"), ("mean", "2.0")), caption=EVIL, emphasis=(1,)),
        Picture(picture, caption=EVIL, density=2),
        Preformatted("a:\n  b: <c>"),
    ]
    return render_page(EVIL, [Section(EVIL, blocks), Section("two"), Section("three")], subtitle=EVIL)


def test_everything_is_escaped() -> None:
    page = full_page()
    assert "<script" not in page
    outline = parse(page)
    assert {tag for tag, text in outline.texts if text == EVIL} >= {
        "title",
        "h1",
        "h2",
        "p",
        "th",
        "td",
        "caption",
        "a",
    }
    assert ("p", "second paragraph") in outline.texts
    assert ("pre", "a:\n  b: <c>") in outline.texts
    assert [a["alt"] for tag, a in outline.attributes if tag == "img"] == [EVIL]


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = full_page()
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page
    outline = parse(page)
    for tag, attributes in outline.attributes:
        assert tag not in ("script", "link", "iframe", "object")
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")


def test_links_lead_to_sections() -> None:
    outline = parse(full_page())
    targets = [a["href"].removeprefix("#") for tag, a in outline.attributes if tag == "a"]
    assert targets == [a["id"] for tag, a in outline.attributes if tag == "section"] == ["s0", "s1", "s2"]


def test_light_and_dark() -> None:
    page = full_page()
    assert "color-scheme: light dark" in page
    assert "prefers-color-scheme: dark" in page


def test_pictures_are_inside(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), (10, 200, 30))
    picture.save(tmp_path / "p.png")
    blocks = [Picture(tmp_path / "p.png", "file", density=2), Picture(picture, "photo", photo=True)]
    page = render_page("t", [Section("s", blocks)])
    found = re.findall(r'src="data:image/(\w+);base64,([^"]+)" width="(\d+)"', page)
    assert [(kind, width) for kind, _, width in found] == [("png", "20"), ("jpeg", "40")]
    for _, content, _ in found:
        with Image.open(io.BytesIO(base64.b64decode(content))) as decoded:
            assert decoded.size == (40, 20)
            assert all(
                abs(a - b) < 8 for a, b in zip(decoded.convert("RGB").getpixel((5, 5)), (10, 200, 30), strict=True)
            )


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    path = write_page(tmp_path / "new" / "page.html", "title", [])
    assert path.read_text(encoding="utf-8") == render_page("title", [])
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_rows_that_sum_up_stand_out() -> None:
    page = render_page("t", [Section("s", [Table(("a", "b"), (("x", "1"), ("mean", "2")), emphasis=(1,))])])
    assert "<tr><td>x</td>" in page
    assert "<tr class=sum><td>mean</td>" in page
