"""Writing a dataset folder: a file or a folder is complete or absent, and what a killed run left over is removed."""
import json
import os
import re
import shutil
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from PIL import Image

from data.images import voc_palette


def write_text(path, text):
    """Write lines of text."""
    with written_aside(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8", newline="\n")


def write_lines(path, lines):
    write_text(path, "\n".join(lines))


def write_json(path, value):
    """Write JSON, one entry a line."""
    write_text(path, json.dumps(value, indent=0, ensure_ascii=False))


def write_labels(path, labels):
    """Write a label map, uint8 (H, W), as a PNG in VOC's colours."""
    image = Image.fromarray(labels)
    image.putpalette(_palette())
    with written_aside(path) as aside:
        image.save(aside, format="PNG")


_palette = cache(voc_palette)


def write_png(path, image):
    """Write an image, uint8 (H, W, 3), as PNG."""
    with written_aside(path) as aside:
        Image.fromarray(image).save(aside, format="PNG")


def write_stream(path, stream):
    """Write what an open binary file holds."""
    with written_aside(path) as aside, open(aside, "wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)


def write_image(path, source, copy=False):
    """Make `path` a symbolic link to the image `source`, or a copy of it. An existing file must be that image."""
    path, source = Path(path), Path(source).resolve()
    if os.path.lexists(path):
        if path.exists() and (os.path.samefile(path, source) or (copy and same_content(path, source))):
            return
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
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for found in [re.fullmatch(r"\..*\.(\d+)\.tmp", entry.name) for entry in entries]:
            if found and not _runs(int(found[1])):
                Path(folder, found[0]).unlink(missing_ok=True)


def _runs(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextmanager
def written_aside(path):
    """Give a temporary path beside `path`, renamed to it at the end."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        os.replace(aside, path)
    except OSError as error:
        if error.errno and error.filename in (None, str(aside), str(path.parent)):      # not the source's error
            raise type(error)(f"{path} was not written ({error.strerror}): free some space, or take a folder that "
                              "you may write to, and run the same command again") from None
        raise
    finally:
        with suppress(OSError):
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
