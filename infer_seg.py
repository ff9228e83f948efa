"""Segment images with the trained DeepLab: label maps, overlays, classes and their areas, a zip for VOC's test server.

Reads   ckpt/seg/EEE.pth, network.json   JPEGImages/ of --data_root, or any photos (--images FOLDER or FILE)
Writes  seg/ID.png (palette PNG, class ids)   seg_vis/ID.png (--vis)
        of --images seg_FOLDER/, seg_FOLDER_vis/ and seg_FOLDER_areas.json; of --out DIR masks/, overlays/, areas.json
        results/VOC2012/Segmentation/comp6_test_cls/ID.png and results.zip (--zip)
Run     python infer_seg.py --name X --infer_list val
        python infer_seg.py --name X --images holidays
        python infer_seg.py --weights ckpt/seg/007.pth --images holidays/beach.jpg --out found     (no dataset needed)
Existing files are skipped. Under torchrun each process takes its share of the images; so does each job of an array with
--shard 1/8 ... --shard 8/8.
"""
from functools import partial
from pathlib import Path

import config

from tools import flags

if __name__ == "__main__":      # --help and mistakes in the flags, before torch takes seconds to load
    flags.check(config.InferSeg)

import numpy as np

from advice import experiment_of
from data.images import image_size, mean_pixels, read_image, voc_palette
from data.layout import VOCLayout
from data.loader import view_loader
from data.photos import Photos
from data.signatures import signatures, signatures_of_photos
from data.transforms import resized_to, shrink, views
from methods.segmentation import multi_scale_scores, windows
from networks import PIXEL_NETWORKS, build
from networks.pretrained import load_weights, read_description
from tools import distributed, engine, interrupt, remedies
from tools.areas import write_areas
from tools.aside import in_batches
from tools.crf import DEEPLAB_BILATERAL, Job, dense_crf, refine_all
from tools.experiment import Experiment
from tools.files import copy_file, read_label_map, save_image, save_label_map, save_zip
from tools.maps import lacking
from tools.provenance import digests
from tools.visualize import OVERLAY_SIDE, label_overlay
from tools.words import counted

SERVER = "results/VOC2012/Segmentation/comp6_test_cls"
LESS_MEMORY = {True: "a smaller --max_side or --tile shows the network less at a time, --scales 1 looks once, and "
                     "--precision bf16 needs less",
               False: "--scales 1 looks at it once, --precision bf16 needs less, --images FOLDER shrinks large photos"}


def main():
    settings = flags.parse(config.InferSeg)
    device = distributed.start(settings.device)
    layout = None if settings.images else VOCLayout(settings.data_root)
    images, ids = chosen_images(settings, layout)
    weights, network = distributed.on_main(lambda: chosen_weights(settings))
    classes = read_description(network, PIXEL_NETWORKS, layout)["classes"]
    network = build(network)
    load_weights(network, weights)          # before --overwrite deletes maps
    experiment, names = output_folders(settings)
    folders = distributed.on_main(
        lambda: open_outputs(settings, experiment, names, layout, weights, classes, ids, images))

    done = sum(is_done(folders["seg"], i) for i in ids)
    distributed.say(f"{folders['seg']}: {done} of {len(ids)} images are finished")
    mine = distributed.share(ids)
    with interrupt.remembered():
        with in_batches():
            broken = make_labels(settings, network, device, folders["seg"], images, mine)
        if "vis" in folders:
            with in_batches():
                draw_overlays(folders, images, [i for i in mine if i not in broken], classes)
    broken = {k: v for part in distributed.gather(broken) for k, v in part.items()}
    if settings.images:
        distributed.on_main(lambda: report_areas(experiment / names["areas"], folders["seg"], images, classes, broken))
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
    images = Photos(settings.images)
    part, parts = (int(number) for number in settings.shard.split("/"))
    return images, list(images.files)[part % parts :: parts]


