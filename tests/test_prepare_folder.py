"""python -m data.prepare folder: people's photos, label tables and masks become a dataset, or are refused by name."""
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data import prepare
from data.images import read_image, voc_palette
from data.layout import VOCLayout
from data.prepare.splits import divide
from tests.conftest import ROOT, Program, leftover
from tests.stages import assert_says

COLOURS = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)


def photo(path, size=(12, 8), seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def mask(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Give a folder with photos/1.jpg ... 6.jpg, and go there."""
    for i in range(1, 7):
        photo(tmp_path / f"photos/{i}.jpg", seed=i)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder(*words, labels="labels.csv"):
    prepare.main(["folder", "--images", "photos", "--labels", labels, "--root", "out", *map(str, words)])
    return VOCLayout("out")


def refused(*words, labels="labels.csv"):
    with pytest.raises(SystemExit) as caught:
        folder(*words, labels=labels)
    assert str(caught.value.code).startswith("error: ") and not os.path.exists("out/ImageSets/Segmentation/train.txt")
    return caught.value.code


def write(text, name="labels.csv", encoding="utf-8"):
    with open(name, "wb") as file:
        file.write(text.encode(encoding))


def labels_of(layout):
    return {k: sorted(v) for k, v in json.loads((layout.root / "labels.json").read_text("utf-8")).items()}


FOX_OWL = {"1": ["fox"], "2": ["owl"], "3": ["fox", "owl"], "4": ["fox"], "5": ["owl"], "6": []}
TABLES = {
    "names": "file,label\n1.jpg,fox\n2.jpg,owl\n3.jpg,fox;owl\n4.jpg,fox\n5.jpg,owl\n6.jpg,\n",
    "one column a class": "image,fox,owl\n1.jpg,1,0\n2.jpg,0,1\n3.jpg,1,1\n4.jpg,1.0,0.0\n5.jpg,,1\n6.jpg,0,0\n",
    "CRLF and blanks": "file , label\r\n\r\n 1.jpg , fox \r\n2.jpg,owl\r\n3.jpg,\" fox , owl \"\r\n"
                       "4.jpg,fox\r\n5.jpg,owl\r\n6.jpg,\r\n",
    "a line a label": "Filename,Class\n1.jpg,fox\n2.jpg,owl\n3.jpg,fox\n3.jpg,owl\n4.jpg,fox\n"
                    "4.jpg,fox\n5.jpg,owl\n6.jpg,\n",
    "no header": "1.jpg,fox\n2.jpg,owl\n3.jpg,fox,owl\n4.jpg,fox\n5.jpg,owl\n6.jpg\n",
    "semicolons": "file;label\n1.jpg;fox\n2.jpg;owl\n3.jpg;fox|owl\n4.jpg;fox\n5.jpg;owl\n6.jpg;\n",
    "tabs": "file\tlabel\n1.jpg\tfox\n2.jpg\towl\n3.jpg\tfox,owl\n4.jpg\tfox\n5.jpg\towl\n6.jpg\t\n",
    "IDs": "image_id,labels\n1,fox\n2,owl\n3,\"fox,owl\"\n4,fox\n5,owl\n6,\n",
    "paths": "path,label\nphotos/1.jpg,fox\n./2.jpg,owl\n/data/photos/3.jpg,fox;owl\n"
             "C:\\photos\\4.JPG,fox\n5.png,owl\n6.jpg,\n",
    "unquoted commas": "file,label\n1.jpg,fox\n2.jpg,owl\n3.jpg,fox,owl\n4.jpg,fox\n5.jpg,owl\n6.jpg,\n",
    "other columns": "width,height,filename,class\n12,8,1.jpg,fox\n12,8,2.jpg,owl\n"
                     "12,8,3.jpg,fox;owl\n12,8,4.jpg,fox\n12,8,5.jpg,owl\n12,8,6.jpg,\n",
    "label columns": "file,label1,label2\n1.jpg,fox,\n2.jpg,owl,\n3.jpg,fox,owl\n4.jpg,fox,\n5.jpg,,owl\n6.jpg,,\n",
    "background": "file,label\n1.jpg,fox\n2.jpg,owl\n3.jpg,fox;owl\n4.jpg,fox\n5.jpg,owl\n6.jpg,background\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_csv(place, kind):
    write(TABLES[kind])
    layout = folder()
    assert labels_of(layout) == FOX_OWL and layout.classes == ["fox", "owl"]
    assert set(layout.ids("train")) | set(layout.ids("val")) == set(FOX_OWL) - ({"6"} - set(layout.ids("val")))
    assert "6" not in layout.ids("train") and not set(layout.ids("train")) & set(layout.ids("val"))
    assert layout.ids("train_aug") == layout.ids("train")
    for image_id in FOX_OWL:
        np.testing.assert_array_equal(read_image(layout.image_path(image_id)), read_image(f"photos/{image_id}.jpg"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_csv_of_a_spreadsheet_in_hangul(place, encoding):
    """Photos and classes in Hangul; on macOS file names are stored decomposed."""
    os.rename("photos/1.jpg", f"photos/{unicodedata.normalize('NFD', '여우 사진')}.JPG")
    write("파일,라벨\r\n여우 사진.jpg,여우\r\n2.jpg,부엉이\r\n3.jpg,여우;부엉이\r\n", encoding=encoding)
    layout = folder("--val_share", 0)
    assert layout.classes == ["부엉이", "여우"] and labels_of(layout)["여우_사진"] == ["여우"]
    assert layout.image_path("여우_사진").exists()
    assert "여우 사진.JPG,여우_사진" in (layout.root / "names.csv").read_text("utf-8").splitlines()


@pytest.mark.parametrize("table", [FOX_OWL, {f"{k}.jpg": ";".join(v) for k, v in FOX_OWL.items()},
                                   {k: {"fox": int("fox" in v), "owl": int("owl" in v)} for k, v in FOX_OWL.items()},
                                   [{"file": f"{k}.jpg", "labels": v} for k, v in FOX_OWL.items()]])
def test_json(place, table):
    write(json.dumps(table), "labels.json")
    assert labels_of(folder(labels="labels.json")) == FOX_OWL


def test_json_of_the_photos_of_each_class(place):
    write(json.dumps({"fox": ["1.jpg", "3.jpg"], "owl": ["2.jpg", "3.jpg"]}), "labels.json")
    assert labels_of(folder(labels="labels.json")) == {"1": ["fox"], "2": ["owl"], "3": ["fox", "owl"]}


def test_subfolders(place, capsys):
    """Same name and same content: one photo with two labels. Same name, other content: two photos."""
    for name, where in (("1", "fox"), ("2", "owl"), ("3", "fox"), ("5", "owl")):
        (place / "photos" / where).mkdir(exist_ok=True)
        os.rename(f"photos/{name}.jpg", f"photos/{where}/{name}.jpg")
    (place / "photos/owl/3.jpg").write_bytes((place / "photos/fox/3.jpg").read_bytes())
    photo(place / "photos/owl/1.jpg", seed=99)
    photo(place / "photos/background/7.PNG", seed=7)
    layout = folder("--val_share", 0, labels="from-subfolders")
    assert labels_of(layout) == {"fox_1": ["fox"], "owl_1": ["owl"], "2": ["owl"], "3": ["fox", "owl"], "5": ["owl"],
                                 "7": []}
    assert_says(capsys.readouterr().out, "2 photos lie in no subfolder", "4.jpg", "1 photo lies in several",
                "background is no object class")


def test_subfolders_two_deep(place):
    for split in ("train", "val"):
        photo(place / f"photos/{split}/fox/1.jpg")
    assert_says(refused(labels="from-subfolders"), "two folders deep", "train/fox/1.jpg", "--images photos/train")


def test_no_subfolders(place):
    assert_says(refused(labels="from-subfolders"), "no subfolder", "--labels")


WRONG = {
    "wrong column": ("file,date,place\n1.jpg,monday,x\n2.jpg,tuesday,y\n", ("--label_columns", "date")),
    "a class twice": ("file,fox,owl,Fox\n1.jpg,1,0,0\n", ("labels.csv, line 1", "'fox' is there twice")),
    "spelled twice": ("file,label\n1.jpg,fox\n2.jpg,Fox\n", ("--labels", "Fox (of 1 photos)", "fox (of 1 photos)")),
    "a photo twice": ("file,fox,owl\n1.jpg,1,0\n1.jpg,0,1\n", ("labels.csv, line 3", "1.jpg")),
    "two in one": ("file,label\n1.jpg,fox owl\n2.jpg,fox\n3.jpg,owl\n", ("'fox owl'", "separate", ";")),
    "numbers": ("file,label\n1.jpg,0\n2.jpg,1\n", ("numbers", "names of the classes")),
    "no photo of it": ("file,label\nx.jpg,fox\ny.jpg,fox\n", ("names a photo", "'x.jpg'", "--images", "--file_column")),
    "some are absent": ("file,label\n1.jpg,fox\nx.jpg,fox\n", ("1 file cannot be used", "--leave_out")),
    "a probability": ("file,fox,owl\n1.jpg,1,0\n2.jpg,0.7,0\n", ("line 3", "'0.7'", "'fox'")),
    "uncertain": ("file,fox,owl\n1.jpg,1,-1\n", ("line 2", "'-1'", "'owl'")),
    "empty": ("", ("labels.csv is empty",)),
    "header alone": ("file,label\n", ("no row",)),
    "no labels": ("file\n1.jpg\n", ("labels", "1.jpg,fox")),
    "all without": ("file,label\n1.jpg,\n2.jpg,\n", ("no photo has a label",)),
    "all background": ("file,label\n1.jpg,background\n2.jpg,_background_\n", ("no photo has a label",)),
    "no name": ("file,label\n1.jpg,fox\n,owl\n", ("line 3", "no file name")),
    "NUL": ("file,label\n1.jpg,fo\0x\n" + " " * 5000, ("labels.csv",)),
    "control": ("file,label\n1.jpg,fo\x07x\n", ("control character",)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_csv(place, kind):
    text, words = WRONG[kind]
    write(text)
    assert_says(refused(), *words)


def test_columns_can_be_named(place):
    write("shot,day,animal,n\n1.jpg,2.jpg,fox,1\n3.jpg,2.jpg,owl,0\n")
    assert labels_of(folder("--file_column", "shot", "--label_columns", "animal")) == {"1": ["fox"], "3": ["owl"]}
    os.rename("out", "other")
    assert_says(refused("--file_column", "nope"), "'nope'", "--file_column", "shot, day, animal")
    assert_says(refused("--file_column", "shot", "--label_columns", "nope"), "'nope'", "--label_columns")


def test_latin_1_and_spreadsheets(place):
    write("file,label\n1.jpg,Füchse\n", encoding="latin-1")
    assert_says(refused(), "labels.csv", "save it as UTF-8")
    (place / "labels.xlsx").write_bytes(b"PK")
    assert_says(refused(labels="labels.xlsx"), "save it as CSV")


def test_cocos_file_and_vocs_array_are_sent_on(place):
    write(json.dumps({"images": [], "annotations": [], "categories": []}), "labels.json")
    assert_says(refused(labels="labels.json"), "python -m data.prepare coco", "--annotations labels.json")
    np.save("cls_labels.npy", {"1": np.ones(20)}, allow_pickle=True)
    assert_says(refused(labels="cls_labels.npy"), "python -m data.prepare voc")


def test_a_planted_program_does_not_run(place):
    import pickle
    for name in ("labels.pkl", "labels.csv", "labels.json", "labels.npy"):
        (place / name).write_bytes(pickle.dumps(Program(place / "ran")))
        refused(labels=name)
    assert not (place / "ran").exists()


@pytest.mark.parametrize("name", ["../secret.jpg", "photos/../../secret.jpg", "..\\secret.jpg", "a/../../secret"])
def test_a_name_that_leads_out_of_the_folder(place, name, capsys):
    photo(place / "secret.jpg")
    write(f"file,label\n1.jpg,fox\n{name},fox\n")
    refused()
    assert_says(capsys.readouterr().out, "leads out of photos", name.replace("\\", "\\\\"))
    layout = folder("--leave_out")
    assert labels_of(layout) == {"1": ["fox"]} and [p.name for p in (layout.root / "JPEGImages").iterdir()] == ["1.jpg"]


def test_absolute_names_lead_nowhere(place, capsys):
    photo(place / "secret/9.jpg")
    write(f"file,label\n1.jpg,fox\n{place}/secret/9.jpg,fox\n")
    refused()
    assert_says(capsys.readouterr().out, "secret/9.jpg", "not in photos")


def test_names_that_may_be_two_photos(place, capsys):
    photo(place / "photos/1.png")
    write("file,label\n1,fox\n2,fox\n")
    refused()
    assert_says(capsys.readouterr().out, "1.jpg or 1.png")
    write("file,label\n1.jpg,fox\n1.png,owl\n2,fox\n")
    assert len(labels_of(folder())) == 3


def test_names_become_ids(place):
    """No two IDs are equal, not even on a disk that ignores case; every ID fits a list."""
    names = ["a b.jpg", "a_b.jpg", "A_B.png", "(1).jpg", "x&y.jpg", "x" * 120 + ".jpg", "가" * 60 + ".jpg", "v1.2.jpg"]
    for i, name in enumerate(names):
        photo(place / "photos" / name, seed=i)
    write(json.dumps({name: ["fox"] for name in names}), "labels.json")
    layout = folder("--val_share", 0, labels="labels.json")
    ids = layout.ids("train")
    assert len({i.casefold() for i in ids}) == len(names) and {"A_B", "v1.2", "x_y"} <= set(ids)
    layout.check(ids)
    rows = (layout.root / "names.csv").read_text("utf-8").splitlines()
    assert rows[0] == "file,id" and "A_B.png,A_B" in rows and len(rows) == 1 + len(names)


def test_a_name_that_is_not_unicode(place):
    os.rename("photos/1.jpg", b"photos/fox\xff.jpg")
    (place / "photos/fox").mkdir()
    os.rename(b"photos/fox\xff.jpg", b"photos/fox/\xff.jpg")
    layout = folder("--val_share", 0, labels="from-subfolders")
    layout.check(layout.ids("train"))
    assert "fox/\\xff.jpg" in (layout.root / "names.csv").read_text("utf-8")


def test_kinds_of_photos(place, capsys):
    for name in ("a.JPEG", "b.PNG", "c.bmp", "d.TIFF", "e.webp", "f.Jpg"):
        options = {"lossless": True} if name == "e.webp" else {}
        photo(place / "photos" / name, **options)
    (place / "photos/g.HEIC").write_bytes(b"heic")
    photo(place / "photos/h.gif")
    (place / "photos/.hidden.jpg").write_bytes(b"")
    (place / "photos/notes.txt").write_text("hello")
    write("file,label\n" + "".join(f"{c},fox\n" for c in "abcdef"))
    layout = folder("--val_share", 0)
    for image_id, name in zip("abcdef", ("a.JPEG", "b.PNG", "c.bmp", "d.TIFF", "e.webp", "f.Jpg")):
        np.testing.assert_array_equal(read_image(layout.image_path(image_id)), read_image(place / "photos" / name))
    assert_says(capsys.readouterr().out, "1 .gif", "1 .heic")


def test_photos_of_other_endings(place, capsys):
    """JPEG files under their rarer endings, as browsers save them; what is not read is counted."""
    for name in ("fox/a.jfif", "fox/b.JPE", "owl/c.jpg"):
        photo(place / "photos" / name, format="JPEG")
    photo(place / "photos/owl/d.ppm")
    layout = folder("--val_share", 0, labels="from-subfolders")
    assert labels_of(layout) == {"a": ["fox"], "b": ["fox"], "c": ["owl"]}
    np.testing.assert_array_equal(read_image(layout.image_path("b")), read_image(place / "photos/fox/b.JPE"))
    assert_says(capsys.readouterr().out, "1 .ppm files")


def test_a_root_among_the_photos(place):
    """The second run would take what the first one made for photos."""
    write(TABLES["names"])
    for root in ("photos", "photos/out", "photos/../photos/a/b"):
        with pytest.raises(SystemExit) as caught:
            folder("--root", root)
        assert_says(caught.value.code, f"error: {root} (--root) lies in photos", "outside")
    assert len(os.listdir("photos")) == 6
    assert_says(refused("--seed", -1), "--seed -1", "0 or a higher")


def test_unusable_photos_are_all_named(place, capsys):
    (place / "photos/2.jpg").write_bytes(b"no photo")
    (place / "photos/3.jpg").write_bytes(b"")
    os.remove("photos/4.jpg")
    os.symlink("nowhere.jpg", "photos/4.jpg")
    write(TABLES["names"])
    assert_says(refused(), "3 files cannot be used", "--leave_out")
    assert_says(capsys.readouterr().out, "2.jpg", "3.jpg", "4.jpg")
    assert labels_of(folder("--leave_out")) == {k: v for k, v in FOX_OWL.items() if k not in "234"}


def test_links(place):
    """Photos and folders may be links; a link to a folder above is followed once."""
    os.rename("photos", "elsewhere")
    (place / "photos").mkdir()
    os.symlink(place / "elsewhere/1.jpg", "photos/1.jpg")
    os.symlink(place / "elsewhere", "photos/more")
    os.symlink(place / "photos", "photos/loop")
    write("file,label\n1.jpg,fox\nmore/2.jpg,owl\n")
    assert labels_of(folder()) == {"1": ["fox"], "2": ["owl"]}


def test_copy_stands_alone(place):
    write(TABLES["names"])
    layout = folder("--copy")
    shutil.rmtree("photos")
    assert read_image(layout.image_path("1")).shape == (8, 12, 3)


def test_copy_after_links(place):
    write(TABLES["names"])
    layout = folder()
    assert layout.image_path("1").is_symlink()
    folder("--copy")
    assert not any(path.is_symlink() for path in (layout.root / "JPEGImages").iterdir())
    folder()
    shutil.rmtree("photos")
    assert read_image(layout.image_path("1")).shape == (8, 12, 3)


def test_the_split_depends_on_the_seed_alone(place):
    write("file,label\n" + "".join(f"{i}.jpg,{'fox' if i % 2 else 'owl'}\n" for i in range(1, 7)))
    lists = []
    for seed in (0, 0, 1, 2, 3):
        layout = folder("--val_share", 0.34, "--seed", seed)
        lists.append(tuple(layout.ids("val")))
        for split in ("train", "val"):          # every class in both
            assert {n for i in layout.ids(split) for n in labels_of(layout)[i]} == {"fox", "owl"}
        os.rename("out", f"out{len(lists)}")
    assert lists[0] == lists[1] and len(set(lists)) > 1
    assert not os.path.exists("out5/ImageSets/Segmentation/test.txt")


def test_each_class_gives_its_share_to_val():
    """Photos of two classes count for both: what the rare one has given, the other need not give again."""
    names = {f"{i}": [["rare", "often"], ["often"], []][i % 3] for i in range(60)}
    for seed in range(5):
        split = divide(names, {}, {name: name for name in names}, 0.2, seed)
        count = {part: Counter(label for name in split[part] for label in names[name]) for part in ("train", "val")}
        assert count["val"] == {"rare": 4, "often": 8} and count["train"] == {"rare": 16, "often": 32}
        assert sum(not names[name] for name in split["val"]) == 4 and split["train_aug"] == split["train"]


def test_no_val_and_the_tables_own_splits(place, capsys):
    write(TABLES["names"])
    layout = folder("--val_share", 0)
    assert not (layout.root / "ImageSets/Segmentation/val.txt").exists()
    assert layout.ids("train") == ["1", "2", "3", "4", "5"]     # 6 shows no object
    assert "not in train (6.jpg)" in capsys.readouterr().out
    os.rename("out", "first")
    write("file,label\n1.jpg,fox\n2.jpg,owl\n3.jpg,fox\n4.jpg,owl\n5.jpg,owl\n6.jpg,\n")      # an empty cell
    folder()
    assert "not in train (6.jpg)" in capsys.readouterr().out
    os.rename("out", "before")
    write("file,label,split\n1.jpg,fox,train\n2.jpg,owl,Validation\n3.jpg,owl,training\n4.jpg,fox,test\n")
    layout = folder()
    assert [layout.ids(s) for s in ("train", "val", "test")] == [["1", "3"], ["2"], ["4"]]
    os.rename("out", "splits")
    assert_says(refused("--val_share", 1), "--val_share")


def test_the_order_of_classes(place):
    write(TABLES["names"])
    assert folder("--classes", "owl,fox").classes == ["owl", "fox"]
    os.rename("out", "one")
    write("owl\nfox\nwolf\n", "order.txt")
    assert folder("--classes", "order.txt").classes == ["owl", "fox", "wolf"]
    os.rename("out", "two")
    assert_says(refused("--classes", "Fox,owl"), "fox (3 times)", "fox is written Fox")
    assert_says(refused("--classes", "_background_,fox,owl"), "_background_", "object classes only")
    write("file,fox,ant\n1.jpg,1,0\n2.jpg,0,1\n")
    assert folder().classes == ["fox", "ant"]


def test_one_class_and_too_many(place):
    write("file,label\n" + "".join(f"{1 + i % 6}.jpg,c{i}\n" for i in range(255)))
    assert_says(refused(), "255 classes", "254", "--label_columns")


# ---- masks ----

def masks_of(place, form, ids=(1, 2, 2, 1, 2, 0)):
    """Write a mask for each photo: the object on the left, two ignored columns on the right."""
    for i, k in enumerate(ids, start=1):
        labels = np.zeros((8, 12), np.uint8)
        labels[:, :6], labels[:, -2:] = k, 255
        form(place / "masks" / f"{i}.png", labels)


def as_ids(path, labels):
    mask(path, labels)


def as_palette(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    image.putpalette(voc_palette())
    image.save(path)


def as_16_bit(path, labels):
    mask(path, labels.astype(np.uint16))


def as_rgb(path, labels):
    mask(path, COLOURS[labels])


def as_rgba(path, labels):
    mask(path, np.concatenate([COLOURS[labels], np.full((*labels.shape, 1), 255, np.uint8)], axis=-1))


def save_with_new_palette(path, labels):
    """Save VOC's colours at new indices, the most frequent colour first, as GIF files and optimizers do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids, counts = np.unique(labels, return_counts=True)
    ids = ids[np.argsort(-counts, kind="stable")]
    image = Image.fromarray(np.argsort(ids)[np.searchsorted(np.sort(ids), labels)].astype(np.uint8))
    image.putpalette(COLOURS[ids].tobytes())
    image.save(path)


VOC = ("--mask_colours", "voc")


@pytest.mark.parametrize("form, words", [(as_ids, ()), (as_palette, ()), (as_16_bit, ()), (as_rgb, VOC), (as_rgba, VOC),
                                         (as_ids, VOC), (as_palette, VOC)])
def test_masks(place, form, words):
    write(TABLES["names"])
    masks_of(place, form)
    layout = folder("--masks", "masks", *words)
    for i, k in enumerate((1, 2, 2, 1, 2, 0), start=1):
        labels = layout.ground_truth(str(i))
        assert set(labels[:, :6].flat) == {k} and set(labels[:, -2:].flat) == {255} and not labels[:, 6:-2].any()
    with Image.open("out/SegmentationClass/1.png") as image:
        assert image.mode == "P" and bytes(image.getpalette()[:9]) == voc_palette()[:9]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_gray_values_of_a_file(place, kind):
    write(TABLES["names"])
    write("0 background\n100 fox\nowl 200\n255 ignore\n", "colours.txt")
    masks_of(place, lambda path, labels: mask(path, np.choose(np.minimum(labels, 3), [0, 100, 200, 255]).astype(kind)))
    assert set(folder("--masks", "masks", "--mask_colours", "colours.txt").ground_truth("2").flat) == {0, 2, 255}


def test_colours_that_name_no_class_or_lack_one(place):
    write(TABLES["names"])
    masks_of(place, as_rgb)
    for lines, words in (("1 2 3 fox\n", ("no colour for owl",)), ("1 2 3 wolf\n", ("line 1", "'wolf'", "fox, owl")),
                         ("1 2 3 fox\n1 2 3 owl\n", ("line 2", "two classes")), ("fox 1 2 3\nowl green\n", ("line 2",)),
                         ("", ("no colour for fox, owl",))):
        write(lines, "colours.txt")
        assert_says(refused("--masks", "masks", "--mask_colours", "colours.txt"), "colours.txt", *words)
    assert_says(refused("--masks", "masks", "--mask_colours", "nowhere.txt"), "nowhere.txt", "--mask_colours")


def test_lists_that_there_are(place):
    write(TABLES["names"])
    (place / "lists").mkdir()
    write("5\n2.jpg\n", "lists/train.txt")
    write("/JPEGImages/1.jpg /SegmentationClass/1.png\n", "lists/val.txt")
    layout = folder("--lists", "lists")
    assert [layout.ids(s) for s in ("train", "train_aug", "val")] == [["5", "2"], ["5", "2"], ["1"]]
    os.rename("out", "before")
    write("1\n2.jpg\n", "lists/val.txt")
    assert_says(refused("--lists", "lists"), "train.txt", "val.txt", "(2.jpg)")
    write("9\n", "lists/val.txt")
    assert_says(refused("--lists", "lists"), "--leave_out")
    os.remove("lists/train.txt")
    assert_says(refused("--lists", "lists"), "--lists", "train.txt")


@pytest.mark.parametrize("lines", ["10 20 30 fox\n40 50 60 owl\n0 0 0 background\n9 9 9 ignore\n",
                                   "name,r,g,b\nfox,10,20,30\nowl,40,50,60\nbackground,0,0,0\nvoid,9,9,9\n",
                                   "# label:color_rgb:parts:actions\nfox:10,20,30::\nowl:40,50,60::\n"
                                   "background:0,0,0::\nignore:9,9,9::\n",
                                   "#0a141e fox\n#28323c Owl\n#000000 Background\n#090909 ignore\n"])
def test_colours_of_a_file(place, lines):
    write(TABLES["names"])
    write(lines, "colours.txt")
    colours = np.zeros((256, 3), np.uint8)
    colours[1], colours[2], colours[255] = (10, 20, 30), (40, 50, 60), (9, 9, 9)
    masks_of(place, lambda path, labels: mask(path, colours[labels]))
    layout = folder("--masks", "masks", "--mask_colours", "colours.txt")
    assert set(layout.ground_truth("2").flat) == {0, 2, 255}


def test_masks_of_0_and_255(place, capsys):
    """Object masks as many tools write them; 255 would be ignored without a word."""
    write("file,label\n" + "".join(f"{i}.jpg,fox\n" for i in range(1, 7)))
    for i in range(1, 7):
        labels = np.zeros((8, 12), np.uint8)
        labels[2:5, 2:5] = 255
        mask(place / f"masks/{i}.png", labels)
    refused("--masks", "masks")
    assert_says(capsys.readouterr().out, "1.png holds 0 and 255 alone", "255 fox", "--mask_colours")
    write("0 background\n255 fox\n", "colours.txt")
    assert (folder("--masks", "masks", "--mask_colours", "colours.txt").ground_truth("1") == 1).sum() == 9


def test_masks_in_colour_without_a_word_what_they_mean(place, capsys):
    write(TABLES["names"])
    masks_of(place, as_rgb)
    assert_says(refused("--masks", "masks"), "6 files cannot be used")
    assert_says(capsys.readouterr().out, "1.png is in colour", "--mask_colours voc or FILE")


@pytest.mark.parametrize("ending", [".png", ".gif"])
def test_masks_with_palettes_made_anew(place, ending, capsys):
    """Read by their indices, ignored pixels would be a class."""
    write(TABLES["names"])
    masks_of(place, lambda path, labels: save_with_new_palette(path.with_suffix(ending), labels))
    refused("--masks", "masks")
    assert_says(capsys.readouterr().out, f"1{ending} has VOC's colours", "--mask_colours voc")
    layout = folder("--masks", "masks", *VOC)
    assert set(layout.ground_truth("1").flat) == {0, 1, 255} and set(layout.ground_truth("2").flat) == {0, 2, 255}


def test_most_masks_show_what_the_labels_lack(place):
    write(TABLES["names"].replace("fox;owl", "fox"))
    masks_of(place, as_ids, ids=(1, 2, 1, 1, 2, 0))
    both = np.array([[1, 2]] * 8, np.uint8).repeat(6, axis=1)
    for i in (1, 2, 3):
        mask(place / f"masks/{i}.png", both)
    assert_says(refused("--masks", "masks"), "3 of 5 masks show a class", "1.jpg: owl", "--classes")


@pytest.mark.parametrize("form", [as_ids, as_palette, as_16_bit])
def test_values_of_a_file_are_ids(place, form, capsys):
    """The remedy for masks of other ids, as it is printed, palette images and 16-bit values included."""
    write(TABLES["names"])
    first, second = (514, 771) if form is as_16_bit else (8, 12)
    values = np.zeros(256, np.uint16 if form is as_16_bit else np.uint8)
    values[1], values[2], values[255] = first, second, 255
    masks_of(place, lambda path, labels: form(path, values[labels]))
    refused("--masks", "masks")
    assert_says(capsys.readouterr().out, f"\"{first} fox\"", "\"0 background\"", "\"255 ignore\"")
    write(f"{first} fox\n{second} owl\n255 ignore\n", "colours.txt")
    refused("--masks", "masks", "--mask_colours", "colours.txt")
    assert_says(capsys.readouterr().out, "1.png", "\"0 background\"")
    write(f"0 background\n{first} fox\n{second} owl\n255 ignore\n", "colours.txt")
    layout = folder("--masks", "masks", "--mask_colours", "colours.txt")
    assert set(layout.ground_truth("2").flat) == {0, 2, 255}


def test_a_palette_of_black_and_white_is_matched_by_its_colours(place):
    write("file,label\n" + "".join(f"{i}.jpg,fox\n" for i in range(1, 7)))
    write("0 background\n255 fox\n", "colours.txt")

    def black_and_white(path, labels):
        image = Image.fromarray((labels == 1).astype(np.uint8))
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(path)
    (place / "masks").mkdir()
    masks_of(place, black_and_white, ids=(1,) * 6)
    assert set(folder("--masks", "masks", "--mask_colours", "colours.txt").ground_truth("1").flat) == {0, 1}


def test_masks_of_0_and_255_tell_no_two_classes_apart(place, capsys):
    write(TABLES["names"])
    masks_of(place, lambda path, labels: mask(path, np.where(labels > 0, 255, 0).astype(np.uint8)))
    refused("--masks", "masks")
    assert_says(capsys.readouterr().out, "1.png holds 0 and 255 alone", "cannot tell 2 classes apart")


def test_masks_of_ids_beside_vocs_colours(place):
    """With seven classes VOC has a gray, (128, 128, 128); gray images hold ids all the same."""
    write("file,label\n" + "".join(f"{i}.jpg,c{i}\n" for i in range(1, 7)))
    masks_of(place, as_ids, ids=range(1, 7))
    layout = folder("--masks", "masks", *VOC, "--classes", ",".join(f"c{i}" for i in range(1, 9)))
    assert set(layout.ground_truth("6").flat) == {0, 6, 255}


def test_masks_whose_ids_mean_other_classes(place):
    write(TABLES["names"])
    masks_of(place, as_ids, ids=(2, 1, 1, 2, 1, 0))
    message = refused("--masks", "masks")
    assert_says(message, "masks show none of the classes", "--classes")
    assert folder("--masks", "masks", "--classes", "owl,fox").ground_truth("1").min() == 0


@pytest.mark.parametrize("ids, words", [((7, 2, 2, 1, 2, 0), ("1.png", "7", "--classes", "--mask_colours")),
                                        ((256, 2, 2, 1, 2, 0), ("1.png", "256"))])
def test_masks_of_unknown_ids(place, ids, words, capsys):
    write(TABLES["names"])
    masks_of(place, lambda path, labels: None)
    for i, k in enumerate(ids, start=1):
        mask(place / f"masks/{i}.png", np.full((8, 12), k, np.uint16))
    refused("--masks", "masks")
    assert_says(capsys.readouterr().out, *words)


def test_masks_of_vocs_colours_follow_vocs_names(place):
    """Cat and dog alone: in VOC's masks they have the colours of 8 and 12."""
    write("file,label\n1.jpg,cat\n2.jpg,dog\n")
    masks_of(place, as_rgb, ids=(8, 12))
    layout = folder("--masks", "masks", "--mask_colours", "voc")
    assert layout.classes == ["cat", "dog"] and layout.ground_truth("2").flat[0] == 2


def test_smooth_masks_are_refused(place, capsys):
    write(TABLES["names"])
    rng = np.random.default_rng(0)
    masks_of(place, lambda path, labels: mask(path, COLOURS[labels] + rng.integers(0, 9, (8, 12, 3), dtype=np.uint8)))
    refused("--masks", "masks", "--mask_colours", "voc")
    assert_says(capsys.readouterr().out, "1.png", "JPEG", "nearest")


def test_a_mask_of_another_size(place, capsys):
    write(TABLES["names"])
    mask(place / "masks/1.png", np.ones((4, 4), np.uint8))
    refused("--masks", "masks")
    assert_says(capsys.readouterr().out, "1.png is of another size", "12x8")
    layout = folder("--masks", "masks", "--leave_out")          # the photo is of use without its mask
    assert labels_of(layout) == FOX_OWL and not layout.has_ground_truth("1")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_follows_its_photos_exif(place, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(place / "photos/1.jpg", exif=exif)
    write("file,label\n1.jpg,fox\n2.jpg,owl\n")
    labels = np.zeros((8, 12), np.uint8)
    labels[:2, :3] = 1                                          # a corner, as the file stores it
    mask(place / "masks/1.png", labels)
    layout = folder("--masks", "masks")
    with Image.open("photos/1.jpg") as image:
        assert image.size == (12, 8)
    truth = layout.ground_truth("1")
    assert truth.shape == read_image(layout.image_path("1")).shape[:2] == (12, 8)
    rows, columns = {5: (slice(0, 3), slice(0, 2)), 6: (slice(0, 3), slice(6, 8)), 7: (slice(9, 12), slice(6, 8)),
                     8: (slice(9, 12), slice(0, 2))}[orientation]
    assert (truth[rows, columns] == 1).all() and truth.sum() == 6


def test_masks_of_other_names_and_folders(place):
    write("file,label\n1.jpg,fox\n2.jpg,owl\n")
    mask(place / "masks/deep/1_mask.png", np.ones((8, 12), np.uint8))
    mask(place / "masks/2.BMP", np.full((8, 12), 2, np.uint8))
    layout = folder("--masks", "masks")
    assert layout.has_ground_truth("1") and layout.has_ground_truth("2")


def test_a_folder_without_their_masks(place):
    write(TABLES["names"])
    mask(place / "masks/other.png", np.ones((8, 12), np.uint8))
    assert_says(refused("--masks", "masks"), "masks", "1.png")
    assert_says(refused("--masks", "nowhere"), "nowhere", "--masks")
    assert_says(refused("--mask_colours", "voc"), "--masks")


# ---- again, interrupted, another ----

def test_again_changes_nothing_and_another_set_is_refused(place):
    write(TABLES["names"])
    masks_of(place, as_rgb)
    words = ("--masks", "masks", "--mask_colours", "voc")

    def state():
        return {p: (p.lstat().st_mtime_ns, p.read_bytes()) for p in place.glob("out/*[Ja]*/*.*")}
    folder(*words)
    before = state()
    assert len(before) == 12
    folder(*words)
    assert state() == before
    for other in ((*words, "--seed", 1), (*words, "--classes", "owl,fox"), ()):
        with pytest.raises(SystemExit) as caught:
            folder(*other)
        assert_says(caught.value.code, "out is there", "--root", "Nothing was changed")
    assert state() == before


def test_a_mask_that_was_replaced_is_read_again(place):
    write(TABLES["names"])
    masks_of(place, as_ids)
    folder("--masks", "masks")
    labels = np.zeros((8, 12), np.uint8)
    labels[0, 0] = 1
    mask(place / "masks/1.png", labels)
    os.utime("masks/1.png", (1, 1))                             # older than what was made: put back from a backup
    assert folder("--masks", "masks").ground_truth("1").sum() == 1


def test_a_folder_of_somebody_else_is_left_alone(place):
    write(TABLES["names"])
    (place / "out").mkdir()
    (place / "out/mine.txt").write_text("mine")
    assert_says(refused(), "out is there", "--root", "Nothing was changed")
    assert [p.name for p in (place / "out").iterdir()] == ["mine.txt"]


def wait_for_its_processes(group):
    """Wait until the processes of a killed run have noticed that; what one still writes is no leftover yet."""
    with contextlib.suppress(ProcessLookupError):
        for _ in range(500):
            os.killpg(group, 0)
            time.sleep(0.02)


@pytest.mark.slow
def test_killed_and_run_again(place):
    """It resumes: no list before the end, no temporary file after it, the same dataset."""
    for i in range(7, 400):
        os.link("photos/1.jpg", f"photos/{i}.jpg")
        os.makedirs("masks", exist_ok=True)
    masks_of(place, as_ids, ids=[1] * 399)
    write("file,label\n" + "".join(f"{i}.jpg,fox\n" for i in range(1, 400)))
    line = [sys.executable, "-m", "data.prepare", "folder", "--images", place / "photos", "--labels",
            place / "labels.csv", "--masks", place / "masks", "--root", place / "out"]
    run = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while run.poll() is None and len(list(place.glob("out/SegmentationClass/*.png"))) < 50:
        time.sleep(0.005)
    run.kill()
    run.wait()
    wait_for_its_processes(run.pid)
    assert not (place / "out/ImageSets/Segmentation").exists()
    (place / "out/SegmentationClass" / leftover("1.png", run.pid)).write_bytes(b"half")
    layout = folder("--masks", "masks")
    assert len(list(place.glob("out/JPEGImages/*"))) == len(list(place.glob("out/SegmentationClass/*"))) == 399
    assert not list(place.rglob("*.tmp")) and len(layout.ids("train")) + len(layout.ids("val")) == 399


# ---- anything at all ----

def anything(text):
    """Give hypothesis' strategy: bytes, or a table made of words that mean something here."""
    words = st.sampled_from(["1.jpg", "2", "fox", "owl", "file", "label", "split", "train", ",", ";", "\t", "\n",
                             "\r\n", "0", "1", "", " ", '"', "'", "..", "/", "\ufeff", "{", "}", "[", "]", ":", "#",
                             "255", "\0"])
    return st.binary(max_size=60) | st.lists(words, max_size=30).map(lambda found: "".join(found).encode()) | st.text(
        max_size=40).map(lambda found: found.encode("utf-16" if text else "utf-8", "replace"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["labels.csv", "labels.json", "labels.txt", "colours.txt"])
@given(data=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_table_holds(place, name, data):
    """It becomes a dataset that can be read, or one sentence says why not."""
    write(TABLES["names"])
    masks_of(place, as_ids)
    content = data.draw(anything(name != "colours.txt"))
    (place / name).write_bytes(content)
    shutil.rmtree("out", ignore_errors=True)
    words = ("--masks", "masks", "--mask_colours", "colours.txt") if name == "colours.txt" else ()
    try:
        layout = folder(*words, labels="labels.csv" if name == "colours.txt" else name)
    except SystemExit as error:
        assert str(error.code).startswith("error: ") and "\n" not in str(error.code)
    else:
        assert layout.labels(layout.ids("train")).any()
        layout.check(layout.ids("train"))
