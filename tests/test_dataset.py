"""A dataset folder: what is read, and that whatever is wrong with it is told with the file and the remedy."""
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.dataset import TrainSet
from data.images import read_image, voc_palette
from data.layout import VOC_CLASSES, VOCLayout

ANYTHING = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.fixture
def root(tmp_path):
    """Give an empty dataset folder in VOC's layout."""
    for folder in ("JPEGImages", "ImageSets/Segmentation", "Annotations", "SegmentationClass"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def write_list(root, content, name="train"):
    path = root / "ImageSets/Segmentation" / f"{name}.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_xml(root, image_id, names, tail=""):
    objects = "".join(f"<object><name>{name}</name><difficult>1</difficult>{tail}</object>" for name in names)
    (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")


def write_picture(path, mode="RGB", size=(12, 8), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return pixels


# --- the folder and its classes

def test_no_dataset_says_how_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*JPEGImages.*--data_root.*-m data.prepare critters --out"):
        VOCLayout(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no dataset"):
        VOCLayout(tmp_path)


def test_classes_are_the_files_or_vocs(root):
    assert VOCLayout(root).classes == list(VOC_CLASSES) and len(set(VOC_CLASSES)) == 20
    (root / "classes.txt").write_bytes("\ufeffcat\r\n\r\n traffic light \r\n".encode())
    assert VOCLayout(root).classes == ["cat", "traffic light"]


@pytest.mark.parametrize("content, message", [
    (b"", "classes.txt is empty"), (b"\n \n", "is empty"), (b"cat\ndog\ncat\n", "names 'cat' twice"),
    (b"\xff\xfe", "UTF-8"), (b"cat\ntraffic\0light\n", r"'traffic\\x00light' contains a control character"),
    (b"x" * 101, "x'... is too long for a file name"),
    ("\n".join(map(str, range(255))).encode(), "254"),
])
def test_bad_classes_are_refused(root, content, message):
    (root / "classes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        _ = VOCLayout(root).classes


# --- lists

def test_lists_are_parsed_as_the_authors(root, golden):
    official = json.loads(golden("set12_lists_labels.json").read_text())
    write_list(root, "\n".join(official["parse_in"]))
    assert VOCLayout(root).ids("train") == official["parse_out"]


def test_lists_in_all_forms(root, tmp_path):
    expected = ["2007_000032", "été-1", "東京.v2"]
    write_list(root, "\ufeff2007_000032\r\n\r\nété-1\r\n/JPEGImages/東京.v2.jpg /SegmentationClassAug/東京.v2.png")
    elsewhere = tmp_path / "mine.txt"
    elsewhere.write_text("\n".join(expected), encoding="utf-8")
    layout = VOCLayout(root)
    assert layout.ids("train") == layout.ids(elsewhere) == layout.ids(str(elsewhere)) == expected


@pytest.mark.parametrize("line", [
    "../secret", "a/b", ".hidden", "/JPEGImages/.jpg", "/JPEGImages/.a.jpg", "a b", "a:b", "a\\b", "a\0", "/",
    "a -1", "..", "a*", "/JPEGImages/a b.jpg", "../x/a", "-é\u0301",
])
def test_odd_ids_are_refused_with_file_and_line(root, line):
    write_list(root, f"fine\n\n{line}\n")
    with pytest.raises(ValueError, match=r"train\.txt, line 3: "):
        VOCLayout(root).ids("train")


@pytest.mark.parametrize("content, message", [
    ("", "lists no image"), ("\n \n", "lists no image"), ("a\nb\na\nb\nc\n", r"2 images more than once \(a, b\)"),
    ("a\n/JPEGImages/a.jpg\n", "more than once"), (b"\xff\xfea\0", "not UTF-8"),
])
def test_bad_lists_are_refused(root, content, message):
    path = write_list(root, content)
    with pytest.raises(ValueError, match=message) as error:
        VOCLayout(root).ids("train")
    assert str(path) in str(error.value)


def test_an_id_too_long_for_a_file_is_refused_in_few_words(root):
    write_list(root, "a" * 100)
    assert VOCLayout(root).ids("train") == ["a" * 100]
    for line in ("a" * 70_000, "/JPEGImages/" + "é" * 51 + ".jpg", "a" * 9000 + " b"):
        write_list(root, f"fine\n{line}\n")
        with pytest.raises(ValueError, match=r"train\.txt, line 2: ") as error:
            VOCLayout(root).ids("train")
        assert len(str(error.value)) < 500


def test_unknown_list_names_the_splits(root):
    write_list(root, "a", "val")
    with pytest.raises(FileNotFoundError, match=r"no list train_aug: .*train_aug\.txt.* splits: val\."):
        VOCLayout(root).ids("train_aug")


@ANYTHING
@given(st.one_of(st.binary(max_size=60), st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))))
@example(b"a.jpg/ b")
def test_any_list_is_read_or_refused(root, content):
    write_list(root, content)
    try:
        ids = VOCLayout(root).ids("train")
    except ValueError as error:
        assert "train.txt" in str(error)
    else:
        assert ids and len(set(ids)) == len(ids)
        assert all("/" not in name and not name.startswith(".") and name.strip() == name for name in ids)


# --- image-level labels

def test_labels_from_json(root):
    (root / "classes.txt").write_text("cat\ndog\nemu\n")
    (root / "labels.json").write_text('{"a": ["emu", "cat"], "b": [], "c": ["dog", "dog"]}')
    layout = VOCLayout(root)
    labels = layout.labels(["a", "b", "c"])
    assert labels.dtype == np.float32
    assert labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]] and layout.label("a").tolist() == [1, 0, 1]


def test_labels_from_xml_are_the_authors(root, golden):
    official = json.loads(golden("set12_lists_labels.json").read_text())["xml"]
    write_xml(root, "a", official["object_names"], tail="<part><name>aeroplane</name></part>")
    label = VOCLayout(root).label("a")
    assert label.tolist() == official["label"] and label.dtype == np.float32


def test_labels_from_xml_with_a_namespace(root):
    (root / "Annotations/a.xml").write_text("<annotation xmlns='x'><object><name>bird</name></object></annotation>")
    assert VOCLayout(root).label("a").nonzero()[0].tolist() == [2]


@pytest.mark.parametrize("content, message", [
    ('{"a": ["cat", "unicorn"]}', r"'a' has the class 'unicorn'.*classes\.txt"),
    ('{"a": ["cat"], "a": ["dog"]}', "'a' is there twice"), (f'{{"{"a" * 9000}": 1}}', "'a{100}' is not a list"),
    (f'{{"a": ["{"a" * 9000}"]}}', "the class 'a{100}', which"),
    ('{"a": "cat"}', "'a' is not a list"), ('{"a": [1]}', "'a' is not a list"), ('["a"]', "not of the form"),
    ('{"a": [', "not JSON"), ("[" * 100_000, "not JSON"),
    ("", "not JSON"), (b"\xff", "not UTF-8"), ('{"b": ["cat"]}', "image without labels: a "),
])
def test_bad_labels_json_is_refused(root, content, message):
    path = root / "labels.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    write_xml(root, "a", ["cat"])                               # where labels.json is, nothing else is asked
    with pytest.raises(ValueError, match=message) as error:
        VOCLayout(root).label("a")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"<annotation><object>", b"\xff\xfe\x00",
                                     b'<?xml version="1.0" encoding="no"?><a/>'])
