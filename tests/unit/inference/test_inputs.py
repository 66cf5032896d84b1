"""Pictures, videos, addresses and streams to detect in: found, read ahead, and left out where they are broken."""

from __future__ import annotations

import functools
import http.server
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locdistill.errors import ImageError, RunError
from locdistill.inference import inputs as module
from locdistill.inference.inputs import Frame, PictureInput, VideoInput, frames, inputs

av = pytest.importorskip("av", reason="videos need PyAV: pip install 'locdistill[video]'")
LENGTH = 20


def shade(number: int) -> np.ndarray:
    """A picture of one grey level, which tells the number of its frame."""
    return np.full((48, 64, 3), 10 + 10 * number, np.uint8)


def number_of(frame: Frame) -> int:
    return round((float(frame.pixels.float().mean()) - 10) / 10)


def write_video(path: Path, *, length: int = LENGTH, codec: str = "mpeg4") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(length):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade(number), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "mixed"
    (root / "below").mkdir(parents=True)
    for name, number in (("a.png", 0), ("below/b.PNG", 1)):
        Image.fromarray(shade(number)).save(root / name)
    (root / "notes.txt").write_text("no picture")
    write_video(root / "clip.mp4")
    return root


Handler = http.server.BaseHTTPRequestHandler


@pytest.fixture
def serve() -> Iterator[Callable[[type[Handler]], str]]:
    """Start a local web server; return its address."""
    servers = []

    def start(handler: type[Handler]) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_files_folders_and_patterns_are_found_once(folder: Path) -> None:
    found = inputs([folder / "a.png", folder, str(folder / "**" / "*.PNG"), str(folder / "*.mp4")])
    assert [(Path(each.source).relative_to(folder).as_posix(), each.name.as_posix()) for each in found] == [
        ("a.png", "a.png"),
        ("below/b.PNG", "below/b.PNG"),
        ("clip.mp4", "clip.mp4"),
    ]
    assert [type(each) for each in found] == [PictureInput, PictureInput, VideoInput]
    assert [each.count for each in found] == [1, 1, LENGTH]
    assert inputs(folder / "clip.mp4", every=3)[0].count == 7
    (inside,) = inputs(str(folder / "below" / "*"))
    assert inside.name == Path("b.PNG")


def test_what_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(
        ImageError, match=r"(?s)nothing was done.*none/\*\.png: no image matches.*ftp://x/y: expected an"
    ):
        inputs(["none/*.png", "ftp://x/y", folder / "a.png"])
    with pytest.raises(ImageError, match=r"absent\.mp4: no such file"):
        inputs("absent.mp4")


def test_cameras_and_streams_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = inputs(["0", "camera:2", "rtsp://127.0.0.1/stream1", "RTSP:/127.0.0.1/other"])
    assert all(isinstance(each, VideoInput) for each in found)
    assert [each.camera for each in found if isinstance(each, VideoInput)] == ["0", "2", None, None]
    assert [str(each.name) for each in found] == ["camera-0", "camera-2", "stream1", "other"]
    assert [each.count for each in found] == [None] * 4
    Image.fromarray(shade(0)).save("0", format="PNG")  # a file goes before a camera
    assert isinstance(inputs("0")[0], PictureInput)


def test_frames_come_in_order_with_their_times(folder: Path) -> None:
    read = list(frames(inputs(folder)))
    assert all(isinstance(frame, Frame) for frame in read)
    kept = [frame for frame in read if isinstance(frame, Frame)]
    assert [frame.number for frame in kept] == [None, None, *range(LENGTH)]
    assert [number_of(frame) for frame in kept] == [0, 1, *range(LENGTH)]
    assert kept[7].seconds == pytest.approx(0.5)
    every = [frame for frame in frames(inputs(folder / "clip.mp4", every=6)) if isinstance(frame, Frame)]
    assert [(frame.number, number_of(frame)) for frame in every] == [(0, 0), (6, 6), (12, 12), (18, 18)]
    assert every[0].rate == pytest.approx(10 / 6)


def test_every_frame_of_a_file_that_does_not_tell_its_length_is_taken(tmp_path: Path) -> None:
    (video,) = inputs(write_video(tmp_path / "raw.mjpeg", codec="mjpeg"))
    assert video.count is None
    read = []
    for frame in frames([video]):
        time.sleep(0.01)  # a slow detector
        read.append(frame)
    assert [number_of(frame) for frame in read if isinstance(frame, Frame)] == list(range(LENGTH))


def test_many_pictures_are_read_in_order_and_broken_ones_are_said(tmp_path: Path) -> None:
    for number in range(50):
        file = tmp_path / f"{number:02}.png"
        if number % 10 == 3:
            file.write_bytes(b"no picture")
        else:
            Image.fromarray(shade(number % 20)).save(file)
    read = list(frames(inputs(tmp_path)))
    assert [i for i, each in enumerate(read) if isinstance(each, ImageError)] == [3, 13, 23, 33, 43]
    assert [number_of(each) for each in read if isinstance(each, Frame)] == [i % 20 for i in range(50) if i % 10 != 3]


