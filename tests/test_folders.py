"""What lies in a dataset folder: endings in any case, two files of one ID, masks of other kinds, the wrong folder."""
import json
import shlex

import numpy as np
import pytest
from PIL import Image

from data.folders import why_no_dataset
from data.images import image_size, orientation, read_image
from data.layout import VOCLayout
from tests.conftest import make_file
from tests.stages import DEMO, assert_says, call, own_data, refusal, small

TRAIN = (*DEMO, *small("model_oc"), "--name", "NEW", "--max_epochs", 1)
MASK = np.array([[0, 1, 255, 2], [0, 1, 2, 2]], np.uint8)


@pytest.fixture
def root(tmp_path):
    """Give a small dataset, data/k: two classes, no image yet."""
    root = tmp_path / "data/k"
    for folder in ("JPEGImages", "ImageSets/Segmentation", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("fox\nowl\n")
    (root / "labels.json").write_text("{}")
    return root


def photo(path, size=(12, 8), format=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(
        path, format, **options)


def turned(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


# ---- endings

@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.Jpg", "a.jpeg", "a.JPEG", "a.png", "a.PNG", "a.pNg"])
def test_images_of_any_ending_are_found(root, name):
    photo(root / "JPEGImages" / name, format="PNG" if name.lower().endswith("png") else "JPEG")
    layout = VOCLayout(root)
    layout.check(["a"])
    assert layout.image_path("a").name == name and VOCLayout(root).image_path("a").name == name
    assert read_image(layout.image_path("a")).shape == (8, 12, 3)


@pytest.mark.parametrize("line", ["a", "a.JPG", "/JPEGImages/a.jpeg /SegmentationClassAug/a.png", "x/a.PNG"])
def test_lists_take_any_ending(root, line):
    (root / "ImageSets/Segmentation/train.txt").write_text(f"{line}\n")
    assert VOCLayout(root).ids("train") == ["a"]


def test_an_image_that_appears_or_changes_its_ending_is_found(root):
    photo(root / "JPEGImages/a.JPG")
    layout = VOCLayout(root)
    layout.check(["a"])
    photo(root / "JPEGImages/b.png")
    assert layout.image_path("b").name == "b.png"
    (root / "JPEGImages/a.JPG").unlink()
    with pytest.raises(FileNotFoundError, match="no image for a"):
        layout.image_path("a")
    photo(root / "JPEGImages/a.png")
    assert layout.image_path("a").name == "a.png"


def test_a_link_to_nothing_is_no_image(root):
    (root / "JPEGImages/a.jpg").symlink_to(root / "gone.jpg")
    with pytest.raises(FileNotFoundError, match="no image for a"):
        VOCLayout(root).image_path("a")


@pytest.mark.parametrize("pair", [("a.jpg", "a.png"), ("a.jpg", "a.JPG"), ("a.jpeg", "a.jpg"), ("a.PNG", "a.png"),
                                  ("a.JPEG", "a.png")])
def test_two_images_of_one_id_are_refused_by_name(root, pair):
    for name in (*pair, "b.jpg", "a.b.jpg"):
        photo(root / "JPEGImages" / name, format="PNG")
    layout = VOCLayout(root)
    for ask in (lambda: layout.check(["b", "a"], "train"), lambda: layout.image_path("a")):
        with pytest.raises(ValueError, match="JPEGImages.*two images of one ID") as error:
            ask()
        assert all(name in str(error.value) for name in pair)
    layout.check(["b", "a.b"])                                  # of other IDs


@pytest.mark.parametrize("stage, words", [
    ("train", TRAIN), ("infer", (*DEMO, "--dict", "--dict_dir", "new")),
    ("train_aff", (*DEMO, "--low", 2, "--high", 24, "--batch_size", 4)),
    ("train_seg", (*DEMO, "--label_dir", "data/critters/SegmentationClass", "--batch_size", 4))])
def test_stages_refuse_two_images_of_one_id(place, stage, words):
    photo(own_data(place) / "JPEGImages/train_0002.jpg", (64, 64))
    assert_says(refusal(stage, *words), "train_0002.jpg and train_0002.png", "two images")


def test_stages_read_any_ending(place):
    data, endings = own_data(place), [".PNG", ".Png", ".JPG", ".jpeg", ".JPEG"]
    for number, path in enumerate(sorted((data / "JPEGImages").iterdir())):
        new = path.with_suffix(endings[number % len(endings)])
        with Image.open(path) as image:
            image.save(new, "PNG" if new.suffix.lower() == ".png" else "JPEG", quality=95)
        path.unlink(missing_ok=new.name == path.name)
    for path in sorted((data / "SegmentationClass").iterdir())[::2]:
        path.rename(path.with_suffix(".PNG"))
    call("train", *TRAIN, "--val_every", 1)
    call("infer", *DEMO, "--name", "NEW", "--model", "model_oc", "--vis", "--dict")
    said = call("evaluation", *DEMO, "--name", "NEW", "--dict_dir", "dict_model_oc")
    assert "12 images" in said
    labels = ("--label_dir", "data/critters/SegmentationClass", "--init", "random")
    call("train_seg", *DEMO, "--name", "NEW", *labels, "--batch_size", 4, "--max_epochs", 1, "--crop", 64)
    call("infer_seg", *DEMO, "--name", "NEW", "--infer_list", "train", "--scales", 1)
    call("evaluation", *DEMO, "--name", "NEW", "--task", "png", "--dict_dir", "data/critters/SegmentationClass")


# ---- label maps

@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.Png"])
def test_label_maps_of_any_ending_are_found(root, name):
    Image.fromarray(MASK).save(root / "SegmentationClass" / name, "PNG")
    layout = VOCLayout(root)
    assert layout.has_ground_truth("a") and layout.ground_truth("a").tolist() == MASK.tolist()
    assert layout.has_ground_truth("a", root / "SegmentationClass") and not layout.has_ground_truth("b")


@pytest.mark.parametrize("mode, colours", [("RGB", True), ("RGBA", True), ("LA", True), ("I;16", False),
                                           ("I", False), ("1", False)])
def test_masks_of_another_kind_name_the_command_that_converts_them(root, mode, colours):
    image = Image.fromarray(MASK.astype(np.uint16)) if mode.startswith("I") else Image.fromarray(MASK).convert(mode)
    image.save(root / "SegmentationClass/a.png")
    with pytest.raises(ValueError, match=r"SegmentationClass/a\.png") as error:
        VOCLayout(root).ground_truth("a")
    words = command_in(str(error.value))
    assert words[:4] == ["python", "-m", "data.prepare", "folder"]
    flags = dict(zip(words[4::2], words[5::2]))
    assert flags["--masks"] == str(root / "SegmentationClass") and flags["--images"] == str(root / "JPEGImages")
    assert flags["--labels"] == str(root / "labels.json") and flags["--classes"] == str(root / "classes.txt")
    assert flags["--root"] != str(root) and (flags.get("--mask_colours") == "voc") == colours


def command_in(message):
    """Take the command out of a message."""
    return shlex.split(message[message.index("python -m"):].split(". ")[0].rstrip("."))


@pytest.mark.parametrize("name, remedy", [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.bmp", "data.prepare folder"),
                                          ("a.tif", "data.prepare folder"), ("a.GIF", "data.prepare folder")])
def test_masks_in_another_format_are_named(root, name, remedy):
    format = {"jpg": "JPEG", "jpeg": "JPEG", "bmp": "BMP", "tif": "TIFF", "gif": "GIF"}[name[2:].lower()]
    Image.fromarray(MASK).save(root / "SegmentationClass" / name, format)
    layout = VOCLayout(root)
    with pytest.raises(FileNotFoundError) as error:
        layout.ground_truth("a")
    assert_says(str(error.value), f"SegmentationClass/{name}", remedy)


def test_stages_name_masks_in_another_format(place):
    data = own_data(place)
    for path in (data / "SegmentationClass").iterdir():
        with Image.open(path) as image:
            image.save(path.with_suffix(".bmp"))
        path.unlink()
    assert_says(refusal("evaluation", *DEMO), ".bmp", "python -m data.prepare folder", "--gt_dir")
    folder = "data/critters/SegmentationClass"
    assert_says(refusal("train_seg", *DEMO, "--label_dir", folder), ".bmp", f"--masks {folder} --root")


# ---- EXIF

@pytest.mark.parametrize("number, swapped", [(1, False), (2, False), (3, False), (6, True), (8, True), (5, True)])
def test_the_orientation_is_read(tmp_path, number, swapped):
    for name in ("a.jpg", "a.png"):
        photo(tmp_path / name, exif=turned(number))
        assert orientation(tmp_path / name) == number
        assert image_size(tmp_path / name) == ((12, 8) if swapped else (8, 12))


def turn_photos(data, number):
    """Make the photos 48x64, lying, and stand them up by EXIF data; the masks lie."""
    for path in (data / "JPEGImages").iterdir():
        with Image.open(path) as image:
            image.crop((0, 0, 64, 48)).save(path, exif=turned(number))
    for path in (data / "SegmentationClass").iterdir():
        with Image.open(path) as image:
            image.crop((0, 0, 64, 48)).save(path)


@pytest.mark.parametrize("number", [5, 6, 7, 8])
def test_a_photo_turned_by_exif_and_its_lying_mask(place, number):
    turn_photos(own_data(place), number)
    said = refusal("train_seg", *DEMO, "--label_dir", "data/critters/SegmentationClass")
    assert_says(said, "12 of 12", "JPEGImages/train_", "EXIF", "(64, 48)", "(48, 64)")
    assert "other images" not in said


def test_evaluation_names_exif(place):
    turn_photos(own_data(place), 6)
    call("infer", *DEMO, "--model", "model_oc", "--dict", "--dict_dir", "new")
    said = refusal("evaluation", *DEMO, "--dict_dir", "new")
    assert_says(said, "12 of 12", "JPEGImages/train_", "EXIF", "map of (48, 64)")


def test_maps_of_other_images_have_nothing_to_do_with_exif(root):
    photo(root / "JPEGImages/a.jpg")
    photo(root / "JPEGImages/b.jpg", exif=turned(6))
    layout = VOCLayout(root)
    for sizes in ({"a": ((12, 8), (8, 12))}, {"b": ((5, 5), (12, 8))}, {"gone": ((12, 8), (8, 12))}):
        assert "other images" in layout.other_sizes(sizes)
    assert "EXIF" in layout.other_sizes({"a": ((12, 8), (8, 12)), "b": ((8, 12), (12, 8))})


# ---- the wrong folder

@pytest.mark.parametrize("below, above", [("VOC2012", "data"), ("VOCdevkit/VOC2012", "data"), ("k", "data"),
                                          ("two words", "data")])
def test_a_folder_above_the_dataset(tmp_path, monkeypatch, below, above):
    monkeypatch.chdir(tmp_path)
    (tmp_path / above / below / "JPEGImages").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no dataset at data") as error:
        VOCLayout(above)
    assert f"--data_root {shlex.quote(f'{above}/{below}')}" in str(error.value)


@pytest.mark.parametrize("inside", ["JPEGImages", "ImageSets", "ImageSets/Segmentation"])
def test_a_folder_inside_the_dataset(root, monkeypatch, inside):
    monkeypatch.chdir(root.parent.parent)
    photo(root / "JPEGImages/a.jpg")
    with pytest.raises(FileNotFoundError) as error:
        VOCLayout(f"data/k/{inside}")
    assert "--data_root data/k. Or" in str(error.value)


@pytest.mark.parametrize("files, words", [
    (["1.jpg", "labels.csv"], ["folder", "--images", "mine", "--labels", "mine/labels.csv", "--root", "mine_dataset"]),
    (["1.JPG"], ["folder", "--images", "mine", "--labels", "labels.csv", "--root", "mine_dataset"]),
    (["fox/1.png"], ["folder", "--images", "mine", "--labels", "from-subfolders", "--root", "mine_dataset"]),
    (["train2014/1.jpg", "annotations/instances_train2014.json"],
     ["coco", "--root", "mine_dataset", "--images", "mine/train2014", "--annotations",
      "mine/annotations/instances_train2014.json"]),
    (["VOCtrainval_11-May-2012.tar"],
     ["voc", "--root", "mine/VOC2012", "--archive", "mine/VOCtrainval_11-May-2012.tar"]),
])
def test_a_folder_from_which_a_dataset_can_be_made(tmp_path, monkeypatch, files, words):
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).touch()
    with pytest.raises(FileNotFoundError) as error:
        VOCLayout("mine")
    found = command_in(str(error.value))[3:]
    assert found == words


def test_a_folder_with_nothing_of_use(tmp_path):
    (tmp_path / "a").mkdir()
    assert why_no_dataset(tmp_path) == why_no_dataset(tmp_path / "gone") == ""
    assert command_in(why_no_dataset(tmp_path / "VOC2012"))[3:5] == ["voc", "--root"]


# ---- lists

def test_a_missing_train_aug_says_where_it_comes_from(root):
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    with pytest.raises(FileNotFoundError) as error:             # a dataset of its own
        VOCLayout(root).ids("train_aug")
    assert_says(str(error.value), "train_aug", "VOC", "splits: train", "--train_list")
    assert "data.prepare" not in str(error.value)
    (root / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError) as error:             # VOC
        VOCLayout(root).ids("train_aug")
    assert_says(str(error.value), "train_aug", f"python -m data.prepare voc --root {root} --download", "--sbd",
                "10,582", "splits: train", "--train_list")
    with pytest.raises(FileNotFoundError) as error:
        VOCLayout(root).ids("other")
    assert "SBD" not in str(error.value) and "splits: train" in str(error.value)


def without_train_aug(place):
    data = own_data(place)
    (data / "ImageSets/Segmentation/train_aug.txt").unlink()
    return data


def advised(message):
    """Take the advised command of a stage out of a message: the stage, its flags."""
    words = shlex.split(message[message.index("python "):].split(". ")[0])
    return words[1].removesuffix(".py"), words[2:]


def test_commands_in_messages_name_a_list_that_exists(place):
    """train_seg.py leads to infer_aff.py, that to train_aff.py, and each command works as printed."""
    without_train_aug(place)
    common = ("--num_workers", 0, "--batch_size", 4, "--max_epochs", 1, "--crop", 72)
    stage, words = advised(refusal("train_seg", *DEMO, "--train_list", "train"))
    assert stage == "infer_aff" and words[-6:].count("train") == 1
    stage, words = advised(refusal(stage, *words))
    assert stage == "train_aff" and words[words.index("--train_list") + 1] == "train"
    stage, words = advised(refusal(stage, *words, *common))             # for the CRF maps of the recipe's alphas
    assert stage == "infer" and words[words.index("--infer_list") + 1] == "train"
    call(stage, *words)
    call("train_aff", *DEMO, "--train_list", "train", *common)


@pytest.mark.parametrize("stage, words", [("infer", ("--dict", "--infer_list", "val")),
                                          ("infer_seg", ("--infer_list", "val")),
                                          ("train", ("--model", "model_cse", "--train_list", "train",
                                                     "--cl_init", "NEW/model_oc"))])
def test_the_training_that_is_missing_is_told_with_a_list_that_exists(place, stage, words):
    data = without_train_aug(place)
    name, found = advised(refusal(stage, *DEMO, "--name", "NEW", *words))
    assert name.startswith("train") and found[found.index("--train_list") + 1] == "train"
    (data / "ImageSets/Segmentation/train.txt").rename(data / "ImageSets/Segmentation/a_mine.txt")
    if stage != "train":
        _, found = advised(refusal(stage, *DEMO, "--name", "NEW", *words))
        assert found[found.index("--train_list") + 1] == "a_mine"


def test_the_default_list_is_not_written_out(place):
    _, found = advised(refusal("infer", *DEMO, "--name", "NEW", "--dict"))
    assert "--train_list" not in found


# ---- labels.json

@pytest.mark.parametrize("content, command", [
    ({"info": {}, "images": [], "annotations": [], "categories": []}, "coco"),
    ({"images": [{"id": 1}], "annotations": [{"caption": "a fox"}]}, "coco"),
    ([{"file": "a.jpg", "labels": ["fox"]}], "folder"), ({"a": "fox"}, "folder"), ({"a": {"fox": 1}}, "folder"),
    ([], "folder"), ("fox", "folder"), (3, "folder"),
])
def test_label_files_of_another_form_name_the_command(root, content, command):
    (root / "labels.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"labels\.json") as error:
        VOCLayout(root).label("a")
    words = command_in(str(error.value))
    flags = dict(zip(words[4::2], words[5::2]))
    assert words[3] == command and flags["--images"] == str(root / "JPEGImages") and flags["--root"] != str(root)
    assert str(root / "labels.json") in (flags.get("--labels"), flags.get("--annotations"))


def test_ids_in_place_of_names_have_no_command(root):
    """data.prepare folder could not tell their classes either."""
    (root / "labels.json").write_text('{"a": [0, 1]}')
    with pytest.raises(ValueError, match=r"labels\.json: .*'a' is not a list") as error:
        VOCLayout(root).label("a")
    assert "data.prepare" not in str(error.value)


def test_a_table_in_place_of_json(root):
    (root / "labels.json").write_text("file,label\na.jpg,fox\n")
    with pytest.raises(ValueError, match=r"labels\.json is not JSON.*CSV.*data\.prepare folder"):
        VOCLayout(root).label("a")


@pytest.mark.parametrize("key", ["a.jpg", "a.PNG", "A", "A.jpeg"])
def test_label_files_with_endings_or_another_case(root, key):
    (root / "labels.json").write_text(json.dumps({key: ["fox"]}))
    with pytest.raises(ValueError, match=r"without labels: a .*labels\.json") as error:
        VOCLayout(root).label("a")
    assert repr(key) in str(error.value)


# ---- too large

def large(path, size=(20000, 10000), **options):
    Image.new("L", size, 90).save(path, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_large_photo_is_called_large(tmp_path, name):
    large(tmp_path / name)
    for max_side, words in ((None, "infer.py"), (0, "--max_side 1024 reads it smaller")):
        with pytest.raises(ValueError, match=rf"{name} is too large: 20000x10000 pixels") as error:
            read_image(tmp_path / name, max_side)
        assert words in str(error.value) and "--max_side" in str(error.value)
        assert "fetch it again" not in str(error.value) and "truncated" not in str(error.value)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:2000])
    with pytest.raises(ValueError, match="truncated"):
        read_image(tmp_path / name, 512)


def test_large_label_maps_are_called_large(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    Image.fromarray(MASK).save(root / "SegmentationClass/a.png")
    with pytest.raises(ValueError, match=r"a\.png is too large: 4x2"):
        VOCLayout(root).ground_truth("a")


@pytest.mark.parametrize("stage, words, has_flag", [
    ("train", (*TRAIN, "--max_epochs", 3), True), ("infer", (*DEMO, "--dict", "--dict_dir", "new"), True),
    ("train_aff", (*DEMO, "--low", 2, "--high", 24, "--batch_size", 4, "--max_epochs", 1), False)])
def test_stages_call_a_large_photo_large(place, monkeypatch, stage, words, has_flag):
    data = own_data(place)
    with Image.open(data / "JPEGImages/train_0003.png") as image:
        image.resize((256, 192)).save(data / "JPEGImages/train_0003.png")
    for record in (place / "experiment").rglob("made_by.images.json"):     # otherwise the changed photo is named first
        record.unlink()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10000)
    said = refusal(stage, *words)
    assert_says(said, "train_0003.png is too large: 256x192", "--max_side")
    assert ("--max_side 1024 reads it smaller" in said) == has_flag
    if has_flag:
        monkeypatch.setattr("data.images.LARGE", 20000)
        call(stage, *words, "--max_side", 128, "--overwrite")


def test_max_side_of_a_training_is_part_of_its_record(place):
    call("train", *TRAIN)
    call("train", *TRAIN, "--max_side", 0)
    assert_says(refusal("train", *TRAIN, "--max_side", 64), "max_side")


@pytest.mark.parametrize("ending", [".jfif", ".JPE"])
def test_other_endings_of_jpeg(tmp_path, ending):
    path = make_file(tmp_path / f"JPEGImages/a{ending}")
    layout = VOCLayout(tmp_path)
    make_file(tmp_path / "ImageSets/Segmentation/train.txt", f"/JPEGImages/a{ending} /SegmentationClassAug/a.png")
    assert layout.ids("train") == ["a"] and layout.image_path("a") == path
