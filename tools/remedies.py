"""What a person can do about errors that torch, numpy and the system word for programmers."""
import re
from contextlib import contextmanager

LESS_FOR_TRAINING = ("--accumulate or --checkpoint_blocks train the same in less; a smaller --batch_size, --crop or "
                     "--width needs less, and so does --precision bf16")
NO_SHARED_MEMORY = ("the shared memory in /dev/shm is too small for the processes that read images: --num_workers 0 "
                    "reads them in this process, or make /dev/shm larger (docker run --shm-size 1g)")


@contextmanager
def one_by_one(images, less):
    """Give an iterator over images, tuples that begin with an ID; memory that runs out names the image it was for.

    less  what the stage can do with less memory: its own flags
    """
    current = None

    def each():
        nonlocal current
        for image in images:
            current = image[0]
            yield image

    try:
        yield each()
    except (RuntimeError, MemoryError) as error:
        if not _is_full(error):
            raise
        raise MemoryError(f"the memory is full at {current or 'the first image'}: {less}. Existing files are kept, "
                          f"and the same command resumes there ({_first_line(error)})") from error


def remedy(error):
    """Say what a person can do about an error; None where nothing is known."""
    words, kind = str(error), type(error).__name__
    if isinstance(error, MemoryError) and words.startswith("the memory is full"):
        return words
    if _is_shared_memory(error):
        return f"{NO_SHARED_MEMORY} ({_first_line(error)})"
    if _is_full(error):
        return f"the memory is full: {LESS_FOR_TRAINING} ({_first_line(error)})"
    if "DataLoader worker" in words and "exited unexpectedly" in words or "is killed by signal" in words:
        return ("a process that reads images was killed, perhaps because the memory is full: take fewer --num_workers, "
                "then run the same command to resume")
    if kind in ("DistBackendError", "DistNetworkError") or "closed by peer" in words or "gloo" in words.lower():
        reason = re.sub(r"^\[\S+\] ", "", words.splitlines()[0]).split(". ")[0]     # without the file and line in torch
        return ("another process of this run has ended or cannot be reached: what is on disk is complete; see its "
                f"message, then run the same command to resume ({reason[:150]})")
    return None


def _is_full(error):
    """Tell whether memory ran out. torch says so in a RuntimeError on a CPU, numpy in a MemoryError."""
    words = str(error)
    return (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            or "allocate memory" in words or "out of memory" in words.lower())


def _is_shared_memory(error):
    """Tell whether the processes of a loader lack room in /dev/shm, where they hand over what they have read.

    torch names its files there /torch_...; Python, which has no file to name, leaves its own module in the traceback.
    """
    words = str(error)
    if "shared memory" in words or "(shm)" in words or "</torch_" in words or "Bus error" in words:
        return True
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return (isinstance(error, OSError) and not getattr(error, "filename", None) and place is not None
            and place.tb_frame.f_globals.get("__name__", "").startswith("multiprocessing."))


def _first_line(error):
    """Quote the error itself: of a loader's process, whose whole traceback is the message, the last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (lines[-1] if "DataLoader worker" in lines[0] and len(lines) > 1 else lines[0]).strip()[:150]
