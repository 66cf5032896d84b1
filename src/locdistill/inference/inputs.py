"""Pictures to detect in: files, folders, patterns, web addresses, videos, cameras and network streams.

Videos are read by PyAV, an optional package. Reading runs in threads beside the network.
"""

from __future__ import annotations

import glob
import importlib.util
import io
import queue
import re
import sys
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import torch
from jaxtyping import UInt8
from torch import Tensor

from locdistill.annotations.files import IMAGE_SUFFIXES, files_below
from locdistill.errors import ImageError, RunError
from locdistill.images import open_picture, read_image

VIDEO_SUFFIXES = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".ts", ".wmv", ".flv"),
        *(".ogv", ".3gp", ".mjpeg", ".mjpg"),
    )
)
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/{1,2}(?P<rest>[^/].*)", re.IGNORECASE)
_WEB = ("http", "https")
_STREAMS = ("rtsp", "rtsps", "rtmp", "rtmps", "udp", "rtp", "srt", "tcp")
_PROTOCOLS = {
    "file": "file,crypto,data",  # a file may name others; they must not be addresses
    "network": "http,https,tcp,tls,udp,rtp,rtsp,rtsps,rtmp,rtmps,srt,crypto",
}
_CAMERA = re.compile(r"(?:camera:)?(\d{1,3})")
_SYSTEMS = {"win32": ("dshow", "video={}"), "darwin": ("avfoundation", "{}")}
_SECONDS, _LARGEST_DOWNLOAD = 20.0, 256 << 20
_THREADS, _AHEAD = 4, 16
"""Threads that read pictures, and the number of pictures read before they are needed."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture, or a frame of a video.

    Attributes:
        source: The file, address or camera.
        name: Relative path to save the picture, or the video, under.
        pixels: RGB.
        number: Number in its video, from 0; None for a picture.
        seconds: Time in its video.
        rate: Frames a second of its video.
        live: Whether later frames do not wait for it to be processed.
    """

    source: str
    name: Path
    pixels: UInt8[Tensor, "3 h w"]
    number: int | None = None
    seconds: float | None = None
    rate: Fraction | None = None
    live: bool = False


@dataclass(frozen=True)
class PictureInput:
    """A picture at a path or web address."""

    source: str
    name: Path
    count: int | None = 1

    def read(self, bits: int | None) -> Frame:
        """Read the picture.

        Raises:
            ImageError: It cannot be read.
        """
        if not _ADDRESS.match(self.source) or Path(self.source).exists():
            return Frame(self.source, self.name, read_image(self.source, bits=bits))
        with open_picture(io.BytesIO(_downloaded(self.source)), self.source) as image:
            image.filename = self.source  # type: ignore[attr-defined]  # shown in messages
            return Frame(self.source, self.name, read_image(image, bits=bits))


