"""One run at a time: locks that the kernel gives back when their process ends, however it ends.

They are POSIX record locks: children do not inherit them, and they hold between machines on a shared disk that
supports them.
"""
import fcntl
import os
import socket
import time
from datetime import datetime

PATIENCE = 30       # seconds: a shard waits that long for another that is just making the folder ready

_held = {}          # path: its open file


def hold(path, what, shared=False):
    """Lock a file until this process ends or calls release; returns whether no other process has it.

    what    the folder that it stands for, named in the error
    shared  several processes may hold it, once the first has called share
    Raises ValueError, with the holder, if another run has it. On a disk that knows no locks there are none.
    """
    if path in _held:
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+", encoding="utf-8")       # noqa: SIM115  its closing would give the lock back
    start = time.monotonic()
    while True:
        if _try(file, fcntl.LOCK_EX):
            alone = True
            break
        if shared and _try(file, fcntl.LOCK_SH):
            alone = False
            break
        if not shared or time.monotonic() > start + PATIENCE:
            file.seek(0)
            holder = file.read().strip() or "which has not said its name"
            file.close()
            raise ValueError(f"another run is writing {what} ({holder}): wait for its end, or take another --name")
        time.sleep(0.1)
    _held[path] = file
    if alone:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
        file.flush()
    return alone


def share(path):
    """Let others that ask for a shared lock have it too."""
    _try(_held[path], fcntl.LOCK_SH)


def release(folder):
    """Give back all locks of this process in a folder."""
    for path in [path for path in _held if path.parent == folder]:
        _held.pop(path).close()


def _try(file, kind):
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        print(f"{file.name}: this disk knows no locks ({error.strerror}); see to it that no two runs write here")
    return True