def test_bad_xml_is_refused(root, content):
    (root / "Annotations/a.xml").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.xml is not XML"):
        VOCLayout(root).label("a")


def test_no_label_at_all_is_told(root):
    with pytest.raises(ValueError, match=r"image without labels: a .*a\.xml.*labels\.json"):
        VOCLayout(root).label("a")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("cat"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner), max_leaves=6)


@ANYTHING
@given(st.one_of(values.map(lambda value: json.dumps(value).encode()), st.binary(max_size=30)))
@example(b'{"a": ["\\ud800"]}')
@example(b'{"a": ' + b"9" * 5000 + b"}")
def test_any_labels_json_is_read_or_refused(root, content):
    (root / "labels.json").write_bytes(content)
    try:
        label = VOCLayout(root).label("a")
    except ValueError as error:
        str(error).encode()                                     # can be printed
        assert "labels.json" in str(error)
    else:
        assert label.shape == (20,) and set(label) <= {0, 1}


def test_real_photos(msrc):
    layout = VOCLayout(msrc)
    ids = layout.ids("train")
    layout.check(ids, "train")
    labels = layout.labels(ids)
    assert labels.shape == (292, 15) and labels[:, 0].sum() == 18 and labels[:, 4].sum() == 40     # its README's counts
    assert layout.ground_truth(ids[0]).shape == read_image(layout.image_path(ids[0])).shape[:2]


# --- images and ground truth

