"""Maps reach the disk before they get their names, many at a time; whoever asks for them in between waits for both."""
import errno
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import infer
from tools import aside
from tools.aside import flush, in_batches, waits, written_aside
from tools.files import save_checkpoint, save_image

IMAGE = np.zeros((3, 4, 3), np.uint8)


@pytest.fixture
def done(monkeypatch):
    """Give the list of what is flushed and renamed, in order: ("flush" or "rename", its name without the process)."""
    seen, fsync, replace = [], os.fsync, os.replace

    def flushed(opened):
        path = os.readlink(f"/proc/self/fd/{opened}")
        seen.append(("flush", os.path.basename(path).lstrip(".").split(f".{os.getpid()}.")[0]))
        fsync(opened)

    def renamed(source, target):
        seen.append(("rename", os.path.basename(target)))
        replace(source, target)
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    return seen


def save(folder, *names):
    for name in names:
        save_image(folder / name, IMAGE)


def test_flushed_before_the_rename_and_the_folder_after(tmp_path, done):
    with in_batches():
        save(tmp_path / "maps", "a.png", "b.png")
        assert not done and waits(tmp_path / "maps/a.png")
        assert all(name.endswith(".tmp") for name in os.listdir(tmp_path / "maps"))
    assert sorted(done[:2]) == [("flush", "a.png"), ("flush", "b.png")]
    assert done[2:] == [("rename", "a.png"), ("rename", "b.png"), ("flush", "maps")]
    assert sorted(os.listdir(tmp_path / "maps")) == ["a.png", "b.png"] and not waits(tmp_path / "maps/a.png")


def test_a_checkpoint_is_flushed_at_once_and_its_name_too(tmp_path, done):
    save_checkpoint(tmp_path / "ckpt/a.pth", {"step": 3})
    assert done == [("flush", "a.pth"), ("rename", "a.pth"), ("flush", "ckpt")]


def test_other_files_and_other_places_do_not_wait(tmp_path, done):
    save(tmp_path, "outside.png")
    with in_batches(), written_aside(tmp_path / "record.json") as path:
        path.write_text("{}")
    assert done == [("rename", "outside.png"), ("rename", "record.json")]


def test_a_batch_is_full_after_so_many_files_or_so_long(tmp_path, monkeypatch):
    monkeypatch.setattr(aside, "FILES", 3)
    there = []
    with in_batches():
        for number in range(7):
            save(tmp_path, f"{number}.png")
            there.append(len(list(tmp_path.glob("?.png"))))
    assert there == [0, 0, 3, 3, 3, 6, 6] and len(os.listdir(tmp_path)) == 7
    monkeypatch.setattr(aside, "SECONDS", 0)
    with in_batches():
        save(tmp_path, "slow.png")
        assert (tmp_path / "slow.png").exists()


def test_each_end_and_each_flush_gives_the_names(tmp_path):
    with in_batches():
        save(tmp_path, "a.png")
        with in_batches():
            save(tmp_path, "b.png")
        assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]
        save(tmp_path, "c.png")
        flush()
        assert (tmp_path / "c.png").exists()
        save(tmp_path, "d.png")             # the outer one goes on
        assert waits(tmp_path / "d.png")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_what_was_complete_survives_an_error(tmp_path, error):
    with pytest.raises(error, match="of ours"), in_batches():
        save(tmp_path, "a.png")
        with written_aside(tmp_path / "b.png"):
            raise error("of ours")
    assert os.listdir(tmp_path) == ["a.png"]
    save(tmp_path, "later.png")             # and the batch is over
    assert (tmp_path / "later.png").exists()


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full(opened):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"a\.png was not written.*make room"), in_batches():
        save(tmp_path, "a.png", "b.png")
    assert not os.listdir(tmp_path)
    monkeypatch.setattr(aside, "FILES", 2)
    with pytest.raises(OSError, match=r"a\.png") as raised, in_batches():
        save(tmp_path, "a.png", "b.png")            # the flush is a part of b's writing, the failure is a's
    assert "b.png" not in str(raised.value) and not os.listdir(tmp_path)
    with pytest.raises(RuntimeError, match="the first"), in_batches():
        save(tmp_path, "a.png")
        raise RuntimeError("the first")
    assert not os.listdir(tmp_path)


def test_a_disk_without_flushes_of_folders(tmp_path, monkeypatch):
    def only_files(opened):
        if os.path.isdir(f"/proc/self/fd/{opened}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    monkeypatch.setattr(os, "fsync", only_files)
    with in_batches():
        save(tmp_path, "a.png")
    assert os.listdir(tmp_path) == ["a.png"]


def test_all_threads_share_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(aside, "FILES", 5)
    threads = [threading.Thread(target=save, args=(tmp_path, *(f"{t}_{n}.png" for n in range(20)))) for t in range(4)]
    with in_batches():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(list(tmp_path.glob("*.png"))) == 80 == len(os.listdir(tmp_path))


def test_an_image_is_passed_on_once_its_cams_have_their_name(tmp_path, monkeypatch):
    """On a GPU the CRF reads them while later ones are computed, and its own maps fill the batches too."""
    ids = [f"{number:03}" for number in range(20)]
    monkeypatch.setattr(aside, "FILES", 7)
    monkeypatch.setattr(infer, "located", lambda *given: ((i, [1], np.ones((1, 3, 4))) for i in ids))
    passed = []
    with in_batches():
        for image_id in infer.write_cams(SimpleNamespace(format="npz"), None, None, None, tmp_path / "dict", ids):
            assert (tmp_path / f"dict/{image_id}.npz").exists()
            passed.append(image_id)
            save(tmp_path / "crf", f"{image_id}.png")
    assert passed == ids and len(list((tmp_path / "crf").glob("*.png"))) == 20
