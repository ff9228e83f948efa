"""Stopping on request. SIGTERM, SIGUSR1 and Ctrl-C are remembered; long work checks for them between two items.

    with interrupt.remembered():
        for image in images:
            ...                             # computed and on disk
            if interrupt.asked():
                interrupt.leave()
"""
import os
import signal
import sys
from contextlib import contextmanager

from tqdm import tqdm

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
EXIT_CODE = "STOP_EXIT_CODE"        # environment: the exit code of a run that was asked to stop, 0 without it

_asked = None


@contextmanager
def remembered(then=None):
    """Remember the signals inside the block instead of ending; `then` is called at each.

    A second Ctrl-C ends the process at once.
    """
    global _asked
    _asked = None

    def remember(number, frame):
        global _asked
        _asked = signal.Signals(number).name
        again = ""
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            again = "; Ctrl-C again stops at once"
        if _is_main():
            # Not print: the handler may interrupt one.
            os.write(2, f"\n{_asked}: stopping as soon as what has begun is finished{again}\n".encode())
        if then:
            then()

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def asked():
    """Tell whether this process was asked to stop since `remembered` began."""
    return _asked is not None


def ask():
    """Stop as if a signal had said so: for work of several threads, one of which cannot go on."""
    global _asked
    _asked = "a thread"


def progress(items, total, name):
    """Show progress and the time left; leave between two items if asked to stop. A generator is closed at the end."""
    try:
        for item in tqdm(items, name, total, mininterval=1, disable=not _is_main()):
            yield item
            if asked():
                leave()
    finally:
        if hasattr(items, "close"):
            items.close()


def end_bars():
    """Close the progress bars on the screen, so that what is printed next has a line of its own and stays the last."""
    for bar in list(getattr(tqdm, "_instances", ())):       # tqdm's own set of open bars
        bar.close()


def leave(said=False):
    """End this process; its finished work is on disk. said: whether someone else has told the user."""
    end_bars()
    if _is_main() and not said:
        print("stopped as asked: run the same command to resume", flush=True)
    if distributed := sys.modules.get("tools.distributed"):
        distributed.stop()
    sys.exit(int(os.environ.get(EXIT_CODE, 0)))


def _is_main():
    """Tell whether this is the first process. A program that did not import tools.distributed is a single one."""
    distributed = sys.modules.get("tools.distributed")
    return distributed is None or distributed.is_main()
