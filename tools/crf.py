"""Dense CRF: sharpen score maps along the edges of the picture, in this process or in a pool of child processes.

numpy and pydensecrf only. pydensecrf holds the GIL, so several pictures at a time need several processes, and those
must not import torch, which takes seconds: they run this very module, `python -m tools.crf`, and talk through pipes.
"""
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

GAUSSIAN = {"sxy": 3, "compat": 3}                  # authors' crf_inference
BILATERAL = {"sxy": 80, "srgb": 13, "compat": 10}
DEEPLAB_BILATERAL = {"sxy": 32, "srgb": 13, "compat": 10}       # METHOD's for a segmentation network


def dense_crf(image, scores, iterations=10, bilateral=BILATERAL):
    """Sharpen scores (R, H, W), clipped to [1e-5, 1] and otherwise taken as they are, along the edges of the image,
    uint8 (H, W, 3). Returns (R, H, W) float32 that sum to 1 over R. ValueError on other shapes and on NaN."""
    return next(_refine(image, [scores], iterations, bilateral))


def dense_crf_alphas(image, scores, alphas, iterations=10, bilateral=BILATERAL):
    """Yield for each alpha the CRF of [background(alpha), class scores]: (K, H, W) -> (K+1, H, W) float32.
    Equal to a dense_crf for each alpha, but the lattices, which depend on the image alone, are built once.
    Where alpha is None the scores have their background already: (R, H, W) -> (R, H, W)."""
    scores = np.asarray(scores, np.float32)
    stacks = (scores if alpha is None else np.concatenate([background(scores, alpha), scores]) for alpha in alphas)
    return _refine(image, stacks, iterations, bilateral)


def background(scores, alpha):
    """Score the background as (1 - max over the classes)^alpha: (K, H, W) -> (1, H, W). K may be 0: then it is 1."""
    return (1 - scores.max(axis=0, keepdims=True, initial=0)) ** alpha


def _refine(image, stacks, iterations, bilateral):
    """Yield the CRF of each stack of scores; all have the same R."""
    densecrf, unary_from_softmax = _pydensecrf()
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"the CRF needs an image uint8 (H, W, 3), not {image.dtype} {image.shape}")
    if iterations < 1:
        raise ValueError(f"the CRF needs at least 1 iteration, not {iterations}")
    image = np.require(image, requirements="CW")    # pydensecrf refuses strided and read-only arrays
    height, width = image.shape[:2]
    crf = None
    for scores in stacks:
        scores = np.ascontiguousarray(scores, np.float32)
        if scores.ndim != 3 or scores.shape[0] == 0 or scores.shape[1:] != (height, width):
            raise ValueError(f"the CRF needs scores (R, {height}, {width}), the image's size, not {scores.shape}")
        if not np.isfinite(scores).all():
            raise ValueError("the CRF's scores hold NaN or infinity")
        if crf is None:
            crf = densecrf.DenseCRF2D(width, height, len(scores))
            crf.addPairwiseGaussian(**GAUSSIAN)
            crf.addPairwiseBilateral(**bilateral, rgbim=image)
        crf.setUnaryEnergy(unary_from_softmax(scores))                               # (R, H W)
        yield np.ascontiguousarray(crf.inference(iterations), np.float32).reshape(scores.shape)


def _pydensecrf():
    try:
        from pydensecrf import densecrf
        from pydensecrf.utils import unary_from_softmax
    except ImportError as error:
        raise ImportError("the CRF needs pydensecrf: pip install pydensecrf2  (it is compiled on installing: "
                          f"a C++ compiler is needed; everything but the CRF works without). {error}") from error
    return densecrf, unary_from_softmax


