"""data.prepare coco: labels, lists and label maps of COCO's annotations, of real photos and of made-up ones."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import prepare
from data.images import read_image
from data.layout import VOCLayout
from data.prepare import coco_masks
from tests.conftest import SHARED, leftover, snapshot

SAMPLE = SHARED / "data/coco_sample"
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")      # pycocotools', of numpy 2
CATEGORIES = [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
CLASSES = ["person", "car", "toothbrush"]               # in the order of their numbers


def coco(*words):
    prepare.main(["coco", "--num_workers", "0", *map(str, words)])


def refused(*words):
    with pytest.raises(SystemExit) as caught:
        coco(*words)
    message = str(caught.value.code)
    assert message.startswith("error: ") and "Traceback" not in message
    return message


def rectangle(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def annotation(image, category, segmentation, crowd=0, **more):
    return {"image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd,
            "bbox": [1, 2, 3, 4]} | more


def rle(mask):
    """Write a mask as COCO's uncompressed RLE: runs of 0 and 1 in turn, column by column."""
    flat, runs, value = mask.T.reshape(-1), [], 0
    while len(flat):
        run = len(flat) if (flat == value).all() else int(np.argmax(flat != value))
        runs.append(run)
        flat, value = flat[run:], 1 - value
    return {"size": list(mask.shape), "counts": runs}


def make(place, images=None, annotations=None, categories=CATEGORIES, name="instances_train2014.json", size=(20, 30)):
    """Write an annotation file and its photos; returns the words of the command line."""
    images = images or {1: "a.jpg", 2: "b.jpg", 3: "c.jpg"}
    annotations = [annotation(1, 1, rectangle(2, 3, 10, 10)), annotation(2, 3, rectangle(0, 0, 5, 5))] if (
        annotations is None) else annotations
    photos = place / "photos"
    rows = []
    for number, file_name in images.items():
        path = photos / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.new("RGB", size[::-1], (number, 0, 0)).save(path, quality=95)
        rows.append({"id": number, "file_name": file_name, "height": size[0], "width": size[1]})
    table = {"images": rows, "annotations": annotations, "categories": categories}
    (place / name).write_text(json.dumps(table))
    return ["--root", place / "coco", "--images", photos, "--annotations", place / name]


def mask_of(place, image_id="a"):
    return VOCLayout(place / "coco").ground_truth(image_id)


# ---- classes, labels, lists ----

def test_a_root_that_every_stage_reads(tmp_path, capsys):
    coco(*make(tmp_path, annotations=[annotation(1, 90, rectangle(2, 3, 10, 10)),
                                      annotation(1, 1, rectangle(0, 0, 4, 4)), annotation(1, 1, rectangle(1, 1, 4, 4)),
                                      annotation(2, 3, rectangle(0, 0, 5, 5), crowd=1)]))
    layout = VOCLayout(tmp_path / "coco")
    assert layout.classes == CLASSES
    assert layout.ids("train") == layout.ids("train_aug") == ["a", "b"]
    assert json.loads((tmp_path / "coco/labels.json").read_text()) == {
        "a": ["person", "toothbrush"], "b": ["car"], "c": []}             # a crowd of cars is no photo without a car
    text = capsys.readouterr().out
    assert "2 images in train" in text and "1 without an object left out" in text and "instance masks" in text
    assert (layout.image_path("a")).samefile(tmp_path / "photos/a.jpg") and layout.image_path("a").is_symlink()
    assert "no val.txt" in text and "--val_share" in text
    assert not list((tmp_path / "coco").rglob(".*"))


def test_the_same_command_again_changes_nothing(tmp_path):
    words = make(tmp_path)
    coco(*words)
    before = snapshot(tmp_path)
    coco(*words)
    assert snapshot(tmp_path) == before


def test_train_and_val_at_once_or_one_after_the_other(tmp_path, capsys):
    at_once, later = tmp_path / "1", tmp_path / "2"
    for place in (at_once, later):
        place.mkdir()
        train = make(place)
        val = make(place, {7: "d.jpg", 8: "e.jpg"}, [annotation(7, 1, rectangle(0, 0, 9, 9))],
                   name="instances_val2014.json")
        if place == at_once:
            coco(*train[:4], train[3], "--annotations", train[5], val[5])
        else:
            coco(*train)
            before = snapshot(place / "coco")
            coco(*val)
            kept = [p for p in before if p.name not in ("labels.json", "prepared.json")]
            assert all(snapshot(place / "coco")[p] == before[p] for p in kept)
            labels = (place / "coco/labels.json").read_text()
            coco(*train)
            assert (place / "coco/labels.json").read_text() == labels
        layout = VOCLayout(place / "coco")
        assert layout.ids("val") == ["d", "e"] and layout.ids("train") == ["a", "b"]       # val has all
        assert layout.label("e").sum() == 0 and layout.ground_truth("e").max() == 0
    assert "no val.txt" not in capsys.readouterr().out.split("images in val")[-1]


