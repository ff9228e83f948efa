"""Stages in processes of their own, started in milliseconds, and killed where a test says.

Starting Python with torch takes seconds. The zygote is one process that has imported everything; for each run it forks,
and the child becomes the stage as a shell would start it: script, arguments, folder, exit code.

    with Zygote(folder) as zygote:
        result = zygote.run("train", "--name", "X", cwd=place, kill_at_event=7, how="half")
        run = zygote.start("train", "--name", "X", cwd=place)       # several at once, if one likes
        run.until("000.pth")
        run.signal(signal.SIGTERM)
        print(run.wait().output)

A file event is what a run does to a file below its folder: "read", "write" (opening for it), "rename" (named after the
new name), "remove", "mkdir". The first is number 1. How a run is killed at one of them, always with SIGKILL:
    before  nothing of it has happened
    half    write: a few bytes are in the file; rename: of the new file the first half has been written
    after   rename: it has happened; write: the file is there and, where it is new, empty
Its children are left to notice. Any other signal reaches the whole group, just before the event that `signals` names:
    run = zygote.start("train", "--name", "X", cwd=place, signals={"rename experiment/X/train/": signal.SIGSTOP})
"""
import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300          # seconds until a run counts as hanging: other programs may use the processor
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


# ---- what a test holds ----

@dataclass
class Result:
    rc: int             # as subprocess gives it: -9 is killed by SIGKILL
    seconds: float
    output: str         # stdout and stderr
    events: list        # "read data/critters/classes.txt", one a file event


