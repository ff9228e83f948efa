"""One function over many files, in several processes, with a progress bar."""
import multiprocessing
import os
import threading
import time

from tqdm import tqdm

FEW = 64                                # with fewer jobs than that, starting processes takes longer than the work
_work = None                            # in a process of the pool: what it calls


def cores():
    """Count the processors that this process may use, at most 8."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, there)


def spread(work, jobs, processes, words):
    """Yield work(job) for each job, in order. `work` must be picklable; what it raises is raised here."""
    with tqdm(total=len(jobs), desc=words, unit="image", disable=len(jobs) < FEW) as progress:
        if processes < 2 or len(jobs) < FEW:
            for job in jobs:
                yield work(job)
                progress.update()
            return
        with multiprocessing.Pool(processes, _start, (work, os.getpid())) as pool:
            for result in pool.imap(_call, jobs, chunksize=16):
                yield result
                progress.update()


def _start(work, parent):
    global _work
    _work = work
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent):
    """End this process when its parent was killed: multiprocessing would leave it waiting for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _call(job):
    return _work(job)
