"""Fuzz: 2,000 odd and damaged files of every kind that a stage reads from a person or from an earlier stage.

A file is read right, or refused in words that name it; either way it takes little time and memory, and no file is
written or deleted. Half of the cases are made up: nearly valid, with something odd in them. The other half are a valid
file with bytes flipped, cut, doubled or inserted. They are always the same. More of them, and others each time:

    FUZZ_CASES=50000 python -m pytest tests/test_fuzz.py
"""
import json
import os
import pickletools
import random
import re
import resource
import signal
import struct
import time
import unicodedata
import zipfile
import zlib
from collections import Counter
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from xml.dom import minidom

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from data.images import read_image
from data.layout import VOCLayout
from networks.pretrained import load_weights, official_state, read_description, read_params
from tests.stages import DEMO, call, files, own_data, refusal, small
from tools.experiment import Experiment
from tools.files import load_checkpoint, write_json
from tools.maps import read_cam, read_crf, save_cam, save_crf
from tools.provenance import digest, verify

Image.init()                        # now, lest it be taken for what a file costs
CASES = int(os.environ.get("FUZZ_CASES", 2000))
MEMORY = 48 << 20                   # bytes more that reading a file of some KB may take
SECONDS = 5                         # of the processor


class Kind(NamedTuple):
    make: object                    # folder -> path of a valid file, with whatever else its reader needs beside it
    odd: object                     # strategy of nearly valid bytes
    read: object                    # path -> what is read
    right: object                   # (what is read, bytes) -> None; asserts
    sums: bool = False              # it has check sums: damaged, it is refused or gives what the whole one gives
    named: str = ""                 # what every refusal names; default: the file


@contextmanager
def bounded():
    """Give a reader little memory and time."""
    def stop(*_):
        raise AssertionError("it hangs")

    limits, size = resource.getrlimit(resource.RLIMIT_AS), Path("/proc/self/statm")
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 4 * SECONDS)
    if size.exists():
        most = int(size.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    started = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - started < SECONDS


def causes(error):
    """Say what led to an error: a reader may have taken a lack of memory for a damaged file."""
    while error:
        yield f"{type(error).__name__}: {error}"
        error = error.__cause__ or error.__context__


# ---- odd things ----

TEXTS = ["", " ", "\0", "\ufeff", "é", "e\u0301", "東京", "😀", "\u2028", "\u202e", "\x85", "\xa0", "²", "a/b", "../a",
         "..", ".a", "a b", "a\\b", "%s{0}", "NaN", "-1", "\x1b[31m", "\ud800", "x" * 100, "x" * 101, "x" * 70_000,
         "cat", "a.jpg/ b"]
JSONS = ["", "null", "true", "0", "-1", "1.5", "1e999", "NaN", "-Infinity", "9" * 5000, "1" + "0" * 400, '""', '"x"',
         '"\\ud800"', '"\\u0000"', '"' + "x" * 5000 + '"', "'x'", "[]", "{}", '[["x"]]', '["cat"]', '{"a": {"a": 1}}',
         "[" * 100_000, '{"a":' * 100_000, "1 2", ",", "]", "}"]
NUMBERS = [-1, 0, 1, 2, 5, 127, 255, 256, 2**15, 2**16, 2**26, 2**28, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 10**12,
           2**62, 2**63 - 1]
texts = st.sampled_from(TEXTS) | st.text(max_size=5)
numbers = st.sampled_from(NUMBERS)
jsons = st.sampled_from(JSONS) | st.integers(1, 1000).map(lambda n: "[" * n + "]" * n) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4).map(json.dumps)


