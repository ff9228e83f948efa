"""python -m data.prepare folder: what a table or a list may mean in two ways is refused or said, never guessed."""
# ruff: noqa: F811 (a fixture is imported)
import json
import os

import pytest

from tests.stages import assert_says
from tests.test_prepare_folder import (  # noqa: F401
    FOX_OWL,
    TABLES,
    folder,
    labels_of,
    photo,
    place,
    refused,
    write,
)

ROWS = "1.jpg,fox,train\n2.jpg,owl,train\n3.jpg,fox,{}\n4.jpg,owl,test\n"


# ---- splits ----

@pytest.mark.parametrize("column", ["split", "Set", "partition", "subset", "fold"])
@pytest.mark.parametrize("value", ["holdout", "", "7th"])
def test_a_cell_that_is_no_split(place, column, value):
    """A random split instead would put the table's test photos into train."""
    write(f"file,label,{column}\n" + ROWS.format(value))
    assert_says(refused(), "labels.csv, line 4", repr(value), repr(column), "train, val or test")


def test_numbered_folds_are_no_splits(place, capsys):
    write("file,label,fold\n1.jpg,fox,0\n2.jpg,owl,1\n3.jpg,fox,2\n4.jpg,owl,0\n")
    assert folder().classes == ["fox", "owl"]
    assert_says(capsys.readouterr().out, "'fold' is not read")


def test_a_column_named_split_goes_before_others(place):
    write("file,label,set,split\n1.jpg,fox,winter,train\n2.jpg,fox,summer,test\n")
    layout = folder()
    assert layout.ids("train") == ["1"] and layout.ids("test") == ["2"]


def test_splits_in_json(place):
    entries = [{"file": f"{i}.jpg", "labels": ["fox"], "split": s} for i, s in ((1, "train"), (2, "val"), (3, "test"))]
    write(json.dumps(entries), "labels.json")
    layout = folder(labels="labels.json")
    assert [layout.ids(s) for s in ("train", "val", "test")] == [["1"], ["2"], ["3"]]
    os.rename("out", "before")
    for value, words in (({"split": "holdout"}, ("entry 4", "'holdout'")), ({}, ("4.jpg", "no split"))):
        write(json.dumps([*entries, {"file": "4.jpg", "labels": ["fox"], **value}]), "labels.json")
        assert_says(refused(labels="labels.json"), "labels.json", *words)


def test_one_photo_in_two_splits_under_two_spellings(place, capsys):
    write("file,label,split\n1.jpg,fox,train\n1,fox,test\n2.jpg,fox,train\n")
    refused()
    assert_says(capsys.readouterr().out, "1.jpg", "other splits")


def test_lists_that_overlap(place):
    write(TABLES["names"])
    os.mkdir("lists")
    write("1\n2\n3\n", "lists/train.txt")
    write("3.jpg\n4\n", "lists/val.txt")
    assert_says(refused("--lists", "lists"), "lists/train.txt", "lists/val.txt", "3.jpg", "Take them off one")


def test_a_list_with_a_photo_that_has_no_label(place, capsys):
    write("file,label\n1.jpg,fox\n2.jpg,owl\n")
    os.mkdir("lists")
    write("1\n2\n3\n5\n", "lists/train.txt")
    assert folder("--lists", "lists").ids("train") == ["1", "2"]
    assert_says(capsys.readouterr().out, "lists/train.txt: 2 photos", "left out (3.jpg, 5.jpg)")


# ---- the first line ----

@pytest.mark.parametrize("text", ["gone.jpg,fox\n1.jpg,fox\n2.jpg,owl\n", "gone.PNG fox\n1.jpg fox\n2.jpg owl\n"])
def test_a_first_line_whose_photo_is_absent_is_a_row(place, text, capsys):
    write(text)
    refused()
    assert_says(capsys.readouterr().out, "'gone.", "is not in photos")
    assert labels_of(folder("--leave_out")) == {"1": ["fox"], "2": ["owl"]}


def test_no_header_and_the_label_first(place):
    photo(place / "photos/a b.JPG")
    write("fox,a b.JPG\nowl,2.jpg\n")
    assert labels_of(folder()) == {"a_b": ["fox"], "2": ["owl"]}
    os.rename("out", "before")
    write("0,1.jpg,fox\n1,2.jpg,owl\n")
    assert_says(refused(), "labels.csv has no header", "label,file")


def test_a_header_of_unknown_words_is_said(place, capsys):
    write("gone,fox\n1,fox\n2,owl\n")
    folder()
    assert_says(capsys.readouterr().out, "header: gone, fox")


# ---- classes ----

@pytest.mark.parametrize("word", ["nan", "None", "none", "n/a", "#N/A", "null", "unknown", "no_object", "-", "test"])
def test_words_that_are_no_class(place, word):
    write(f"file,label\n1.jpg,fox\n2.jpg,{word}\n")
    assert_says(refused(), "labels.csv, line 3", repr(word), "" if word == "test" else "leave the cell empty")
    write(f"file,fox,{word}\n1.jpg,1,0\n2.jpg,0,1\n")
    assert_says(refused(), "labels.csv, line 1", repr(word))
    write(json.dumps({"1.jpg": ["fox"], "2.jpg": [word]}), "labels.json")
    assert_says(refused(labels="labels.json"), "labels.json, '2.jpg'", repr(word), "" if word == "test" else "[]")
    if "/" not in word:
        photo(place / f"photos/{word}/7.jpg")
        photo(place / "photos/fox/8.jpg")
        assert_says(refused(labels="from-subfolders"), f"photos/{word}", "" if word == "test" else "photos/background")


@pytest.mark.parametrize("column", ["fold", "idx", "index", "id", "No."])
def test_columns_that_count_are_no_classes(place, column, capsys):
    write(f"file,{column},fox,owl\n1.jpg,0,1,0\n2.jpg,1,0,1\n")
    assert folder().classes == ["fox", "owl"]
    said = capsys.readouterr().out
    assert_says(said, f"{column!r} is not read", f"--label_columns {column} fox owl")
    os.rename("out", "before")
    assert folder("--label_columns", column, "fox", "owl").classes == [column, "fox", "owl"]
