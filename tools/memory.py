"""How this process gets its memory from the system."""
import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4     # of glibc's malloc.h


def keep_freed_memory():
    """Let freed memory stay with this process, where the C library is glibc and the user has set no MALLOC_... himself.

    By default glibc gives every large block back when it is freed, and the system clears its pages again at the next
    step: in training on a CPU up to a quarter of the time (BENCHMARKS.md). The peak is the same.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:             # musl has none
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