def test_val_share(tmp_path):
    images = {i: f"{i:03d}.jpg" for i in range(1, 21)}
    words = make(tmp_path, images, [annotation(i, 1, rectangle(0, 0, 9, 9)) for i in images])
    coco(*words, "--val_share", .25)
    layout = VOCLayout(tmp_path / "coco")
    assert len(layout.ids("val")) == 5 and len(layout.ids("train")) == 15
    assert not set(layout.ids("val")) & set(layout.ids("train"))
    assert "another folder" in refused(*words, "--val_share", .25, "--seed", 1)


@pytest.mark.parametrize("name, split", [("instances_train2017.json", "train"), ("my_val.json", "val"),
                                         ("instances.json", "train"), ("_annotations.coco.json", "train")])
def test_the_list_is_named_by_the_file(tmp_path, name, split):
    coco(*make(tmp_path, name=name))
    assert (tmp_path / f"coco/ImageSets/Segmentation/{split}.txt").exists()


def test_a_share_that_nothing_would_be_held_out_of(tmp_path):
    words = make(tmp_path, name="x.json")
    for split in ("test", "train2014", "val"):
        message = refused(*words, "--split", split, "--val_share", .5)
        assert "--val_share" in message and split in message and "--split train" in message
    assert not (tmp_path / "coco").exists()
    coco(*words, "--val_share", .5)
    val = make(tmp_path, {7: "d.jpg"}, [annotation(7, 1, rectangle(0, 0, 9, 9))], name="instances_val2014.json")
    assert "val.txt" in refused(*val) and "Nothing was changed" in refused(*val)


@pytest.mark.parametrize("name", ["", " ", "void", "Unlabeled", "x" * 101, "two\nlines", None, ["car"]])
def test_a_category_that_cannot_be_a_class(tmp_path, name):
    message = refused(*make(tmp_path, categories=[*CATEGORIES, {"id": 2, "name": name}]))
    assert "instances_train2014.json" in message and not (tmp_path / "coco").exists()
    assert "no name" in message if not isinstance(name, str) else repr(name.strip())[:20] in message


@pytest.mark.parametrize("key", ["category_id", "image_id"])
@pytest.mark.parametrize("value", [[1], {}])
def test_a_number_that_is_none(tmp_path, key, value):
    message = refused(*make(tmp_path, annotations=[annotation(1, 1, rectangle(0, 0, 4, 4)) | {key: value}]))
    assert "instances_train2014.json" in message and key in message and str(value) in message
    assert not (tmp_path / "coco").exists()


def test_split_names_the_list(tmp_path):
    coco(*make(tmp_path, name="x.json"), "--split", "mine")
    assert VOCLayout(tmp_path / "coco").ids("mine") == ["a", "b", "c"]
    words = make(tmp_path, name="y.json")
    assert "--split" in refused(*words, tmp_path / "x.json")                # both would be train
    assert "--split" in refused(*words, "--split", "../x")
    assert "one for all" in refused(*words[:4], tmp_path, tmp_path, *words[4:])


def test_one_root_holds_one_thing(tmp_path):
    """Other annotations, classes or ground truth are refused before anything is written."""
    words = make(tmp_path)
    coco(*words)
    before = snapshot(tmp_path / "coco")
    make(tmp_path, annotations=[annotation(1, 1, rectangle(5, 5, 9, 9))])
    assert "other annotations" in refused(*words) and "--root" in refused(*words)
    words = make(tmp_path, {9: "z.jpg"}, [annotation(9, 1, [])], [{"id": 1, "name": "horse"}], "instances_val2014.json")
    assert "classes" in refused(*words)
    words = make(tmp_path, {1: "a.jpg"}, [annotation(1, 1, [])], name="instances_val2014.json")
    assert "train.txt" in refused(*words)                                     # a is trained on
    assert snapshot(tmp_path / "coco") == before


