"""python -m data.prepare check: everything that is wrong with a dataset folder is named, not the first thing only."""
import json
import os
import shlex
import shutil

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from data import prepare
from data.images import voc_palette
from data.layout import VOCLayout
from tests.conftest import make_file
from tests.stages import assert_says
from tests.test_prepare_folder import as_rgb, mask, photo, save_with_new_palette

LABELS = {"1": ["fox"], "2": ["owl"], "3": ["fox", "owl"], "4": ["fox"], "5": ["owl"]}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Give a dataset with nothing wrong in it: data/mine, 5 images with masks, train 1 2 3, val 4 5."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data/mine"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for i, names in LABELS.items():
        photo(root / f"JPEGImages/{i}.jpg", seed=int(i))
        mask(root / f"SegmentationClass/{i}.png", labels_of(names))
    for split, ids in (("train", "123"), ("train_aug", "123"), ("val", "45")):
        write_list(root, split, ids)
    (root / "classes.txt").write_text("fox\nowl\n")
    write_labels(root, LABELS)
    return root


def labels_of(names, size=(8, 12)):
    labels = np.zeros(size, np.uint8)
    for k, name in enumerate(("fox", "owl"), start=1):
        labels[k : k + 2] = k if name in names else 0
    labels[-1] = 255
    return labels


