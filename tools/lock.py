"""One run at a time: locks that the kernel releases when their process ends, however it ends.

They are POSIX record locks: children do not inherit them, and they hold between machines on a shared disk that
supports them.
"""
import os
import socket
import sys
import time
from datetime import datetime

try:
    import fcntl
except ImportError:         # Windows; nothing here has an error handler yet, so this ends the program
    sys.exit("error: this program locks its files as Linux and macOS do, and this system cannot: run it on one of "
             "them, or on Windows in WSL (wsl --install)")

PATIENCE = 30       # seconds that a shard waits for another that is preparing the folder
BRIEF = 10          # seconds that a run waits for another, which may only be finding out that its work is done

_held = {}          # path: its open file


def hold(path, what, shared=False):
    """Lock a file until this process ends or calls release; return whether no other process holds it.

    what    the folder that it protects, named in the error
    shared  several processes may hold it, once the first has called admit_others
    Raises ValueError, naming the holder, if another run holds it and goes on holding it. A disk without locks gets a
    warning.
    """
    if path in _held:
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+", encoding="utf-8")       # noqa: SIM115  closing it releases the lock
    start, patience, told = time.monotonic(), PATIENCE if shared else BRIEF, False
    while True:
        if _try(file, fcntl.LOCK_EX):
            alone = True
            break
        if shared and _try(file, fcntl.LOCK_SH):
            alone = False
            break
        if time.monotonic() > start + patience:
            file.seek(0)
            holder = file.read().strip() or "it did not record who it is"
            file.close()
            raise ValueError(f"another run is writing {what} ({holder}): wait for its end, or take another --name")
        if not told and time.monotonic() > start + 1:
            print(f"another run is writing {what}: waiting up to {patience} s for its end", flush=True)
            told = True
        time.sleep(0.1)
    _held[path] = file
    if alone:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
        file.flush()
    return alone


def admit_others(path):
    """Let other processes hold the lock too, if they ask for a shared one."""
    _try(_held[path], fcntl.LOCK_SH)


def release(folder):
    """Release all locks of this process in a folder."""
    for path in [path for path in _held if path.parent == folder]:
        _held.pop(path).close()


def _try(file, kind):
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        print(f"{file.name}: this disk has no locks ({error.strerror}): do not start two runs that write here")
    return True
