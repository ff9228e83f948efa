"""One function over many files, in several processes, with a progress bar."""
import gc
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from tools.cores import cores as all_cores

FEW = 64                                # with fewer jobs than that, starting processes takes longer than the work
_work = None                            # in a process of the pool: what it calls


def cores():
    """Count the processors that this process may use, at most 8."""
    return min(8, all_cores())


def spread(work, jobs, processes, words):
    """Yield work(job) for each job, in order. `work` must be picklable; what it raises is raised here."""
    with tqdm(total=len(jobs), desc=words, unit="image", disable=len(jobs) < FEW) as progress:
        if processes < 2 or len(jobs) < FEW:
            for job in jobs:
                yield work(job)
                progress.update()
            return
        gc.freeze()         # or each process's garbage collection would copy what was read into its own memory
        pool = ProcessPoolExecutor(processes, initializer=_start, initargs=(work, os.getpid()))
        try:
            for result in pool.map(_call, jobs, chunksize=16):
                yield result
                progress.update()
        except BrokenProcessPool:
            raise OSError("a process was killed, perhaps because the memory is full: close other programs and run the "
                          "same command again; it resumes") from None
        finally:
            pool.shutdown(cancel_futures=True)
            gc.unfreeze()


def _start(work, parent):
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)            # Ctrl-C ends the parent, and that ends its processes
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent):
    """End this process when its parent was killed."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _call(job):
    return _work(job)