def write_list(root, split, ids):
    (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{i}\n" for i in ids))


def write_labels(root, labels):
    (root / "labels.json").write_text(json.dumps(labels))


@pytest.fixture
def check(root, capsys):
    """Give a function that checks data/mine: returns (the lines that it printed, exit code or message)."""
    def run(*words):
        code = 0
        try:
            prepare.main(["check", "--root", "data/mine", *words])
        except SystemExit as error:
            code = error.code
        return capsys.readouterr().out, code
    return run


def errors(printed):
    return [line for line in printed.splitlines() if line.startswith("- error: ")]


def warnings(printed):
    return [line for line in printed.splitlines() if line.startswith("- warning: ")]


def one_error(result, *words):
    printed, code = result
    assert str(code).startswith("error: ") and len(errors(printed)) == 1, (printed, code)
    assert_says(errors(printed)[0], *words)


def one_warning(result, *words):
    printed, code = result
    assert code == 0 and not errors(printed) and len(warnings(printed)) == 1, printed
    assert_says(warnings(printed)[0], *words)


def test_nothing_wrong(root, check):
    printed, code = check()
    assert code == 0 and "data/mine: nothing is wrong" in printed and "- " not in printed
    assert_says(printed, "5 images, 5 with a mask, 2 classes")
    assert [line.split() for line in printed.splitlines()[1:5]] == [["train", "val"], ["images", "3", "2"],
                                                                   ["fox", "2", "1"], ["owl", "2", "1"]]


def test_the_sheet_shows_photos_with_their_masks(root, check, tmp_path):
    check()
    check("--sheet", "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes() == (root / "check.png").read_bytes()
    with Image.open("sheet.png") as sheet:
        sheet = np.asarray(sheet)
    fox = np.frombuffer(voc_palette(), np.uint8)[3:6]
    assert sheet.shape[2] == 3 and len(sheet) > 200
    tile = sheet[:240, :240].reshape(-1, 3).astype(int)
    photo_colours = {tuple(c) for c in np.asarray(Image.open(root / "JPEGImages/1.jpg")).reshape(-1, 3).tolist()}
    assert any(tuple((0.4 * np.array(c) + 0.6 * fox).astype(int)) in {tuple(t) for t in tile.tolist()}
               for c in photo_colours)


def test_a_sheet_of_24(root, check):
    for i in range(6, 40):
        photo(root / f"JPEGImages/{i}.jpg", seed=i)
    write_labels(root, LABELS | {str(i): ["fox"] for i in range(6, 40)})
    write_list(root, "train", ["1", "2", "3", *range(6, 40)])
    check()
    with Image.open(root / "check.png") as sheet:
        pixels = np.asarray(sheet)
    assert len(pixels) // (240 + 34) * 6 == 24
    assert all((pixels[y : y + 274, x : x + 240] < 250).any() for y in range(0, len(pixels), 274)
               for x in range(0, 1440, 240))


def test_a_dataset_that_may_not_be_written_to(root, check, monkeypatch):
    (root / "check.png").mkdir()
    printed, code = check()
    assert code == 0 and "--sheet" in printed


def test_everything_at_once(root, check):
    """Twelve faults of different kinds, and each is named."""
    write_list(root, "train", ["1", "2", "3", "gone", "../evil", "two words", "1"])
    write_list(root, "val", ["3", "4", "5"])
    (root / "JPEGImages/2.jpg").write_bytes((root / "JPEGImages/2.jpg").read_bytes()[:300])
    photo(root / "JPEGImages/4.PNG")
    mask(root / "SegmentationClass/1.png", labels_of(["fox"], (4, 4)))
    mask(root / "SegmentationClass/5.png", np.full((8, 12), 7, np.uint8))
    as_rgb(root / "SegmentationClass/3.png", labels_of(["fox", "owl"]))
    (root / "SegmentationClass/4.png").write_bytes(b"nothing")
    write_labels(root, {k: v for k, v in LABELS.items() if k != "2"} | {"ghost": ["owl"]})
    printed, code = check()
    found = "\n".join(errors(printed))
    for words in (("'../evil'", "line 5", "is not an ID"), ("'two words'",), ("more than once", "(1)"), ("(gone)",),
                  ("2.jpg", "truncated"), ("4.PNG and 4.jpg", "twice"), ("1.png is 4x4", "12x8"), ("5.png holds 7",),
                  ("3.png has the mode RGB",), ("4.png", "mask cannot be read"), ("is in train and in val", "(3)"),
                  ("have no label", "labels.json", "2, gone")):
        assert any(all(word in line for word in words) for line in errors(printed)), (words, found)
    assert_says(warnings(printed)[0] + warnings(printed)[-1], "ghost")
    assert f"errors ({len(errors(printed))})" in code


@pytest.mark.parametrize("name", ["4.PNG", "4.jpeg", "4.JPG"])
def test_an_image_twice(root, check, name):
    photo(root / "JPEGImages" / name, seed=4)
    one_error(check(), "twice", "remove one", name)


def test_missing_images_and_no_folder(root, check):
    os.remove(root / "JPEGImages/4.jpg")
    one = check()
    assert_says(errors(one[0])[0], "1 of the 2 images of val", "JPEGImages", "(4)", "take them off")
    shutil.rmtree(root / "JPEGImages")
    assert any("no folder" in line for line in errors(check()[0]))


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(path.read_bytes()[:-30]),
                                   lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"GIF89a"),
                                   lambda path: (path.unlink(), path.symlink_to("nowhere.jpg"))])
def test_an_unreadable_image(root, check, spoil):
    photo(root / "JPEGImages/2.jpg", size=(120, 80))
    mask(root / "SegmentationClass/2.png", labels_of(["owl"], (80, 120)))
    spoil(root / "JPEGImages/2.jpg")
    one_error(check(), "1 image cannot be read", "2.jpg")


