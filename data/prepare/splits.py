"""Which photo is in which split: from existing lists, from a table's column, or divided at random."""
from collections import Counter

import numpy as np

from data.prepare.tables import read_text
from tools.words import counted, some


def learned_and_scored(splits):
    """Return the names of splits to learn from and of those to score on; trainval may be both, and is neither."""
    return ([s for s in splits if s.startswith("train") and not s.startswith("trainval")],
            [s for s in splits if s.startswith(("val", "test", "minival"))])


def read_lists(folder, photos, names, problems):
    """Read the lists of a folder: {split: [photo, ...]}; adds what is wrong to `problems`. names: photos with a label.

    ValueError where a photo is both learned from and scored.
    """
    lists = {path.stem: read_text(path).split("\n") for path in sorted(folder.glob("*.txt"))}
    if "train" not in lists:
        raise FileNotFoundError(f"{folder} (--lists) holds no train.txt: name the folder of the lists")
    found = {}
    for split, lines in lists.items():
        found[split] = []
        for written in (line.split()[0] for line in lines if line.strip()):
            if len(there := photos.find(written)) == 1:
                found[split] += there
            else:
                problems.append(f"{folder / split}.txt: {written[:100]!r} is no photo of {photos.folder}, or several")
    learned, scored = learned_and_scored(found)
    for train, split in ((train, split) for train in learned for split in scored):
        if both := sorted({*found[train]} & {*found[split]}):
            raise ValueError(f"{counted(len(both), 'photo', 'is')} in {folder / train}.txt and in {folder / split}.txt "
                             f"({some(both)}): a score on {split} would be too good. Take them off one")
    for split, those in found.items():
        if bare := [name for name in dict.fromkeys(those) if name not in names]:
            print(f"{folder / split}.txt: {counted(len(bare), 'photo', 'has')} no label, left out ({some(bare)})")
    return found


def listed(lists, names, ids):
    """Return {split: [ID, ...]} of given lists, without photos that were left out."""
    lists = {"train_aug": lists["train"], **lists}
    return {split: [ids[n] for n in dict.fromkeys(photos) if n in names] for split, photos in lists.items()}


def divide(names, given, ids, share, seed):
    """Divide photos into splits: {split: [ID, ...]}. Each class gives its share to val, the rarest class first.

    A class keeps a photo in train as long as it has one; photos without a class are left for val alone.
    """
    splits = dict(given)
    left = [name for name in names if name not in splits]
    if not given and share:
        rng = np.random.Generator(np.random.PCG64(seed))
        left = [left[i] for i in rng.permutation(len(left))]
        counts = Counter(label for name in left for label in names[name])
        for label in [*sorted(counts, key=lambda label: (counts[label], label)), None]:
            those = [n for n in left if n not in splits and (label in names[n] if label else not names[n])]
            have = sum(splits.get(n) == "val" for n in left if label in names[n])
            total = counts[label] if label else len(those)
            take = max(0, min(max(round(share * total), 1) - have, len(those) - 1 if label else len(those)))
            splits |= dict.fromkeys(those[:take], "val") | dict.fromkeys(those[take:], "train")
    result = {"train": [], "val": [], "test": []}
    for name in names:
        result[splits.get(name, "train")].append(name)
    result["train"] = [name for name in result["train"] if names[name]]
    if not result["train"]:
        raise ValueError("no photo with a label is left for train: a smaller --val_share, or other splits in the CSV")
    result["train_aug"] = result["train"]
    return {split: [ids[name] for name in photos] for split, photos in result.items() if photos}
