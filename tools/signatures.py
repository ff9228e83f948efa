"""Which images a run has read, and whether they have changed since: the signatures of data.signatures.

A folder of maps holds them in made_by.images.json beside made_by.json, {ID: [label, size, time, checksum]}, with size,
time and checksum of another project's maps after them where these were read; those of older runs have no checksums. The
jobs of an array write one such file each (made_by.images.2_8.json). A training holds them in last.pth.
"""
from pathlib import Path

from tools.files import delete, read_json, write_json
from tools.words import some

NAME = "made_by.images"
ONLY_THEIRS = "makes the maps of these images again, and only theirs"


class Stale(ValueError):
    """What a folder's maps were made of has changed since. folder: its path."""

    def __init__(self, message, folder):
        super().__init__(message)
        self.folder = folder


class StaleImages(Stale):
    """Images have changed since a folder's maps were made."""


def read(folder):
    """Read {ID: signature} of a folder's maps; of an ID in several files the latest. Empty if there is no record."""
    found = {}
    for path in sorted(Path(folder).glob(f"{NAME}*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        table = read_json(path)
        if not isinstance(table, dict) or not all(map(_is_signature, table.values())):
            raise ValueError(f"{path} is not what a stage writes there: delete it. Changes of images before that are "
                             "then not noticed")
        found |= table
    return found


def recorded(folder):
    return any(Path(folder).glob(f"{NAME}*.json"))


def write(folder, images, shard="1/1", overwrite=False):
    """Write the signatures of images whose maps a run is about to write into a folder.

    Raises StaleImages if it holds maps of images that have changed since; overwrite deletes these maps.
    """
    folder, old = Path(folder), read(folder)
    there = _files_of(folder, images.of)
    changed = changes({i: old[i] for i in there if i in old}, images)
    if changed and not overwrite:
        raise StaleImages(f"{stale(folder, changed, images)}. With --overwrite the same command {ONLY_THEIRS}", folder)
    if changed:
        print(f"{stale(folder, changed, images)}: these are made again")
    delete(folder / name for i in set().union(*changed.values()) for name in there[i])
    alone = shard == "1/1"
    path = folder / (f"{NAME}.json" if alone else f"{NAME}.{shard.replace('/', '_')}.json")
    new = old | images.of if alone else images.of
    if not path.exists() or read_json(path) != new:
        write_json(path, new)
    if alone:
        delete(set(folder.glob(f"{NAME}*.json")) - {path})


def check(folder, images):
    """Raise StaleImages if images have changed since the folder's maps of them were made."""
    old = read(folder)
    if changed := changes({i: old[i] for i in images.of if i in old}, images):
        raise StaleImages(f"{stale(folder, changed, images)}. With --overwrite the stage that wrote it {ONLY_THEIRS}",
                          folder)


def changes(old, images):
    """Find what has changed: {"labels", "photos" or "maps": IDs}. Only what both signatures know is compared.

    Where the times alone differ, and those of all photos do, the dataset was copied: that is no change. Other photos in
    their place have other checksums, even if their sizes are the same.
    """
    pairs = {i: (signature, images.of[i]) for i, signature in old.items() if i in images.of}
    labels = [i for i, (then, now) in pairs.items() if None not in (then[0], now[0]) and then[0] != now[0]]
    changed = {"labels": labels, "photos": _changed_files(pairs, 0), "maps": _changed_files(pairs, 1)}
    return {what: found for what, found in changed.items() if found}


def training_changes(old, images):
    """Say in words what differs between the images that a training has read and those it would read now."""
    words = []
    more, fewer = [i for i in images.of if i not in old], [i for i in old if i not in images.of]
    if more or fewer:
        counted = " and ".join(f"{len(found)} IDs {word} ({some(found)})" for found, word in
                               ((more, "more"), (fewer, "fewer")) if found)
        words.append(f"{images.list} has {counted} than then")
    elif list(old) != list(images.of):
        words.append(f"{images.list} has another order")
    return [*words, *_words(changes(old, images), images)]


def stale(folder, changed, images):
    """Say which maps of a folder are stale."""
    return f"{folder} is stale: it holds maps made before {' and '.join(_words(changed, images))}"


def _words(changed, images):
    where = {"labels": ("the label", images.labels), "photos": ("the photo", images.photos),
             "maps": ("the map", images.maps)}
    return [f"{what}{'s' * (len(changed[key]) > 1)} of {len(changed[key])} image{'s' * (len(changed[key]) > 1)} "
            f"({some(changed[key])}) changed in {place}" for key, (what, place) in where.items() if key in changed]


def _changed_files(pairs, which):
    """List the IDs whose files differ, of {ID: (signature then, now)}. which: 0 the photo, 1 the maps."""
    known = {i: (_of_file(then, which), _of_file(now, which)) for i, (then, now) in pairs.items()}
    known = {i: pair for i, pair in known.items() if None not in (pair[0][0], pair[1][0])}
    content = {i for i, (then, now) in known.items()
               if then[0] != now[0] or None not in (then[2], now[2]) and then[2] != now[2]}
    times = {i for i, (then, now) in known.items() if then[1] != now[1]}
    copied = len(times) == len(known) > 1
    return [i for i in known if i in content or i in times and not copied]


def _of_file(signature, which):
    """Return (size, time, checksum) of the photo or the maps in a signature; None for what it does not hold."""
    length = 3 if len(signature) in (4, 7) else 2           # of older runs without checksums
    found = signature[1 + which * length:][:length]
    return (*found, *[None] * (3 - len(found)))


def _files_of(folder, ids):
    """Return {ID: names of its files} of those IDs that have any: ID.npz, ID.npy, ID.png, ID_cam_CLASS.png."""
    found = {}
    for path in folder.iterdir():
        for image_id in {path.stem, path.name.partition("_cam_")[0]} & ids.keys():
            found.setdefault(image_id, []).append(path.name)
    return found


def _is_signature(value):
    return (isinstance(value, list) and len(value) in (3, 4, 5, 7) and isinstance(value[0], str | None)
            and all(isinstance(number, int | None) for number in value[1:]))