@dataclass(frozen=True)
class VideoInput:
    """A video file, a network stream or a camera.

    Attributes:
        source: The file, address or camera, as given.
        name: Relative path to save it under.
        every: Interval of the frames that are used: 1 for all of them.
        count: Number of these frames, as far as the file tells; None if it has no end.
    """

    source: str
    name: Path
    every: int = 1
    count: int | None = None

    @property
    def camera(self) -> str | None:
        """Number of the camera, if it is one."""
        found = None if Path(self.source).exists() else _CAMERA.fullmatch(self.source)
        return found[1] if found else None

    def opened(self) -> Any:
        """Open the video.

        Raises:
            RunError: PyAV is not installed.
            ImageError: The video cannot be opened, or has no pictures.
        """
        if importlib.util.find_spec("av") is None:
            raise RunError(
                f"{self.source}: videos and cameras need PyAV, not installed: pip install 'locdistill[video]'"
            )
        import av  # noqa: PLC0415 - optional

        where, words = self.source, dict[str, Any]()
        options = {"protocol_whitelist": _PROTOCOLS["network" if _ADDRESS.match(self.source) else "file"]}
        if self.camera is not None:
            kind, pattern = _SYSTEMS.get(sys.platform, ("v4l2", "/dev/video{}"))
            where, words, options = pattern.format(self.camera), {"format": kind}, {}
        elif self.source.lower().startswith("rtsp"):
            options["rtsp_transport"] = "tcp"  # whole pictures, also where datagrams are lost
        try:
            container = av.open(where, options=options, timeout=_SECONDS, **words)
        except (OSError, ValueError, av.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ImageError(
                f"{self.source}: cannot be opened as a video ({reason}); check it with a player"
            ) from error
        if not container.streams.video:
            container.close()
            raise ImageError(f"{self.source}: has no pictures, only sound or data")
        return container

    def frames(self) -> Iterator[Frame | ImageError]:
        """Yield the frames, and an error for each that cannot be decoded."""
        import av  # noqa: PLC0415 - optional

        with self.opened() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            stated = _length(container)
            live = stated is None and (self.camera is not None or _ADDRESS.match(self.source) is not None)
            number = -1
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                    pictures = () if packet is None else packet.decode()
                except (av.FFmpegError, OSError) as error:
                    reason = getattr(error, "strerror", None) or error
                    yield ImageError(f"{self.source}: frame {number + 1} or a later one cannot be decoded ({reason})")
                    if not isinstance(error, av.InvalidDataError):
                        return  # the connection or the device is gone
                    continue
                if packet is None:
                    if stated is not None and number + 2 < stated:  # a duration is not exact
                        missing = f"{stated - number - 1} of {stated} frames are missing or damaged"
                        yield ImageError(f"{self.source}: {missing}; the file may be cut off")
                    return
                for picture in pictures:
                    number += 1
                    if number % self.every == 0:
                        pixels = torch.from_numpy(picture.to_ndarray(format="rgb24")).permute(2, 0, 1)
                        turns = round(getattr(picture, "rotation", 0) / 90) % 4
                        pixels = pixels.rot90(turns, (1, 2)) if turns else pixels
                        time = picture.time if picture.time is not None else float(number / rate)
                        yield Frame(self.source, self.name, pixels, number, time, rate / self.every, live)


Input: TypeAlias = PictureInput | VideoInput


def inputs(images: str | Path | Iterable[str | Path], *, every: int = 1) -> list[Input]:
    """Find the pictures and videos that are named, each once.

    Args:
        images: Files, folders (searched for pictures and videos), patterns such as ``shots/**/*.jpg``, ``https``
            addresses, addresses of network streams such as ``rtsp://HOST/PATH``, or cameras: ``camera:0``, or ``0``.
        every: Interval of the frames of a video that are used.

    Raises:
        ImageError: Paths do not exist, or folders contain no picture; the message lists all.
        RunError: A video needs PyAV, which is not installed.
    """
    problems: list[str] = []
    found: dict[str, Input] = {}
    for item in [images] if isinstance(images, str | Path) else list(images):
        for place, name in _named(str(item), problems):
            if place not in found:
                found[place] = _source(place, name, every)
    if problems:
        raise ImageError(listed("nothing was done", problems) if len(problems) > 1 else problems[0])
    if not found:
        raise ImageError("no images given; name files or folders")
    return list(found.values())


def _named(item: str, problems: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield the places that an item names, with the names to save them under; add what is wrong to ``problems``."""
    path = Path(item)
    address = None if path.exists() else _ADDRESS.match(item)
    if address:
        scheme = address["scheme"].lower()
        if scheme not in (*_WEB, *_STREAMS):
            problems.append(f"{item}: expected an address that begins with {', '.join((*_WEB, *_STREAMS))}")
            return
        item = f"{scheme}://{address['rest']}"  # a `Path` has one slash
        parts = urlsplit(item)
        last = PurePosixPath(unquote(parts.path)).name or parts.hostname or scheme
        yield item, Path(re.sub(r"[^\w.-]+", "_", last).lstrip(".") or scheme)
    elif path.is_dir():
        below = files_below(path, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        if not below:
            problems.append(f"{item}: no image in this folder")
        yield from ((str(file), file.relative_to(path)) for file in below)
    elif path.is_file():
        yield item, Path(path.name)
    elif _CAMERA.fullmatch(item):
        yield item, Path(f"camera-{item.removeprefix('camera:')}")
    elif glob.has_magic(item):
        matches = [Path(match) for match in sorted(glob.glob(item, recursive=True)) if Path(match).is_file()]
        kept = [match for match in matches if match.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
        if not kept:
            problems.append(f"{item}: no image matches this pattern")
        root = Path(*takewhile(lambda part: not glob.has_magic(part), Path(item).parts))
        yield from ((str(match), match.relative_to(root)) for match in kept)
    else:
        problems.append(f"{item}: no such file or folder")


def _source(place: str, name: Path, every: int) -> Input:
    address, suffix = _ADDRESS.match(place), name.suffix.lower()
    if address and address["scheme"] in _WEB:
        picture = suffix not in VIDEO_SUFFIXES
        if picture and suffix not in IMAGE_SUFFIXES:  # reading it says what is wrong, if it does not answer
            with suppress(OSError, ValueError), _answer(place) as answer:
                picture = str(answer.headers.get_content_maintype()) == "image"
    else:
        picture = not address and suffix not in VIDEO_SUFFIXES and Path(place).is_file()
    if picture:
        return PictureInput(place, name)
    video = VideoInput(place, name, every)
    if address is None and video.camera is None:
        with suppress(ImageError), closing(video.opened()) as container:  # an error is raised again when it is read
            length = _length(container)
            return replace(video, count=None if length is None else -(-length // every))
    return video


def _length(container: Any) -> int | None:
    """Return the number of frames as the container states it, or computed from its duration; None if unknown."""
    stream = container.streams.video[0]
    if stream.frames:
        return int(stream.frames)
    if not container.duration or not stream.average_rate:
        return None
    return int(container.duration / 1e6 * float(stream.average_rate) + 0.5)


def _answer(address: str) -> Any:
    request = urllib.request.Request(address, headers={"User-Agent": "locdistill"})  # noqa: S310 - http(s) alone
    return urllib.request.urlopen(request, timeout=_SECONDS)  # noqa: S310


def _downloaded(address: str) -> bytes:
    try:
        with _answer(address) as answer:
            content = bytes(answer.read(_LARGEST_DOWNLOAD + 1))
    except (OSError, ValueError) as error:
        reason = f"{error.code} {error.reason}" if isinstance(error, urllib.error.HTTPError) else str(error)
        raise ImageError(f"{address}: cannot be fetched ({reason}); check the address") from error
    if len(content) > _LARGEST_DOWNLOAD:
        raise ImageError(f"{address}: larger than {_LARGEST_DOWNLOAD >> 20} MB; download it, and name the file")
    return content


def frames(
    found: Sequence[Input], *, bits: int | None = None, stopped: Callable[[], bool] = lambda: False
) -> Iterator[Frame | ImageError]:
    """Yield all pictures in order, read ahead by threads, and an error for each that cannot be read.

    Of a live stream only the newest frame is kept until it is taken: slow processing leaves frames out.

    Args:
        found: Pictures and videos.
        bits: Number of bits that the values of 16-bit images use; None: 16.
        stopped: Function that is asked whether to end, also while a stream sends nothing.
    """
    reading: deque[Future[Frame | ImageError]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for source in found:
                if isinstance(source, VideoInput):
                    while reading:
                        yield reading.popleft().result()
                    yield from _in_background(source, stopped)
                    continue
                if stopped():
                    return
                reading.append(pool.submit(_tried, source, bits))
                if len(reading) > _AHEAD:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()
        finally:
            for waiting in reading:
                waiting.cancel()


def _tried(picture: PictureInput, bits: int | None) -> Frame | ImageError:
    try:
        return picture.read(bits)
    except ImageError as error:
        return error


def _in_background(video: VideoInput, stopped: Callable[[], bool]) -> Iterator[Frame | ImageError]:
    """Yield the frames of a video, decoded in a thread."""
    ready: queue.Queue[Frame | ImageError | BaseException | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(item: Frame | ImageError | BaseException | None) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def decode() -> None:
        try:
            for item in video.frames():
                if isinstance(item, Frame) and item.live:
                    with suppress(queue.Empty):  # an older frame gives way
                        while True:
                            ready.get_nowait()
                put(item)
                if stop.is_set():
                    return
            put(None)
        except ImageError as error:  # at the beginning; no frame follows
            put(error)
            put(None)
        except BaseException as error:  # raised again where the frames are taken
            put(error)

    thread = threading.Thread(target=decode, name=f"frames of {video.source}", daemon=True)
    thread.start()
    try:
        while not stopped():
            with suppress(queue.Empty):
                if (item := ready.get(timeout=0.2)) is None:
                    return
                if isinstance(item, BaseException) and not isinstance(item, ImageError):
                    raise item
                yield item
    finally:
        stop.set()
        thread.join(2 * _SECONDS)


def listed(heading: str, problems: Sequence[object]) -> str:
    """Return a heading and a line for each problem."""
    return "\n  ".join([f"{heading}:", *map(str, problems)])
