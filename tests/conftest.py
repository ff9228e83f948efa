"""What several test files share: the golden numbers, the weights they were made with, and where real photos lie."""
import fcntl
import os
import shutil
import socket
import struct
import zlib
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
import torch
from PIL import Image

from data import images
from data.layout import VOC_CLASSES, VOCLayout
from networks.cam import CAMNet
from networks.names import official
from networks.pretrained import official_state
from tests.kills import load_whole, make_whole
from tests.stages import DEMO, EPOCHS, call, copy_place, small, small_critters
from tests.zygote import Zygote
from tools import lock

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
LONG = ("test_kill.py", "test_pipeline.py", "test_under_fire.py", "test_aff_stages.py", "test_backbones.py",
        "test_seg_stages.py", "test_distributed.py")       # the longest first


@pytest.hookimpl(tryfirst=True)         # before -m looks at the markers
def pytest_collection_modifyitems(items):
    """Begin with the files that take long: the last one of them would keep one process busy, and the other idle.

    What needs trained networks, or stages in processes of their own, is slow.
    """
    for item in items:
        if {"finished", "zygote"} & set(item.fixturenames):
            item.add_marker("slow")
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_unconfigure():
    """Release what tests of single functions have locked: Python complains of files that are open at its end."""
    for folder in {path.parent for path in lock._held}:
        lock.release(folder)


@pytest.fixture
def golden():
    """Give a function name -> path of a golden file; the test is skipped where the file is in neither place."""
    def find(name):
        for folder in (ROOT / "tests" / "golden", SHARED / "golden"):
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"golden file {name} is neither in tests/golden nor in ../shared/golden")
    return find


@pytest.fixture
def msrc():
    """Give the folder of the real photos (VOC layout, 15 classes), or skip."""
    if not (SHARED / "data" / "msrc").is_dir():
        pytest.skip("the MSRC photos are not in ../shared/data/msrc")
    return SHARED / "data" / "msrc"


