"""Writing a dataset folder: a file or a folder is complete or absent, and what a killed run left over is removed."""
import json
import os
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

from data.images import voc_palette
from tools.aside import written_aside
from tools.files import save_label_map, save_text, writer_is_dead


def write_lines(path, lines):
    save_text(path, "\n".join([*lines, ""]))


def write_json(path, value):
    """Write JSON, one entry a line."""
    save_text(path, json.dumps(value, indent=0, ensure_ascii=False) + "\n")


def write_labels(path, labels):
    """Write a label map, uint8 (H, W), as a PNG in VOC's colours."""
    save_label_map(path, labels, _palette())


_palette = cache(voc_palette)


def write_stream(path, stream):
    """Write what an open binary file holds."""
    with written_aside(path) as aside, open(aside, "wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)


def write_image(path, source, copy=False):
    """Make `path` a symbolic link to the image `source`, or a copy of it. An existing file must be that image.

    With `copy`, a link to it becomes a copy.
    """
    path, source = Path(path), Path(source).resolve()
    if os.path.lexists(path):
        same = path.exists() and (os.path.samefile(path, source) or same_content(path, source))
        if same and not (copy and path.is_symlink()):
            return
        if not same:
            raise ValueError(f"{path} is there and is not {source}: take another --root. Nothing was changed there")
    with written_aside(path) as aside:
        if copy:
            shutil.copyfile(source, aside)
        else:
            os.symlink(source, aside)


def same_content(path, other):
    return os.path.getsize(path) == os.path.getsize(other) and Path(path).read_bytes() == Path(other).read_bytes()


def remove(folder):
    """Remove a folder of temporary files, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def discard(path):
    """Remove an incomplete file, and its folder if nothing else is in it."""
    Path(path).unlink(missing_ok=True)
    with suppress(OSError):
        os.rmdir(Path(path).parent)


def remove_leftovers(folder):
    """Remove the temporary files of killed runs from a folder."""
    for path in Path(folder).glob(".*.tmp"):
        if writer_is_dead(path):
            path.unlink(missing_ok=True)


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
