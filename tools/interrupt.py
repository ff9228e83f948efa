"""Being asked to stop. SIGTERM, SIGUSR1 and Ctrl-C are remembered; long work looks between two of its pieces.

    with interrupt.remembered():
        for picture in pictures:
            ...                             # whole, and on disk
            if interrupt.asked():
                interrupt.leave()
"""
import os
import signal
import sys
from contextlib import contextmanager

from tqdm import tqdm

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EXIT_CODE = "STOP_EXIT_CODE"        # environment: the exit code of a run that was asked to stop, 0 without it

_asked = None


@contextmanager
def remembered(then=None):
    """Remember the signals inside the block instead of dying of them; `then` is called at each.

    After a Ctrl-C the next one is the system's own: it ends the process at once, whatever it is doing.
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
            # Not print: a handler may come in the middle of one.
            os.write(2, f"\n{_asked}: stopping as soon as what is begun is whole{again}\n".encode())
        if then:
            then()

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def asked():
    """Say whether this process was asked to stop since the last `remembered` began."""
    return _asked is not None


def progress(items, total, name):
    """Show how far it is, and leave between two items if asked to stop."""
    for item in tqdm(items, name, total, mininterval=1, disable=not _is_main()):
        yield item
        if asked():
            leave()


def leave():
    """End this process well: its work is on disk."""
    if _is_main():
        print("stopped as asked: run the same command to go on", flush=True)
    if distributed := sys.modules.get("tools.distributed"):
        distributed.stop()
    sys.exit(int(os.environ.get(EXIT_CODE, 0)))


def _is_main():
    """Tell whether this is the first process. A program that did not import tools.distributed is a single one."""
    distributed = sys.modules.get("tools.distributed")
    return distributed is None or distributed.is_main()