def damage(data, seed):
    """Damage the bytes of a file in one to three places, anywhere alike, which hypothesis' own integers are not."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 3)):
        start, length = rng.randint(0, len(data)), rng.randint(1, 40)
        part = data[start:start + length]
        change = rng.choice(["flip", "flip", "set", "cut", "end", "double", "insert"])
        if change == "flip" and part:
            part, length = bytes([part[0] ^ 1 << rng.randint(0, 7)]), 1
        elif change == "set":
            part = rng.choice([b"\0", b"\xff", b"\0" * 4, b"\xff" * 4, b"\xff" * 8, b"\0" * 40, b"[" * 40])
            length = len(part)
        elif change == "end":
            return data[:start]
        elif change == "insert":
            part, length = rng.randbytes(rng.randint(1, 6)), 0
        else:
            part *= 2 * (change == "double")
        data = data[:start] + part + data[start + length:]
    return data


def encode(draw, text):
    mark, encoding = draw(st.sampled_from(["", "", "\ufeff"])), draw(st.sampled_from(["utf-8"] * 7 + ["utf-16"]))
    return (mark + text).encode(encoding, "surrogatepass")


@st.composite
def odd_lines(draw, good):
    """Draw a text of good lines and mostly one that is odd or twice there, with any line end and encoding."""
    lines = draw(st.lists(st.sampled_from(good), max_size=3, unique=True))
    for line in draw(st.lists(texts | st.sampled_from(good), max_size=2)):
        lines.insert(draw(st.integers(0, len(lines))), line)
    return encode(draw, draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"])).join(lines))


def spots(value):
    """Give the paths to the parts of a JSON value, the empty one to all of it first."""
    yield ()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from ((key, *rest) for rest in spots(part))


@st.composite
def odd_json(draw, value):
    """Draw the JSON of a value with an odd part or name, or one that is missing or there twice."""
    spot, odd = draw(st.sampled_from(list(spots(value)))), draw(jsons)
    if not spot:
        return encode(draw, odd)
    inside = value = json.loads(json.dumps(value))
    for key in spot[:-1]:
        inside = inside[key]
    old = inside.pop(spot[-1])
    change = draw(st.sampled_from(["part", "part", "missing", "name", "twice"]))
    if change == "name" and isinstance(inside, dict):
        inside[draw(texts)] = old
    elif change != "missing" and isinstance(inside, list):
        inside.insert(spot[-1], "@")
    elif change != "missing":
        inside[spot[-1]] = "@"
        odd += f', "{spot[-1]}": {json.dumps(old)}' * (change == "twice")
    text = json.dumps(value, indent=draw(st.sampled_from([None, 1])), ensure_ascii=draw(st.booleans()))
    return encode(draw, text.replace('"@"', odd).replace("\n", draw(st.sampled_from(["\n", "\r\n"]))))


# ---- a dataset ----

NAMES = ["cat", "dog", "traffic light"]
LABELS = {"a": ["cat", "traffic light"], "b": [], "c": ["dog"]}


def dataset(folder):
    for name in ("ImageSets/Segmentation", "Annotations", "SegmentationClass"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(NAMES))
    return folder


def make_list(folder):
    path = dataset(folder) / "ImageSets/Segmentation/train.txt"
    path.write_text("2007_000032\nété-1\n/JPEGImages/東京.v2.jpg /SegmentationClassAug/東京.v2.png\n")
    return path


def make_labels(folder):
    path = dataset(folder) / "labels.json"
    path.write_text(json.dumps(LABELS))
    return path


def make_annotation(folder):
    path = dataset(folder) / "Annotations/a.xml"
    path.write_text("<annotation><object><name>cat</name><part><name>dog</name></part></object>"
                    "<object><name> traffic light\n</name><difficult>1</difficult></object></annotation>")
    return path


def lines_of(content):
    return [line.strip() for line in re.split("\r\n|\r|\n", content.decode("utf-8-sig")) if line.strip()]


def right_ids(ids, content):
    lines = lines_of(content)
    assert len(set(ids)) == len(ids) == len(lines) > 0
    for image_id, line in zip(ids, lines):
        assert image_id in line and image_id[0] != "." and len(image_id.encode()) <= 100
        assert all(c.isalnum() or c in "_-." for c in image_id)


def right_classes(names, content):
    assert names == lines_of(content) and 0 < len(set(names)) == len(names) < 255
    assert not any(unicodedata.category(c) == "Cc" for name in names for c in name)
    assert all(len(name.encode()) <= 100 for name in names)


def right_json_label(label, content):
    def once(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    there = json.loads(content.decode("utf-8-sig"), object_pairs_hook=once)["a"]
    assert set(there) <= set(NAMES) and label.dtype == np.float32 and label.tolist() == [c in there for c in NAMES]


def right_xml_label(label, content):
    assert label.shape == (3,) and set(label) <= {0, 1}
    if len(content) < 2000:             # what follows is slow, and knows less of names with comments in them
        objects = [o for o in minidom.parseString(content).documentElement.childNodes if o.localName == "object"]
        names = [n.childNodes for o in objects for n in o.childNodes if n.localName == "name"]
        there = {n[0].data.strip() for n in names if len(n) == 1 and n[0].nodeType in (n[0].TEXT_NODE, 4)}
        assert {c for c, seen in zip(NAMES, label) if seen} >= there & set(NAMES)


LAUGHS = "".join(f'<!ENTITY {b} "{f"&{a};" * 99}">' for a, b in zip("abcd", "bcde"))        # 10 GB of x
DOCTYPES = ["", "", "<!DOCTYPE a>", '<!DOCTYPE a [<!ENTITY e "cat">]>', '<!DOCTYPE a [<!ENTITY % p "x"> %p;]>',
            '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///dev/zero">]>', '<!DOCTYPE a SYSTEM "file:///dev/zero">',
            f'<!DOCTYPE a [<!ENTITY a "{"x" * 99}">{LAUGHS}]>']
ENCODINGS = ["utf-8", "UTF-16", "latin-1", "ascii", "cp037", "utf-7", "utf_8_sig", "idna", "punycode", "hex", "rot13",
             "big5", "unicode_escape", "undefined", "shift_jis", "utf-32", "", "x" * 300, "é", "a b", "\0"]


@st.composite
def odd_annotations(draw):
    names = st.sampled_from(["cat", " dog ", "cat<b/>dog", "&#99;at", "&#0;", "&e;", "<![CDATA[cat]]>", "<!-- x -->cat",
                             "<a>" * 50_000, "<a>" * 5000 + "</a>" * 5000]) | texts
    start = draw(st.sampled_from(["<object>", "<object xmlns='x'>", "<object x=1>"]))
    head = draw(st.sampled_from(["", "", *(f'<?xml version="1.0" encoding="{e}"?>' for e in ENCODINGS)]))
    body = "".join(f"{start}<name>{name}</name></object>" for name in draw(st.lists(names, max_size=3)))
    return encode(draw, f"{head}{draw(st.sampled_from(DOCTYPES))}<annotation>{body}</annotation>")


# ---- images ----

TRUTH = Image.fromarray(np.array([[0, 1, 2, 3, 255], [1, 1, 0, 0, 0]], np.uint8))
TRUTH.putpalette(bytes(range(256)) * 3)
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8))
TURNED = Image.Exif()
TURNED[0x112] = 6


def encoded(picture, **options):
    file = BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def make_truth(folder):
    TRUTH.save(dataset(folder) / "SegmentationClass/a.png", exif=TURNED)
    return folder / "SegmentationClass/a.png"


def make_photo(folder):
    PHOTO.save(folder / "a.jpg", exif=TURNED)
    return folder / "a.jpg"


def right_truth(truth, content):
    assert truth.dtype == np.uint8 and truth.ndim == 2 and set(np.unique(truth).tolist()) <= {0, 1, 2, 3, 255}


def right_photo(image, content):
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def chunks_of(png):
    place = 8
    while place < len(png):
        size = struct.unpack_from(">I", png, place)[0]
        yield png[place + 4:place + 8], png[place + 8:place + 8 + size]
        place += 12 + size


CHUNKS = [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"pHYs", b"PLTE",
          b"IDAT", b"cHRM", b"ABCD", b"\0\0\0\0"]
BODIES = [b"", b"\0", b"a\0", b"a\0\0" + zlib.compress(bytes(10**7)), b"\0\0\0\2\0\0\0\0", b"\xff" * 800,
          b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\3\0\0\0\1\0\x09\0\0", b"II*\0\xff\xff\xff\xff",
          struct.pack(">7I", 0, 2**31, 1, 0, 0, 1, 1)]
FIELDS = [("I", 0), ("I", 4), ("B", 8), ("B", 9), ("B", 10), ("B", 11), ("B", 12)]    # of a PNG's header


@st.composite
def odd_png(draw, png):
    """Draw a PNG of right check sums: a field of its header is odd, or a chunk is gone, there twice, odd or new."""
    chunks = list(chunks_of(png))
    i = draw(st.integers(0, len(chunks) - 1))
    name, data = chunks[i]
    change = draw(st.sampled_from(["large", "header", "gone", "twice", "new", "cut", "name", "pixels", "bytes"]))
    if change == "large":
        size = draw(st.tuples(st.integers(4000, 13_000), st.integers(4000, 13_000)))
        chunks[0] = chunks[0][0], struct.pack(">II", *size) + chunks[0][1][8:]
    elif change == "header":
        for code, offset in draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=2)):
            header = bytearray(chunks[0][1])
            value = draw(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 16, 255, 5000, 13_000, 2**16, 2**31 - 1, 2**32 - 1]))
            struct.pack_into(f">{code}", header, offset, value % 2**(8 * struct.calcsize(code)))
            chunks[0] = chunks[0][0], bytes(header)
    elif change == "gone":
        del chunks[i]
    elif change in ("twice", "new"):
        new = draw(st.sampled_from(CHUNKS)), draw(st.sampled_from(BODIES) | st.binary(max_size=9))
        chunks.insert(i, (name, data) if change == "twice" else new)
    else:
        odd = draw(st.binary(min_size=4, max_size=40))
        chunks[i] = {"cut": (name, data[:len(data) // 2]), "name": (odd[:4], data), "bytes": (name, odd),
                     "pixels": (b"IDAT", zlib.compress(odd))}[change]
    return png[:8] + b"".join(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
                              for name, body in chunks)



# ---- what stages leave about themselves ----

NETWORK = {"class": "CAMNet", "classes": ["cat", "dog"], "init": "random", "head": {"dropout_head": 0.5}, "backbone": {
    "name": "resnet38d", "output_stride": 8, "norm": "frozen", "width": 0.03, "blocks": [1, 1, 1, 1, 0, 0],
    "dilation": [1, 1, 1], "dropout": [0.0, 0.0]}}
ROWS = [{"epoch": 0, "loss": 0.5, "miou": 40.0, "curve": [[0.1, 40.0]]}, {"epoch": 1, "loss": None, "miou": 50.0}]
EMPTY = Path(__file__).with_name("__init__.py")
MADE_BY = {"stage": "infer model_cse", "inputs": {"ckpt/model_cse/014.pth": digest(EMPTY), "crf/06": "unknown"},
           "settings": {"scales": [0.5, 1.0], "labels": "given", "data": {"labels.json": "0123abcd"}}}
# A record may name a file that has no end, one that cannot be, and its own folder.
odd_inputs = st.dictionaries(
    st.sampled_from(["/dev/zero", "/dev/stdin", "", "dict", "../X/dict", "/", "a\0b", "x" * 5000, "dict/a.npz/x"]),
    st.just("1"), min_size=1, max_size=2).map(
    lambda inputs: json.dumps({"inputs": inputs}).encode())


def make_made_by(folder):
    experiment = Experiment(folder, "X")
    for name in ("ckpt/model_cse/014.pth", "dict/a.npz", "crf/06/a.npz"):
        (experiment / name).parent.mkdir(parents=True)
        (experiment / name).touch()
    np.savez(experiment / "dict/a.npz")         # complete: an empty one would be deleted as a power cut's
    write_json(experiment / "dict/made_by.json", MADE_BY)
    return experiment / "dict/made_by.json"


def claim(path):
    experiment = Experiment(path.parents[2], "X")
    try:
        return experiment.claim("dict", MADE_BY["stage"], MADE_BY["settings"],
                                [experiment / name for name in MADE_BY["inputs"]])
    finally:
        experiment.release()


def right_claim(folder, content):
    record = json.loads(content)
    assert folder.name == "dict" and {part: record[part] for part in MADE_BY} == MADE_BY


def verify_folder(path):
    return verify(path.parent, path.parents[2] / "X", {"labels.json": "0123abcd"})


def right_verify(_, content):
    record = json.loads(content)
    assert record.get("settings", {}).get("data", {}).get("labels.json", "0123abcd") == "0123abcd"
    for name, recorded in MADE_BY["inputs"].items():
        assert record.get("inputs", {}).get(name, recorded) == recorded


def make_network(folder):
    write_json(folder / "network.json", NETWORK)
    return folder / "network.json"


def right_network(found, content):
    assert found == json.loads(content) and isinstance(found["class"], str)
    assert all(isinstance(name, str) for name in found["classes"])


def make_log(folder):
    for name in ("X/ckpt/model_oc/000.pth", "X/ckpt/model_oc/001.pth", "X/log/train_model_oc.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "X/log/train_model_oc.jsonl"


def read_log(path):
    experiment = Experiment(path.parents[2], "X")
    rows = experiment.epochs("train_model_oc")
    return rows, experiment.weights("model_oc", "best" if any(row.get("miou") is not None for row in rows) else "last")


def right_log(found, content):
    rows, weights = found
    np.testing.assert_equal(rows, [json.loads(line) for line in content.decode().splitlines()])
    assert all(type(row["epoch"]) is int for row in rows)
    scores = {f"{row['epoch']:03d}": row["miou"] for row in rows if row.get("miou") is not None}
    assert not scores or scores[weights.stem] == max(v for k, v in scores.items() if k in ("000", "001"))


odd_log = st.one_of(odd_json(ROWS[0]).map(lambda line: line + b"\n" + json.dumps(ROWS[1]).encode()),
                    odd_json(ROWS[1]).map(lambda line: json.dumps(ROWS[0]).encode() + b"\r\n" + line))


# ---- maps ----

CLASSES, SCORES = np.array([2, 7, 20], np.uint8), np.random.default_rng(0).random((3, 5, 6), np.float32)


def make_maps(name):
    def make(folder):
        path = folder / name
        (save_cam if "cam" in name else save_crf)(path, CLASSES - 2 * ("crf" in name), SCORES, path.suffix[1:])
        return path
    return make


def right_maps(found, content):
    classes, scores = found
    assert classes.dtype == np.int64 and scores.dtype == np.float32 and scores.ndim == 3
    assert classes.shape == (len(scores),) and len(set(classes.tolist())) == len(classes)
    assert all(0 <= c < 255 for c in classes) and np.isfinite(scores).all()
    if content[:4] == b"PK\x03\x04":
        with np.load(BytesIO(content)) as twin:
            np.testing.assert_array_equal(classes, twin["classes"])
            np.testing.assert_array_equal(scores, twin["scores"].astype(np.float32))


def npy(array, **header):
    """Give the .npy of an array; the header's parts may be any text."""
    if array.dtype == object:
        return pickled(array)
    parts = {"descr": repr(array.dtype.str), "fortran_order": "False", "shape": repr(array.shape)} | header
    text = ("{" + ", ".join(f"{name!r}: {part}" for name, part in parts.items()) + "}\n").encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + array.tobytes()


