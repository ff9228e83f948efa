"""data.prepare voc: lists and labels of VOC 2012 and SBD, from folders, archives, downloads and cls_labels.npy."""
import functools
import http.server
import io
import json
import os
import pickle
import tarfile
import threading
import zipfile

import numpy as np
import pytest

from data import prepare
from data.layout import VOC_CLASSES, VOCLayout
from data.prepare import archives, writing
from data.prepare.label_arrays import read_label_arrays
from tests.conftest import SHARED, Program, leftover, snapshot

TRAIN, VAL = ["2007_000001", "2007_000002"], ["2007_000003"]
SBD = {"train": ["2007_000002", "2008_000004"], "val": ["2007_000003", "2008_000005"]}      # 000003 is VOC's val
TRAIN_AUG = ["2007_000001", "2007_000002", "2008_000004", "2008_000005"]
TEST = ["2008_000006"]                                                                      # without annotations
NAMES = {i: [VOC_CLASSES[k], "person"] for k, i in enumerate([*TRAIN_AUG, *VAL])}
FIELD = SHARED / "data/voc_lists"


def voc(*words):
    prepare.main(["voc", *map(str, words)])


def refused(*words):
    with pytest.raises(SystemExit) as caught:
        voc(*words)
    message = str(caught.value.code)
    assert message.startswith("error: ") and "Traceback" not in message
    return message