@pytest.mark.parametrize("orientation", [6, 8])
def test_an_exif_rotated_photo_whose_mask_is_not(root, check, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(root / "JPEGImages/1.jpg", exif=exif)
    printed, code = result = check()
    one_error(result, "1 mask is not turned", "EXIF", "1.png is 12x8", "8x12")
    command = errors(printed)[0].split("To turn the masks: ")[1]
    assert command.startswith("python -m data.prepare folder")
    prepare.main(shlex.split(command)[3:])
    made = VOCLayout("data/mine_converted")
    assert made.ground_truth("1").shape == (12, 8) and made.ids("val") == ["4", "5"]


@pytest.mark.slow
def test_large_photos(root, check):
    """Above Pillow's own limit a photo is no error: the stages read it with --max_side."""
    Image.new("L", (12000, 9000)).save(root / "JPEGImages/4.jpg", quality=5)
    os.remove(root / "SegmentationClass/4.png")
    Image.new("L", (20000, 10000)).save(root / "JPEGImages/5.jpg", quality=5)
    os.remove(root / "SegmentationClass/5.png")
    printed, code = check()
    assert code == 0 and any("million pixels" in line and "--max_side" in line and "(5)" in line
                             for line in warnings(printed)), printed


def test_a_mirrored_photo_is_only_mentioned(root, check):
    exif = Image.Exif()
    exif[0x0112] = 3
    photo(root / "JPEGImages/1.jpg", exif=exif)
    one_warning(check(), "EXIF", "(1)")


@pytest.mark.parametrize("names", [["FOX"], ["wolf"], "fox", {"fox": 1}])
def test_wrong_labels(root, check, names):
    write_labels(root, LABELS | {"1": names})
    assert any(all(word in line for word in ("labels.json", "'1'")) for line in errors(check()[0]))


def test_wrong_labels_do_not_hide_other_faults(root, check):
    write_labels(root, {k: v for k, v in LABELS.items() if k != "2"} | {"1": ["FOX"]})
    mask(root / "SegmentationClass/4.png", labels_of(["owl"]))
    printed, code = check()
    assert_says("\n".join(errors(printed)), "'FOX'", "1 image has no label", "(2)")
    assert "none of the classes" in "\n".join(warnings(printed))


@pytest.mark.parametrize("text", ["[]", "{", "3", '{"1": [["fox"]]}', '{"1": ["fox"], "1": ["owl"]}'])
def test_labels_of_another_form(root, check, text):
    (root / "labels.json").write_text(text)
    printed, code = check()
    assert any("labels.json" in line for line in errors(printed)) and "error" in code


def test_labels_of_no_image_and_images_of_no_list(root, check):
    write_labels(root, LABELS | {"ghost": ["fox"]})
    one_warning(check(), "1 label of", "(ghost)")
    write_labels(root, LABELS)
    photo(root / "JPEGImages/new.jpg", seed=77)
    one_warning(check(), "1 image is in no list", "(new)")


def test_labels_in_xml(root, check):
    os.remove(root / "labels.json")
    (root / "Annotations").mkdir()
    for i, names in LABELS.items():
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        (root / f"Annotations/{i}.xml").write_text(f"<annotation>{objects}</annotation>")
    assert check()[1] == 0
    (root / "Annotations/1.xml").write_text("<a><object><name>FOX</name></object></a>")
    one_error(check(), "Annotations", "FOX", "fox")
    (root / "Annotations/1.xml").write_text("<annotation>")
    os.remove(root / "Annotations/2.xml")
    one_error(check(), "labels of 2 images", "1.xml")


def test_classes_that_are_none(root, check):
    (root / "classes.txt").write_text("_background_\nfox\nowl\n")
    printed, code = check()
    assert any("_background_" in line and "classes.txt" in line for line in errors(printed))


@pytest.mark.parametrize("labels, words", [
    ({"1": [], "2": [], "3": [], "4": ["fox"], "5": ["owl"]}, ("no image of train has a class",)),
    ({"1": ["fox"], "2": ["fox"], "3": ["fox"], "4": ["fox"], "5": ["owl"]}, ("val has classes", "owl"))])
def test_classes_that_cannot_be_learned(root, check, labels, words):
    write_labels(root, labels)
    printed, code = check()
    assert any(all(word in line for word in words) for line in errors(printed)), printed


def test_every_image_has_it(root, check):
    write_labels(root, {i: ["fox", *names] for i, names in LABELS.items()})
    printed, code = check()
    assert any("every image of train has fox" in line for line in warnings(printed)), printed


def test_the_same_photo_under_two_names(root, check):
    shutil.copy(root / "JPEGImages/1.jpg", root / "JPEGImages/2.jpg")
    one_warning(check(), "two names", "1 = 2")
    shutil.copy(root / "JPEGImages/1.jpg", root / "JPEGImages/4.jpg")
    printed, code = check()
    assert_says(errors(printed)[0], "two names", "1 = 2 = 4")


def test_lists_that_overlap(root, check):
    write_list(root, "val", "3451")
    printed, code = check()
    assert len(errors(printed)) == 1 and "(1, 3)" in errors(printed)[0]       # train_aug is train
    write_list(root, "val", "45")
    write_list(root, "trainval", "12345")
    write_list(root, "train_aug", "12")
    assert check()[1] == 0                                                    # those overlap by design


def test_no_lists(root, check):
    shutil.rmtree(root / "ImageSets")
    one_error(check(), "no list", "train.txt")


def test_a_test_list_needs_no_labels(root, check):
    photo(root / "JPEGImages/new.jpg", seed=77)
    write_list(root, "test", ["new"])
    assert check()[1] == 0


def test_masks_of_0_and_255(root, check):
    for i in LABELS:
        mask(root / f"SegmentationClass/{i}.png", np.where(labels_of(LABELS[i]) > 0, 255, 0).astype(np.uint8))
    one_error(check(), "5 masks hold 0 and 255 alone", "cannot tell 2 classes apart")
    (root / "classes.txt").write_text("fox\n")
    write_labels(root, {i: ["fox"] for i in LABELS} | {"5": []})
    printed, code = result = check()
    one_error(result, "4 masks hold 0 and 255 alone", "255 fox", "--mask_colours")
    command = errors(printed)[0].split("colours.txt, and: ")[1].removesuffix(" (1, 2, 3, ...)")
    with open("colours.txt", "w") as file:
        file.write("0 background\n255 fox\n")
    prepare.main(shlex.split(command)[3:])
    assert set(VOCLayout("data/mine_converted").ground_truth("1").flat) == {0, 1}


@pytest.mark.parametrize("form", ["RGB", "RGBA", "I;16"])
def test_masks_in_colour_or_16_bits(root, check, form):
    for i in LABELS:
        labels = labels_of(LABELS[i])
        if form == "I;16":
            mask(root / f"SegmentationClass/{i}.png", labels.astype(np.uint16))
        else:
            as_rgb(root / f"SegmentationClass/{i}.png", labels)
            with Image.open(root / f"SegmentationClass/{i}.png") as image:
                image.convert(form).save(root / f"SegmentationClass/{i}.png")
    printed, code = result = check()
    one_error(result, "5 masks are in colour", form, "--mask_colours voc")
    command = errors(printed)[0].split("colours: ")[1].split(" -- ")[0]
    prepare.main(shlex.split(command)[3:])
    assert set(VOCLayout("data/mine_converted").ground_truth("3").flat) == {0, 1, 2, 255}


def test_masks_above_the_classes(root, check):
    mask(root / "SegmentationClass/1.png", np.full((8, 12), 3, np.uint8))
    one_error(check(), "1 mask holds values", "1.png holds 3", "0..2")


def test_masks_whose_ids_mean_other_classes(root, check):
    for i in "1245":
        labels = labels_of(LABELS[i])
        mask(root / f"SegmentationClass/{i}.png", np.where(np.isin(labels, (1, 2)), 3 - labels, labels))
    one_error(check(), "4 of 5 masks", "order")


def test_masks_and_labels_that_differ(root, check):
    mask(root / "SegmentationClass/1.png", labels_of(["fox", "owl"]))
    mask(root / "SegmentationClass/3.png", labels_of(["owl"]))
    mask(root / "SegmentationClass/7.png", labels_of(["owl"]))
    os.remove(root / "SegmentationClass/5.png")
    printed, code = check()
    assert code == 0
    found = "\n".join(warnings(printed))
    assert_says(found, "1 mask shows a class", "lacks (1)", "does not show (3)",
                "1 mask has no image (7)", "val: 1 image has no mask", "(5)")


def test_many_images_in_several_processes(root, check):
    """The same findings as in one process."""
    for i in range(6, 90):
        shutil.copy(root / "JPEGImages/1.jpg", root / f"JPEGImages/{i}.jpg")
        with open(root / f"JPEGImages/{i}.jpg", "ab") as file:
            file.write(str(i).encode())                                       # other bytes, the same image
    write_labels(root, LABELS | {str(i): ["fox"] for i in range(6, 90)})
    write_list(root, "train", ["1", "2", "3", *range(6, 90)])
    (root / "JPEGImages/89.jpg").write_bytes(b"nothing")
    one_error(check(), "1 image cannot be read", "89.jpg")


def test_what_is_named_as_an_image_and_is_none(root, check, monkeypatch):
    """EPS, which Pillow would hand to the program `gs`; a pipe that nobody writes to; a device without an end."""
    started = root / "started"
    make_file(root / "bin/gs", f"#!/bin/sh\ntouch {started}\n").chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    for place in ("JPEGImages/1.jpg", "SegmentationClass/4.png"):
        (root / place).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 8\n%%EndComments\nshowpage\n")
    for image_id, make in (("2", os.mkfifo), ("3", lambda path: path.symlink_to("/dev/zero"))):
        path, = (root / "JPEGImages").glob(f"{image_id}.*")
        path.unlink()
        make(path)
    found = errors(check()[0])
    assert not started.exists()
    assert_says(found[0], "3 images cannot be read", "1.jpg", "2.jpg", "3.jpg", "pipe or device")
    assert_says(found[1], "1 mask cannot be read", "4.png")


def test_no_dataset(root, check):
    shutil.rmtree(root)
    assert "no dataset" in check()[1]


@pytest.mark.parametrize("form", ["palette", "gray"])
def test_masks_of_other_ids_and_the_command_that_converts_them(root, check, form):
    """VOC's ids 8 and 12 for two classes: a file of values means a palette image's ids, too."""
    for i in LABELS:
        image = Image.fromarray(np.choose(np.minimum(labels_of(LABELS[i]), 3), [0, 8, 12, 255]).astype(np.uint8))
        if form == "palette":
            image.putpalette(voc_palette())
        image.save(root / f"SegmentationClass/{i}.png")
    printed, code = result = check()
    one_error(result, "5 masks hold values", "\"0 background\"", "\"255 ignore\"", "VALUE NAME")
    with open("colours.txt", "w") as file:
        file.write("0 background\n255 ignore\n8 fox\n12 owl\n")
    prepare.main(shlex.split(errors(printed)[0].split("colours.txt, and: ")[1])[3:])
    np.testing.assert_array_equal(VOCLayout("data/mine_converted").ground_truth("3"), labels_of(LABELS["3"]))


def test_masks_with_palettes_made_anew(root, check):
    """VOC's colours at 0, 1, 2 in the order of their areas: as ids, ignored pixels would be a class."""
    for i in LABELS:
        save_with_new_palette(root / f"SegmentationClass/{i}.png", labels_of(LABELS[i]))
    printed, code = result = check()
    one_error(result, "5 masks have VOC's colours", "class ids", "--mask_colours voc")
    prepare.main(shlex.split(errors(printed)[0].split("To convert them: ")[1])[3:])
    np.testing.assert_array_equal(VOCLayout("data/mine_converted").ground_truth("3"), labels_of(LABELS["3"]))


def test_most_masks_show_what_the_labels_lack(root, check):
    for i in ("1", "2", "4"):
        mask(root / f"SegmentationClass/{i}.png", labels_of(["fox", "owl"]))
    one_error(check(), "3 of 5 masks show a class that the label lacks", "labels", "classes.txt")


@pytest.mark.parametrize("name", ["data/mine/classes.txt", "data/mine/JPEGImages/1.png", "notes.PNG", "sheet.jpg",
                                  "data/mine/SegmentationClass/1.png"])
def test_a_sheet_replaces_no_other_file(root, check, name):
    with open("notes.PNG", "w") as file:
        file.write("mine")
    before = {path: path.read_bytes() for path in root.parents[1].rglob("*") if path.is_file()}
    printed, code = check("--sheet", name)
    assert_says(code, f"error: --sheet {name}", "name ")
    assert {path: path.read_bytes() for path in root.parents[1].rglob("*") if path.is_file()} == before
