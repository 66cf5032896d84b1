"""Where records lie: whole or not at all, shared by processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from locdistill.distillation.cache.store import FILE, Store
from locdistill.errors import CacheError
from tests.processes import SERVER


def record(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3,), value), "b": torch.arange(4, dtype=torch.uint8)}


def test_nothing_is_there_before_the_first_write(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    assert not store.exists
    assert len(store) == 0
    assert store.get([b"x"]) == [None]
    assert store.has([b"x", b"y"]) == [False, False]
    assert store.about("contract") is None
    assert store.notes([b"n"]) == [None]
    assert not (tmp_path / "cache").exists()


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put({b"x": record(1.5), b"y": {"half": torch.tensor([0.1]).half(), "none": torch.zeros(0, 4)}})
    x, nothing, y = store.get([b"x", b"z", b"y"])
    assert nothing is None
    assert torch.equal(x["a"], torch.full((3,), 1.5))
    assert x["b"].dtype == torch.uint8
    assert y["half"].dtype == torch.float16
    assert y["none"].shape == (0, 4)
    assert len(store) == 2


def test_what_is_there_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put({b"x": record(1)})
    store.put({b"x": record(2), b"y": record(3)})
    (x,) = store.get([b"x"])
    assert x["a"][0] == 1
    assert store.claim("contract", {"a": [1]}) == {"a": [1]}
    assert store.claim("contract", {"a": [2]}) == {"a": [1]}
    store.note({b"n": b"1"})
    store.note({b"n": b"2"})
    assert store.notes([b"n"]) == [b"2"]


def _add(store: Store, name: bytes) -> None:
    assert store.get([b"first"])[0] is not None
    store.put({name: record(7)})


@pytest.mark.parametrize("context", [multiprocessing.get_context("fork"), SERVER], ids=["fork", "server"])
def test_other_processes_read_and_write(tmp_path: Path, context: Any) -> None:
    store = Store(tmp_path)
    store.put({b"first": record(1)})
    others = [context.Process(target=_add, args=(store, b"%d" % i)) for i in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert store.has([b"0", b"1"]) == [True, True]
    assert pickle.loads(pickle.dumps(store)).has([b"first"]) == [True]


def _write_for_ever(path: Path) -> None:
    store, i = Store(path), 0
    while True:
        store.put({b"%d" % i: {"a": torch.full((5000,), float(i)), "b": torch.full((10,), float(i))}})
        i += 1


def test_a_kill_in_the_middle_leaves_whole_records(tmp_path: Path) -> None:
    writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(tmp_path,), daemon=True)
    writer.start()
    store = Store(tmp_path)
    while len(store) < 5:
        assert writer.is_alive()
        time.sleep(0.01)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    there = len(store)
    assert there >= 5
    for i, found in enumerate(store.get([b"%d" % i for i in range(there)])):
        assert found is not None
        assert (found["a"] == i).all()
        assert (found["b"] == i).all()
    store.put({b"after": record(1)})
    assert len(store) == there + 1


def test_a_folder_that_is_replaced_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    store.put({b"x": record(1)})
    assert len(store) == 1
    shutil.rmtree(store.path)
    assert len(store) == 0
    store.put({b"y": record(1)})
    assert store.has([b"x", b"y"]) == [False, True]


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"hello")
    with pytest.raises(CacheError, match=r"cannot be read \(.*remove the folder"):
        Store(tmp_path).get([b"x"])


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be written to"):
        Store(tmp_path / "file" / "cache").put({b"x": record(1)})
