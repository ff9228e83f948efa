"""Tell the class of every pixel with the trained DeepLab: label maps, overlays, a zip for VOC's test server.

Reads   ckpt/seg/EEE.pth   JPEGImages/ of --data_root, or any pictures (--images FOLDER)
Writes  seg/ID.png (palette PNG, class ids)   seg_vis/ID.png (--vis)   of --images seg_FOLDER/ and seg_FOLDER_vis/
        results/VOC2012/Segmentation/comp6_test_cls/ID.png and results.zip (--zip)
Run     python infer_seg.py --name X --infer_list val
        python infer_seg.py --name X --images holidays
Pictures that are done are not done again. Under torchrun the processes share the pictures, and so do job arrays with
--shard 1/8 ... --shard 8/8.
"""
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np

import config
from data.images import PictureFolder, picture_size, read_image
from data.layout import VOCLayout
from data.loader import view_loader
from data.prepare import voc_palette
from data.transforms import resize_labels, shrink
from methods.segmentation import multi_scale_scores
from networks import PIXEL_NETWORKS, build
from networks.pretrained import load_weights, read_description
from pipeline import experiment_of
from tools import distributed, engine, flags, interrupt
from tools.crf import DEEPLAB_BILATERAL, CRFPool
from tools.files import copy_file, read_labels, require_space, save_image, save_labels, save_zip
from tools.maps import lacking
from tools.provenance import digests
from tools.visualize import label_overlay

SERVER = "results/VOC2012/Segmentation/comp6_test_cls"


def main():
    settings = flags.parse(config.InferSeg)
    device = distributed.start(settings.device)
    experiment = experiment_of(settings)
    layout = None if settings.images else VOCLayout(settings.data_root)
    pictures, ids = chosen_pictures(settings, layout)
    weights = distributed.on_main(lambda: experiment.weights("seg", settings.load_epo))
    description = read_description(experiment.network_of(weights), PIXEL_NETWORKS, layout)
    classes = description["classes"]
    folders = distributed.on_main(
        lambda: open_folders(settings, experiment, layout, weights, classes, ids, pictures))

    done = sum(is_done(folders["seg"], pictures, i) for i in ids)
    distributed.say(f"{folders['seg']}: {done} of {len(ids)} pictures are there")
    mine = distributed.share(ids)
    with interrupt.remembered():
        network = build(description)
        load_weights(network, weights)
        broken = make_labels(settings, network, device, folders["seg"], pictures, mine)
        if "vis" in folders:
            draw_overlays(folders, pictures, [i for i in mine if i not in broken], classes)
    broken = {k: v for part in distributed.gather(broken) for k, v in part.items()}
    if settings.zip:
        distributed.on_main(lambda: write_for_server(settings, experiment, layout, folders["seg"]))
    experiment.release()
    distributed.stop()
    if broken:
        raise ValueError(f"{len(broken)} of {len(ids)} pictures could not be read, the others are done: "
                         + "; ".join(list(broken.values())[:5]))


def chosen_pictures(settings, layout):
    """Find the pictures: what gives their paths, and the shard's IDs."""
    if layout:
        return layout, layout.chosen(settings.infer_list, settings.only, settings.shard)
    for flag in ("only", "zip"):
        if getattr(settings, flag):
            raise ValueError(f"--{flag} is for the pictures of a list, not for --images")
    pictures = PictureFolder(settings.images)
    part, parts = (int(number) for number in settings.shard.split("/"))
    return pictures, list(pictures.files)[part % parts :: parts]


