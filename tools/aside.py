"""A file is written aside, under a temporary name, and renamed: it is complete or absent, after a power cut too.

Where a stage writes many maps, `in_batches` flushes them to the disk together: a flush for each takes 4 ms, for 64
files at once half a millisecond each (BENCHMARKS.md).
"""
import errno
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

# The last bytes of a complete map or image: of a zip without a comment the 22 of its end record, of a pickle one.
ENDS = {".npz": (22, b"PK\5\6"), ".npy": (1, b"."), ".png": (12, b"\0\0\0\0IEND\xaeB`\x82"), ".gif": (1, b";")}
FILES, SECONDS, AT_ONCE = 64, 30, 16    # a batch is full after so many files or so long; so many are flushed at once

_lock = threading.RLock()
_waiting = {}                           # {path: its temporary path}: complete, not yet flushed
_batches, _flushed = 0, 0.0             # how many in_batches are entered; when the last flush was


@contextmanager
def written_aside(path):
    """Give a temporary path beside `path`, renamed to it at the end; a map or an image in_batches: a little later."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}@{socket.gethostname()}.tmp")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
        if not _kept(aside, path):          # a flush that fails names the file itself
            with explained(path):
                os.replace(aside, path)
    except BaseException:
        _remove(aside)
        raise


@contextmanager
def explained(path):
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} was not written ({error}): make room or fix the folder, then run the same command again"
                      ) from None


@contextmanager
def in_batches():
    """Flush the maps and images that are written in here before they get their names, and their folders after.

    They get them when a batch is full, at flush(), and at the end, an interrupt's or an error's too. Until then nobody
    sees them. One in_batches inside another one shares its batch. All threads of the process take part.
    """
    global _batches, _flushed
    with _lock:
        if not _batches:
            _flushed = time.monotonic()
        _batches += 1
    try:
        yield
    except BaseException:
        with suppress(OSError):         # the error that ended it is the one to report
            flush()
        raise
    else:
        flush()
    finally:
        with _lock:
            _batches -= 1


def flush():
    """Flush what waits for its name, and give it that."""
    global _flushed
    with _lock:
        files = dict(_waiting)
        _waiting.clear()
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(_flush_file, files.values(), files))
                for path, aside in files.items():
                    with explained(path):
                        os.replace(aside, path)
                list(pool.map(flush_folder, {path.parent for path in files}))
        finally:
            for aside in files.values():
                _remove(aside)
            _flushed = time.monotonic()


def waits(path):
    """Tell whether a file is complete and has no name yet."""
    return path in _waiting


def _kept(aside, path):
    """Keep a complete file for the next flush; False where it is to be renamed at once."""
    with _lock:
        if not _batches or path.suffix not in ENDS:
            return False
        _waiting[path] = aside
        if len(_waiting) >= FILES or time.monotonic() - _flushed >= SECONDS:
            flush()
        return True


def _flush_file(aside, path):
    with explained(path):
        _to_disk(aside)


def flush_folder(folder):
    """Bring the names in a folder to the disk: a file that was renamed has its name after a power cut, too."""
    try:
        _to_disk(folder)
    except OSError as error:            # some network disks know no flush of a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def _to_disk(path):
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _remove(aside):
    with suppress(OSError):             # an unmounted disk: the temporary file is gone too
        aside.unlink(missing_ok=True)