def chosen_weights(settings):
    """Return the paths of the weights and of the network.json beside them."""
    experiment = experiment_of(settings)
    if not settings.weights and not settings.name:
        raise ValueError("which network? --name X takes DeepLab of the experiment X, --weights FILE a weights file")
    if not settings.weights:
        weights = experiment.weights("seg", settings.load_epo)
        return weights, experiment.network_of(weights)
    path = Path(settings.weights)
    epochs = sorted((p for p in path.glob("*.pth") if p.stem.isdecimal()), key=lambda p: int(p.stem))
    weights = epochs[-1] if epochs else experiment.find_init(settings.weights, "weights")
    network = weights and experiment.network_of(weights)
    if not network:
        raise ValueError(f"--weights {settings.weights}: no network.json beside it, which tells the network and its "
                         "classes. Copy it from the folder ckpt/seg in which the weights were written")
    return weights, network


def output_folders(settings):
    """Return the experiment to write to, or the folder of --out in its place, and the names in it."""
    if settings.out:
        out = Path(settings.out).resolve()
        return Experiment(out.parent, out.name), {"seg": settings.seg_dir or "masks", "vis": "overlays",
                                                  "areas": "areas.json"}
    if not settings.name:
        raise ValueError("where to? --out FOLDER, or --name X for the experiment X")
    seg = settings.seg_dir or ("seg" if not settings.images else f"seg_{Path(settings.images).resolve().name}")
    return experiment_of(settings), {"seg": seg, "vis": f"{seg}_vis", "areas": f"{seg}_areas.json"}


def open_outputs(settings, experiment, names, layout, weights, classes, ids, images):
    """Claim the output folders: {"seg", and "vis" if asked for: path}."""
    made = {"classes": classes, "scales": settings.scales, "precision": settings.precision,
            "crf": settings.crf and {"iterations": settings.crf_iterations, **DEEPLAB_BILATERAL}}
    made |= {"data": digests(layout.sources())} if layout else {"max_side": settings.max_side}
    if not layout and not 0 < settings.max_side <= settings.tile:       # otherwise there are no tiles
        made["tile"] = settings.tile
    outputs = {"seg": (names["seg"], "infer_seg", made, [weights])}
    if settings.vis or settings.images:
        outputs["vis"] = (names["vis"], "infer_seg vis", {}, [experiment / names["seg"]])
    return experiment.open_outputs("infer_seg", flags.as_json(settings), outputs,
                                   partial(size_of_missing, settings, images, ids),
                                   f"{counted(len(ids), 'image')} of {settings.images or settings.infer_list} with "
                                   f"{weights}",
                                   signatures(layout, ids, settings.infer_list, labels=False) if layout else
                                   signatures_of_photos(images), again=bool(settings.images))


def size_of_missing(settings, images, ids, folders):
    """Estimate in bytes what is still to be written: at most a byte a pixel, and three of an overlay."""
    todo = [i for i in ids if not is_done(folders["seg"], i)]
    if settings.images or not todo:
        return 0                    # the files of --images may turn out not to be images
    return mean_pixels(images, todo) * len(todo) * (4 if settings.vis else 1)


def is_done(folder, image_id):
    return (folder / f"{image_id}.png").exists()


def make_labels(settings, network, device, folder, images, ids):
    """Write the label maps that are missing; returns {ID: error} of those images of --images that cannot be read."""
    todo, broken = [i for i in ids if not is_done(folder, i)], {}
    if not todo:
        return broken
    engine.to_device(network.eval(), device, inference=True)
    large = [i for i in todo if settings.images and is_large(settings, images.image_path(i))]
    if large:
        done = label_large(settings, network, device, folder, images, large, broken)
        for _ in interrupt.progress(done, len(large), "DeepLab, large photos"):
            pass
        todo = [i for i in todo if i not in large]
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


