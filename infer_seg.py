"""Segment images with the trained DeepLab: label maps, overlays, a zip for VOC's test server.

Reads   ckpt/seg/EEE.pth   JPEGImages/ of --data_root, or any images (--images FOLDER)
Writes  seg/ID.png (palette PNG, class ids)   seg_vis/ID.png (--vis)   of --images seg_FOLDER/ and seg_FOLDER_vis/
        results/VOC2012/Segmentation/comp6_test_cls/ID.png and results.zip (--zip)
Run     python infer_seg.py --name X --infer_list val
        python infer_seg.py --name X --images holidays
Existing files are skipped. Under torchrun each process takes its share of the images; so does each job of an array with
--shard 1/8 ... --shard 8/8.
"""
from functools import partial
from pathlib import Path

import config

import numpy as np

from data.images import ImageFolder, image_size, mean_pixels, read_image, voc_palette
from data.layout import VOCLayout
from data.loader import view_loader
from data.transforms import resize_labels, shrink
from methods.segmentation import multi_scale_scores
from networks import PIXEL_NETWORKS, build
from networks.pretrained import load_weights, read_description
from pipeline import experiment_of
from tools import distributed, engine, flags, interrupt
from tools.crf import DEEPLAB_BILATERAL, Job, refine_all
from tools.files import copy_file, read_labels, save_image, save_labels, save_zip
from tools.maps import lacking
from tools.provenance import digests
from tools.visualize import label_overlay

SERVER = "results/VOC2012/Segmentation/comp6_test_cls"


def main():
    settings = flags.parse(config.InferSeg)
    device = distributed.start(settings.device)
    experiment = experiment_of(settings)
    layout = None if settings.images else VOCLayout(settings.data_root)
    images, ids = chosen_images(settings, layout)
    weights = distributed.on_main(lambda: experiment.weights("seg", settings.load_epo))
    classes = read_description(experiment.network_of(weights), PIXEL_NETWORKS, layout)["classes"]
    folders = distributed.on_main(
        lambda: open_outputs(settings, experiment, layout, weights, classes, ids, images))

    done = sum(is_done(folders["seg"], images, i) for i in ids)
    distributed.say(f"{folders['seg']}: {done} of {len(ids)} images are finished")
    mine = distributed.share(ids)
    with interrupt.remembered():
        network = build(experiment.network_of(weights))
        load_weights(network, weights)
        broken = make_labels(settings, network, device, folders["seg"], images, mine)
        if "vis" in folders:
            draw_overlays(folders, images, [i for i in mine if i not in broken], classes)
    broken = {k: v for part in distributed.gather(broken) for k, v in part.items()}
    if settings.zip:
        distributed.on_main(lambda: write_for_server(settings, experiment, layout, folders["seg"]))
    experiment.release()
    distributed.stop()
    if broken:
        raise ValueError(f"{len(broken)} of {len(ids)} images could not be read, the others are finished: "
                         + "; ".join(list(broken.values())[:5]))


def chosen_images(settings, layout):
    """Return what knows the images' paths, and the shard's IDs."""
    if layout:
        return layout, layout.chosen(settings.infer_list, settings.only, settings.shard)
    for flag in ("only", "zip"):
        if getattr(settings, flag):
            raise ValueError(f"--{flag} is for the images of a list, not for --images")
    images = ImageFolder(settings.images)
    part, parts = (int(number) for number in settings.shard.split("/"))
    return images, list(images.files)[part % parts :: parts]


def open_outputs(settings, experiment, layout, weights, classes, ids, images):
    """Claim the output folders: {"seg", and "vis" if asked for: path}."""
    seg_dir = settings.seg_dir or ("seg" if layout else f"seg_{Path(settings.images).resolve().name}")
    made = {"classes": classes, "scales": settings.scales, "precision": settings.precision,
            "crf": settings.crf and {"iterations": settings.crf_iterations, **DEEPLAB_BILATERAL}}
    made |= {"data": digests(layout.sources())} if layout else {
        "images": str(Path(settings.images).resolve()), "max_side": settings.max_side}
    outputs = {"seg": (seg_dir, "infer_seg", made, [weights])}
    if settings.vis or settings.images:
        outputs["vis"] = (f"{seg_dir}_vis", "infer_seg vis", {}, [experiment / seg_dir])
    return experiment.open_outputs("infer_seg", flags.as_json(settings), outputs,
                                   partial(size_of_missing, settings, images, ids),
                                   f"{len(ids)} images of {settings.images or settings.infer_list} with {weights}")


