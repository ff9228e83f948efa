"""Image-level labels as the field shares them, cls_labels.npy: a pickled dict {ID: (C,)}, read without unpickling."""
from pathlib import Path

from data.folders import IMAGE_ENDINGS
from tools.files import require_file
from tools.safe_npy import read_table


def read_label_arrays(path):
    """Read {ID: array (C,)} from the .npy of a dict, or from an .npz. Anything else, or a program, is a ValueError.

    irn stores an ID as a number: 2007000032 for 2007_000032.
    """
    require_file(path)
    try:
        return {_image_id(key): value for key, value in read_table(Path(path).read_bytes()).items()}
    except OSError as error:
        raise type(error)(f"{path} cannot be read ({error.strerror}): name the .npy of labels") from None
    except Exception as error:      # a damaged pickle may raise anything
        raise ValueError(f"{path} is no dict of labels {{ID: 0 or 1 for each class}} saved by numpy ({error}): fetch "
                         "it again, or use labels.json") from None


def _image_id(key):
    if isinstance(key, int):
        digits = str(key)
        return f"{digits[:4]}_{digits[4:]}" if len(digits) == 10 else digits
    return Path(key).stem if key.endswith(IMAGE_ENDINGS) else key
