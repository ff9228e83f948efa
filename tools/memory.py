"""How this process gets memory from the system."""
import ctypes
import os
import sys

CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")      # by the user, for glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3      # of glibc's malloc.h
LARGE = 32 * 2**20                  # bytes; glibc takes no more than this


def keep_freed_memory():
    """Let freed memory stay with this process, where the C library is glibc. The user's own settings win.

    By default glibc gives every large block back when it is freed, and the system clears its pages again at the next
    step: up to a quarter of the processor's time in training on a CPU. The largest go back: kept, they leave gaps that
    nothing fits into, a third of a training's peak at width 1.0 (BENCHMARKS.md).
    """
    chosen = any(name in os.environ for name in CHOSEN) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or chosen:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:             # musl has none
        mallopt(_MMAP_THRESHOLD, LARGE)
        mallopt(_TRIM_THRESHOLD, -1)
