"""Locate the labelled classes in images: CAMs, dense CRF maps, overlays to look at.

Reads   ckpt/MODEL/EEE.pth, network.json   JPEGImages/ and labels of --data_root
        or --dict_dir THEIRS: CAMs of another project, for --crf and --vis; the folder is only read
Writes  dict/ID.npz (--dict)   crf/ALPHA/ID.npz (--crf)   infer/ID_cam_CLASS.png (--vis); of model_oc dict_model_oc/ ...
        erase/round_R/ID.npz, erase/strips/ID.png and .gif, erase/miou_LIST.json (--erase_rounds)
Run     python infer.py --name X --model model_cse --vis --dict --crf --alphas 4 24 --infer_list train_aug
        python infer.py --name X --model model_oc --erase_rounds 3
Existing files are skipped. Under torchrun each process takes its share of the images; so does each job of an array with
--shard 1/8 ... --shard 8/8.
"""
from functools import partial
from itertools import chain

import config

from tools import catalog, flags

if __name__ == "__main__":      # --help and mistakes in the flags, before torch takes seconds to load
    flags.check(config.Infer, dict.fromkeys(catalog.models(), config.Infer))

from advice import experiment_of, find_cams, verify_maps
from data.images import image_size, mean_pixels, read_image, ten_of
from data.layout import VOCLayout
from data.loader import view_loader
from data.signatures import signatures
from data.transforms import resize_scores, shrink
from methods.cam import image_cams, multi_scale_cam
from methods.erase_rounds import erase_rounds
from networks import CAM_NETWORKS, build
from networks.pretrained import describe_file, load_weights, read_description
from tools import distributed, engine, interrupt, remedies, rounds
from tools.aside import in_batches, waits
from tools.crf import Job, import_pydensecrf, refine_all
from tools.files import save_image, write_json
from tools.map_classes import compare_with_labels
from tools.maps import (
    alpha_name,
    checked_cam,
    find_maps,
    holds_maps,
    is_foreign,
    others_maps,
    require_kind,
    save_cam,
    save_crf,
)
from tools.provenance import digests
from tools.visualize import OVERLAY_SIDE, overlay
from tools.words import counted

CRF_SHRINKS_TO = 0.3        # a deflated CRF map beside plain float16; .20 to .32 on the critters
SAME_COMMAND = "Then run the same command again"
LESS_MEMORY = ("--max_side 512 shrinks it for the network, --scales 1 shows it at one size, --precision bf16 needs "
               "less; or take it off the list")


def main():
    settings = flags.parse(config.Infer, models=dict.fromkeys(catalog.models(), config.Infer))
    if not (wants_cams(settings) or settings.erase_rounds):
        raise ValueError("nothing is asked for: --dict writes CAMs, --crf CRF maps, --vis overlays, --erase_rounds 3 "
                         "the maps of what is left when these are erased")
    if settings.crf:
        import_pydensecrf()         # if it is missing, say so before hours of CAMs
    device = distributed.start(settings.device)
    experiment, layout = experiment_of(settings), VOCLayout(settings.data_root)
    ids = layout.chosen(settings.infer_list, settings.only, settings.shard)
    images = distributed.on_main(lambda: signatures(layout, ids, settings.infer_list, settings.labels == "given"))
    given = given_cams(settings, experiment, layout, ids, images)
    if given and settings.erase_rounds:
        raise ValueError(f"--erase_rounds needs the network, the CAMs in {given} do not help: leave out one of "
                         "--dict_dir and --erase_rounds")
    if not given:
        require_labels(settings, layout, ids)
    weights = None if given else distributed.on_main(lambda: experiment.weights(settings.model, settings.load_epo))
    network = None if given else trained_network(experiment, layout, weights)      # before --overwrite deletes maps
    folders = distributed.on_main(lambda: open_outputs(settings, experiment, layout, weights or given, images))
    if given:
        folders["dict"] = given

    say_what_is_there(settings, folders, given, ids)
    own = distributed.share(ids)
    with interrupt.remembered():
        if wants_cams(settings):
            make_maps(settings, layout, device, network, folders, own)
        if settings.vis:
            with in_batches():
                for image_id in interrupt.progress(own, len(own), "overlays"):
                    draw_overlays(settings, layout, folders, image_id)
        if settings.erase_rounds:
            write_rounds(settings, layout, device, network, folders, own)
            measure_rounds(settings, experiment, layout, folders, ids, own)
    experiment.release()
    distributed.stop()