def test_reading_ends_with_its_reader(folder: Path) -> None:
    reading = frames(inputs([folder / "clip.mp4", folder / "a.png"]))
    next(reading)
    reading.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("frames of")]


@pytest.mark.parametrize("kind", ["cut", "no video", "sound"])
def test_broken_videos_do_not_end_the_others(folder: Path, tmp_path: Path, kind: str) -> None:
    broken = folder / "a-broken.mkv"
    if kind == "cut":
        whole = write_video(tmp_path / "whole.mkv", codec="mjpeg").read_bytes()
        broken.write_bytes(whole[: len(whole) // 2])
    elif kind == "no video":
        broken.write_bytes(b"no video")
    else:
        with av.open(str(broken), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            stream.layout = "mono"
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
            sound.rate = 8000
            container.mux(stream.encode(sound))
    read = list(frames(inputs(folder)))
    (error,) = [each for each in read if isinstance(each, ImageError)]
    said = {"cut": "of 20 frames are missing or damaged", "no video": "cannot be opened", "sound": "only sound or data"}
    assert said[kind] in str(error)
    assert str(broken) in str(error)
    assert len([each for each in read if isinstance(each, Frame) and each.source == str(folder / "clip.mp4")]) == LENGTH


def test_addresses_of_pictures_and_videos(folder: Path, serve: Callable[[type[Handler]], str]) -> None:
    write_video(folder / "clip.ts", codec="mpeg2video")
    address = serve(functools.partial(Quiet, directory=folder))  # type: ignore[arg-type]
    given = [f"{address}/a.png", f"{address}/clip.ts", f"{address}/absent.png", f"{address}/notes.txt"]
    read = list(frames(inputs(given)))
    assert isinstance(read[0], Frame)
    assert (read[0].source, number_of(read[0])) == (given[0], 0)
    assert len([each for each in read if isinstance(each, Frame) and each.source == given[1]]) == LENGTH
    errors = [str(each) for each in read if isinstance(each, ImageError)]
    assert "absent.png: cannot be fetched (404" in errors[0]
    assert "notes.txt: cannot be opened as a video" in errors[-1]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


class Camera(Handler):
    """A camera of the network that has no end: pictures one after the other (multipart/x-mixed-replace)."""

    sent = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        try:
            while True:
                content = io.BytesIO()
                Image.fromarray(shade(Camera.sent % 20)).save(content, format="JPEG")
                head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content.getvalue())}\r\n\r\n"
                self.wfile.write(head.encode() + content.getvalue() + b"\r\n")
                Camera.sent += 1
                time.sleep(0.002)
        except OSError:  # nobody is watching any more
            return

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_of_a_live_stream_the_newest_frame_is_taken(serve: Callable[[type[Handler]], str]) -> None:
    (camera,) = inputs(f"{serve(Camera)}/camera.mjpeg")
    assert camera.count is None
    reading = frames([camera])
    first = next(reading)
    assert isinstance(first, Frame)
    assert first.live
    before = Camera.sent
    while Camera.sent < before + 50:  # a slow detector
        time.sleep(0.01)
    second = next(reading)
    assert isinstance(second, Frame)
    assert second.number is not None
    assert second.number > 10
    reading.close()


class Silent(Handler):
    """A camera that sends one picture and then nothing more."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        for number in range(3):
            content = io.BytesIO()
            Image.fromarray(shade(number)).save(content, format="JPEG")
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content.getvalue())}\r\n\r\n"
            self.wfile.write(head.encode() + content.getvalue() + b"\r\n")
        self.wfile.flush()
        finished.wait(60)

    def log_message(self, *_: object) -> None:
        """Nothing."""


finished = threading.Event()


def test_a_stream_that_is_silent_can_be_stopped(
    serve: Callable[[type[Handler]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.5)
    asked = []

    def stopped() -> bool:
        asked.append(None)
        return len(asked) > 8

    finished.clear()
    read = list(frames(inputs(f"{serve(Silent)}/camera.mjpeg"), stopped=stopped))
    finished.set()
    assert len(read) < 8


def test_without_the_package_for_videos(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RunError, match=r"clip\.mp4: videos and cameras need PyAV.*pip install 'locdistill\[video\]'"):
        inputs(folder)
    assert len(inputs(folder / "a.png")) == 1


def test_a_download_has_a_limit(serve: Callable[[type[Handler]], str], folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_LARGEST_DOWNLOAD", 10)
    address = serve(functools.partial(Quiet, directory=folder))  # type: ignore[arg-type]
    (error,) = frames(inputs(f"{address}/a.png"))
    assert "larger than" in str(error)
