"""Do the maps that another project wrote show the classes that the images' labels name?"""
import numpy as np

from tools.maps import HOW_TO_READ, KINDS, is_foreign, read_maps, sum_to_one

LOOK_AT = 12                # images, taken evenly from all


def compare_with_labels(folder, paths, layout, kind="cam"):
    """Compare the classes of another project's maps with the labels of a dozen images.

    paths  {ID: path};  kind  cam or crf
    Returns a sentence where most show classes that are not among their labels, else "". ValueError where the files show
    what they hold instead: see _refuse_cams and _refuse_crf.
    """
    if not is_foreign(folder):
        return ""
    looked = []                                     # (path, classes that are shown, classes of the label)
    for image_id in list(paths)[::-(-len(paths) // LOOK_AT) or 1]:
        try:
            label = set((np.flatnonzero(layout.label(image_id)) + 1).tolist())
        except (ValueError, OSError):               # no labels are needed here
            continue
        shown = set(read_maps(paths[image_id], first=int(kind == "cam"))[1].tolist())
        if shown - {0}:
            looked.append((paths[image_id], shown, label))
    fit = sum(shown - {0} <= label for _, shown, label in looked)
    if kind == "cam":
        _refuse_cams(folder, looked, fit)
    elif 2 * fit < len(looked):
        _refuse_crf(folder, looked, layout)
    return "" if 2 * fit >= len(looked) else (
        f"{folder}: of {len(looked)} images looked at, {fit} have {KINDS[kind]} of no other classes than their labels. "
        "Are these of this dataset, with its order of classes?")


def _refuse_cams(folder, looked, fit):
    """Raise ValueError where all CAMs would fit if their classes were one lower: the files count their keys from 1, or
    key 0 is the background.
    """
    lower = [({k - 1 for k in shown}, label) for _, shown, label in looked]
    if fit < len(looked) == sum(shown <= label for shown, label in lower) > 2:
        raise ValueError(f"{folder} counts its classes from 1, as the labels of the images show; keys have to count "
                         "from 0. Write the files again with keys that are one lower")
    if fit < len(looked) == sum(0 in shown and shown - {0} <= label for shown, label in lower) > 2:
        other = (f"{HOW_TO_READ['crf']}. CAMs hold a map for each object class, with keys from 0"
                 if sum_to_one(read_maps(looked[0][0], first=1)[2]) else
                 "They do not sum to 1 with the others, so they are no CRF maps either (--task crf): write the files "
                 "again without the key 0, the other keys one lower")
        raise ValueError(f"{folder} holds maps of the background, with the key 0, as the labels of the images show: no "
                         f"CAMs. {other}")


def _refuse_crf(folder, looked, layout):
    """Raise ValueError where CRF maps that contradict the labels have a map for every class (or for all but the last).
    """
    shown, most = looked[0][1], set(range(len(layout.classes)))
    if len(looked) > 2 and shown >= most and all(other == shown for _, other, _ in looked) and sum_to_one(
            read_maps(looked[0][0], first=0)[2]):
        raise ValueError(
            f"{folder} holds the maps {min(shown)}..{max(shown)} in each of the {len(looked)} images looked at, "
            "whatever their labels: the scores of a network, not CRF maps, which hold the background (0) and the "
            "classes of the image's label. Keep only those, so that they sum to 1 again; or write the class with the "
            "highest score as a label map (ID.png), which evaluation.py scores with --task png")
