"""A run waits a moment for another that holds its lock, and is told who that is if it goes on."""
import subprocess
import sys

import pytest

from tests.zygote import PATIENCE, ROOT
from tools import lock

HOLD = """
import sys
from pathlib import Path
from tools import lock
lock.hold(Path(sys.argv[1]), "")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Start a process that holds tmp_path/a.lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "a.lock"], cwd=ROOT, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
    lock.release(tmp_path)


def test_a_run_waits_for_one_that_ends_soon(other, tmp_path, monkeypatch):
    """Two tables that share a finished row find out at once that it is finished."""
    def sleep(seconds):
        other.kill()
        other.wait()

    assert 0 < lock.BRIEF <= lock.PATIENCE
    monkeypatch.setattr(lock, "BRIEF", PATIENCE)
    monkeypatch.setattr(lock.time, "sleep", sleep)
    assert lock.hold(tmp_path / "a.lock", "X/dict")


@pytest.mark.parametrize("shared, constant", [(False, "BRIEF"), (True, "PATIENCE")])
def test_one_that_goes_on_is_named(other, tmp_path, monkeypatch, shared, constant):
    monkeypatch.setattr(lock, constant, -1)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: pytest.fail("it waits by the other constant"))
    with pytest.raises(ValueError, match=rf"X/dict \(process {other.pid} on .*another --name"):
        lock.hold(tmp_path / "a.lock", "X/dict", shared)