@pytest.mark.parametrize("strange", ["labels.json", "classes.txt", "ImageSets/Segmentation/train.txt",
                                     "SegmentationClass/a.png"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, strange):
    path = tmp_path / "coco" / strange
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert str(tmp_path / "coco" / Path(strange).parts[0]) in refused(*make(tmp_path))
    assert list(snapshot(tmp_path / "coco")) == [path]


def test_photos_that_lie_in_the_root_already(tmp_path):
    words = make(tmp_path)
    (tmp_path / "coco").mkdir()
    os.rename(tmp_path / "photos", tmp_path / "coco/JPEGImages")
    words[3] = tmp_path / "coco/JPEGImages"
    coco(*words)
    assert sorted(p.name for p in words[3].iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    assert not any(p.is_symlink() for p in words[3].iterdir())


def test_another_photo_of_that_name_is_not_replaced(tmp_path):
    words = make(tmp_path)
    (tmp_path / "coco/JPEGImages").mkdir(parents=True)
    (tmp_path / "coco/JPEGImages/a.jpg").write_text("mine")
    message = refused(*words)
    assert "JPEGImages/a.jpg" in message and (tmp_path / "coco/JPEGImages/a.jpg").read_text() == "mine"


def test_copies(tmp_path):
    words = make(tmp_path)
    coco(*words)
    coco(*words, "--copy")
    coco(*words, "--copy")
    path = tmp_path / "coco/JPEGImages/a.jpg"
    assert not path.is_symlink() and path.read_bytes() == (tmp_path / "photos/a.jpg").read_bytes()


@pytest.mark.parametrize("name, stored", [("a.JPG", "a.jpg"), ("a.jpeg", "a.jpg"), ("a.Png", "a.png"),
                                          ("a.jfif", "a.jpg"), ("a.JPE", "a.jpg"),
                                          ("a b (1).jpg", "a_b_1_.jpg"), ("강아지.jpg", "강아지.jpg"),
                                          ("a.rf.9f.jpg", "a.rf.9f.jpg"), ("sub/a.jpg", "a.jpg")])
def test_names_of_photos(tmp_path, name, stored, capsys):
    coco(*make(tmp_path, {1: name}, [annotation(1, 1, rectangle(0, 0, 9, 9))]))
    layout = VOCLayout(tmp_path / "coco")
    assert [p.name for p in (tmp_path / "coco/JPEGImages").iterdir()] == [stored]
    assert layout.ids("train") == [Path(stored).stem] and read_image(layout.image_path(Path(stored).stem)).size
    assert ("another name" in capsys.readouterr().out) == (" " in name)


def test_photos_of_one_name_in_two_folders(tmp_path):
    coco(*make(tmp_path, {1: "fox/1.jpg", 2: "owl/1.jpg"}, [annotation(1, 1, []), annotation(2, 3, [])]))
    assert json.loads((tmp_path / "coco/labels.json").read_text()) == {"fox_1": ["person"], "owl_1": ["car"]}


def test_file_names_with_the_folder_of_images(tmp_path):
    """file_name is train2014/a.jpg, and --images is train2014 itself."""
    words = make(tmp_path, {1: "train2014/a.jpg"}, [annotation(1, 1, rectangle(0, 0, 9, 9))])
    words[3] = tmp_path / "photos/train2014"
    coco(*words)
    assert VOCLayout(tmp_path / "coco").ids("train") == ["a"]


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "x/../../a.jpg", "..\\a.jpg"])
def test_a_file_name_cannot_leave_the_folder(tmp_path, name):
    words = make(tmp_path)
    table = json.loads((tmp_path / "instances_train2014.json").read_text())
    table["images"][0]["file_name"] = name
    (tmp_path / "instances_train2014.json").write_text(json.dumps(table))
    assert "leaves the folder" in refused(*words) and not (tmp_path / "coco").exists()


def test_missing_photos(tmp_path, capsys):
    words = make(tmp_path)
    (tmp_path / "photos/b.jpg").unlink()
    message = refused(*words)
    assert "1 of the 3" in message and "b.jpg" in message and "--skip_missing" in message
    assert not (tmp_path / "coco").exists()
    coco(*words, "--skip_missing")
    assert VOCLayout(tmp_path / "coco").ids("train") == ["a"] and "1 of 3 images" in capsys.readouterr().out
    words[3] = tmp_path / "none"
    assert "none is not there" in refused(*words)


