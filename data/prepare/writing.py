"""Writing a dataset folder: a file or a folder is complete or absent."""
import os
import shutil
from pathlib import Path


def write_text(path, text):
    """Write lines of text under a temporary name, then rename it."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(text + "\n", encoding="utf-8", newline="\n")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(root, write):
    """Call write(folder) on a folder beside `root`, and rename that to `root`, absent or empty, at the end."""
    aside = root.with_name(f".{root.name}.{os.getpid()}.part")
    aside.mkdir(parents=True)
    try:
        write(aside)
        if root.exists():
            root.rmdir()
        aside.rename(root)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