def pickled(value):
    file = BytesIO()
    np.save(file, np.array(value, dtype=object), allow_pickle=True)
    return file.getvalue()


odd_headers = st.one_of(
    st.lists(numbers | st.just(3), max_size=4).map(lambda shape: {"shape": repr(tuple(shape))}),
    st.sampled_from(["(3, 5, 6", "(3.0, 5, 6)", "(True, 5, 6)", "3", "()", "(" * 9000, "[3, 5, 6]", "1" * 5000,
                     "(" + "1," * 70 + ")", "__import__('os')", "'x'"]).map(lambda shape: {"shape": shape}),
    st.sampled_from(["'|O'", "'<U1000000000'", "'|V1099511627776'", "'<M8[s]'", "'f99'", "''", "None", "'<c8'", "'<f8'",
                     "'>f2'", "'?'", "'<u8'", "[('a', '<f4')]", "{'a': 1}", "('<f4', (1000000000,))", "'i,i'",
                     "'\\x00'"]).map(lambda descr: {"descr": descr}),
    st.sampled_from([{"fortran_order": "True"}, {"fortran_order": "1"}, {"fortran_order": "None"}, {"more": "1"}]))
odd_arrays = st.sampled_from([
    CLASSES.astype(float), CLASSES.astype(np.int8) - 3, CLASSES * np.int64(9999), CLASSES.astype(np.uint64) + 2**63,
    np.array([1, 1, 2]), np.array(["1", "2", "3"]), np.array([True, False, True]), np.zeros(0, np.uint8), np.array(3),
    SCORES, SCORES[:, 0], SCORES[:2], SCORES.astype(float), SCORES * np.nan, SCORES.astype(float) * 1e300,
    SCORES.astype(complex), SCORES.astype("M8[s]"), np.zeros((3, 0, 6)), np.zeros((0, 5, 6)), SCORES.astype(object)])


