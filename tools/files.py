"""Reading and writing files: JSON, images, label maps, zips, checkpoints. What is written is complete or absent."""
import errno
import json
import os
import re
import shutil
import socket
import stat
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from tools.aside import ENDS, explained, flush_folder, written_aside


def require_file(path):
    """Raise ValueError where something else than a file stands in its place: opening a pipe may never end."""
    with suppress(OSError):                 # not there, or not to be looked at: whoever opens it says so
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError(f"{path} is a folder, pipe, socket or device, not a file: write a file in its place, or "
                             "name one")


def read_json(path, remedy="delete it and run the stage that writes it again"):
    """Read a JSON file; ValueError with the remedy if it is damaged."""
    require_file(path)
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise unread(path, error) from None
    except (ValueError, RecursionError) as error:       # not only JSONDecodeError: a number may be too long
        raise ValueError(f"{path} is not complete JSON ({error}): {remedy}") from None


def write_json(path, value):
    save_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def save_text(path, text):
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def open_to_append(path):
    """Open a file, made if need be, for bytes after those that it holds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "ab")


def save_image(path, image):
    """Write an image, uint8 (H, W, 3), as PNG."""
    from PIL import Image
    with written_aside(path) as aside:
        Image.fromarray(image).save(aside, format="PNG")


def save_animation(path, frames, seconds=1.0):
    """Write an animation that repeats for ever, frames uint8 (H, W, 3) of one size, as GIF."""
    from PIL import Image
    first, *others = (Image.fromarray(frame) for frame in frames)
    with written_aside(path) as aside:
        first.save(aside, format="GIF", save_all=True, append_images=others, duration=round(1000 * seconds), loop=0)


def save_label_map(path, label_map, palette):
    """Write a label map, class ids (H, W), as PNG. palette: 256 colours as 768 bytes."""
    from PIL import Image
    image = Image.fromarray(np.asarray(label_map, np.uint8))
    image.putpalette(palette)
    with written_aside(path) as aside:
        image.save(aside, format="PNG")


def read_label_map(path):
    """Read a label map that a stage wrote: uint8 (H, W)."""
    from PIL import Image
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None        # the map of a large photo is as large
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return np.array(image)
    except (SyntaxError, ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it and run the same command again") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def copy_file(source, path):
    with written_aside(path) as aside:
        shutil.copyfile(source, aside)


def save_zip(path, files):
    """Write a zip of {name in the zip: path}; equal files make an equal zip."""
    with written_aside(path) as aside, zipfile.ZipFile(aside, "w") as archive:
        for name, source in files.items():
            archive.writestr(zipfile.ZipInfo(name), Path(source).read_bytes())


def save_checkpoint(path, value):
    """Write a checkpoint: tensors and plain Python values only. It is on the disk, and so is its name."""
    import torch
    with written_aside(path) as aside:
        with open(aside, "wb") as file:
            try:
                torch.save(value, file)
            except RuntimeError as error:           # torch's, which hides the disk's own error
                raise error.__context__ or error from None
            file.flush()
            os.fsync(file.fileno())
    with explained(path):
        flush_folder(Path(path).parent)


def load_checkpoint(path):
    """Read a checkpoint to the CPU; ValueError if it is incomplete, damaged or holds a program."""
    import torch
    try:
        with zipfile.ZipFile(path) as archive:      # torch itself does not check the checksums
            if any(record.compress_type for record in archive.infolist()) or archive.testzip():
                raise zipfile.BadZipFile
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:      # torch names no set of what a damaged file may raise
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):      # EINVAL: damaged too
            raise unread(path, error) from None
        raise ValueError(f"{path} is cut off or damaged, or holds a program ({type(error).__name__}): train.py "
                         "--overwrite starts again") from None


def unread(path, error):
    """Report a read failure (an unmounted disk) without calling the file damaged, so nobody deletes a good file."""
    return type(error)(f"{path} cannot be read now ({error.strerror}): is its disk still mounted? Then run the same "
                       "command again")


def discard(folder):
    """Delete a folder. It is renamed first, so that an interrupted deletion leaves no incomplete folder."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    os.replace(folder, aside)
    shutil.rmtree(aside)


def delete(paths):
    for path in paths:
        path.unlink(missing_ok=True)


def sweep(folder):
    """Delete the incomplete files and folders of killed runs. No other run may be writing there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
    for path in folder.parent.glob(f".{folder.name}.*.old"):
        shutil.rmtree(path)


def delete_incomplete(folder):
    """Delete the maps and images of a folder that a power cut left empty, cut off or filled with zeros; name them.

    Only the end of each file is read. A file with a damaged middle stays: whoever reads it says so.
    """
    found = [path for path in sorted(folder.iterdir()) if path.suffix in ENDS and path.is_file() and not _ends(path)]
    delete(found)
    return [path.name for path in found]


def _ends(path):
    size, mark = ENDS[path.suffix]
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - size))
            return file.read().startswith(mark)
    except OSError as error:
        raise unread(path, error) from None


def writer_is_dead(aside):
    """Tell whether the process named in a temporary file's name ran on this machine and has ended."""
    found = re.search(r"\.(\d+)\.\d+@(.*)\.tmp$", aside.name)
    if not found or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def require_space(folder, size):
    """Raise OSError if the disk of a folder has fewer free bytes than `size`; print both."""
    folder = Path(folder)
    there = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise OSError(f"{folder} would take about {_bytes(size)}, the disk has {_bytes(free)} free: make room, or "
                      "write to another disk (--experiment_root)")
    if size > 2**20:
        print(f"{folder}: about {_bytes(size)} to write, {_bytes(free)} free")


def _bytes(size):
    return f"{size / 2**30:.1f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