class Zygote:
    """The process that forks. folder: where it keeps what runs print; tree: the program, with tests/zygote.py."""

    def __init__(self, folder, tree=ROOT):
        self.folder, self.tree, self.runs, self.heard = Path(folder), tree, [], b""

    def __enter__(self):
        alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # A session of its own: a Ctrl-C in the tests' terminal is theirs.
        self.server = subprocess.Popen([sys.executable, "-m", "tests.zygote"], cwd=self.tree, env=os.environ | alone,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        return self

    def __exit__(self, *_):
        for run in self.runs:
            run.kill()
        self.server.kill()              # it has nothing to lose, and its stdin may live on in some other child of ours
        self.server.wait()
        self.server.stdin.close()
        self.server.stdout.close()

    def run(self, stage, *words, kill_after=None, whole_group=True, timeout=PATIENCE, **how):
        """Run a stage to its end, as start starts it; kill_after so many seconds it is killed.

        whole_group=False: it alone; its children are left to themselves
        """
        run = self.start(stage, *words, **how)
        if kill_after is not None and not self.listen(lambda: run.rc is not None, kill_after):
            run.kill(whole_group)
        return run.wait(timeout)

    def start(self, stage, *words, cwd, kill_at_event=None, how="before", signals=None, environment=None, limits=None):
        """Start `python STAGE.py WORDS` in a folder.

        signals  {words: number}: the run's group gets it before the first file event that has these words
        environment  further variables;  limits  {"fsize": bytes, ...}: resource.RLIMIT_*, small letters
        """
        run = Run(self, self.folder / str(len(self.runs)))
        self.runs.append(run)
        request = {"run": len(self.runs) - 1, "path": str(run.path), "argv": [f"{stage}.py", *map(str, words)],
                   "cwd": str(cwd), "event": kill_at_event, "how": how, "signals": signals or {},
                   "environment": environment or {}, "limits": limits or {}}
        self.server.stdin.write(json.dumps(request).encode() + b"\n")
        self.server.stdin.flush()
        self.listen(lambda: run.pid, PATIENCE)      # the first time it is still importing
        return run

    def listen(self, heard, timeout):
        """Take what the server tells until heard() is true; returns whether it is."""
        end = time.monotonic() + timeout
        while not heard():
            if not select.select([self.server.stdout], [], [], max(0, end - time.monotonic()))[0]:
                return False
            news = os.read(self.server.stdout.fileno(), 65536)
            if not news:
                raise ChildProcessError("the zygote has ended")
            *lines, self.heard = (self.heard + news).split(b"\n")
            for line in lines:
                news = json.loads(line)
                vars(self.runs[news.pop("run")]).update(news)
        return True


class Run:
    """A run under way."""

    def __init__(self, zygote, path):
        self.zygote, self.path, self.pid, self.rc, self.seconds = zygote, path, None, None, None
        for suffix in (".out", ".events"):      # there even if the child is killed before it does anything
            path.with_suffix(suffix).touch()

    def signal(self, number):
        os.kill(self.pid, number)

    def output(self):
        return self.path.with_suffix(".out").read_text("utf-8", "replace")

    def events(self):
        return self.path.with_suffix(".events").read_text("utf-8").splitlines()

    def until(self, words, timeout=PATIENCE):
        """Wait until the run has printed these words, or until they are in a file event of its."""
        end = time.monotonic() + timeout
        while words not in self.output() and not any(words in event for event in self.events()):
            self.zygote.listen(lambda: self.rc is not None, 0.005)
            if self.rc is not None or time.monotonic() > end:
                raise TimeoutError(f"the run {'ended' if self.rc is not None else 'goes on'} without {words!r}:\n"
                                   f"{self.output()}")

    def wait(self, timeout=PATIENCE):
        if not self.zygote.listen(lambda: self.rc is not None, timeout):
            self.kill()
            raise TimeoutError(f"not at its end after {timeout} s:\n{self.output()}")
        return Result(self.rc, self.seconds, self.output(), self.events())

    def kill(self, whole_group=True):
        if self.rc is None:
            with suppress(ProcessLookupError):
                (os.killpg if whole_group else os.kill)(self.pid, signal.SIGKILL)


# ---- the server ----

def serve():
    """Answer requests until there are no more; in each child, which is to become a stage, return its request."""
    answers, running = os.dup(1), {}            # running: pid -> number of the run, its beginning

    def tell(run, **news):
        os.write(answers, json.dumps({"run": run, **news}).encode() + b"\n")

    def tell_ends(*_):
        for pid, (run, begun) in list(running.items()):
            with suppress(ChildProcessError):   # two ended at once: the second call came within the first
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    del running[pid]
                    tell(run, rc=os.waitstatus_to_exitcode(status), seconds=time.monotonic() - begun)

    signal.signal(signal.SIGCHLD, tell_ends)
    for line in sys.stdin:
        request = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        begun = time.monotonic()
        if (pid := os.fork()) == 0:
            return request
        with suppress(OSError):                 # whichever of the two comes first makes the group
            os.setpgid(pid, pid)
        running[pid] = request["run"], begun
        tell(request["run"], pid=pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    return None


def become(request):
    """Make this child what a shell would have started."""
    with suppress(OSError):
        os.setpgid(0, 0)
    # As the server has them, or inherits them from a test under nohup, a stage would be deaf.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    printed = os.open(request["path"] + ".out", os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(printed, stream)
    sys.stdout.reconfigure(line_buffering=True)
    events = os.open(request["path"] + ".events", os.O_WRONLY | os.O_APPEND)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    for name, limit in request["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (limit, limit))
    sys.addaudithook(_Watch(events, request["event"], request["how"], request["signals"]))
    sys.argv = request["argv"]
    code = 0
    try:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    # As Python ends, but for the taking down of all modules: that alone would last longer than a stage here.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


class _Watch:
    """Notes each file event, and kills this process at one of them, or sends its group a signal."""

    def __init__(self, file, event, how, signals):
        self.file, self.event, self.how, self.signals = file, event, how, signals
        self.pid, self.home, self.count = os.getpid(), os.getcwd() + os.sep, 0

    def __call__(self, name, args):
        kind = {"open": "open", "os.rename": "rename", "os.remove": "remove", "os.mkdir": "mkdir"}.get(name)
        if not kind or self.count is None or os.getpid() != self.pid or isinstance(args[0], int):
            return
        if kind == "open":
            kind = "write" if args[2] & WRITING else "read"
        path = os.path.abspath(os.fsdecode(args[kind == "rename"]))
        if not path.startswith(self.home):
            return
        self.count += 1
        told = f"{kind} {path.removeprefix(self.home)}"
        os.write(self.file, f"{told}\n".encode())
        for words in [words for words in self.signals if words in told]:
            os.killpg(0, self.signals.pop(words))
        if self.count == self.event:
            self.count = None                       # what follows is ours
            self.die(kind, args)

    def die(self, kind, args):
        if kind == "rename" and self.how == "half":
            os.truncate(args[0], os.path.getsize(args[0]) // 2)
        elif kind == "rename" and self.how == "after":
            os.replace(args[0], args[1])
        elif kind == "write" and self.how != "before":
            os.write(os.open(args[0], args[2], 0o666), b"half a w" if self.how == "half" else b"")
        os.kill(self.pid, signal.SIGKILL)


def imported():
    """Import all stages, and what torch, matplotlib and Pillow put off until it is used."""
    late = ("torch._dynamo", "torch.utils.serialization.config", "multiprocessing.synchronize", "matplotlib.figure",
            "matplotlib.backends.backend_agg", "pydensecrf.densecrf", "pydensecrf.utils", "networks.cam",
            "networks.affinity")
    Image.init()
    for name in (*late, *(path.stem for path in ROOT.glob("*.py"))):
        with suppress(ImportError):     # pydensecrf; of a stage that does not import its runs will tell
            importlib.import_module(name)
    torch.set_num_threads(1)
    for finalizer in list(weakref.finalize._registry):
        finalizer.atexit = False        # torch would take leave of each of its operators
    gc.collect()
    gc.freeze()                         # a collection in a child would copy all of this


if __name__ == "__main__":
    imported()
    if begun := serve():
        become(begun)
    os._exit(0)