@st.composite
def odd_npz(draw):
    """Draw a zip of classes and scores, one of which is odd in itself, in its header, or in how it is packed."""
    rng, shape = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.tuples(*[st.integers(0, 4)] * 3))
    classes = rng.choice(260, shape[0], replace=False)
    scores = rng.random(shape).astype(draw(st.sampled_from(["<f2", "<f4", ">f8"])))
    file, odd = BytesIO(), draw(st.sampled_from(["classes", "scores"]))
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in (("classes", classes), ("scores", scores)):
            changes = ["header", "shape", "array", "value", "packing", "name"] if name == odd else [""]
            change = draw(st.sampled_from(changes))
            header = draw(odd_headers) if change == "header" else {}
            if change == "shape":
                header["shape"] = repr(tuple(abs(n + draw(st.integers(-1, 1))) for n in array.shape))
            if change == "value" and array.size:
                array.flat[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from(
                    [0, 1, 254, 255] if name == "classes" else [-1, 9, np.nan, np.inf]))
            content = npy(draw(odd_arrays) if change == "array" else array, **header)
            packing = draw(st.sampled_from([0, 8, 12, 14])) if change == "packing" else 0
            if change == "name":
                name = draw(st.sampled_from(["Classes", "scores", "classes", "../a", "", "a\0b", "é"]))
            archive.writestr(f"{name}.npy", content, packing)
    return file.getvalue()