def made_once(factory, name, make):
    """Give a folder that make() has filled, called in it: once, whichever process of pytest-xdist needs it first."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    place, done, home = root / name, root / f"{name}.done", Path.cwd()
    with open(root / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)        # of a process that failed in it
            place.mkdir()
            os.chdir(place)
            try:
                make()
            finally:
                os.chdir(home)
            done.touch()
    return place


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Give a folder with data/critters (12 + 6, of 64x64 pixels) and experiment/X: both networks, all maps. Write
    nothing in it.
    """
    def make():
        small_critters(Path("data/critters"), 12, 6)
        for model in EPOCHS:
            call("train", *DEMO, *small(model))
            call("infer", *DEMO, "--model", model, "--vis", "--dict", "--crf", "--alphas", 2, 24)
    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """Give a copy of `finished` of one's own, and go there; its data/critters is a link to the shared images."""
    monkeypatch.chdir(copy_place(finished, tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def voc(finished, tmp_path_factory):
    """Give data/VOC2012 as VOC is: JPEG, Annotations, lists of path pairs, masks with contours, no classes.txt."""
    root = tmp_path_factory.mktemp("voc") / "data/VOC2012"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    critters, ids = VOCLayout(finished / "data/critters"), []
    for number, source in enumerate((critters.ids("train") + critters.ids("val"))[:16]):
        image_id = f"2007_{number:06d}"
        width, height = [(80, 60), (60, 80), (72, 72)][number % 3]
        with Image.open(critters.image_path(source)) as picture:
            picture.convert("RGB").resize((width, height)).save(root / f"JPEGImages/{image_id}.jpg", quality=90)
        mask = np.array(Image.fromarray(critters.ground_truth(source)).resize((width, height), Image.NEAREST))
        names = [VOC_CLASSES[c - 1] for c in np.unique(mask) if c]
        edge = (mask[1:] != mask[:-1])[:, 1:] | (mask[:, 1:] != mask[:, :-1])[1:]
        mask[1:, 1:][edge] = 255
        picture = Image.fromarray(mask)
        picture.putpalette(images.voc_palette())
        picture.save(root / f"SegmentationClass/{image_id}.png")
        objects = "".join(f"<object><name>{escape(n)}</name><difficult>{number % 2}</difficult>"
                          "<part><name>head</name></part></object>" for n in names)
        (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
        ids.append(image_id)
    for split, chosen in {"train": ids[:4], "val": ids[4:6], "train_aug": ids}.items():
        lines = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n" for i in chosen]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(lines))
    return root.parents[1]


@pytest.fixture
def voc_place(voc, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(voc / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """Give what starts stages as processes of their own in milliseconds, and kills them: see tests/zygote.py."""
    with Zygote(tmp_path_factory.mktemp("zygote")) as zygote:
        yield zygote


@pytest.fixture(scope="session")
def whole(zygote, tmp_path_factory):
    """Give small runs of every stage without a break, by name: see tests/kills.py. Write nothing in their folders."""
    return load_whole(made_once(tmp_path_factory, "whole", lambda: make_whole(zygote)))


@pytest.fixture(scope="module")
def one_thread():
    """Compute with one thread, as the processes of in_two do: the sums of two round otherwise, and on a busy machine
    several wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def other_weights(width):
    """Give weights that differ from those of a fresh network of 4 classes, statistics included, in the authors' names.
    """
    torch.manual_seed(1)
    state = official_state(CAMNet(num_classes=4, width=width))
    return {name: value if value.ndim == 0 else torch.rand(value.shape) + 0.1 for name, value in state.items()}


def snapshot(folder):
    """Give {path: (time of its last change, content)} of all files in a folder."""
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path(folder).rglob("*") if p.is_file()}


def make_file(path, text="some weights"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_params(path, arrays):
    """Write the layout of 2016, the one of the published ImageNet weights."""
    out = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for array in arrays.values():
        out += struct.pack(f"<I{array.ndim}Iiii", array.ndim, *array.shape, 1, 0, 0) + array.astype("<f4").tobytes()
    out += struct.pack("<Q", len(arrays))
    for name in arrays:
        out += struct.pack("<Q", len(name)) + name.encode()
    path.write_bytes(out)
    return path


def leftover(name, process=999999999):
    """Name the temporary file that a killed process leaves where it was writing `name`."""
    return f".{name}.{process}.1@{socket.gethostname()}.tmp"


class Program:
    """Pickled, a program: whoever unpickles it makes the folder `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def assert_close(found, expected, by=1e-5, scale=None):
    """Compare two tensors up to `by` times the largest element of what is expected, or of `scale`.

    A sum is rounded in proportion to its terms, in an order that each processor chooses; an element that is small
    because its terms cancel has the same error as the others. Golden numbers keep the tolerances of MANIFEST.json.
    """
    found, expected, scale = (torch.as_tensor(x).detach().double() for x in (
        found, expected, expected if scale is None else scale))
    assert found.shape == expected.shape
    error, size = float((found - expected).abs().max()), float(scale.abs().max())
    assert error <= by * size, f"they differ by {error:.3g}; the largest is {size:.3g}, and {by:g} of it allowed"


@torch.no_grad()
def fill_golden(net, prefix=""):
    """Fill a network with the golden sets' weights: each tensor drawn from the CRC of its official name."""
    for name, tensor in net.state_dict().items():
        name = official(name)
        if name.endswith("num_batches_tracked"):
            continue
        rng = np.random.Generator(np.random.PCG64(zlib.crc32((prefix + name).encode())))
        shape = tuple(tensor.shape)
        if tensor.ndim == 4:
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith((".weight", ".running_var")):
            value = 0.5 + rng.random(shape)
        else:
            value = 0.1 * rng.standard_normal(shape)
        if tensor.ndim == 1 and name.endswith(".weight") and "bn_branch2a" not in name:
            value *= 0.5
        if name in ("fc8.weight", "f8_3.weight", "f8_4.weight", "f8_5.weight"):
            value *= 0.2
        tensor.copy_(torch.from_numpy(value.astype(np.float32)))
    return net
