"""What a run read is in its record: the list, the labels, the photos. A change of one is named, and a move is none."""
import json
import os
import shutil
import time

import numpy as np
import pytest

from data.layout import VOCLayout
from data.signatures import signatures
from tests.conftest import make_file
from tools import signatures as records
from tools.experiment import Experiment
from tools.provenance import differing, digest, training_differences, verify

IDS = ["a", "b", "c", "d"]


@pytest.fixture
def layout(tmp_path):
    return dataset(tmp_path / "data")


def dataset(root):
    for i in IDS:
        make_file(root / f"JPEGImages/{i}.jpg", f"photo {i}")
        make_file(root / f"Annotations/{i}.xml", xml("cat"))
        os.utime(root / f"JPEGImages/{i}.jpg", (1000, 1000))
    make_file(root / "ImageSets/Segmentation/train.txt", "\n".join(IDS))
    make_file(root / "classes.txt", "cat\ndog")
    return VOCLayout(root)


def xml(*names):
    return f"<annotation>{''.join(f'<object><name>{name}</name></object>' for name in names)}</annotation>"


def now(layout, ids=None, maps=None, **kw):
    images = signatures(VOCLayout(layout.root), ids or layout.ids("train"), "train", **kw)
    return images.with_maps(maps) if maps else images


def relabel(layout):
    make_file(layout.root / "Annotations/b.xml", xml("dog"))


def label_more(layout):
    make_file(layout.root / "Annotations/b.xml", xml("cat", "dog"))


def replace_photo(layout):
    make_file(layout.root / "JPEGImages/b.jpg", "another photo")


def replace_by_same_size(layout):
    make_file(layout.root / "JPEGImages/b.jpg", "PHOTO b")


def replace_by_png(layout):
    (layout.root / "JPEGImages/b.jpg").unlink()
    make_file(layout.root / "JPEGImages/b.png", "a png")


CHANGES = [(relabel, "the label of 1 image (b)", "Annotations"),
           (label_more, "the label of 1 image (b)", "Annotations"),
           (replace_photo, "the photo of 1 image (b)", "JPEGImages"),
           (replace_by_same_size, "the photo of 1 image (b)", "JPEGImages"),
           (replace_by_png, "the photo of 1 image (b)", "JPEGImages")]


@pytest.mark.parametrize(("change", "words", "place"), CHANGES)
def test_a_changed_image_is_named(layout, tmp_path, change, words, place):
    old = now(layout).of
    folder = make_file(tmp_path / "maps/b.npz").parent
    records.write(folder, now(layout))
    records.write(folder, now(layout))         # nothing has changed
    records.check(folder, now(layout))
    change(layout)
    assert len(found := records.training_changes(old, now(layout))) == 1 and words in found[0] and place in found[0]
    for act in (records.write, records.check):
        with pytest.raises(records.StaleImages, match="maps is stale.*--overwrite") as error:
            act(folder, now(layout))
        assert words in str(error.value) and place in str(error.value) and error.value.folder == folder
    records.check(folder, now(layout, ["a", "c"]))                      # the images of another list are as they were
    assert (folder / "b.npz").exists()


@pytest.mark.parametrize(("lines", "words"), [
    (["a", "b"], ["2 IDs fewer (c, d)"]), (["a", "b", "c", "d", "e"], ["1 IDs more (e)"]),
    (["e", "f", "g", "h", "i"], ["5 IDs more (e, f, g and 2 more)", "4 IDs fewer (a, b, c and 1 more)"]),
    (["d", "c", "b", "a"], ["another order"])])
def test_a_changed_list_is_named(layout, lines, words):
    old = now(layout).of
    make_file(layout.root / "ImageSets/Segmentation/train.txt", "\n".join(lines))
    (found,) = records.training_changes(old, now(layout))
    assert "train.txt" in found and all(word in found for word in words)