@pytest.mark.parametrize("content, words", [
    ("[]", ["instances_*.json"]), ("{", ["not complete JSON"]), ("", ["not complete JSON"]),
    ('{"images": [], "categories": [], "annotations": []}', ["no image"]),
    ('{"a": ["dog"], "b": ["cat"]}', ["COCO's format"]),                              # our own labels.json
    ('[{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": []}]', ["results"]),
    ({"annotations": [{"image_id": 1, "id": 1, "caption": "a car"}]}, ["captions"]),
    ({"annotations": [{"image_id": 1, "segments_info": []}]}, ["panoptic"]),
    ({"annotations": [{"image_id": 1, "category_id": 55}]}, ["category 55"]),
    ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, ["twice", "a"]),
    ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, ["twice"]),
    ({"categories": [{"name": "a"}]}, ["no id"]), ({"categories": []}, ["no category"]),
    ({"categories": [{"id": i, "name": str(i)} for i in range(300)]}, ["254"]),
    ({"images": [{"id": 1}]}, ["no file_name"]),
    ({"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]}, ["the id of another"]),
    ({"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}]}, ["a.jpg twice"]),
    ({"annotations": []}, ["no image", "object"]),
])
def test_other_files_are_refused(tmp_path, content, words):
    line = make(tmp_path)
    path = tmp_path / "instances_train2014.json"
    path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    message = refused(*line)
    assert str(path) in message and all(word in message for word in words), message
    assert not (tmp_path / "coco").exists()


def test_background_among_the_categories_is_no_class(tmp_path, capsys):
    categories = [{"id": 0, "name": "_background_"}, {"id": 1, "name": "cell"}, {"id": 2, "name": "__ignore__"}]
    coco(*make(tmp_path, categories=categories, annotations=[
        annotation(1, 0, rectangle(0, 0, 30, 20)), annotation(1, 1, rectangle(0, 0, 9, 9)),
        annotation(1, 2, rectangle(20, 10, 5, 5))]))
    assert VOCLayout(tmp_path / "coco").classes == ["cell"] and "_background_" in capsys.readouterr().out
    mask = mask_of(tmp_path)
    assert (mask[5, 5], mask[5, 15], mask[12, 22]) == (1, 0, 255)


def test_classes_without_an_image_and_stray_annotations_are_counted(tmp_path, capsys):
    coco(*make(tmp_path, annotations=[annotation(1, 1, rectangle(0, 0, 9, 9)), annotation(77, 3, [])]))
    text = capsys.readouterr().out
    assert "2 of 3 classes" in text and "car, toothbrush" in text and "1 annotation of" in text


# ---- masks ----

def test_smaller_objects_lie_on_larger_ones_and_crowds_are_ignored(tmp_path):
    crowd = np.zeros((20, 30), np.uint8)
    crowd[:, 20:] = 1
    small = np.zeros((20, 30), np.uint8)
    small[8:12, 8:12] = 1
    coco(*make(tmp_path, annotations=[
        annotation(1, 3, rle(small)),                                          # listed first, and the smallest
        annotation(1, 1, rectangle(5, 5, 20, 10), area=1),                     # the file's areas may be wrong
        annotation(1, 90, rle(crowd), crowd=1)]))
    expected = np.zeros((20, 30), np.uint8)
    expected[:, 20:] = 255
    expected[5:15, 5:25] = 1
    expected[8:12, 8:12] = 2
    np.testing.assert_array_equal(mask_of(tmp_path), expected)
    assert VOCLayout(tmp_path / "coco").label("a").tolist() == [1, 1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_compressed_rle(tmp_path, seed):
    from pycocotools import mask as api
    mask = np.repeat(np.random.default_rng(seed).integers(0, 2, (4, 30), np.uint8), 5, axis=0)
    packed = api.encode(np.asfortranarray(mask))
    assert coco_masks.unpack_runs(packed["counts"].decode()) == rle(mask)["counts"]
    coco(*make(tmp_path, annotations=[annotation(1, 3, packed | {"counts": packed["counts"].decode()})]))
    np.testing.assert_array_equal(mask_of(tmp_path), mask * 2)


def test_objects_of_several_polygons_and_of_a_box_alone(tmp_path, capsys):
    coco(*make(tmp_path, annotations=[
        annotation(1, 1, rectangle(0, 0, 4, 4) + rectangle(10, 10, 4, 4)),
        annotation(1, 3, [], bbox=[20, 1, 5, 6]), annotation(1, 3, [[1, 2, 3, 4]], bbox=[20, 10, 5, 6])]))
    mask = mask_of(tmp_path)
    assert (mask == 1).sum() == 32 and mask[12, 12] == 1
    assert (mask[1:7, 20:25] == 255).all() and (mask == 255).sum() == 60
    assert "2 objects have a box" in capsys.readouterr().out


@pytest.mark.parametrize("segmentation", [
    {"size": [20, 30], "counts": "not an RLE \x00\xff"}, {"size": [20, 30], "counts": [5, 10 ** 9]},
    {"size": [20, 30], "counts": [5, 10]}, {"size": [20, 30], "counts": "52"}, {"counts": [1]},
    {"size": [20, 30], "counts": [700, -100]},
    {"size": [30, 20], "counts": [600]}, [[0, 0, 1e12, 0, 5, 5]], [["a", 0, 1, 0, 5, 5]], "x", [[float("nan")] * 6]])
def test_a_damaged_segmentation_is_named(tmp_path, segmentation):
    message = refused(*make(tmp_path, annotations=[annotation(1, 1, segmentation)]))
    assert "a.jpg" in message and "fix them" in message
    assert not (tmp_path / "coco/ImageSets").exists()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_turns_with_its_photo(tmp_path, orientation):
    """COCO annotates the pixels as they are stored; every stage reads the photo as its EXIF data turns it."""
    words = make(tmp_path, annotations=[annotation(1, 1, rectangle(2, 3, 10, 6))])
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[3:9, 2:12] = 255
    exif = Image.Exif()
    exif[0x112] = orientation
    (tmp_path / "photos/a.jpg").unlink()
    Image.fromarray(pixels).save(tmp_path / "photos/a.jpg", exif=exif, quality=100, subsampling=0)
    coco(*words)
    bright = read_image(VOCLayout(tmp_path / "coco").image_path("a"))[..., 0] > 128
    np.testing.assert_array_equal(mask_of(tmp_path) == 1, bright)


def test_annotations_of_the_upright_photo_are_left_as_they_are(tmp_path):
    words = make(tmp_path, {1: "a.jpg"}, [annotation(1, 1, rectangle(2, 3, 6, 10))], size=(30, 20))
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "photos/a.jpg", exif=exif)
    coco(*words)
    assert (mask_of(tmp_path)[3:13, 2:8] == 1).all() and mask_of(tmp_path).shape == (30, 20)


def test_a_resized_photo_is_named(tmp_path):
    words = make(tmp_path)
    Image.new("RGB", (15, 10)).save(tmp_path / "photos/b.jpg")
    message = refused(*words)
    assert "b.jpg" in message and "15x10" in message and "30x20" in message
    (tmp_path / "photos/b.jpg").write_text("no photo")
    assert "b.jpg" in refused(*words)


# ---- COCO-Stuff ----

def stuff(folder, name, values, mode="L"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).convert(mode).save(folder / name)


@pytest.mark.parametrize("folder", ["", "train2017"])
@pytest.mark.parametrize("name", ["{stem}.png", "000000000009.png", "{stem}_labelTrainIds.png"])
def test_stuff_maps(tmp_path, folder, name, capsys):
    """Things get their class ids, stuff is background, what has no label is ignored."""
    stem = "COCO_train2014_000000000009"
    words = make(tmp_path, {9: f"{stem}.jpg"}, [annotation(9, 1, rectangle(0, 0, 9, 9))])
    person, car, toothbrush, sky = (0, 1, 2, 90) if "Train" in name else (0, 2, 89, 156)
    values = np.full((20, 30), sky)
    values[:5], values[5:10], values[10:12], values[12] = person, car, toothbrush, 255
    stuff(tmp_path / "stuff" / folder, name.format(stem=stem), values)
    coco(*words, "--stuff", tmp_path / "stuff")
    assert mask_of(tmp_path, stem)[:, 0].tolist() == [1] * 5 + [2] * 5 + [3] * 2 + [255] + [0] * 7
    assert "COCO-Stuff" in capsys.readouterr().out
    assert "COCO-Stuff" in json.loads((tmp_path / "coco/made_by.json").read_text())["ground_truth"]
    assert "one table" in refused(*words)


@pytest.mark.parametrize("value, mode, words", [(183, "L", ["183", "stuffthingmaps"]), (182, "L", ["182"]),
                                                (1, "RGB", ["RGB"]), (None, "L", ["000000000001"])])
def test_other_stuff_maps_are_refused(tmp_path, value, mode, words):
    line = make(tmp_path, {1: "000000000001.jpg"}, [annotation(1, 1, [])])
    stuff(tmp_path / "stuff", "x.png" if value is None else "000000000001.png", np.full((20, 30), value or 0), mode)
    message = refused(*line, "--stuff", tmp_path / "stuff")
    assert all(word in message for word in words) and not (tmp_path / "coco/ImageSets").exists()
    assert "--stuff" in refused(*line, "--stuff", tmp_path / "none")


# ---- interruptions, processes ----

def test_an_interrupted_preparation_resumes(tmp_path, monkeypatch):
    words, write, written = make(tmp_path), coco_masks.write_labels, []

    def stop(path, labels):
        if len(written) == 2:
            (path.parent / leftover(path.name)).write_text("half")        # as kill -9 leaves it
            raise KeyboardInterrupt
        written.append(path)
        write(path, labels)

    monkeypatch.setattr(coco_masks, "write_labels", stop)
    with pytest.raises(SystemExit, match="same command again"):
        coco(*words)
    root = tmp_path / "coco"
    assert not (root / "ImageSets").exists() and not (root / "labels.json").exists()    # no stage takes it for complete
    before = {p: s for p, s in snapshot(root).items() if p.suffix == ".png" and not p.name.startswith(".")}
    assert len(before) == 2
    monkeypatch.setattr(coco_masks, "write_labels", write)
    coco(*words)
    assert before.items() <= snapshot(root).items() and not list(root.rglob(".*"))
    assert len(list((root / "SegmentationClass").iterdir())) == 3


def test_a_run_that_dies_after_its_claim_resumes(tmp_path, monkeypatch):
    words = make(tmp_path)
    monkeypatch.setattr("data.prepare.coco.write_lines", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        coco(*words)
    monkeypatch.undo()
    coco(*words)
    assert VOCLayout(tmp_path / "coco").ids("train") == ["a", "b"]


def test_several_processes_write_the_same(tmp_path):
    images = {i: f"{i:03d}.jpg" for i in range(1, 40)}
    for workers in (0, 2):
        place = tmp_path / str(workers)
        place.mkdir()
        coco(*make(place, images, [annotation(i, 1, rectangle(0, 0, i % 20 + 1, 9)) for i in images]), "--num_workers",
             workers)
    masks = [{p.name: p.read_bytes() for p in (tmp_path / f"{w}/coco/SegmentationClass").iterdir()} for w in (0, 2)]
    assert masks[0] == masks[1] and len(masks[0]) == 39


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    words = make(tmp_path)
    monkeypatch.setattr(Image.Image, "save", full)
    message = refused(*words)
    assert "SegmentationClass" in message and "No space left" in message
    assert not list((tmp_path / "coco").rglob(".*"))


def test_pycocotools_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    assert "requirements.txt" in refused(*make(tmp_path))


# ---- real photos ----

sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason="COCO's sample is not in ../shared/data/coco_sample")


@pytest.mark.slow
@sample
def test_real_photos_against_pycocotools(tmp_path, capsys):
    """60 photos: the label maps are what pycocotools' own masks make, objects by falling area, crowds below."""
    from pycocotools.coco import COCO
    coco("--root", tmp_path / "c", "--images", SAMPLE / "images", "--annotations", SAMPLE / "instances.json")
    text = capsys.readouterr().out
    assert "58 images in train" in text and "2 without an object left out" in text
    layout, api = VOCLayout(tmp_path / "c"), COCO(SAMPLE / "instances.json")
    numbers = sorted(api.cats)
    assert layout.classes == [api.cats[n]["name"] for n in numbers] and len(numbers) == 80
    assert not {"000000000508", "000000058636"} & set(layout.ids("train"))
    for image in api.imgs.values():
        image_id, expected = Path(image["file_name"]).stem, np.zeros((image["height"], image["width"]), np.uint8)
        found = api.imgToAnns[image["id"]]
        for row in (r for r in found if r["iscrowd"]):
            expected[api.annToMask(row) > 0] = 255
        for row in sorted((r for r in found if not r["iscrowd"]), key=lambda r: -int(api.annToMask(r).sum())):
            expected[api.annToMask(row) > 0] = numbers.index(row["category_id"]) + 1
        np.testing.assert_array_equal(layout.ground_truth(image_id), expected)
        assert set(np.flatnonzero(layout.label(image_id)) + 1) >= set(np.unique(expected)) - {0, 255}
        assert {layout.classes[k] for k in np.flatnonzero(layout.label(image_id))} == {
            api.cats[r["category_id"]]["name"] for r in found}
