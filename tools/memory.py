"""How this process gets memory from the system."""
import ctypes
import os
import sys

CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")      # by the user, for glibc
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4     # of glibc's malloc.h


def keep_freed_memory():
    """Let freed memory stay with this process, where the C library is glibc. The user's own settings win.

    By default glibc gives every large block back when it is freed, and the system clears its pages again at the next
    step: up to a quarter of the processor's time in training on a CPU (BENCHMARKS.md, with the peaks of memory).
    """
    chosen = any(name in os.environ for name in CHOSEN) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or chosen:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:             # musl has none
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
