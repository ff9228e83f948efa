"""Files are complete or absent; a damaged or foreign one is named and runs nothing."""
import json
import os
import re
import socket
import zipfile

import numpy as np
import pytest
import torch

from data.layout import VOCLayout
from data.prepare.coco_annotations import read_annotations
from data.prepare.label_arrays import read_label_arrays
from data.prepare.masks import read_colours
from data.prepare.tables import read_labels
from tests.conftest import Program
from tools.aside import written_aside
from tools.files import (
    delete_incomplete,
    load_checkpoint,
    read_json,
    save_animation,
    save_checkpoint,
    save_image,
    save_label_map,
    write_json,
)
from tools.maps import read_cam, save_cam, save_crf
from tools.provenance import digest


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "new/file.txt"
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("half of")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with written_aside(path) as aside:
        aside.write_text("whole")
        assert aside.parent == path.parent and not path.exists()        # beside it: a rename, not a copy
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["file.txt"]
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("half of another")
        raise RuntimeError
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("name, save", [
    ("a.npz", lambda path: save_cam(path, [1, 2], np.random.rand(2, 30, 40))),
    ("a.npz", lambda path: save_crf(path, [0, 1], np.random.rand(2, 30, 40))),
    ("a.npz", lambda path: save_cam(path, [], np.zeros((0, 30, 40)))),
    ("a.npy", lambda path: save_cam(path, [1, 2], np.random.rand(2, 30, 40), "npy")),
    ("a.npy", lambda path: save_cam(path, [], np.zeros((0, 30, 40)), "npy")),
    ("a.png", lambda path: save_image(path, np.zeros((30, 40, 3), np.uint8))),
    ("a.png", lambda path: save_label_map(path, np.eye(30), bytes(768))),
    ("a.gif", lambda path: save_animation(path, [np.zeros((30, 40, 3), np.uint8), np.ones((30, 40, 3), np.uint8)])),
])
def test_what_a_power_cut_leaves_is_deleted(tmp_path, name, save):
    """A file whose bytes, or those from somewhere on, never came to the disk; a complete one stays, and others' do."""
    path = tmp_path / name
    save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:10], whole[:-1], whole[:len(whole) // 2], whole[:9] + bytes(len(whole) - 9)):
        path.write_bytes(content)
        for other in ("notes.txt", "made_by.json"):
            (tmp_path / other).touch()
        assert delete_incomplete(tmp_path) == [name] and not path.exists()
    path.write_bytes(whole)
    assert delete_incomplete(tmp_path) == [] and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("save", [
    lambda path: save_cam(path, [1, 2], [np.zeros((2, 2)), "no map"]),
    lambda path: save_crf(path, [0, 1], [np.zeros((2, 2)), "no map"], "npy"),
    lambda path: save_checkpoint(path, {"x": torch.zeros(9), "y": lambda: 0}),
    lambda path: write_json(path, {"x": object()}),
    lambda path: save_image(path, np.zeros((2, 2, 7), np.uint8)),
])
def test_what_cannot_be_written_leaves_nothing(tmp_path, save):
    with pytest.raises(Exception):              # noqa: B017  each writer has its own
        save(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_comes_back_and_runs_nothing(tmp_path):
    value = {"weights": {"a": torch.arange(6.0)}, "step": 3, "settings": {"resize": [256, 448], "norm": "frozen"}}
    save_checkpoint(tmp_path / "a.pth", value)
    found = load_checkpoint(tmp_path / "a.pth")
    assert torch.equal(found["weights"].pop("a"), value["weights"].pop("a")) and found == value
    torch.save({"a": Program(tmp_path / "ran")}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="b.pth .* holds a program"):
        load_checkpoint(tmp_path / "b.pth")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "c.pth")


def test_cut_checkpoints_are_named(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"weights": {"a": torch.arange(60.0)}})
    whole = path.read_bytes()
    for size in (0, 1, 3, 4, 30, *range(50, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="a.pth is cut off or damaged.*--overwrite"):
            load_checkpoint(path)


def test_a_changed_bit_in_a_checkpoint_is_seen(tmp_path):
    """torch looks at no check sum, and would train on."""
    path, numbers = tmp_path / "a.pth", torch.arange(60.0)
    save_checkpoint(path, {"weights": numbers})
    content = bytearray(path.read_bytes())
    content[content.index(numbers.numpy().tobytes()) + 9] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["weights"], numbers)
    with pytest.raises(ValueError, match="a.pth is cut off or damaged"):
        load_checkpoint(path)


def test_a_packed_checkpoint_is_refused(tmp_path):
    """torch.save does not pack, and what is packed may be a thousand times as large."""
    save_checkpoint(tmp_path / "a.pth", {"weights": torch.zeros(9)})
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="b.pth is cut off or damaged"):
        load_checkpoint(tmp_path / "b.pth")


@pytest.mark.parametrize("text", ["", '{"a": 1', "{'a': 1}", "\xff", "[" * 100_000, "9" * 5000])
def test_damaged_json_is_named(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match="a.json is not complete JSON .* delete it"):
        read_json(tmp_path / "a.json")


def test_json_keeps_letters(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 0.25, None]})
    assert read_json(tmp_path / "a.json") == {"é": [1, 0.25, None]}
    assert "é" in (tmp_path / "a.json").read_text("utf-8") and json.loads((tmp_path / "a.json").read_bytes())


# ---- something else in place of a file: opening a pipe would wait for ever ----

def put(path, what):
    """Put a folder, pipe or socket in place of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        here = os.getcwd()
        os.chdir(path.parent)       # a socket's path has at most 108 bytes
        socket.socket(socket.AF_UNIX).bind(path.name)
        os.chdir(here)
    return path


READERS = {
    "labels.json": lambda path: VOCLayout(path.parent).label("a"),
    "classes.txt": lambda path: VOCLayout(path.parent).classes,
    "made_by.json": digest,
    "Annotations/a.xml": lambda path: VOCLayout(path.parent.parent).label("a"),
    "ImageSets/Segmentation/train.txt": lambda path: VOCLayout(path.parent.parent.parent).ids("train"),
    "labels.csv": lambda path: read_labels(path, bool),
    "cls_labels.npy": read_label_arrays,
    "instances.json": read_annotations,
    "colours.txt": lambda path: read_colours(str(path), ["fox"]),
    "a.npz": read_cam,
    "record.json": read_json,
}


@pytest.mark.parametrize("what", ["folder", "pipe", "socket"])
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_in_place_of_a_file_is_named(tmp_path, name, what):
    (tmp_path / "JPEGImages").mkdir()
    path = put(tmp_path / name, what)
    refused, words = (FileNotFoundError, "no list train") if what == "folder" and name.endswith("train.txt") else (
        ValueError, f"{re.escape(str(path))}.* a folder, pipe, socket or device, not a file")
    if (what, name) != ("folder", "made_by.json"):          # there a folder stands for the record in it
        with pytest.raises(refused, match=words):
            READERS[name](path)