def is_large(settings, path):
    """Tell whether a photo is segmented in tiles. Whether it can be read is seen later."""
    try:
        longest = max(image_size(path))
    except (ValueError, OSError):
        return False
    return 0 < settings.tile < min(longest, settings.max_side or longest)


def score_all(settings, network, device, images, ids, broken):
    """Yield (ID, scores (C + 1, H, W)) of each image that can be read; add {ID: error} of the others to `broken`."""
    loader = view_loader(images, ids, settings.scales, labelled=False, max_side=max_side(settings),
                         tolerant=bool(settings.images), **engine.loader_for(device, settings.num_workers))
    less = LESS_MEMORY[bool(settings.images)]
    with engine.autocast(device, settings.precision), remedies.one_by_one(loader, less) as loader:
        for image_id, seen, size, _ in loader:
            if seen is None:
                broken[image_id] = size         # the error, in its place
            else:
                yield image_id, multi_scale_scores(network, seen, size).cpu().numpy()


def label_large(settings, network, device, folder, images, ids, broken):
    """Write the label maps of photos that are cut into tiles, and yield their IDs; no scores are kept of a whole one.
    """
    todo = ((image_id, images.image_path(image_id)) for image_id in ids)
    with engine.autocast(device, settings.precision), remedies.one_by_one(todo, LESS_MEMORY[True]) as todo:
        for image_id, path in todo:
            try:
                image = shrink(read_image(path, settings.max_side), settings.max_side)          # (H, W, 3)
            except (ValueError, OSError) as error:
                broken[image_id] = str(error)
                continue
            labels = label_in_tiles(settings, network, image)
            save_label_map(folder / f"{image_id}.png", resized_to(labels, image_size(path)), voc_palette())
            yield image_id


def label_in_tiles(settings, network, image):
    """Segment an image (H, W, 3) tile by tile: (H, W). Each pixel is decided by the tile that sees most around it."""
    labels = np.empty(image.shape[:2], np.uint8)
    rows, columns = (windows(length, settings.tile, settings.tile // 4) for length in labels.shape)
    for top, bottom, first_row, last_row in rows:
        for left, right, first, last in columns:
            tile = np.ascontiguousarray(image[top:bottom, left:right])
            scores = multi_scale_scores(network, views(tile, settings.scales), tile.shape[:2]).cpu().numpy()
            if settings.crf:
                scores = dense_crf(tile, scores, settings.crf_iterations, DEEPLAB_BILATERAL)
            decided = scores.argmax(0)[first_row - top:last_row - top, first - left:last - left]
            labels[first_row:last_row, first:last] = decided
    return labels


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
    save_label_map(path, resized_to(scores.argmax(0).astype(np.uint8), size), voc_palette())


def draw_overlays(folders, images, ids, classes):
    """Write the overlays that are missing: the image, its classes in their colours, their names."""
    todo = [i for i in ids if not is_done(folders["vis"], i)]
    for image_id in interrupt.progress(todo, len(todo), "overlays"):
        image = shrink(read_image(images.image_path(image_id), OVERLAY_SIDE), OVERLAY_SIDE)
        label_map = resized_to(read_label_map(folders["seg"] / f"{image_id}.png"), image.shape[:2])
        save_image(folders["vis"] / f"{image_id}.png",
                   label_overlay(image, label_map, ["background", *classes], voc_palette()))


def report_areas(path, folder, images, classes, broken):
    """Write the areas of all photos that have a map, and name the files that have none."""
    not_read = images.unread | {images.files[image_id]: words for image_id, words in broken.items()}
    count, earlier = write_areas(path, folder, images.files, ["background", *classes], not_read)
    print(f"{path}: the classes of {count} photo{'s' * (count != 1)} and their areas"
          + f", and {earlier} of earlier runs" * (earlier > 0))
    for name, why in images.unread.items():
        print(f"not read: {name}: {why}")
    if images.folders:
        print(f"{images.root}: {images.folders}")


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