def test_labels_json_is_named_and_images_off_the_list_do_not_count(layout):
    labels = dict.fromkeys([*IDS, "other"], ["cat"])
    make_file(layout.root / "labels.json", json.dumps(labels))
    old = now(layout).of
    make_file(layout.root / "labels.json", json.dumps(labels | {"other": ["dog"], "new": []}, indent=2))
    assert not records.training_changes(old, now(layout))
    make_file(layout.root / "labels.json", json.dumps(labels | {"a": [], "d": ["dog"]}))
    (found,) = records.training_changes(old, now(layout))
    assert "the labels of 2 images (a, d)" in found and "labels.json" in found


def test_a_moved_or_copied_dataset_is_the_same(layout, tmp_path):
    old = now(layout).of
    moved = VOCLayout(shutil.move(layout.root, tmp_path / "elsewhere"))
    assert not records.training_changes(old, now(moved))
    for i in IDS:
        os.utime(moved.root / f"JPEGImages/{i}.jpg", (2000, 2000))      # as cp -r leaves them
    assert not records.training_changes(old, now(moved))
    replace_photo(moved)
    assert "the photo of 1 image (b)" in records.training_changes(old, now(moved))[0]


def test_a_photo_that_was_written_again_has_changed(layout):
    """Of one photo the time alone: where the others keep theirs, it is no copy of the dataset."""
    old = now(layout).of
    os.utime(layout.root / "JPEGImages/b.jpg", (2000, 2000))
    assert "the photo of 1 image (b)" in records.training_changes(old, now(layout))[0]


def test_other_photos_of_the_same_sizes_are_no_copy(layout):
    old = now(layout).of
    for i in IDS:
        make_file(layout.root / f"JPEGImages/{i}.jpg", f"other {i}")        # as long as "photo a"
        os.utime(layout.root / f"JPEGImages/{i}.jpg", (2000, 2000))
    assert "the photos of 4 images (a, b, c and 1 more)" in records.training_changes(old, now(layout))[0]


@pytest.mark.parametrize("at", [0, 50_000, 99_999])
def test_a_large_file_is_told_by_its_start_middle_and_end(layout, at):
    old = {}
    for content in (b"a" * 100_000, b"a" * at + b"b" + b"a" * (99_999 - at)):
        for i in IDS:
            (layout.root / f"JPEGImages/{i}.jpg").write_bytes(content)
            os.utime(layout.root / f"JPEGImages/{i}.jpg", (1000, 1000))
        found, old = records.training_changes(old, now(layout)), now(layout).of
    assert len(found) == 1 and "the photos of 4 images" in found[0]


def test_records_of_older_runs_are_compared_without_checksums(layout, tmp_path):
    """Then a copy cannot be told from other photos of the same sizes, as long as all have other times."""
    maps = {tmp_path / "theirs": {i: make_file(tmp_path / f"theirs/{i}.npy") for i in IDS}}
    new = now(layout, maps=maps)
    assert {len(signature) for signature in new.of.values()} == {7}
    folder = make_file(tmp_path / "maps/b.npz").parent
    for signature in ("a b c", "a b c e f"):
        old = {i: [value for value, name in zip(new.of[i], "abcdefg") if name in signature] for i in IDS}
        make_file(folder / "made_by.images.json", json.dumps(old))
        records.check(folder, new)
        assert not records.training_changes(old, new)
    replace_photo(layout)
    make_file(tmp_path / "theirs/a.npy", "other maps")
    changed = records.changes(old, now(layout, maps=maps))
    assert changed == {"photos": ["b"], "maps": ["a"]}


def test_others_maps_that_are_made_anew_are_no_copy(layout, tmp_path):
    maps = {tmp_path / "theirs": {i: make_file(tmp_path / f"theirs/{i}.npy", "scores") for i in IDS}}
    old = now(layout, maps=maps).of
    for path in (path for paths in maps.values() for path in paths.values()):
        os.utime(path, (1000, 1000))
    assert not records.changes(old, now(layout, maps=maps))
    for path in (path for paths in maps.values() for path in paths.values()):
        make_file(path, "SCORES")
    assert records.changes(old, now(layout, maps=maps)) == {"maps": IDS}