def test_pictures_are_found_and_missed(root):
    layout = VOCLayout(root)
    for name in ("a.jpg", "b.png", "c.jpeg"):
        write_picture(root / "JPEGImages" / name)
    assert [layout.image_path(name).name for name in "abc"] == ["a.jpg", "b.png", "c.jpeg"]
    layout.check(["a", "b", "c"])
    with pytest.raises(FileNotFoundError, match=r"d\.jpg .*\.png exists.*list"):
        layout.image_path("d")
    with pytest.raises(FileNotFoundError, match=r"4 of the 6 images of train_aug .*JPEGImages.*\(d, e, f and 1 more\)"):
        layout.check(list("abdefg"), "train_aug")
    (root / "JPEGImages").rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no folder .*JPEGImages.*--data_root"):
        layout.check(["a"])


@pytest.mark.parametrize("mode, name", [
    ("RGB", "a.png"), ("L", "a.png"), ("1", "a.png"), ("P", "a.png"), ("RGBA", "a.png"), ("LA", "a.png"),
    ("CMYK", "a.jpg"), ("L", "a.jpg"), ("RGB", "a.jpg"), ("RGB", "a.gif"),
])
def test_pictures_of_any_kind(tmp_path, mode, name):
    write_picture(tmp_path / name, mode)
    image = read_image(tmp_path / name)
    assert image.shape == (8, 12, 3) and image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    with Image.open(tmp_path / name) as picture:
        np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))


def test_transparency_is_dropped_in_silence(tmp_path, recwarn):
    pixels = write_picture(tmp_path / "a.png", size=(4, 4))
    palette = Image.fromarray(pixels).quantize(16)
    palette.save(tmp_path / "p.png", transparency=bytes(16))
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))
    assert not recwarn.list


def test_16_bit_gray_is_scaled(tmp_path):
    values = np.array([[0, 257, 257 * 200, 65535, 100]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[..., 0].tolist() == [[0, 1, 200, 255, 0]]


@pytest.mark.parametrize("orientation, turned", [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)),
                                                 (6, lambda a: np.rot90(a, -1)), (8, np.rot90)])
def test_exif_orientation_is_applied(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x112] = orientation
    pixels = write_picture(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), turned(pixels))