def size_of_missing(settings, images, ids, folders):
    """Estimate in bytes what is still to be written: at most a byte a pixel, and three of an overlay."""
    todo = [i for i in ids if not is_done(folders["seg"], images, i)]
    if settings.images or not todo:
        return 0                    # the files of --images may turn out not to be images
    return mean_pixels(images, todo) * len(todo) * (4 if settings.vis else 1)


def is_done(folder, images, image_id):
    """Tell whether an image's map or overlay exists and, for --images, is newer than the image."""
    path = folder / f"{image_id}.png"
    if isinstance(images, VOCLayout) or not path.exists():
        return path.exists()
    return path.stat().st_mtime >= images.image_path(image_id).stat().st_ctime


def make_labels(settings, network, device, folder, images, ids):
    """Write the label maps that are missing; returns {ID: error} of those images of --images that cannot be read."""
    todo, broken = [i for i in ids if not is_done(folder, images, i)], {}
    if not todo:
        return broken
    engine.to_device(network.eval(), device, inference=True)
    scored = score_all(settings, network, device, images, todo, broken)
    if not settings.crf:
        for image_id, scores in interrupt.progress(scored, len(todo), "DeepLab"):
            save_scores(folder / f"{image_id}.png", image_size(images.image_path(image_id)), None, scores)
        return broken
    jobs = (crf_job(settings, images, folder, image_id, scores) for image_id, scores in scored)
    refined = refine_all(jobs, max(1, settings.num_workers // distributed.world()), settings.crf_iterations,
                         DEEPLAB_BILATERAL, in_turn=device.type == "cpu")
    for _ in interrupt.progress(refined, len(todo), "DeepLab, CRF"):
        pass
    return broken


def score_all(settings, network, device, images, ids, broken):
    """Yield (ID, scores (C + 1, H, W)) of each image that can be read; add {ID: error} of the others to `broken`."""
    loader = view_loader(images, ids, settings.scales, labelled=False, max_side=max_side(settings),
                         tolerant=bool(settings.images), **engine.loader_for(device, settings.num_workers))
    with engine.autocast(device, settings.precision):
        for image_id, views, size, _ in loader:
            if views is None:
                broken[image_id] = size         # the error, in its place
            else:
                yield image_id, multi_scale_scores(network, views, size).cpu().numpy()


def max_side(settings):
    return settings.max_side if settings.images else None


def crf_job(settings, images, folder, image_id, scores):
    path = images.image_path(image_id)
    return Job(image_id, partial(load_for_crf, path, max_side(settings), scores),
               partial(save_scores, folder / f"{image_id}.png", image_size(path)))


def load_for_crf(path, max_side, scores):
    return shrink(read_image(path, max_side), max_side), scores


def save_scores(path, size, _, scores):
    """Write the likeliest class of each pixel, the lower one on a tie, at the image's own size."""
    labels = scores.argmax(0).astype(np.uint8)                                          # (H, W)
    save_labels(path, labels if labels.shape == size else resize_labels(labels, *size), voc_palette())


def draw_overlays(folders, images, ids, classes):
    """Write the overlays that are missing: the image, its classes in their colours, their names."""
    todo = [i for i in ids if not is_done(folders["vis"], images, i)]
    for image_id in interrupt.progress(todo, len(todo), "overlays"):
        labels = read_labels(folders["seg"] / f"{image_id}.png")
        save_image(folders["vis"] / f"{image_id}.png",
                   label_overlay(read_image(images.image_path(image_id)), labels, ["background", *classes],
                                 voc_palette()))


def write_for_server(settings, experiment, layout, folder):
    """Write results/ and results.zip of the complete list, once all shards are finished."""
    ids = layout.ids(settings.infer_list)
    missing = [i for i in ids if not (folder / f"{i}.png").exists()]
    if missing:
        raise ValueError(f"--zip: {lacking('label map', folder, missing, ids, settings.infer_list)}: run without "
                         "--only, or the other shards first")
    server = experiment.claim(SERVER, "infer_seg zip", {"list": settings.infer_list}, [folder],
                              overwrite=settings.overwrite)
    for image_id in ids:
        copy_file(folder / f"{image_id}.png", server / f"{image_id}.png")
    save_zip(experiment / "results.zip", {f"{SERVER}/{i}.png": server / f"{i}.png" for i in ids})
    print(f"{experiment / 'results.zip'}: {len(ids)} label maps, as VOC's test server takes them")


if __name__ == "__main__":
    flags.run(main)