def test_overwrite_makes_the_maps_of_changed_images_again_and_only_theirs(layout, tmp_path):
    for name in ("a.npz", "b.npz", "b.npy", "b.png", "b_cam_cat.png", "made_by.json"):
        folder = make_file(tmp_path / "maps" / name).parent
    records.write(folder, now(layout))
    relabel(layout)
    records.write(folder, now(layout), overwrite=True)
    assert sorted(os.listdir(folder)) == ["a.npz", "made_by.images.json", "made_by.json"]
    records.check(folder, now(layout))
    replace_photo(layout)                       # b has no map that could be stale
    records.write(folder, now(layout))
    records.check(folder, now(layout))


def test_lists_of_several_runs_and_shards_are_one_record(layout, tmp_path):
    folder = tmp_path / "maps"
    for i in IDS:
        make_file(folder / f"{i}.npz")
    records.write(folder, now(layout, ["a"]))
    records.write(folder, now(layout, ["b", "c"]), "1/2")
    records.write(folder, now(layout, ["d"]), "2/2")
    assert records.read(folder) == now(layout).of
    assert sorted(path.name for path in folder.glob("*.json")) == [
        "made_by.images.1_2.json", "made_by.images.2_2.json", "made_by.images.json"]
    relabel(layout)
    with pytest.raises(records.StaleImages, match=r"1 image \(b\)"):
        records.write(folder, now(layout))
    records.write(folder, now(layout), overwrite=True)
    assert records.read(folder) == now(layout).of
    assert [path.name for path in folder.glob("*.json")] == ["made_by.images.json"]


def test_what_is_not_known_is_not_compared(layout, tmp_path):
    """Folders of older runs, images without labels, maps that do not depend on the labels, photos that are gone."""
    folder = make_file(tmp_path / "maps/b.npz").parent
    assert records.read(folder) == {}
    records.check(folder, now(layout))
    records.write(folder, now(layout, labels=False))
    relabel(layout)
    records.check(folder, now(layout))
    shutil.rmtree(layout.root / "Annotations")
    shutil.rmtree(layout.root / "JPEGImages")
    records.check(folder, now(layout))
    assert now(layout).of["a"] == [None] * 4


@pytest.mark.parametrize("text", ["[]", "3", '{"a": 1}', '{"a": [1, 2, 3]}', '{"a": ["cat", 1]}', '{"a"'])
def test_a_damaged_record_is_named(layout, tmp_path, text):
    folder = make_file(tmp_path / "maps/made_by.images.json", text).parent
    with pytest.raises(ValueError, match="made_by.images.json.*delete it"):
        records.check(folder, now(layout))


def test_two_thousand_images_are_read_in_a_moment(tmp_path):
    ids = [f"{i:05d}" for i in range(2000)]
    for i in ids:
        make_file(tmp_path / f"JPEGImages/{i}.jpg", "a photo" * 3000)
    make_file(tmp_path / "labels.json", json.dumps(dict.fromkeys(ids, ["cat"])))
    started = time.process_time()
    found = signatures(VOCLayout(tmp_path), ids)
    records.write(tmp_path, found)
    records.check(tmp_path, found)
    assert time.process_time() - started < 1


# ---- folders of maps, and trainings, that rest on images ----

def test_a_chain_is_stale_from_where_the_image_was_read(layout, tmp_path):
    experiment = Experiment(tmp_path / "experiment", "X")
    made = {"data": {"labels.json": "x"}}

    def open_outputs(name, inputs, overwrite=False, data="x"):
        made["data"]["labels.json"] = data
        settings, outputs = {"shard": "1/1", "overwrite": overwrite}, {name: (name, f"infer {name}", made, inputs)}
        experiment.open_outputs("infer", settings, outputs, lambda _: 0, "", now(layout))
        for i in IDS:
            make_file(experiment / name / f"{i}.npz")

    open_outputs("dict", [])
    open_outputs("rw", [experiment / "dict"])
    verify(experiment / "rw", experiment.folder, {"labels.json": "other"}, images=now(layout))
    with pytest.raises(ValueError, match="labels.json has changed"):
        verify(experiment / "rw", experiment.folder, {"labels.json": "other"})
    relabel(layout)
    for folder in ("dict", "rw"):
        with pytest.raises(records.StaleImages, match="X/dict is stale"):
            verify(experiment / folder, experiment.folder, images=now(layout))
    open_outputs("dict", [], overwrite=True, data="y")
    with pytest.raises(records.StaleImages, match="X/rw is stale"):
        verify(experiment / "rw", experiment.folder, images=now(layout))
    open_outputs("rw", [experiment / "dict"], overwrite=True, data="y")
    verify(experiment / "rw", experiment.folder, {"labels.json": "y"}, images=now(layout))