@st.composite
def odd_pickle(draw, data, depth=900):
    """Draw a pickle in which a number is another one, or any instruction is."""
    codes = list(pickletools.genops(data))
    number = draw(st.booleans())
    i = draw(st.sampled_from([i for i, (code, _, _) in enumerate(codes) if not number or "INT" in code.name]))
    start, end = (codes[k][2] if k < len(codes) else len(data) for k in (i, i + 1))
    n = draw(numbers)
    short, long = struct.pack("<I", n % 2**32), struct.pack("<Q", n % 2**64)
    if number:
        return data[:start] + b"\x8a\x08" + long + data[end:]
    other = draw(st.sampled_from([
        b"", data[start:end] * 2, b"N", b"]", b"}", b")", b"(", b"0", b"1", b"2", b".", b"b", b"o", b"Q", b"R", b"\x81",
        b"\x88", b"\x93", b"\x82\x01", b"K" + short[:1], b"J" + short, b"r" + short, b"j" + short, b"B" + short,
        b"X" + short, b"\x8d" + long, b"\x8e" + long, b"\x95" + long, b"\x96" + long, b"\x85" * depth, b"Vx\n",
        b"I" + b"9" * 5000 + b"\n", b"cos\nsystem\n", b"cnumpy\nndarray\n", b"ccollections\nOrderedDict\n"]))
    return data[:start] + other + data[end if draw(st.booleans()) else start:]


