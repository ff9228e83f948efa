"""How fast is this revision, and how much memory does it need, beside an earlier one? The same work in both, in turn.

Prints  for each line the processor's seconds (user and system, children too) in both, their ratio (above 1: this
        revision is faster), the peak memory of both; medians, one thread. "least": the ratio of the least seconds of
        both, which other programs disturb least
Run     python -m benchmarks.versus --revision 74e460b [--lines cam walk --repeats 3 --photos JPEGImages]
The earlier revision is a git worktree in a temporary folder, removed at the end. Each figure comes from a process of
its own, after a warm-up. A line that a revision cannot do says so and is left out.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from time import strftime

ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": ""}


def main():
    args = parse()
    if args.data:                       # in a child of such a run
        measure(LINES[args.measure][1], Path(args.data)) if args.measure else make_data(Path(args.data), args.photos)
        return
    root = Path(__file__).resolve().parent.parent
    print(f"{args.revision} and this revision, medians of {args.repeats} in turn, one thread, "
          f"{os.cpu_count()} cores, {strftime('%Y-%m-%d %H:%M')}, load {load()} at the start")
    print(f"{'line':<48} {'before':>9} {'now':>9} {'ratio':>6} {'least':>6} {'before':>9} {'now':>9}", flush=True)
    with tempfile.TemporaryDirectory() as folder, checked_out(root, args.revision, folder) as before:
        if not READ_NOTHING.issuperset(args.lines):
            photos = ["--photos", args.photos] if args.photos else []       # in a child: a process hands its peak on
            subprocess.run([sys.executable, "-m", "benchmarks.versus", "--data", folder, *photos], cwd=root, check=True)
        for line in args.lines:
            found = {before: [], root: []}
            for _ in range(args.repeats):
                for tree, results in found.items():     # in turn: a drift of the machine's speed meets both
                    results.append(run_line(line, tree, folder))
            print_line(line, *found.values())
    print(f"load {load()} at the end")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", default="74e460b")
    parser.add_argument("--lines", nargs="+", default=list(LINES), choices=LINES, metavar="LINE",
                        help=f"of {' '.join(LINES)}; all without the flag")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--photos", help="a folder of photos (.jpg); without it images are drawn")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    return parser.parse_args()


@contextmanager
def checked_out(root, revision, folder):
    """Give a folder with the files of a revision."""
    tree = Path(folder) / "before"
    if subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, revision], cwd=root).returncode:
        raise SystemExit(f"--revision {revision}: git cannot check it out (above); it needs a clone with its history, "
                         "which `git fetch --unshallow` completes")
    try:
        yield tree
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=root, check=True)


def make_data(folder, photos):
    """Make a dataset of 60 photos with CAMs and ground truth in `folder`: photos/, experiment/X/dict/."""
    import numpy as np
    from PIL import Image

    from benchmarks.evaluation import smooth, write_sample
    from data.layout import VOCLayout
    from tools.maps import read_cam
    data, maps = folder / "photos", folder / "experiment/X/dict"
    for path in (maps, *(data / name for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"))):
        path.mkdir(parents=True)
    files = sorted(Path(photos).glob("*.jpg"))[:60] if photos else [None] * 60
    for i, file in enumerate(files):
        write_sample(maps, i)
        (maps / f"{i:04}.png").rename(data / f"SegmentationClass/{i:04}.png")
        rng = np.random.default_rng(i)
        drawn = 200 * np.stack([smooth(rng) for _ in range(3)], axis=-1) + 25 + rng.normal(0, 4, (375, 500, 3))
        image = Image.open(file).convert("RGB").resize((500, 375)) if file else Image.fromarray(drawn.astype(np.uint8))
        image.save(data / f"JPEGImages/{i:04}.jpg", quality=92)
    (data / "ImageSets/Segmentation/train.txt").write_text("".join(f"{i:04}\n" for i in range(len(files))))
    layout = VOCLayout(data)            # the labels are the classes of the maps
    labels = {i: [layout.classes[c - 1] for c in read_cam(maps / f"{i}.npz")[0]] for i in layout.ids("train")}
    (data / "labels.json").write_text(json.dumps(labels))


def run_line(line, tree, folder):
    """Measure a line with the files of a revision in its own process; returns {"seconds", "kib"} or {"lacks"}."""
    command = [sys.executable, "-", "--measure", line, "--data", folder]       # from stdin: imports are the tree's
    with open(__file__, encoding="utf-8") as program:
        result = subprocess.run(command, stdin=program, capture_output=True, text=True, cwd=tree,
                                env=os.environ | ONE_CORE)
    if result.returncode:
        raise SystemExit(f"{line} in {tree}: {result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def measure(prepare, data):
    """Print what a line costs in this process and its children."""
    try:
        call = prepare(data)
    except (ImportError, AttributeError, TypeError) as error:
        print(json.dumps({"lacks": str(error)}))
        return
    before = seconds()
    call()
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": seconds() - before, "kib": peak}))


def seconds():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def print_line(line, before, now):
    for name, results in (("that", before), ("this", now)):
        if lacks := results[0].get("lacks"):
            print(f"{LINES[line][0]:<48} left out: {name} revision lacks it ({lacks})", flush=True)
            return
    (old, new), (old_kib, new_kib) = ([statistics.median(r[key] for r in results) for results in (before, now)]
                                      for key in ("seconds", "kib"))
    least_old, least_new = (min(r["seconds"] for r in results) for results in (before, now))
    print(f"{LINES[line][0]:<48} {old:7.2f} s {new:7.2f} s {old / new:6.2f} {least_old / least_new:6.2f} "
          f"{old_kib / 2**20:5.2f} GiB {new_kib / 2**20:5.2f} GiB", flush=True)


def load():
    return " ".join(f"{x:.1f}" for x in os.getloadavg())


# ---- the lines: each prepares its work from names that both revisions have, and gives what is measured ----

def cse_step(data):
    torch, device = start()
    from methods.cse import CSE
    from networks.cam import CAMNet
    networks = CAMNet(20), CAMNet(20)
    batch = {"image": torch.randn(2, 3, 192, 192), "label": torch.eye(20)[:2] + torch.eye(20)[5],
             "target": torch.tensor([0, 5])}
    return training_step(CSE(*networks), networks[0], batch, (), device)


def affinity_step(data):
    torch, device = start()
    from methods.affinity import AffinityLearning
    from networks.affinity import AffinityNet
    network, label = AffinityNet(), cells(torch, 24, 24).expand(2, 24, 24)
    batch = {"image": torch.randn(2, 3, 192, 192), "label": label, "label_map": label}     # its name then, and now
    return training_step(AffinityLearning(network), network, batch, network.new_layers, device)


def training_step(objective, network, batch, new_layers, device):
    """Prepare an update; one is made before, so that everything is set up."""
    from networks import parameter_groups
    from tools import engine
    to_device(objective, device)
    optimizer, _ = engine.poly_sgd(parameter_groups(network, 1e-5, 5e-4, new_layers), 1e-5, 1000)
    objective.train()

    def step():
        optimizer.zero_grad(set_to_none=True)
        objective(batch, 0)["loss"].backward()
        optimizer.step()

    step()
    return step


def cam(data):
    torch, device = start()
    from data.transforms import views
    from methods.cam import multi_scale_cam
    from networks.cam import CAMNet
    image, network, label = read(data, 0), CAMNet(20).eval(), torch.eye(20)[7]
    to_device(network, device, inference=True)
    multi_scale_cam(network, views(image[:64, :64], (1,)), (64, 64), label)
    return lambda: multi_scale_cam(network, views(image), image.shape[:2], label)


def crf(data, saved=True):
    from tools.crf import dense_crf_alphas
    save, read_cam = (one_of(name, "tools.maps", "tools.experiment") for name in ("save_crf", "read_cam"))
    photos = [(read(data, i), *read_cam(data / f"experiment/X/dict/{i:04}.npz")) for i in range(3)]

    def refine():
        for i, (image, classes, scores) in enumerate(photos):
            for alpha, refined in zip((6, 10, 24), dense_crf_alphas(image, scores, (6, 10, 24))):
                if saved:
                    save(data / f"crf/{alpha}/{i}.npz", [0, *classes], refined)

    return refine


def thresholds(data):
    return twice("evaluation.py", "--name", "X", "--task", "cam", "--dict_dir", "dict", "--list", "train",
                 "--data_root", data / "photos", "--experiment_root", data / "experiment")


def usage(data):
    return twice("evaluation.py", "--help")


def pair_labels(data):
    torch, _ = start()
    from methods.affinity import affinity_labels
    label = cells(torch, 56, 56)
    affinity_labels(label)
    return lambda: [affinity_labels(label) for _ in range(100)]


def walk(data):
    torch, _ = start()
    from methods.affinity import pair_affinity
    from methods.random_walk import random_walk
    torch.manual_seed(0)
    scores, affinity = torch.rand(21, 47, 63), pair_affinity(0.4 * torch.randn(1, 8, 47, 63))[0]
    random_walk(scores, affinity, logt=1)
    return lambda: [random_walk(scores, affinity) for _ in range(10)]


def loading(data):
    start()
    from data.transforms import augment
    train_set = one_of("TrainSet", "data.dataset")
    layout = one_of("VOCLayout", "data.layout", "data.dataset")(data / "photos")
    dataset = train_set(layout, layout.ids("train"), 0, augment)
    dataset[0, 0]
    return lambda: [dataset[epoch, i] for epoch in range(5) for i in range(len(dataset))]


LINES = {
    "cse_step": ("CSE step, width 1.0, batch 2, crop 192", cse_step),
    "cam": ("CAM of a 500x375 photo, width 1.0, fp32", cam),
    "crf": ("CRF of 3 photos, three alphas", partial(crf, saved=False)),
    "crf_saved": ("the same, saved", crf),
    "thresholds": ("evaluation.py: 30 thresholds on 60 photos", thresholds),
    "affinity_step": ("AffinityNet's step, width 1.0, batch 2, crop 192", affinity_step),
    "pair_labels": ("pair labels of 100 maps of 56x56", pair_labels),
    "walk": ("ten walks on 47x63 cells, 21 rows, 256 steps", walk),
    "loading": ("300 training views, crop 384", loading),
    "help": ("evaluation.py --help", usage),
}
READ_NOTHING = {"cse_step", "affinity_step", "pair_labels", "walk", "help"}     # the others need make_data


def start():
    """Import torch as a stage does; returns it and the processor as its device."""
    import_module("config")
    import torch

    from tools import distributed
    return torch, distributed.start("cpu")


def to_device(module, device, **how):
    """Call tools.engine.to_device, whose name was place."""
    engine = import_module("tools.engine")
    (getattr(engine, "to_device", None) or engine.place)(module, device, **how)


def one_of(name, *modules):
    """Import a name from the first module that has it; the last one must."""
    for module in modules[:-1]:
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError):
            pass
    return getattr(import_module(modules[-1]), name)


def cells(torch, h, w):
    """Draw a label map (h, w) of three rows and unknown cells."""
    coarse = torch.randint(4, (h // 4, w // 4), generator=torch.Generator().manual_seed(0))
    return torch.tensor([0, 1, 2, 255])[coarse].repeat_interleave(4, 0).repeat_interleave(4, 1)


def read(data, i):
    import numpy as np
    from PIL import Image
    return np.asarray(Image.open(data / f"photos/JPEGImages/{i:04}.jpg"))


def twice(*words):
    """Run a program of the tree, so that it is compiled, and return what runs it again."""
    program(*words)
    return partial(program, *words)


def program(*words):
    result = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr)


if __name__ == "__main__":
    main()
