"""What several test files share: the golden numbers, the weights they were made with, and where real photos lie."""
import os
import socket
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from networks.names import official
from tests.stages import DEMO, EPOCHS, call, copy_place, small
from tests.zygote import Zygote

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
LONG = ("test_pipeline.py", "test_kill.py", "test_new_model.py", "test_seg_stages.py", "test_under_fire.py",
        "test_distributed.py", "test_aff_stages.py")       # minutes, the longest first


def pytest_collection_modifyitems(items):
    """Begin with the files that take minutes: the last one of them would keep one process busy, and the other idle."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


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


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Give a folder with data/critters (12 + 6) and experiment/X: both networks, all maps. Write nothing in it."""
    from data import prepare
    place, home = tmp_path_factory.mktemp("finished"), Path.cwd()
    os.chdir(place)
    try:
        prepare.main(["critters", "--train", "12", "--val", "6"])
        for model in EPOCHS:
            call("train", *DEMO, *small(model))
            call("infer", *DEMO, "--model", model, "--vis", "--dict", "--crf", "--alphas", 2, 24)
    finally:
        os.chdir(home)
    return place


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """Give a copy of `finished` of one's own, and go there; its data/critters is a link to the shared pictures."""
    monkeypatch.chdir(copy_place(finished, tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """Give what starts stages as processes of their own in milliseconds, and kills them: see tests/zygote.py."""
    with Zygote(tmp_path_factory.mktemp("zygote")) as zygote:
        yield zygote


def make_file(path, text="some weights"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
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