def say_what_is_there(settings, folders, given, ids):
    if given:
        distributed.say(f"the CAMs of {len(ids)} images are read from {given}, which stays as it is")
    elif "dict" in folders:
        done = sum(bool(find_maps(folders["dict"], i)) for i in ids)
        distributed.say(f"{folders['dict']}: {done} of {len(ids)} images are finished")
    if settings.erase_rounds:
        done = len(ids) - len(rounds.incomplete(folders, ids))
        distributed.say(f"{folders['strips'].parent}: {done} of {len(ids)} images are finished")


def make_maps(settings, layout, device, network, folders, ids):
    """Write dict/ID.npz and crf/ALPHA/ID.npz where they are missing."""
    alphas = settings.alphas if settings.crf else []
    there = {i for i in ids if find_maps(folders["dict"], i)}
    todo = [i for i in ids if i not in there]
    lacking = {i: missing for i in ids if (missing := [a for a in alphas if not find_maps(folders[a], i)])}
    cams = write_cams(settings, layout, device, network, folders["dict"], todo)
    if device.type == "cpu" or not lacking:
        cams = list(cams)           # all before the first CRF: on a CPU the two would slow each other down
    if lacking:
        jobs = (crf_job(settings, layout, folders, i, lacking[i]) for i in chain(cams, there) if i in lacking)
        refined = refine_all(jobs, max(1, settings.num_workers // distributed.world()), settings.crf_iterations)
        with in_batches():
            for _ in interrupt.progress(refined, len(lacking), "CRF"):
                pass


def write_cams(settings, layout, device, network, folder, ids):
    """Compute and write the CAMs of images; yield the ID of each when they are on disk."""
    written = {}
    with in_batches():
        for image_id, classes, scores in located(settings, layout, device, network, ids, "CAM"):
            written[image_id] = folder / f"{image_id}.{settings.format}"
            save_cam(written[image_id], classes, scores, settings.format)
            for done in [i for i, path in written.items() if not waits(path)]:
                del written[done]
                yield done
    yield from written


def located(settings, layout, device, network, ids, name, locate=multi_scale_cam):
    """Yield (ID, classes (K,), what `locate` finds of them (..., K, H, W), of the image's own size) of images."""
    if not ids:
        return
    engine.to_device(network.eval(), device, inference=True)
    images = view_loader(layout, ids, settings.scales, settings.labels == "given", settings.max_side,
                         **engine.loader_for(device, settings.num_workers))
    with engine.autocast(device, settings.precision), remedies.one_by_one(images, LESS_MEMORY) as images:
        cams = image_cams(network, images, settings.labels, locate)
        for image_id, classes, scores in interrupt.progress(cams, len(ids), name):
            if settings.max_side:
                scores = resized(scores, image_size(layout.image_path(image_id)))
            yield image_id, classes, scores


def resized(scores, size):
    """Resize maps (..., h, w) to (..., H, W)."""
    return resize_scores(scores.reshape(-1, *scores.shape[-2:]), *size).reshape(*scores.shape[:-2], *size)


def write_rounds(settings, layout, device, network, folders, ids):
    """Erase and infer: write the maps of each round, a strip and an animation of the images that lack any of them."""
    todo = rounds.incomplete(folders, ids)
    locate = partial(erase_rounds, rounds=settings.erase_rounds, threshold=settings.erase_t)
    with in_batches():
        for image_id, classes, maps in located(settings, layout, device, network, todo, "erase and infer", locate):
            rounds.save_rounds(folders, image_id, classes, maps, settings.format)
            image = shrink(read_image(layout.image_path(image_id), rounds.TILE), rounds.TILE)
            rounds.save_strip(folders, image_id, image, [layout.classes[c - 1] for c in classes],
                              resized(maps, image.shape[:2]), settings.erase_t)


def measure_rounds(settings, experiment, layout, folders, ids, own):
    """Print and write the mIoU after each round. own: this process's part of the images."""
    unknown = sum(not layout.has_ground_truth(i) for i in ids)
    if unknown or settings.only or settings.shard != "1/1":
        distributed.say(f"the mIoU after each round is not measured: {unknown} of the {len(ids)} images have no ground "
                        f"truth in {layout.root / 'SegmentationClass'}" if unknown else
                        "the mIoU after each round is that of a whole list: the same command without "
                        f"{'--only' if settings.only else '--shard'} measures it, and skips existing files")
        return
    fixed = flags.defaults(config.Evaluate, settings.recipe)["threshold"][0]
    rows = rounds.measure_rounds(folders, own, layout, fixed, SAME_COMMAND)
    if distributed.is_main():
        path = experiment / erase_dir(settings) / f"miou_{settings.infer_list.replace('/', '_')}.json"
        write_json(path, {"list": settings.infer_list, "images": len(ids), "model": settings.model,
                          "erase_t": settings.erase_t, "fixed_threshold": fixed, "rounds": rows})
        rounds.print_rounds(rows, fixed, f"erase and infer, {settings.model} on {settings.infer_list}: {len(ids)} "
                            f"images, erased above {settings.erase_t:g}; {path}")


def crf_job(settings, layout, folders, image_id, alphas):
    """Describe the CRF of an image whose CAMs are on disk, for refine_all."""
    source, name = find_maps(folders["dict"], image_id), f"{image_id}.{settings.format}"
    return Job(image_id, partial(load_shrunk, layout, image_id, source, settings.max_side),
               partial(save_refined, folders, name, settings.format), alphas)


def load_shrunk(layout, image_id, source, max_side):
    """Read an image and its CAMs, both shrunk to max_side, the classes of its CRF maps and the image's own size."""
    path = layout.image_path(image_id)
    image, size = shrink(read_image(path, max_side), max_side), image_size(path)
    classes, scores = checked_cam(source, layout, size, SAME_COMMAND)
    if image.shape[:2] != size:
        scores = resize_scores(scores, *image.shape[:2])
    return image, scores, [0, *classes], size


def save_refined(folders, name, format, alpha, scores, classes, size):
    if scores.shape[1:] != size:
        scores = resize_scores(scores, *size)
    save_crf(folders[alpha] / name, classes, scores, format)


def given_cams(settings, experiment, layout, ids, images):
    """Return the folder of --dict_dir if its CAMs are only read: those of another project or experiment. Else None.

    ValueError, with their count, if images have none there.
    """
    folder = experiment.find_folder(settings.dict_dir)
    if settings.dict_dir and folder.is_dir():
        require_kind(folder, "cam")
    if not settings.dict_dir or not holds_maps(folder):
        return None
    own, foreign = folder.resolve().is_relative_to(experiment.folder.resolve()), is_foreign(folder)
    if not foreign and (own or settings.dict):
        return None
    if settings.dict:
        raise ValueError(f"{folder} holds maps that no stage wrote: without --dict they are only read, for --crf and "
                         "--vis; or name another folder")
    cams = find_cams(settings, folder, ids)
    verify_maps(settings, experiment, folder, layout, images, settings.infer_list)
    if doubt := compare_with_labels(folder, cams, layout):
        distributed.say(doubt)
    return folder


def require_labels(settings, layout, ids):
    """Check that the images have labels, where these say which classes to look for."""
    if settings.labels == "given" and ids:
        try:
            labels = layout.labels(ids)
        except ValueError as error:
            if "without labels" not in str(error):
                raise
            raise ValueError(f"{error}; --labels predicted looks for the classes that the network recognises") from None
        if layout.left_out:
            distributed.say(layout.left_out)
        if not labels.any() and not settings.only and settings.shard == "1/1":
            distributed.say(f"warning: no image of {settings.infer_list} has a class, so its maps are empty. Look at "
                            f"the labels in {layout.root}; --labels predicted looks for what the network recognises")


def open_outputs(settings, experiment, layout, source, images):
    """Claim the output folders: {"dict", "vis" or an alpha: path}. source: the weights, or the folder of given CAMs."""
    suffix = catalog.models()[settings.model].suffix
    dict_dir = settings.dict_dir or f"dict{suffix}"
    ids, given = list(images.of), source if source.is_dir() else None
    cams = given or experiment / dict_dir
    made = {"classes": layout.classes, "scales": settings.scales, "precision": settings.precision,
            "labels": settings.labels, "format": settings.format, "data": digests(layout.sources())}
    shrunk = {"max_side": settings.max_side} if settings.max_side else {}       # so that older folders stay as they are
    stage, made = f"infer {settings.model}", made | shrunk
    outputs = {} if given or not wants_cams(settings) else {"dict": (dict_dir, stage, made, [source])}
    if settings.erase_rounds:
        erased, home = made | {"erase_t": settings.erase_t}, erase_dir(settings)
        outputs |= {f"round_{r}": (f"{home}/round_{r}", stage, erased | {"round": r}, [source])
                    for r in range(settings.erase_rounds + 1)}
        outputs["strips"] = (f"{home}/strips", "infer vis", erased | {"erase_rounds": settings.erase_rounds}, [source])
    for alpha in settings.alphas if settings.crf else ():
        made = {"alpha": alpha, "iterations": settings.crf_iterations, "format": settings.format} | shrunk
        outputs[alpha] = (f"{settings.crf_dir or f'crf{suffix}'}/{alpha_name(alpha)}", "infer crf", made, [cams])
    if settings.vis:
        outputs["vis"] = (settings.vis_dir or f"infer{suffix}", "infer vis", {}, [cams])
    return experiment.open_outputs(f"infer_{settings.model}", flags.as_json(settings), outputs,
                                   partial(size_of_missing, settings, layout, ids, given),
                                   f"{counted(len(ids), 'image')} of {settings.infer_list} with {source}",
                                   images.with_maps(others_maps(given, ids)))


def wants_cams(settings):
    return settings.dict or settings.crf or settings.vis


def erase_dir(settings):
    return settings.erase_dir or f"erase{catalog.models()[settings.model].suffix}"


def size_of_missing(settings, layout, ids, given, folders):
    """Estimate in bytes what is still to be written. given: the folder of CAMs that are only read, or None."""
    if not ids:                 # more shards than images
        return 0
    plane = mean_pixels(layout, ids) * (4 if settings.format == "npy" else 2)
    classes = 2 if given or settings.labels == "predicted" else layout.labels(ten_of(ids)).sum(1).mean()
    cams = [*([folders["dict"]] if "dict" in folders else []), *rounds.rounds_of(folders)]
    size = plane * classes * sum(not find_maps(folder, i) for folder in cams for i in ids)
    for alpha in settings.alphas if settings.crf else ():
        shrinks_to = 1 if settings.format == "npy" else CRF_SHRINKS_TO
        size += plane * (classes + 1) * shrinks_to * sum(not find_maps(folders[alpha], i) for i in ids)
    # An overlay is a PNG of three bytes a pixel, which shrinks to a half or so.
    return size + plane * classes * len(ids) * settings.vis


def trained_network(experiment, layout, weights):
    """Build the network that the network.json beside the weights describes, and load them.

    The authors' own files have none: what network they are of, their tensors say.
    """
    path = experiment.network_of(weights)
    if path:
        read_description(path, CAM_NETWORKS, layout)
    network = build(path or describe_file(weights, CAM_NETWORKS, layout))
    if place := load_weights(network, weights).place:
        distributed.say(f"{weights}: {place}")
    return network


def draw_overlays(settings, layout, folders, image_id):
    """Write infer/ID_cam_CLASS.png for each class of an image."""
    source = find_maps(folders["dict"], image_id)
    classes, _ = checked_cam(source, layout, remedy=SAME_COMMAND)
    names = [layout.classes[c - 1] for c in classes]
    paths = [folders["vis"] / f"{image_id}_cam_{name.replace('/', '_')}.png" for name in names]
    if all(path.exists() for path in paths):
        return
    image, scores, *_ = load_shrunk(layout, image_id, source, OVERLAY_SIDE)
    for path, name, score in zip(paths, names, scores):
        save_image(path, overlay(image, score, f"{name}  ({settings.model})"))


if __name__ == "__main__":
    flags.run(main)