def write(path, content=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    return path


def xml(*names):
    objects = "".join(f"<object><name>{name}</name><difficult>1</difficult><part><name>head</name></part></object>"
                      for name in names)
    return f"<annotation><filename>x.jpg</filename>{objects}</annotation>"


def make_voc(root, test=False):
    for image_id in [*TRAIN_AUG, *VAL, *(TEST if test else [])]:
        write(root / f"JPEGImages/{image_id}.jpg", b"a photo")
    for image_id, names in NAMES.items():
        write(root / f"Annotations/{image_id}.xml", xml(*names))
    lists = {"train": TRAIN, "val": VAL, "trainval": TRAIN + VAL}
    for split, ids in lists.items():
        write(root / f"ImageSets/Segmentation/{split}.txt", "\n".join(ids) + "\n")
    for image_id in TRAIN + VAL:
        writing.write_labels(root / f"SegmentationClass/{image_id}.png", np.full((4, 6), 1, np.uint8))
    return root


@pytest.fixture
def root(tmp_path):
    return make_voc(tmp_path / "VOC2012")


def make_sbd(folder):
    from scipy.io import savemat
    for split, ids in SBD.items():
        write(folder / f"{split}.txt", "\n".join(ids) + "\n")
        for image_id in ids:
            mask = np.zeros((4, 6), np.uint8)
            mask[1:3] = 15
            (folder / "cls").mkdir(exist_ok=True)
            kinds = [("Boundaries", "O"), ("Segmentation", "O"), ("CategoriesPresent", "O")]
            record = np.array([(np.zeros((20, 1)), mask, 15)], dtype=kinds)
            savemat(folder / f"cls/{image_id}.mat", {"GTcls": record})
    return folder


@pytest.fixture
def sbd(tmp_path):
    return make_sbd(tmp_path / "sbd")


def pack(path, folder, prefix):
    """Pack a folder into a tar, .tgz or zip."""
    files = {f"{prefix}/{p.relative_to(folder).as_posix()}": p for p in sorted(folder.rglob("*")) if p.is_file()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, source in files.items():
                archive.write(source, name)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
            for name, source in files.items():
                archive.add(source, name)
    return path


def lists_of(root):
    return {p.stem: p.read_text().split() for p in (root / "ImageSets/Segmentation").glob("*.txt")}


def check_prepared(root):
    layout = VOCLayout(root)
    assert layout.ids("train_aug") == TRAIN_AUG and not set(TRAIN_AUG) & set(layout.ids("val"))
    assert json.loads((root / "labels.json").read_text()) == {
        i: sorted(set(names), key=VOC_CLASSES.index) for i, names in NAMES.items()}
    assert layout.label(TRAIN_AUG[3]).sum() == 2
    assert not list(root.rglob(".*"))


# ---- SBD and lists ----

@pytest.mark.parametrize("form", ["folder", "above", "unpacked", ".tgz", ".zip", ".tar"])
def test_train_aug_is_vocs_train_and_sbds_lists_without_vocs_val(root, tmp_path, form, capsys):
    if form == "folder":
        source = make_sbd(tmp_path / "sbd")
    elif form == "above":
        source = make_sbd(tmp_path / "sbd/dataset").parent
    elif form == "unpacked":
        source = make_sbd(tmp_path / "sbd/benchmark_RELEASE/dataset").parents[1]
    else:
        source = pack(tmp_path / f"benchmark{form}", make_sbd(tmp_path / "sbd"), "benchmark_RELEASE/dataset")
    voc("--root", root, "--sbd", source)
    check_prepared(root)
    text = capsys.readouterr().out
    assert "4 images" in text and "10582" in text                   # not the field's: said
    assert not (root / "SegmentationClassAug").exists()


def test_the_same_command_again_changes_nothing(root, sbd, capsys):
    voc("--root", root, "--sbd", sbd)
    before = snapshot(root)
    voc("--root", root, "--sbd", sbd)
    assert snapshot(root) == before and "there already" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["train.txt", "val.txt"])
def test_sbd_without_a_list_is_named(root, sbd, missing):
    (sbd / missing).unlink()
    message = refused("--root", root, "--sbd", sbd)
    assert missing in message and "benchmark.tgz" in message
    assert not (root / "labels.json").exists()


@pytest.mark.parametrize("form", [".tgz", ".zip", "folder"])
def test_sbds_masks_only_with_the_flag(root, sbd, tmp_path, form):
    source = sbd if form == "folder" else pack(tmp_path / f"benchmark{form}", sbd, "dataset")
    voc("--root", root, "--sbd", source, "--masks")
    folder = root / "SegmentationClassAug"
    assert sorted(p.stem for p in folder.iterdir()) == TRAIN_AUG
    layout = VOCLayout(root)
    np.testing.assert_array_equal(layout.read_label_map("2008_000004", folder)[:, 0], [0, 15, 15, 0])
    # VOC's own mask where there is one, as the field has it.
    assert (folder / f"{TRAIN[1]}.png").read_bytes() == (root / f"SegmentationClass/{TRAIN[1]}.png").read_bytes()
    before = snapshot(folder)
    (folder / "2008_000005.png").unlink()
    write(folder / leftover("2008_000005.png"), "of a killed run")
    voc("--root", root, "--sbd", source, "--masks")
    assert {p: s[1] for p, s in snapshot(folder).items()} == {p: s[1] for p, s in before.items()}
    assert snapshot(folder)[folder / "2008_000004.png"] == before[folder / "2008_000004.png"]


def test_a_damaged_mat_is_named(root, sbd):
    write(sbd / "cls/2008_000004.mat", b"MATLAB 5.0 MAT-file, cut off")
    assert "2008_000004.mat" in refused("--root", root, "--sbd", sbd, "--masks")
    assert "--sbd" in refused("--root", root, "--masks")


@pytest.mark.parametrize("line", ["{}", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png", "{}\r"])
@pytest.mark.parametrize("name", ["train_aug.txt", "trainaug.txt"])
def test_lists_of_the_field(root, tmp_path, line, name):
    write(tmp_path / "lists" / name, "\n".join(line.format(i) for i in TRAIN_AUG) + "\n")
    write(tmp_path / "lists/train.txt", "\n".join(reversed(TRAIN)))     # the same images in another order
    write(tmp_path / "lists/README.txt", "no list at all")
    voc("--root", root, "--lists", tmp_path / "lists")
    check_prepared(root)
    assert lists_of(root)["train"] == TRAIN


def test_test_images_need_no_labels_and_may_be_absent(tmp_path, capsys):
    lists = write(tmp_path / "lists/test.txt", "\n".join(TEST)).parent
    write(lists / "train_aug.txt", "\n".join(TRAIN_AUG))
    voc("--root", make_voc(tmp_path / "a", test=True), "--lists", lists)
    assert lists_of(tmp_path / "a")["test"] == TEST and "1 photo has no labels" in capsys.readouterr().out
    voc("--root", make_voc(tmp_path / "b"), "--lists", lists)
    assert "test" not in lists_of(tmp_path / "b") and "test is left out: 1 of its 1" in capsys.readouterr().out


@pytest.mark.parametrize("lists, words", [
    ({"train_aug": TRAIN_AUG + VAL}, ["train_aug.txt", "val.txt", VAL[0]]),                     # val is trained on
    ({"train_aug": [*TRAIN_AUG, "2009_000001"]}, ["1 of the 5", "2009_000001", "JPEGImages"]),  # no such photo
    ({"train_aug": [*TRAIN_AUG, "../../etc/x"]}, ["train_aug.txt"]),
    ({"train_aug": [*TRAIN_AUG, "a b"]}, ["train_aug.txt", "line 5"]),
    ({"train_aug": [*TRAIN_AUG, TRAIN_AUG[0]]}, ["more than once", TRAIN_AUG[0]]),
    ({"train": ["2008_000004"]}, ["train.txt", "2 images", "others"]),                          # not the root's own
    ({"mine": TRAIN}, ["train_aug.txt", "--lists"]),
    ({"train_aug": []}, ["train_aug.txt", "no image"]),
])
def test_wrong_lists_are_refused_and_nothing_is_written(root, tmp_path, lists, words):
    for split, ids in lists.items():
        write(tmp_path / f"lists/{split}.txt", "\n".join(ids))
    before = snapshot(root)
    message = refused("--root", root, "--lists", tmp_path / "lists")
    assert all(word in message for word in words), message
    assert snapshot(root) == before


def test_a_train_aug_of_vocs_own_train_list_must_be_the_fields(tmp_path):
    """Half of SBD with the complete VOC is no made-up set but an incomplete one."""
    root, ids = tmp_path / "VOC2012", [f"2007_{i:06d}" for i in range(1464)]
    for image_id in [*ids, "2008_000001"]:
        write(root / f"JPEGImages/{image_id}.jpg")
        write(root / f"Annotations/{image_id}.xml", xml("cat"))
    write(root / "ImageSets/Segmentation/train.txt", "\n".join(ids))
    write(root / "ImageSets/Segmentation/val.txt", "2008_000001")
    write(tmp_path / "lists/train_aug.txt", "\n".join(ids))
    message = refused("--root", root, "--lists", tmp_path / "lists")
    assert "1464" in message and "10582" in message and "fetch" in message


# ---- labels ----

def arrays():
    return {i: np.array([name in names for name in VOC_CLASSES], np.float32) for i, names in NAMES.items()}


def as_object(table):
    return np.array(table, dtype=object)


FORMS = {
    "float32": arrays, "uint8": lambda: {i: a.astype(np.uint8) for i, a in arrays().items()},
    "bool": lambda: {i: a.astype(bool) for i, a in arrays().items()}, "list": lambda: {
        i: a.tolist() for i, a in arrays().items()},
    "irn's numbers": lambda: {int(i.replace("_", "")): a for i, a in arrays().items()},
    "irn's int32": lambda: {np.int32(i.replace("_", "")): a for i, a in arrays().items()},
    "file names": lambda: {f"{i}.jpg": a for i, a in arrays().items()},
    "more images": lambda: arrays() | {"2011_000001": np.ones(20, np.float32)},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_labels_of_cls_labels_npy(root, sbd, tmp_path, form, protocol):
    path = tmp_path / "cls_labels.npy"
    np.save(path, as_object({}), allow_pickle=True)
    path.write_bytes(path.read_bytes()[:128] + pickle.dumps(as_object(FORMS[form]()), protocol))
    voc("--root", root, "--sbd", sbd, "--labels", path)
    check_prepared(root)


@pytest.mark.parametrize("place", ["VOC2012", "VOC2012/ImageSets/Segmentation", "lists"])
def test_without_annotations_cls_labels_npy_is_found(root, tmp_path, place, capsys):
    for path in (root / "Annotations").iterdir():
        path.unlink()
    write(tmp_path / "lists/train_aug.txt", "\n".join(TRAIN_AUG))
    np.save(tmp_path / place / "cls_labels.npy", as_object(arrays()), allow_pickle=True)
    voc("--root", root, "--lists", tmp_path / "lists")
    check_prepared(root)
    assert str(tmp_path / place / "cls_labels.npy") in capsys.readouterr().out


def test_an_npz_of_labels(root, sbd, tmp_path):
    np.savez(tmp_path / "labels.npz", **arrays())
    voc("--root", root, "--sbd", sbd, "--labels", tmp_path / "labels.npz")
    check_prepared(root)


def test_labels_of_own_classes(tmp_path):
    """Fault 15: photos with a classes.txt of their own, and their labels as a cls_labels.npy."""
    root = tmp_path / "k"
    prepare.main(["critters", "--out", str(root), "--train", "4", "--val", "2"])
    layout = VOCLayout(root)
    labels = json.loads((root / "labels.json").read_text())
    np.save(root / "cls_labels.npy", {i: np.float32([c in names for c in layout.classes])
                                      for i, names in labels.items()}, allow_pickle=True)
    (root / "labels.json").unlink()
    with pytest.raises(ValueError, match="cls_labels.npy.*python -m data.prepare voc"):     # the stages' message
        VOCLayout(root).labels(layout.ids("train"))
    voc("--root", root)
    assert {i: set(n) for i, n in json.loads((root / "labels.json").read_text()).items()} == {
        i: set(n) for i, n in labels.items()}


@pytest.mark.parametrize("content, words", [
    (lambda: as_object(arrays() | {VAL[0]: np.ones(6)}), ["(6,)", "20 classes", VAL[0]]),
    (lambda: as_object(arrays() | {VAL[0]: np.full(20, .5)}), ["0 and 1", VAL[0]]),
    (lambda: as_object(arrays() | {VAL[0]: {}}), [VAL[0]]),
    (lambda: as_object({i: a for i, a in arrays().items() if i != TRAIN[0]}), ["1 of the 2", TRAIN[0]]),
    (lambda: as_object({f"other{i}": a for i, a in arrays().items()}), ["labels", "of the"]),
    (lambda: as_object([arrays()]), ["no dict"]),
    (lambda: as_object({(1, 2): np.ones(20)}), ["neither a name nor a number"]),
    (lambda: as_object({}), ["labels"]),
    (lambda: np.zeros((5, 20)), ["no dict of labels"]),
])
def test_other_label_arrays_are_refused(root, tmp_path, content, words):
    np.save(tmp_path / "cls_labels.npy", content(), allow_pickle=True)
    message = refused("--root", root, "--labels", tmp_path / "cls_labels.npy")
    assert "cls_labels.npy" in message and all(word in message for word in words), message
    assert not (root / "labels.json").exists()


@pytest.mark.parametrize("inside", ["whole", "value", "key"])
def test_a_program_among_the_labels_is_refused(root, tmp_path, inside):
    program = Program(tmp_path / "ran")
    table = {"whole": program, "value": {VAL[0]: program}, "key": {program: 1}}[inside]
    path = tmp_path / "cls_labels.npy"
    np.save(path, as_object(table), allow_pickle=True)
    message = refused("--root", root, "--labels", path)
    assert "mkdir" in message and not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_label_arrays_that_are_damaged(tmp_path):
    path = tmp_path / "cls_labels.npy"
    np.save(path, as_object(arrays()), allow_pickle=True)
    content = path.read_bytes()
    for damaged in (b"", content[:5], content[:200], content[:-30], b"PK\3\4" + content, b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cls_labels.npy"):
            read_label_arrays(path)
    deep = b"(" * 1 + b"}" + b")" + b"\x85" * 200_000 + b"N" + b"s" + b"."       # a tuple in a tuple in a ... as a key
    path.write_bytes(content[:128] + b"\x80\x02" + deep)
    with pytest.raises(ValueError, match="cls_labels.npy"):
        read_label_arrays(path)


def test_names_that_no_class_has(root, sbd, capsys):
    for image_id in TRAIN:
        write(root / f"Annotations/{image_id}.xml", xml("Person"))
    message = refused("--root", root, "--sbd", sbd)
    assert "'Person' (2 images)" in message and "person is" in message and "classes.txt" in message
    for image_id in NAMES:
        write(root / f"Annotations/{image_id}.xml", xml("zebra"))
    message = refused("--root", root, "--sbd", sbd)
    assert "'zebra' (5 images)" in message and "classes.txt" in message
    write(root / "classes.txt", "\n".join(VOC_CLASSES))             # a person says that these are all
    for image_id, names in NAMES.items():
        write(root / f"Annotations/{image_id}.xml", xml("zebra", *names))
    voc("--root", root, "--sbd", sbd)
    assert "'zebra' (5 images)" in capsys.readouterr().out
    check_prepared(root)


@pytest.mark.parametrize("content", ["", "<annotation>", "\0", "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>"
                                     "<annotation><object><name>&e;</name></object></annotation>"])
def test_an_annotation_that_is_not_xml_is_named(root, sbd, content):
    write(root / f"Annotations/{TRAIN[0]}.xml", content)
    assert f"{TRAIN[0]}.xml" in refused("--root", root, "--sbd", sbd)


def test_existing_labels_are_not_replaced(root, sbd, tmp_path):
    write(root / "labels.json", json.dumps({TRAIN[0]: ["cat"]}))
    message = refused("--root", root, "--sbd", sbd)
    assert "labels.json" in message and TRAIN[0] in message and "rename" in message
    write(root / "labels.json", "{")
    assert "labels.json" in refused("--root", root, "--sbd", sbd)
    write(root / "labels.json", json.dumps({TRAIN[0]: ["person", "aeroplane"]}))     # the same label: others are added
    voc("--root", root, "--sbd", sbd)
    assert json.loads((root / "labels.json").read_text()).keys() == NAMES.keys()


def test_without_labels_or_lists_the_message_names_what_brings_them(root, tmp_path, capsys):
    voc("--root", root)                                             # labels alone
    text = capsys.readouterr().out
    assert "no train_aug.txt" in text and "--train_list" in text and "--sbd" in text
    voc("--root", root)                                             # labels.json is enough from now on
    for path in [*(root / "Annotations").iterdir(), root / "labels.json"]:
        path.unlink()
    message = refused("--root", root)
    assert "cls_labels.npy" in message and "--labels" in message
    assert "(--labels) is not there" in refused("--root", root, "--labels", tmp_path / "none.npy")


@pytest.mark.parametrize("above", ["VOC2012", "VOCdevkit/VOC2012"])
def test_the_folder_above_is_told_where_voc_is(tmp_path, above):
    make_voc(tmp_path / "x" / above)
    assert f"--root {tmp_path / 'x' / above}" in refused("--root", tmp_path / "x")


def test_a_root_without_photos(tmp_path):
    message = refused("--root", tmp_path / "none")
    assert "--download" in message and "--archive" in message and not (tmp_path / "none").exists()


# ---- archives and downloads ----

@pytest.mark.parametrize("form", [".tar", ".tgz", ".zip"])
def test_vocs_archives(tmp_path, sbd, form):
    archive = pack(tmp_path / f"VOCtrainval{form}", make_voc(tmp_path / "source", test=True), "VOCdevkit/VOC2012")
    root = tmp_path / "data/VOC2012"
    voc("--root", root, "--archive", archive, "--sbd", sbd)
    check_prepared(root)
    assert (root / "SegmentationClass/2007_000001.png").is_file()
    before = snapshot(root)
    voc("--root", root, "--archive", archive, "--sbd", sbd)
    assert snapshot(root) == before


def test_an_interrupted_unpacking_resumes_and_is_no_dataset_before(tmp_path, sbd, monkeypatch):
    archive = pack(tmp_path / "VOC.tar", make_voc(tmp_path / "source"), "VOCdevkit/VOC2012")
    root, write_stream, count = tmp_path / "VOC2012", archives.write_stream, []

    def stop(path, stream):
        if len(count) == 7:
            raise KeyboardInterrupt
        count.append(path)
        write_stream(path, stream)

    monkeypatch.setattr(archives, "write_stream", stop)
    with pytest.raises(SystemExit, match="same command again"):
        voc("--root", root, "--archive", archive, "--sbd", sbd)
    assert not (root / "ImageSets").exists() and len(snapshot(root)) == 7
    before = snapshot(root)
    monkeypatch.setattr(archives, "write_stream", write_stream)
    voc("--root", root, "--archive", archive, "--sbd", sbd)
    check_prepared(root)
    assert before.items() <= snapshot(root).items()


def test_a_damaged_archive_is_named_and_leaves_no_dataset(tmp_path):
    whole = pack(tmp_path / "whole.tgz", make_voc(tmp_path / "source"), "VOC2012").read_bytes()
    for content in (whole[:len(whole) // 2], b"", b"no archive"):
        path = write(tmp_path / "cut.tgz", content)
        assert "cut.tgz" in refused("--root", tmp_path / "VOC2012", "--archive", path)
        assert not (tmp_path / "VOC2012/ImageSets").exists()
    assert "--archive" in refused("--root", tmp_path / "VOC2012", "--archive", tmp_path / "none.tar")


@pytest.mark.parametrize("name", ["VOC2012/JPEGImages/../../../out.jpg", "/x/JPEGImages/../../out.jpg"])
@pytest.mark.parametrize("form", [".tar", ".zip"])
def test_an_archive_cannot_leave_the_root(tmp_path, name, form):
    path = tmp_path / f"x{form}"
    if form == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"out")
    else:
        with tarfile.open(path, "w") as archive:
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"out"))
    assert "leave the folder" in refused("--root", tmp_path / "a/b/VOC2012", "--archive", path)
    assert not list(tmp_path.rglob("out.jpg"))


def test_links_in_an_archive_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("VOC2012/JPEGImages")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "elsewhere")
        archive.addfile(link)
    assert "no photos" in refused("--root", tmp_path / "VOC2012", "--archive", tmp_path / "x.tar")
    assert not os.path.lexists(tmp_path / "VOC2012/JPEGImages")


@pytest.fixture
def server(tmp_path):
    """Give the address of a server of the files in tmp_path."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_download(tmp_path, monkeypatch, server):
    """torchvision's addresses and checksums; here they name files of a server on this machine."""
    from torchvision.datasets import SBDataset
    from torchvision.datasets import voc as torchvision_voc
    from torchvision.datasets.utils import calculate_md5
    sources = {"voc": pack(tmp_path / "VOCtrainval_11-May-2012.tar", make_voc(tmp_path / "source"),
                           "VOCdevkit/VOC2012"),
               "sbd": pack(tmp_path / "benchmark.tgz", make_sbd(tmp_path / "sbd"), "benchmark_RELEASE/dataset")}
    assert "VOCtrainval_11-May-2012.tar" in torchvision_voc.DATASET_YEAR_DICT["2012"]["url"]
    monkeypatch.setitem(torchvision_voc.DATASET_YEAR_DICT, "2012", {
        "url": f"{server}/{sources['voc'].name}", "filename": sources["voc"].name,
        "md5": calculate_md5(sources["voc"])})
    monkeypatch.setattr(SBDataset, "url", f"{server}/{sources['sbd'].name}")
    monkeypatch.setattr(SBDataset, "md5", "0" * 32)
    root = tmp_path / "data/VOC2012"
    message = refused("--root", root, "--download")                 # SBD's comes damaged
    assert f"{server}/benchmark.tgz" in message and "--sbd" in message
    assert [p.name for p in (tmp_path / "data").glob(".*/*")] == ["VOCtrainval_11-May-2012.tar"]
    monkeypatch.setattr(SBDataset, "md5", calculate_md5(sources["sbd"]))
    voc("--root", root, "--download", "--masks")
    check_prepared(root)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["VOC2012"]
    assert len(list((root / "SegmentationClassAug").iterdir())) == 4


def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch, server):
    from torchvision.datasets import voc as torchvision_voc
    monkeypatch.setitem(torchvision_voc.DATASET_YEAR_DICT, "2012", {
        "url": f"{server}/none.tar", "filename": "none.tar", "md5": "0" * 32})
    message = refused("--root", tmp_path / "data/VOC2012", "--download")
    assert "none.tar" in message and "--archive" in message
    assert not list((tmp_path / "data").iterdir())


# ---- the field's own files ----

@pytest.mark.slow
@pytest.mark.skipif(not FIELD.is_dir(), reason="the field's lists are not in ../shared/data/voc_lists")
def test_the_fields_lists_and_labels(tmp_path, capsys):
    """10,582 images of train_aug, and the labels of irn's cls_labels.npy; the photos are empty files here."""
    root = tmp_path / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    lists = {split: (FIELD / f"{split}.txt").read_text().split() for split in ("train", "val", "train_aug")}
    for image_id in {i for ids in lists.values() for i in ids}:
        (root / f"JPEGImages/{image_id}.jpg").touch()
    voc("--root", root, "--lists", FIELD)
    layout = VOCLayout(root)
    assert {split: layout.ids(split) for split in lists} == lists
    assert "10582 images, the field's list" in capsys.readouterr().out
    assert layout.label("2007_000032").nonzero()[0].tolist() == [0, 14]
    half = tmp_path / "half"
    half.mkdir()        # labels.json is there by now, and is enough
    (half / "train_aug.txt").write_text("\n".join(lists["train_aug"][:-1]))
    (root / "ImageSets/Segmentation/train_aug.txt").unlink()
    assert "10581" in refused("--root", root, "--lists", half)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data/voc").is_dir(), reason="the VOC photos are not in ../shared/data/voc")
def test_photos_of_voc_with_another_split(tmp_path, capsys):
    """Real photos with lists of their own, and the field's cls_labels.npy."""
    root, source = tmp_path / "voc", SHARED / "data/voc"
    root.mkdir()
    for name in ("JPEGImages", "SegmentationClass"):
        (root / name).symlink_to(source / name)
    for split in ("train", "val"):
        name = f"ImageSets/Segmentation/{split}.txt"
        write(root / name, (source / name).read_text())
    message = refused("--root", root, "--lists", FIELD)
    command = f"--root {root} --labels {FIELD / 'cls_labels.npy'}"
    assert "train.txt" in message and command in message
    voc(*command.split())
    assert "--train_list" in capsys.readouterr().out
    found, given = (json.loads((folder / "labels.json").read_text()) for folder in (root, source))
    assert {i: set(names) for i, names in found.items()} == {i: set(names) for i, names in given.items()}