odd_keys = st.sampled_from([0, 6, 19, 254, 255, -1, 2**70, 1.5, True, "person", None, (1,), np.int64(3), np.float32(3)])
odd_maps = st.just(SCORES[0]) | odd_arrays | st.sampled_from([[[1.0]], "x", None, 3])
odd_dicts = st.dictionaries(odd_keys, odd_maps, max_size=3) | st.dictionaries(
    st.integers(-1, 255), st.integers(0, 99).map(lambda seed: np.random.default_rng(seed).random((5, 6))), max_size=5
) | st.sampled_from([dict.fromkeys(range(300), SCORES[0]), [SCORES], None, {1: {2: SCORES[0]}}, {1: np.array({2: 3})}])
NPY = pickled({1: SCORES[0], np.int64(6): SCORES[1]})
odd_npy = st.one_of(odd_dicts.map(pickled), odd_headers.map(lambda header: npy(SCORES, **header)),
                    odd_pickle(NPY[128:], depth=200_000).map(lambda data: NPY[:128] + data),
                    st.sampled_from([b"\x93NUMPY\x02\0" + b"\xff" * 4, b"\x93NUMPY\x03\0" + b"\xff" * 9,
                                     b"\x93NUMPY\x09\0v\0", b"\x93NUMPY\x01\0\xff\xff{}"]))


# ---- weights ----