def test_a_training_compares_content_not_names():
    old = {"lr": 1, "er_init": "a/model_oc", "crf_dir": "crf", "inputs": {"er_init": "123", "crf low": "5"}}
    assert not training_differences(old, old | {"er_init": "b/model_oc", "crf_dir": "elsewhere"})
    old = old | {"train_list": "train"}
    assert not training_differences(old, old | {"train_list": "the_same.txt"}, by_image=True)
    assert training_differences(old, old | {"train_list": "other.txt"}) == ["train_list: then train, now other.txt"]
    other = old | {"er_init": "b/model_oc", "inputs": {"er_init": "124", "crf low": "5"}}
    assert " ".join(training_differences(old, other)).count("er_init") == 2
    assert training_differences(old, old | {"lr": 2}) == ["lr: then 1, now 2"]


def test_a_training_without_a_record_of_images_compares_the_files(layout):
    saved = {"settings": {"inputs": {"labels.json": "1", "er_init": "2"}}}
    record = {"inputs": {"labels.json": "3", "er_init": "2"}}
    assert differing(saved, record, now(layout)) == (["inputs labels.json: then 1, now 3"], [])
    assert differing(saved | {"images": now(layout).of}, record, now(layout)) == ([], [])
    relabel_then = saved | {"images": now(layout).of}
    relabel(layout)
    assert "Annotations" in differing(relabel_then, record, now(layout))[1][0]


# ---- experiments that were renamed or moved ----

def test_a_renamed_or_moved_experiment_keeps_its_folders(tmp_path):
    experiment = Experiment(tmp_path / "experiment", "a")
    weights = make_file(experiment / "ckpt/model_cse/014.pth", "weights")
    other = make_file(tmp_path / "experiment/base/ckpt/model_oc/000.pth", "others")

    def claims(experiment, own, other):
        dict_ = experiment.claim("dict", "infer model_cse", {}, [own, other])
        make_file(dict_ / "x.npz")
        make_file(experiment.claim("rw", "infer_aff", {}, [dict_]) / "x.png")
        verify(experiment / "rw", experiment.folder)

    claims(experiment, weights, other)
    before = digest(experiment / "dict"), digest(experiment / "rw")
    (tmp_path / "experiment/a").rename(tmp_path / "experiment/b")
    renamed = Experiment(tmp_path / "experiment", "b")
    claims(renamed, renamed / "ckpt/model_cse/014.pth", other)
    other.parents[2].rename(tmp_path / "experiment/base2")
    claims(renamed, renamed / "ckpt/model_cse/014.pth", tmp_path / "experiment/base2/ckpt/model_oc/000.pth")
    (tmp_path / "experiment").rename(tmp_path / "moved")
    moved = Experiment(tmp_path / "moved", "b")
    there = moved / "ckpt/model_cse/014.pth", tmp_path / "moved/base2/ckpt/model_oc/000.pth"
    claims(moved, *there)
    assert before == (digest(moved / "dict"), digest(moved / "rw"))
    for path in there:
        text = path.read_text()
        path.write_text("trained anew")
        with pytest.raises(ValueError, match="dict was made differently"):
            claims(moved, *there)
        path.write_text(text)


def test_folders_without_a_digest_are_told_apart_by_name(tmp_path):
    experiment = Experiment(tmp_path / "experiment", "X")
    theirs, others = (make_file(tmp_path / name / "x.npy").parent for name in ("theirs", "others"))
    np.savez(experiment.claim("crf/04", "infer crf", {}, [theirs]) / "x.npz")
    experiment.claim("crf/04", "infer crf", {}, [theirs])
    with pytest.raises(ValueError, match="made differently.*theirs"):
        experiment.claim("crf/04", "infer crf", {}, [others])