class CRFPool:
    """Refine many pictures in child processes that know nothing of torch.

        with CRFPool(workers=2) as pool:
            for name in names:
                pool.submit(partial(load, name), partial(save, name), alphas=(4, 24), key=name)
            for name in tqdm(pool.results(), total=len(names)):
                ...

    load() -> image uint8 (H, W, 3), scores (K, H, W);  save(alpha, scores (K+1, H, W) float32), once for each alpha.
    Both run in this process, in one thread a child: only the arrays cross the pipes, unrounded, and no picture is in
    memory before its turn. The first exception in load, save or child, or a child's death, is raised by submit,
    results or the end of the `with` block, and ends the pool. A block that ends well waits for everything submitted.
    """

    def __init__(self, workers):
        if workers < 1:
            raise ValueError(f"the CRF needs at least 1 worker process, not {workers}")
        _pydensecrf()                               # missing: say so now, not after hours of CAMs
        self.jobs, self.done = queue.SimpleQueue(), queue.SimpleQueue()
        self.pending, self.error = 0, None
        self.children = [_start_child() for _ in range(workers)]
        self.threads = [threading.Thread(target=self._work, args=(child,), daemon=True) for child in self.children]
        for thread in self.threads:
            thread.start()

    def submit(self, load, save, alphas, iterations=10, key=None, bilateral=BILATERAL):
        """Queue one picture; returns at once. key: what results() gives back when it is done.

        alphas (None,): load's scores have their background already.
        """
        if self.error:
            raise self.error
        self.pending += 1
        self.jobs.put((load, save, alphas, iterations, bilateral, key))

    def results(self):
        """Yield the key of each submitted picture when its last map is saved, in the order of finishing."""
        while self.pending:                         # a job that failed stays pending: the error is raised again
            key = None if self.error else self.done.get()
            if self.error:
                raise self.error
            self.pending -= 1
            yield key

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                for _ in self.results():
                    pass
        finally:
            self._end()

    def _end(self):
        with contextlib.suppress(queue.Empty):
            while True:
                self.jobs.get_nowait()
        for _ in self.threads:
            self.jobs.put(None)
        for child in self.children:
            child.kill()                            # a thread that waits for it sees the end of its pipe
        for thread in self.threads:
            thread.join()                           # a save that has begun is finished
        for child in self.children:
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):  # what was not yet flushed has no reader any more
                    pipe.close()

    def _work(self, child):
        while job := self.jobs.get():
            load, save, alphas, iterations, bilateral, key = job
            try:
                image, scores = load()
                _send(child.stdin, (image, scores, alphas, iterations, bilateral))
                for alpha in alphas:                # the child refines the next while this one is saved
                    reply = pickle.load(child.stdout)
                    if isinstance(reply, Exception):
                        raise reply
                    save(alpha, reply)
            except BaseException as error:          # whatever it is, the caller must hear of it
                if (code := _exit_code(child, error)) is not None:
                    error = ChildProcessError(f"a CRF process ended (exit code {code}) while working on {key}; if it "
                                              "was killed (-9) for want of memory, take fewer worker processes")
                self.error = self.error or error
                self.done.put(key)
                return
            self.done.put(key)


def _start_child():
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "tools.crf"], cwd=root, env=environment,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _exit_code(child, error):
    """Give the exit code of a child whose end caused this error, None if it lives or the error is another's."""
    if isinstance(error, (EOFError, BrokenPipeError, pickle.UnpicklingError)):       # its pipe broke: it is ending
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=5)
    return None


def _send(pipe, message):
    pickle.dump(message, pipe, protocol=5)          # a pickle knows its own end, so it needs no length in front
    pipe.flush()


def _serve():
    """Answer what dense_crf_alphas takes, on stdin, with one map for each alpha, or an exception, until EOF."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)       # the parent's to handle; our end is that of its pipe
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)                                   # whatever a library prints must not land among the replies
    with contextlib.suppress(EOFError, BrokenPipeError, pickle.UnpicklingError):     # the parent has gone: so do we
        while True:
            image, *rest = pickle.load(sys.stdin.buffer)
            try:
                for refined in dense_crf_alphas(image, *rest):
                    _send(replies, refined)
            except BrokenPipeError:
                raise
            except Exception as error:
                _send(replies, error)


if __name__ == "__main__":
    _serve()