class Net(nn.Module):
    """A backbone and a head, the least that load_weights tells apart."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4))
        self.fc8 = nn.Linear(4, 2)


torch.manual_seed(0)
STATE = {name: value.clone() for name, value in official_state(Net()).items()}
CHECKPOINT = {"settings": {"lr": 0.1, "classes": ["cat"]}, "network": STATE, "step": 3, "meter": {"loss": 1.5}}
PARAMS = [(Path(__file__).parent / f"golden/set13_small_{layout}.params").read_bytes()
          for layout in ("legacy0", "legacy1", "mxnet191")]


def saved(value, zipped=True):
    file = BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def make_file(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name
    return make


def numbers_of(value):
    """Give nested dicts with their tensors as types and lists, for comparing."""
    if isinstance(value, dict):
        return {key: numbers_of(item) for key, item in value.items()}
    return (value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else value


def read_weights(path):
    """Load into a network, which is to be as before where the file is refused."""
    net = Net()
    before = numbers_of(official_state(net))
    try:
        load_weights(net, path)
    except Exception:
        assert numbers_of(official_state(net)) == before
        raise
    return official_state(net)


def right_weights(state, content):
    assert all(value.shape == STATE[name].shape and torch.isfinite(value).all() for name, value in state.items())
    assert (state["1.running_var"] > 0).all()


def right_params(arrays, content):
    assert all(isinstance(name, str) and array.dtype.kind in "fiu" for name, array in arrays.items())
    assert sum(array.nbytes for array in arrays.values()) < len(content)


@st.composite
def odd_archive(draw, data):
    """Draw what torch.save wrote with another pickle in it, or with a record that is odd."""
    file = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        odd = draw(st.sampled_from(["archive/data.pkl", "archive/data.pkl", *old.namelist()]))
        for name in old.namelist():
            content, packing = old.read(name), zipfile.ZIP_STORED
            if name == odd and name.endswith("pkl"):
                content = draw(odd_pickle(content))
            elif name == odd:
                change = draw(st.sampled_from(["gone", "cut", "long", "packed", "twice"]))
                content = {"cut": content[1:], "long": content + bytes(9)}.get(change, content)
                packing = zipfile.ZIP_DEFLATED if change == "packed" else packing
                name += "x" * (change == "gone")
                if change == "twice":
                    new.writestr(f"{name}x", content)
            new.writestr(name, content, packing)
    return file.getvalue()


@st.composite
def odd_old_file(draw):
    """Draw what torch.save wrote before it wrote archives: five pickles, one of them odd, then the numbers."""
    data = saved(STATE, zipped=False)
    file, ends = BytesIO(data), [0]
    for _ in range(5):
        list(pickletools.genops(file))
        ends.append(file.tell())
    i = draw(st.sampled_from([1, 2, 3, 3, 3, 3]))
    return data[:ends[i]] + draw(odd_pickle(data[ends[i]:ends[i + 1]])) + data[ends[i + 1]:]


odd_tensors = st.sampled_from([
    torch.ones(1), torch.ones(()), torch.zeros(4), torch.ones(4) * torch.nan, torch.ones(4).double() * 1e300,
    torch.ones(4).int(), torch.ones(4).bool(), torch.ones(4) * 1j, torch.ones(4, 1), torch.ones(4, device="meta"),
    torch.eye(4).to_sparse(), torch.ones(1).expand(4), torch.zeros(4, 3, 5, 5), torch.ones(2, 4),
    torch.ones(4).bfloat16(), torch.ones(4, dtype=torch.float8_e4m3fn), nn.Parameter(torch.ones(4)), None, 3, "x", [1],
    {"a": torch.ones(1)}, b"x", 10**400])


@st.composite
def odd_states(draw, zipped):
    """Draw a state dict of which an entry or a name is odd."""
    state, name = dict(STATE), draw(st.sampled_from(list(STATE)))
    value = state.pop(name)
    new = draw(st.sampled_from([name, name, f"module.{name}", f"backbone.{name}", "x", "", "fc8.weight", 3, None]))
    state[new] = draw(st.just(value) | odd_tensors)
    return saved(draw(st.sampled_from([state, state, state, [state], {"state_dict": state}, None])), zipped)


@st.composite
def odd_params(draw):
    """Draw a .params file in which one number is another."""
    data, code = bytearray(draw(st.sampled_from(PARAMS))), draw(st.sampled_from("IQ"))
    number = draw(numbers) % 2**(8 * struct.calcsize(f"<{code}"))
    struct.pack_into(f"<{code}", data, 4 * draw(st.integers(0, len(data) // 4 - 2)), number)
    return bytes(data)


# ---- all of them ----

KINDS = {
    "list": Kind(make_list, odd_lines(["2007_000032", "été-1", "/JPEGImages/a.jpg /SegmentationClassAug/a.png"]),
                 lambda path: VOCLayout(path.parents[2]).ids("train"), right_ids),
    "classes": Kind(lambda folder: dataset(folder) / "classes.txt", odd_lines(NAMES),
                    lambda path: VOCLayout(path.parent).classes, right_classes),
    "labels": Kind(make_labels, odd_json(LABELS), lambda path: VOCLayout(path.parent).label("a"), right_json_label),
    "annotation": Kind(make_annotation, odd_annotations(), lambda path: VOCLayout(path.parents[1]).label("a"),
                       right_xml_label),
    "truth": Kind(make_truth, odd_png(encoded(TRUTH, format="PNG")),
                  lambda path: VOCLayout(path.parents[1]).ground_truth("a"), right_truth),
    "picture": Kind(make_photo, odd_png(encoded(PHOTO, format="PNG", exif=TURNED)), read_image, right_photo),
    "claim": Kind(make_made_by, odd_json(MADE_BY), claim, right_claim, named="dict"),
    "verify": Kind(make_made_by, odd_json(MADE_BY) | odd_inputs, verify_folder, right_verify, named="dict"),
    "network": Kind(make_network, odd_json(NETWORK), read_description, right_network),
    "log": Kind(make_log, odd_log, read_log, right_log, named="model_oc"),
    "cam npz": Kind(make_maps("cam.npz"), odd_npz(), read_cam, right_maps, sums=True),
    "crf npz": Kind(make_maps("crf.npz"), odd_npz(), read_crf, right_maps, sums=True),
    "cam npy": Kind(make_maps("cam.npy"), odd_npy, read_cam, right_maps),
    "crf npy": Kind(make_maps("crf.npy"), odd_npy, read_crf, right_maps),
    "checkpoint": Kind(make_file("last.pth", saved(CHECKPOINT)), odd_archive(saved(CHECKPOINT)), load_checkpoint,
                       lambda found, content: None, sums=True),
    "weights": Kind(make_file("w.pth", saved(STATE)), odd_states(True) | odd_archive(saved(STATE)),
                    read_weights, right_weights, sums=True),
    "old weights": Kind(make_file("w.pth", saved(STATE, zipped=False)), odd_states(False) | odd_old_file(),
                        read_weights, right_weights),
    "params": Kind(make_file("w.params", PARAMS[2]), odd_params(), read_params, right_params),
}
HALVES = [(name, how) for name in KINDS for how in ("odd", "damaged")]
SHARES = {half: (CASES + i) // len(HALVES) for i, half in enumerate(HALVES)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "how"), HALVES)
def test_a_file_is_read_right_or_refused_by_name(tmp_path, name, how):
    kind = KINDS[name]
    path = kind.make(tmp_path)
    whole, intact = path.read_bytes(), kind.read(path)
    kind.right(intact, whole)
    seen = Counter()

    @settings(max_examples=SHARES[name, how], derandomize="FUZZ_CASES" not in os.environ, database=None, deadline=None,
              suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink])
    @given(kind.odd if how == "odd" else st.integers(0, 2**32).map(partial(damage, whole)))
    def run(content):
        path.write_bytes(content)
        before = files(tmp_path, without=(".lock",))
        found = error = None
        with bounded():
            try:
                found = kind.read(path)
            except (ValueError, OSError) as refused:
                error = refused
        assert files(tmp_path, without=(".lock",)) == before
        seen["refused" if error else "read"] += 1
        if error:
            assert (kind.named or path.name) in str(error) and len(str(error)) < 9000
            assert not any(re.search("MemoryError|(an't|annot|nable to) alloc", cause) for cause in causes(error))
            return
        kind.right(found, content)
        if how == "damaged" and kind.sums:
            np.testing.assert_equal(numbers_of(found), numbers_of(intact))

    run()
    print(name, how, dict(seen))
    assert seen.total() == SHARES[name, how]
    assert seen.total() < 40 or seen["refused"] and (seen["read"] or how == "damaged")     # both sides are tried


def test_the_shares_are_all_the_cases():
    assert sum(SHARES.values()) == CASES


# ---- no traceback reaches a person ----

def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def announce(path):
    """Let a PNG announce many pixels."""
    content = bytearray(path.read_bytes())
    struct.pack_into(">II", content, 16, 13_000, 13_000)
    struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    path.write_bytes(content)


def write(text):
    return lambda path: path.write_text(text)


INFER, TRAIN, EVALUATE = ("infer", *DEMO, "--dict"), ("train", *DEMO, *small("model_oc")), ("evaluation", *DEMO)
EVALUATE_CRF = (*EVALUATE, "--task", "crf", "--dict_dir", "crf/02")
SPOILED = {
    "data/critters/ImageSets/Segmentation/train_aug.txt": (write("x" * 300), (*TRAIN, "--name", "Y"), "too long"),
    "data/critters/classes.txt": (write("a\0b"), INFER, "control character"),
    "data/critters/labels.json": (write('{"a": [], "a": []}'), INFER, "'a' is there twice"),
    "data/critters/SegmentationClass/train_0005.png": (announce, EVALUATE, "says 13000x13000"),
    "data/critters/JPEGImages/train_0005.png": (announce, (*TRAIN, "--name", "Y"), "says 13000x13000"),
    "experiment/X/dict/made_by.json": (write("[]"), INFER, "is not what a stage writes"),
    "experiment/X/crf/02/made_by.json": (write('{"inputs": {"/dev/zero": "", "crf/02": ""}}'), EVALUATE_CRF,
                                         "names the folder itself"),
    "experiment/X/log/train_model_oc.jsonl": (write("{}"), (*INFER, "--model", "model_oc", "--load_epo", "best"),
                                              "no epoch"),
    "experiment/X/ckpt/model_cse/network.json": (write('{"class": 3}'), (*INFER, "--dict_dir", "new"),
                                                 "describes no network"),
    "experiment/X/dict/train_0005.npz": (flip, EVALUATE, "cannot be read"),
    "experiment/X/ckpt/model_cse/001.pth": (flip, (*INFER, "--dict_dir", "new"), "damaged"),
    "experiment/X/ckpt/model_oc/last.pth": (flip, TRAIN, "damaged"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_stage_refuses_it_too(place, name):
    own_data(place)
    spoil, words, message = SPOILED[name]
    spoil(place / name)
    said = refusal(*words)
    assert message in said and Path(name).name in said


def test_a_dataset_as_another_editor_saves_it(place):
    """With a byte order mark and other line ends it is the same dataset."""
    data = own_data(place)
    for name in ("classes.txt", "labels.json", "ImageSets/Segmentation/train.txt"):
        text = (data / name).read_text().replace("\n", "\r\n")
        (data / name).write_text(f"\ufeff{text}", encoding="utf-8", newline="")
    call(*INFER, "--dict_dir", "new")
    for path in place.glob("experiment/X/dict/*.npz"):
        np.testing.assert_array_equal(read_cam(path)[1], read_cam(place / "experiment/X/new" / path.name)[1])
