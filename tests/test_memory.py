"""Freed memory stays with the process, unless its user says otherwise."""
import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.live import Live
from networks.resnet38d import Block, Bottleneck
from tests.conftest import ROOT
from tools import memory

PAGES = 2048        # 8 MiB, above every threshold at which glibc takes a block from the system and gives it back
PROGRAM = f"""
import mmap, resource
from tools.memory import keep_freed_memory
keep_freed_memory()

def use():
    bytearray({PAGES} * mmap.PAGESIZE)[:] = b"1" * ({PAGES} * mmap.PAGESIZE)

faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
before = faults()
for _ in range(10):
    use()
print((faults() - before) / 10)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_memory_that_was_freed_is_used_again():
    shown = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env={}, capture_output=True, text=True,
                           check=True)
    assert float(shown.stdout) < PAGES / 8, "new pages a use"


GAPS = """
import resource
from tools.memory import LARGE, keep_freed_memory
keep_freed_memory()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

block, before = bytearray(LARGE * 2), resident()
block[:] = bytes(1) * len(block)
kept = bytearray(100000)            # above the block: the heap cannot shrink below it
full = resident()
del block
print((full - resident()) / (LARGE * 2))
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"),
                    reason="the C library is not glibc")
def test_the_largest_blocks_go_back_and_leave_no_gaps():
    shown = subprocess.run([sys.executable, "-c", GAPS], cwd=ROOT, env={}, capture_output=True, text=True, check=True)
    assert float(shown.stdout) > 0.9, "of the block's pages are the system's again"


@pytest.mark.parametrize(("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"),
                                              ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072")])
def test_what_the_user_set_stays(name, value, monkeypatch):
    changed = []
    for chosen in (*memory.CHOSEN, "GLIBC_TUNABLES"):
        monkeypatch.delenv(chosen, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *values: changed.append(values)))
    monkeypatch.setenv(name, value)
    memory.keep_freed_memory()
    assert not changed
    monkeypatch.delenv(name)
    memory.keep_freed_memory()
    assert changed or sys.platform != "linux"


def test_what_lives_at_once():
    """A view is no memory of its own, and what nobody holds is gone."""
    with Live() as live:
        live.phase = "first"
        kept = torch.zeros(1000)
        live.phase = "second"
        large = torch.ones(5000) + 1
        view = large[10:]
        del large
        assert live.now == 4 * 6000 and live.peak == 4 * 11000 and live.at == "second, aten.add"
        del view
        kept + 1
    assert live.now == 4 * 1000 and live.most["first, aten.zeros (1000,)"] == 4 * 1000


@pytest.mark.parametrize(("unit", "channels"), [
    (lambda: Block(32, 64, 64, 1, 1, 1), 32 + 64 + 64), (lambda: Block(64, 64, 64, 1, 1, 1), 64 + 64 + 64),
    (lambda: Bottleneck(64, 128, 0, 1), 64 + 128 + 128)])
def test_a_residual_unit_holds_its_widest_maps_alone(unit, channels):
    """In inference no more lives at once, beside the input, than the activated input and two maps of the result."""
    with FakeTensorMode(), torch.no_grad(), Live() as live:
        unit = unit().eval()
        x = torch.zeros(2, unit.bn_branch2a.num_features, 40, 40)
        before = live.peak = live.now
        unit(x)
    assert live.peak - before == 4 * 2 * channels * 40 * 40
