"""Which photo has which classes: what a table says, for the photos that are there."""
import os
from collections import Counter
from pathlib import Path

from data.labels import NOT_OBJECTS
from data.layout import IGNORE
from data.prepare.masks import plain
from data.prepare.tables import read_text
from data.prepare.words import Labels, check_class, split_names
from tools.words import counted, some

FROM_SUBFOLDERS = "from-subfolders"
LISTED = 20                                                     # of the classes that a message lists


def from_subfolders(photos):
    """Take each first subfolder for a class. A photo that lies in two of them (name and content equal) has both."""
    deep = {name.split("/")[0] for name in photos.files if name.count("/") > 1}
    direct = {name.split("/")[0] for name in photos.files if name.count("/") == 1}
    if not direct and not deep:
        raise ValueError(f"{photos.folder} (--images) has no subfolder with photos, and --labels {FROM_SUBFOLDERS} "
                         "takes each for a class: move the photos into one a class, or name a CSV with --labels")
    if not direct:
        first = sorted(deep)[0]
        raise ValueError(f"the photos lie two folders deep ({next(n for n in photos.files if n.count('/') > 1)}), so "
                         f"{', '.join(sorted(deep)[:5])} would be the classes: name one of them, --images "
                         f"{photos.folder / first}, or move the classes' folders together")
    table, notes, first = {}, [], {}
    for name, path in photos.files.items():
        if "/" not in name:
            continue
        label, base = name.split("/")[0], name.rsplit("/", 1)[1]
        same = next((other for other in first.get(base, ()) if other.split("/")[0] != label
                     and same_file(photos.files[other], path)), None)
        if same:
            table[same] += [label] if label not in table[same] else []
        else:
            first.setdefault(base, []).append(name)
            table[name] = [label]
    for label in dict.fromkeys(label for labels in table.values() for label in labels):
        check_class(label, photos.folder / label, f"name the folder {photos.folder / 'background'}")
    if bare := [name for name in photos.files if "/" not in name]:
        notes.append(f"{counted(len(bare), 'photo', 'lies')} in no subfolder, left out ({some(bare)})")
    if both := sum(len(labels) > 1 for labels in table.values()):
        notes.append(f"{counted(both, 'photo', 'lies')} in several subfolders, with the labels of all of them")
    return Labels(table, sorted({label for labels in table.values() for label in labels}), notes=notes)


def same_file(path, other):
    """Tell whether two paths hold the same bytes."""
    return os.path.samefile(path, other) or (os.path.getsize(path) == os.path.getsize(other)
                                             and path.read_bytes() == other.read_bytes())


def match(photos, labels, source):
    """Find the photos that a table names. Returns {photo: [class, ...]}, {photo: split}, [what is wrong, ...]."""
    names, splits, wrong = {}, {}, []
    for written, classes in labels.names.items():
        found = photos.find(written)
        if len(found) != 1:
            if ".." in written.replace("\\", "/").split("/"):
                why = f"leads out of {photos.folder}: write the name alone"
            elif found:
                why = f"may be {' or '.join(found[:3])}: write the folder and the ending too"
            else:
                why = f"is not in {photos.folder}: put it there, or remove its line"
            wrong.append(f"{source}: {written[:100]!r} {why}")
        elif found[0] in names and names[found[0]] != classes:
            wrong.append(f"{source}: {written[:100]!r} and another line name {found[0]}, with other labels: keep one")
        elif splits.get(found[0], labels.splits.get(written)) != labels.splits.get(written):
            wrong.append(f"{source}: {written[:100]!r} and another line name {found[0]}, with other splits: keep one")
        else:
            names[found[0]] = classes
            if written in labels.splits:
                splits[found[0]] = labels.splits[written]
    if not names:
        raise ValueError(f"none of the {len(wrong)} photos of {source} can be used. The first: {wrong[0]}")
    bare = [name for name in photos.files if name not in names]
    if bare and source != FROM_SUBFOLDERS:
        print(f"{counted(len(bare), 'photo', 'has')} no label in {source}, left out ({some(bare)})")
    if photos.not_read:
        print("not read: " + ", ".join(f"{n} {suffix} files" for suffix, n in sorted(photos.not_read.items()))
              + " (convert them to .jpg or .png)")
    return dict(sorted(names.items())), splits, wrong


def choose_classes(wanted, labels, names):
    """Return the classes in the order of their ids, and drop labels that say there is no object."""
    found = Counter(label for classes in names.values() for label in classes)
    no_object = {label for label in found if plain(label) in NOT_OBJECTS}
    if no_object:
        print(f"{some(sorted(no_object))} is no object class: this label is left out, "
              f"{sum(found[name] for name in no_object)} times")
        for name, classes in names.items():
            names[name] = [label for label in classes if label not in no_object]
    if wanted:
        source = Path(wanted)
        classes = [line.strip() for line in read_text(source).splitlines() if line.strip()] if source.is_file() \
            else split_names(wanted)
        if odd := [name for name in classes if plain(name) in NOT_OBJECTS]:
            raise ValueError(f"--classes: {odd[0]!r} is no object class: list object classes only, background is 0")
        if unknown := {name: n for name, n in found.items() if name not in {*classes, *no_object}}:
            spelled = {name.casefold(): name for name in classes}
            hints = [f"{name} is written {spelled[name.casefold()]}" for name in unknown if name.casefold() in spelled]
            raise ValueError("labels that --classes does not name: " + ", ".join(
                f"{name} ({n} times)" for name, n in sorted(unknown.items())[:LISTED]) + ". Add them to --classes, or "
                f"fix the labels{': ' + ', '.join(hints[:LISTED]) if hints else ''}")
    else:
        classes = [name for name in labels.classes if name not in no_object]
    folded = Counter(name.casefold() for name in classes)
    if twice := [name for name in classes if folded[name.casefold()] > 1]:
        raise ValueError(f"{'--classes' if wanted else '--labels'} has one class twice, or in capital and small "
                         "letters: " + ", ".join(f"{name} (of {found[name]} photos)" for name in twice[:LISTED])
                         + ". Write it in one way, once")
    if not classes or not any(names.values()):
        raise ValueError("no photo has a label: nothing can be learned")
    if len(classes) >= IGNORE:
        raise ValueError(f"{len(classes)} classes; ids are stored in 8 bits, so 254 is the most. The first: "
                         f"{some(classes)}. Is the right column taken? --label_columns names it")
    for name in classes:
        if len(name.encode()) > 100 or not name.isprintable():
            raise ValueError(f"the class {name[:40]!r} is too long or holds a control character: rename it")
    return classes