def test_large_pictures_are_read_and_bombs_refused(tmp_path, monkeypatch, recwarn):
    write_picture(tmp_path / "a.png", size=(30, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)         # 600 pixels: over the warning, under the error
    assert read_image(tmp_path / "a.png").shape == (20, 30, 3) and not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(ValueError, match="a.png"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_damaged_pictures_are_refused(tmp_path, name):
    path = tmp_path / name
    write_picture(path, size=(64, 48))
    whole = path.read_bytes()
    for damaged in (b"", b"GIF89a", b"no picture", whole[: len(whole) // 2], whole[:-40], whole[:30]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name} is truncated or not an image: .*take it off"):
            read_image(path)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "nothing.jpg")


def test_whatever_pillow_raises_the_picture_is_named(tmp_path, monkeypatch):
    write_picture(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "getexif", lambda image: (_ for _ in ()).throw(NotImplementedError))
    with pytest.raises(ValueError, match="a.png is truncated or not an image.*NotImplementedError"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("mode, name, width_at", [("P", "a.png", 16), ("RGB", "a.png", 16), ("RGB", "a.jpg", 163)])
def test_a_picture_too_short_for_its_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch, mode, name, width_at):
    write_picture(tmp_path / name, mode)
    content = bytearray((tmp_path / name).read_bytes())
    if name == "a.png":
        struct.pack_into(">II", content, width_at, 13_000, 13_000)
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    else:
        assert struct.unpack_from(">HH", content, width_at) == (8, 12)
        struct.pack_into(">HH", content, width_at, 13_000, 13_000)
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(ValueError, match=f"{name} .*its header says 13000x13000 pixels"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("mode, name", [("1", "a.png"), ("P", "a.png"), ("L", "a.png"), ("RGB", "a.png"),
                                        ("L", "a.jpg"), ("RGB", "a.jpg"), ("CMYK", "a.jpg")])
def test_one_colour_is_no_picture_too_short(tmp_path, mode, name):
    Image.new(mode, (3000, 2000)).save(tmp_path / name, compress_level=9, quality=1)
    assert read_image(tmp_path / name).shape == (2000, 3000, 3)


def test_ground_truth(root, tmp_path):
    ids = np.array([[0, 1, 20, 255]], dtype=np.uint8)
    gray = Image.fromarray(ids)
    palette = gray.copy()
    palette.putpalette(bytes(range(256)) * 3)
    gray.save(root / "SegmentationClass/gray.png")
    palette.save(root / "SegmentationClass/palette.png")
    layout = VOCLayout(root)
    for name in ("gray", "palette"):
        truth = layout.ground_truth(name)
        assert truth.dtype == np.uint8 and truth.tolist() == ids.tolist() and layout.has_ground_truth(name)
    (tmp_path / "mine").mkdir()
    gray.save(tmp_path / "mine/other.png")
    assert layout.has_ground_truth("other", tmp_path / "mine") and not layout.has_ground_truth("other")
    assert layout.ground_truth("other", tmp_path / "mine").tolist() == ids.tolist()
    with pytest.raises(FileNotFoundError, match=r"other\.png.*--gt_dir"):
        layout.ground_truth("other")


def test_bad_ground_truth_is_refused(root):
    path = root / "SegmentationClass/a.png"
    layout = VOCLayout(root)
    write_picture(path)
    with pytest.raises(ValueError, match=r"a\.png is an image of mode RGB.*palette"):
        layout.ground_truth("a")
    Image.fromarray(np.full((2, 2), 21, dtype=np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"a\.png holds the class id 21.*0\.\.20"):
        layout.ground_truth("a")
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.png is truncated"):
        layout.ground_truth("a")


# --- training samples

def draw(label, generator):
    """Stand in for methods.cse.sample_target: a random number in place of the class."""
    return torch.randint(10**6, (len(label),), generator=generator)


def noise(image, rng):
    return torch.from_numpy(rng.random((3, 4, 4), dtype=np.float32)) + float(np.asarray(image)[0, 0, 0])


@pytest.fixture
def photos(root):
    (root / "labels.json").write_text('{"a": ["cat"], "b": [], "c": ["dog", "cat"]}')
    for name in "abc":
        write_picture(root / "JPEGImages" / f"{name}.jpg")
    return VOCLayout(root)


def test_a_sample_depends_on_seed_epoch_and_index_alone(photos):
    def sample(epoch, index, seed=1, target=draw):
        item = TrainSet(photos, list("abc"), seed, noise, target)[epoch, index]
        return item["image"].sum().item(), item.get("target", torch.tensor(-1)).item()

    one = TrainSet(photos, list("abc"), 1, noise, draw)
    keys = [(epoch, index) for epoch in range(3) for index in range(3)]
    backwards = {key: one[key] for key in reversed(keys)}
    for key in keys:
        assert sample(*key) == (backwards[key]["image"].sum().item(), backwards[key]["target"].item())
    for part in (0, 1):                                         # image and target
        assert len({sample(*key)[part] for key in [*keys]} | {sample(0, 0, seed=2)[part]}) == 10
    assert sample(1, 2, target=None)[0] == sample(1, 2)[0]      # the target has a stream of its own


def test_a_sample_holds_what_training_needs(photos):
    dataset = TrainSet(photos, list("abc"), 1, noise)
    assert len(dataset) == 3
    item = dataset[0, 2]
    assert item.keys() == {"image", "label", "index"} and item["index"] == 2
    assert item["label"].dtype == torch.float32 and item["label"].tolist() == photos.label("c").tolist()
    seen = []
    TrainSet(photos, list("abc"), 1, noise, lambda label, generator: seen.append(label) or draw(label, generator))[0, 0]
    assert seen[0].shape == (1, 20)


def test_missing_pictures_and_labels_are_told_before_training(photos):
    with pytest.raises(FileNotFoundError, match="1 of the 2 images"):
        TrainSet(photos, ["a", "z"], 1, noise)
    write_picture(photos.root / "JPEGImages/z.jpg")
    with pytest.raises(ValueError, match="image without labels: z"):
        TrainSet(photos, ["a", "z"], 1, noise)


def test_vocs_colours_at_other_ids_are_refused(root):
    """As Pillow's quantize leaves them; maps with VOC's own palette, a gray one or other colours are read."""
    (root / "SegmentationClass").mkdir(exist_ok=True)
    ids = np.array([[0, 3, 5], [5, 255, 0]], np.uint8)
    right = Image.fromarray(ids)
    right.putpalette(voc_palette())
    right.save(root / "SegmentationClass/a.png")
    np.testing.assert_array_equal(VOCLayout(root).read_label_map("a", root / "SegmentationClass"), ids)
    right.convert("RGB").quantize(8).save(root / "SegmentationClass/a.png")
    with pytest.raises(ValueError, match=r"a\.png has VOC's colours.*--mask_colours voc"):
        VOCLayout(root).read_label_map("a", root / "SegmentationClass")
    for palette in (np.repeat(np.arange(256), 3), np.random.default_rng(0).integers(0, 256, 768)):
        right.putpalette(palette.astype(np.uint8).tobytes())
        right.save(root / "SegmentationClass/a.png")
        np.testing.assert_array_equal(VOCLayout(root).read_label_map("a", root / "SegmentationClass"), ids)
