"""Image-level labels in a JSON file:

    {"1.jpg": ["fox", "owl"]}      {"1.jpg": {"fox": 1, "owl": 0}}      {"fox": ["1.jpg"]}
    [{"file": "1.jpg", "labels": ["fox"], "split": "train"}]
"""
import json
from collections import defaultdict

from data.labels import once_each
from data.prepare.words import (
    COUNTING,
    FILE,
    LABEL,
    NO,
    SPLIT,
    YES,
    Labels,
    check_class,
    check_words,
    key,
    split_names,
    split_of,
)


def from_json(text, path, is_photo):
    try:
        table = json.loads(text, object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): fix it there") from None
    if isinstance(table, dict) and {"images", "annotations"} <= table.keys():
        raise ValueError(f"{path} is COCO's instances file: python -m data.prepare coco --root OUT --images DIR "
                         f"--annotations {path}")
    splits = {}
    if isinstance(table, list):
        table, splits = _from_entries(table, path)
    form = f"{path} is not of the form {{\"1.jpg\": [\"fox\", \"owl\"]}}"
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{form}: write it so")
    names = {}
    for photo, value in table.items():
        if isinstance(value, dict):
            if odd := [name for name in value if key(name) in SPLIT | COUNTING]:
                raise ValueError(f"{path}: {photo[:80]!r} has {odd[0]!r} among its classes, which reads as none: "
                                 "remove it, or give it another name")
            if odd := [v for v in value.values() if str(v).casefold() not in YES | NO]:
                raise ValueError(f"{path}: {photo[:80]!r} has a class with {str(odd[0])[:60]!r}, neither 0 nor 1")
            value = [name for name, v in value.items() if str(v).casefold() in YES]
        if isinstance(value, str):
            value = split_names(value)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise ValueError(f"{path}: the label of {photo[:80]!r} is no list of class names. {form}: fix it there")
        names[photo] = list(dict.fromkeys(name.strip() for name in value if name.strip()))
    notes = []
    if not any(map(is_photo, names)) and any(is_photo(name) for value in names.values() for name in value[:20]):
        turned = defaultdict(list)
        for label, those in names.items():
            for photo in those:
                turned[photo].append(label)
        notes, classes, names = [f"{path} lists the photos of each class"], list(names), dict(turned)
    else:
        classes = sorted({label for value in names.values() for label in value})
    for photo, value in names.items():
        for label in value:
            check_class(label, f"{path}, {photo[:80]!r}", "write []")
    labels = Labels(names, classes, splits, notes)
    check_words(labels, path)
    return labels


def _from_entries(entries, path):
    """Read [{"file": "1.jpg", "labels": ["fox"]}, ...]: {file: labels}, {file: split}."""
    table, splits = {}, {}
    for number, entry in enumerate(entries, start=1):
        keys = {key(name): name for name in entry} if isinstance(entry, dict) else {}
        files, labels = ([keys[k] for k in keys if k in kind] for kind in (FILE, LABEL))
        if len(files) != 1 or len(labels) != 1 or not isinstance(entry[files[0]], str):
            raise ValueError(f"{path}, entry {number} is not of the form {{\"file\": \"1.jpg\", \"labels\": "
                             "[\"fox\"]}")
        if entry[files[0]] in table:
            raise ValueError(f"{path}: {entry[files[0]][:80]!r} is there twice: keep one entry")
        table[entry[files[0]]] = entry[labels[0]]
        for column in (keys[k] for k in keys if k in SPLIT - {"fold"}):
            splits[entry[files[0]]] = split_of(entry[column], f"{path}, entry {number}", column)
    if splits and (bare := [name for name in table if name not in splits]):
        raise ValueError(f"{path}: {bare[0][:80]!r} has no split, and others have one: write train, val or test for "
                         "every photo")
    return table, splits
