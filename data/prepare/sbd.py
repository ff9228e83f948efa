"""SBD, the Semantic Boundaries Dataset: its lists and masks, from its folder or its archive benchmark.tgz."""
import io
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.prepare.archives import files_of
from data.prepare.writing import remove_leftovers, write_labels, write_stream
from tools.words import counted

SPLITS = ("train", "val")
FOLDER = "SegmentationClassAug"         # the field's name for it


def ids(path):
    """Read the IDs of SBD's train and val."""
    if not path.is_dir():
        texts = {}
        for name, _, stream in files_of(path):
            if name.suffix == ".txt" and name.stem in SPLITS:
                texts[name.stem] = stream.read().decode("utf-8", "replace")
            if len(texts) == len(SPLITS):
                break
    else:
        folder = dataset_folder(path)
        texts = {split: (folder / f"{split}.txt").read_text("utf-8", "replace") for split in SPLITS
                 if (folder / f"{split}.txt").is_file()}
    if missing := [f"{split}.txt" for split in SPLITS if not texts.get(split, "").split()]:
        raise FileNotFoundError(f"{path} (--sbd) has no {' and no '.join(missing)}: name SBD's folder (with cls, img, "
                                "train.txt and val.txt in it) or its archive benchmark.tgz")
    return [Path(line.split()[0]).stem for text in texts.values() for line in text.splitlines() if line.strip()]


def dataset_folder(path):
    """Find SBD's own folder in what its archive unpacks to."""
    return next((p for name in (".", "dataset", "benchmark_RELEASE/dataset") if (p := path / name)
                 .joinpath("train.txt").is_file()), path)


def write_masks(path, root, wanted, classes):
    """Write ROOT/SegmentationClassAug/ID.png of the IDs `wanted`: VOC's own mask where there is one, else SBD's."""
    folder = root / FOLDER
    remove_leftovers(folder)
    there = {p.stem for p in folder.glob("*.png")}
    left = set()
    for image_id in sorted(set(wanted) - there):
        own = root / "SegmentationClass" / f"{image_id}.png"
        if own.is_file():
            with open(own, "rb") as file:
                write_stream(folder / own.name, file)
        else:
            left.add(image_id)
    with tqdm(total=len(left), desc="SBD's masks", unit="mask", mininterval=1) as bar:
        for image_id, stream in mats(path, left):
            write_labels(folder / f"{image_id}.png", read_mask(stream, f"{path}: {image_id}.mat", len(classes)))
            left.remove(image_id)
            bar.update()
    if left:
        raise FileNotFoundError(f"{path} (--sbd) has no cls/ID.mat of {len(left)} images ({sorted(left)[0]}, ...): "
                                "fetch it again, then run the same command")
    print(f"{folder}: {counted(len(wanted), 'mask')}, for the list train_aug")


def mats(path, wanted):
    """Yield (ID, open file) of cls/ID.mat for the IDs `wanted`."""
    if path.is_dir():
        for image_id in sorted(wanted):
            source = dataset_folder(path) / "cls" / f"{image_id}.mat"
            if source.is_file():
                with open(source, "rb") as file:
                    yield image_id, file
    elif wanted:
        for name, _, stream in files_of(path):
            if name.suffix == ".mat" and name.parent.name == "cls" and name.stem in wanted:
                yield name.stem, io.BytesIO(stream.read())


def read_mask(stream, place, most):
    """Read a .mat of SBD: class ids uint8 (H, W)."""
    from scipy.io import loadmat
    try:
        mask = np.array(loadmat(stream)["GTcls"][0, 0]["Segmentation"])
    except Exception as error:      # scipy names no set of what a damaged file may raise
        raise ValueError(f"{place} is damaged or none of SBD's masks ({type(error).__name__}: {error}): fetch it again"
                         ) from None
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or mask.min() < 0 or mask.max() > most:
        raise ValueError(f"{place} holds {mask.dtype} {mask.shape} up to {mask.max()}, not class ids up to {most}")
    return mask.astype(np.uint8)