def open_folders(settings, experiment, layout, weights, classes, ids, pictures):
    """Claim the output folders, {"seg", "vis" if asked for}, and check that the disk can hold what is missing."""
    shared = settings.shard != "1/1"
    claim = partial(experiment.claim, overwrite=settings.overwrite, shared=shared)
    seg_dir = settings.seg_dir or ("seg" if layout else f"seg_{Path(settings.images).resolve().name}")
    if shared:
        experiment.lock(f"{seg_dir}, shard {settings.shard}")
    made = {"classes": classes, "scales": settings.scales, "precision": settings.precision,
            "crf": settings.crf and {"iterations": settings.crf_iterations, **DEEPLAB_BILATERAL}}
    made |= {"data": digests(layout.sources())} if layout else {
        "images": str(Path(settings.images).resolve()), "max_side": settings.max_side}
    folders = {"seg": claim(seg_dir, "infer_seg", made, [weights])}
    if settings.vis or settings.images:
        folders["vis"] = claim(f"{seg_dir}_vis", "infer_seg vis", {}, [folders["seg"]])
    todo = [i for i in ids if not is_done(folders["seg"], pictures, i)]
    if layout and todo:     # at most a byte a pixel, and three of an overlay
        plane = np.mean([np.prod(picture_size(pictures.image_path(i))) for i in todo[:: -(-len(todo) // 10)]])
        require_space(folders["seg"], plane * len(todo) * (4 if settings.vis else 1))
    experiment.save_config("infer_seg", flags.as_json(settings))
    experiment.log("infer_seg", f"{len(ids)} pictures of {settings.images or settings.infer_list} with {weights}")
    return folders


def is_done(folder, pictures, image_id):
    """Say whether a picture's map or overlay is there; that of a picture which has come or changed since is not."""
    path = folder / f"{image_id}.png"
    if isinstance(pictures, VOCLayout) or not path.exists():
        return path.exists()
    return path.stat().st_mtime >= pictures.image_path(image_id).stat().st_ctime


def make_labels(settings, network, device, folder, pictures, ids):
    """Write the label maps that are missing; returns {ID: error} of those pictures of --images that cannot be read."""
    todo, broken = [i for i in ids if not is_done(folder, pictures, i)], {}
    if not todo:
        return broken
    engine.to_device(network.eval(), device, inference=True)
    max_side = settings.max_side if settings.images else 0
    loader = view_loader(pictures, todo, settings.scales, labelled=False, max_side=max_side,
                         tolerant=bool(settings.images), **engine.loader_for(device, settings.num_workers))
    workers = max(1, settings.num_workers // distributed.world())
    with (CRFPool(workers) if settings.crf else nullcontext() as pool,
          engine.autocast(device, settings.precision)):
        for image_id, views, size, _ in interrupt.progress(loader, len(todo), "DeepLab"):
            if views is None:
                broken[image_id] = size         # the error, in its place
                continue
            scores = multi_scale_scores(network, views, size).cpu().numpy()             # (C + 1, H, W)
            path = pictures.image_path(image_id)
            save = partial(save_scores, folder / f"{image_id}.png", picture_size(path))
            if not settings.crf:
                save(scores)
                continue
            pool.submit(partial(load_for_crf, path, max_side, scores), lambda _, sharp, save=save: save(sharp), [None],
                        settings.crf_iterations, image_id, DEEPLAB_BILATERAL)
            if pool.pending >= 4 * workers:     # scores of many pictures would fill the memory
                for _ in pool.results():
                    if device.type == "cuda":   # on a CPU the network waits for all: together they hold each other up
                        break
    return broken


def load_for_crf(path, max_side, scores):
    return shrink(read_image(path), max_side), scores


def save_scores(path, size, scores):
    """Write the likeliest class of each pixel, the lower one on a tie, at the picture's own size."""
    labels = scores.argmax(0).astype(np.uint8)                                          # (H, W)
    save_labels(path, labels if labels.shape == size else resize_labels(labels, *size), voc_palette())


def draw_overlays(folders, pictures, ids, classes):
    """Write the overlays that are missing: the picture, its classes in their colours, their names."""
    todo = [i for i in ids if not is_done(folders["vis"], pictures, i)]
    for image_id in interrupt.progress(todo, len(todo), "overlays"):
        labels = read_labels(folders["seg"] / f"{image_id}.png")
        save_image(folders["vis"] / f"{image_id}.png",
                   label_overlay(read_image(pictures.image_path(image_id)), labels, ["background", *classes],
                                 voc_palette()))


def write_for_server(settings, experiment, layout, folder):
    """Write results/ and results.zip of the whole list, once all shards are done."""
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
