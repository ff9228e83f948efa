"""Run every stage of a recipe in order, from image-level labels to a network that segments, skip what is whole, and
print one table beside the paper's.

Writes  NAME/results.json, the rows of all seeds; report.html; what the stages write, of further seeds to NAME_SEED/
Run     python reproduce.py --recipe demo
        python reproduce.py --recipe demo --from affinity
It stops at the first stage that fails, with that stage's message; the same command goes on from there.
"""
import os
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import config
from models import MODELS
from tools import flags, interrupt
from tools.experiment import Experiment
from tools.files import read_json, write_json
from tools.maps import alpha_name, alpha_pair

TIMES = "log/reproduce.json"
STOPPED = 75        # a stage that was asked to stop ends with it: what comes next must not run

# mIoU on VOC train (DeepLab: val), percent, and where it is stated. What is missing is not known to us.
PAPER = {
    "ordinary classifier, CAM": (48.0, "AffinityNet, README and paper"),
    "CGNet, CAM": (56.0, "OC-CSE, authors (issue 3 of their repository)"),
    "CGNet, random walk": (66.9, "OC-CSE, authors (issue 3 of their repository), tables of later papers"),
    "DeepLab": (68.4, "OC-CSE, authors (issue 3 of their repository), tables of later papers"),
}


def main():
    settings = flags.parse(config.Reproduce)
    settings.name = settings.name or settings.recipe + ("_plain" if settings.plain else "")
    if settings.plain and settings.data_root == "data/critters":
        settings.data_root = "data/critters_plain"
    runs = []
    for i in range(settings.seeds):
        name = settings.name if i == 0 else f"{settings.name}_{settings.seed + i}"
        runs.append(run_stages(settings, name, stages(settings, name, settings.seed + i)))
    if settings.dry_run:
        return
    experiment = Experiment(settings.experiment_root, settings.name)
    rows = collect(settings, runs)
    if rows:
        write_json(experiment / "results.json", {"rows": rows})
    print_table(rows, settings)
    report = ["report.py", "--recipe", settings.recipe, "--name", settings.name,
              *flags.changed(settings, "data_root", "experiment_root")]
    print(f"\n$ python {shlex.join(report)}", flush=True)
    run_stage(report)
    print_places(experiment)


def stages(settings, name, seed):
    """List (part, label, command, the evaluation's result file or None) of all stages in order; part: see --from."""
    data = ["--recipe", settings.recipe, "--name", name, *flags.changed(settings, "data_root", "experiment_root")]
    compute = flags.changed(settings, "device", "precision", "num_workers") + ["--overwrite"] * settings.overwrite
    train = ["--train_list", settings.train_list, "--seed", str(seed), *compute]
    alphas = flags.defaults(config.Infer, settings.recipe)["alphas"][0] if find_spec("pydensecrf") else ()
    if not alphas:
        print("pydensecrf2 is not installed (it needs a C++ compiler): the CRF, and what follows from it, are left out")
    affinity = {flag: f"{flags.defaults(config.InferAff, settings.recipe)[flag][0]:g}" for flag in ("low", "high")}
    pair = [word for flag, alpha in affinity.items() for word in (f"--{flag}", alpha)]
    walk = f"rw/{alpha_pair(*map(float, affinity.values()))}"
    alphas = sorted({*alphas, *map(float, affinity.values())} if alphas else ())
    crf = ["--crf", "--alphas", *(f"{a:g}" for a in alphas)] if alphas else []

    def evaluate(part, label, task, folder, split="train"):
        result = Path(settings.experiment_root, name, f"eval/{task}_{folder.replace('/', '_')}_{split}.json")
        return part, label, ["evaluation.py", *data, "--task", task, "--dict_dir", folder, "--list", split], result

    draw = ["-m", "data.prepare", "critters", "--out", settings.data_root, *(["--plain"] if settings.plain else [])]
    plan = [
        ("classifier", "critters", draw, None),
        ("classifier", "ordinary classifier", ["train.py", *data, "--model", "model_oc", *train], None),
        ("classifier", "ordinary classifier, maps",
         ["infer.py", *data, "--model", "model_oc", "--dict", "--vis", *compute], None),
        evaluate("classifier", "ordinary classifier, CAM", "cam", "dict_model_oc"),
        ("cgnet", "CGNet", ["train.py", *data, "--model", "model_cse", "--cl_init", f"{name}/model_oc", *train], None),
        ("cgnet", "CGNet, maps", ["infer.py", *data, "--model", "model_cse", "--dict", "--vis", *crf, "--infer_list",
                                  settings.train_list, *compute], None),
        evaluate("cgnet", "CGNet, CAM", "cam", "dict"),
        *(evaluate("cgnet", f"CGNet, CAM + CRF, alpha {a:g}", "crf", f"crf/{alpha_name(a)}") for a in alphas),
    ]
    if alphas:
        plan += [
            ("affinity", "AffinityNet", ["train_aff.py", *data, *pair, *train], None),
            ("walk", "random walk",
             ["infer_aff.py", *data, *pair, "--infer_list", settings.train_list, *compute], None),
            evaluate("walk", "CGNet, random walk", "png", walk),
            ("deeplab", "DeepLab, training", ["train_seg.py", *data, "--label_dir", walk, *train], None),
            ("deeplab", "DeepLab, maps", ["infer_seg.py", *data, "--infer_list", "val", "--vis", *compute], None),
            evaluate("deeplab", "DeepLab", "png", "seg", "val"),
            ("deeplab", "DeepLab, maps of train", ["infer_seg.py", *data, "--infer_list", "train", *compute], None),
            evaluate("deeplab", "DeepLab on its own pictures", "png", "seg", "train"),
        ]
    return plan if drawn_here(settings) else plan[1:]


def drawn_here(settings):
    """Say whether the dataset is the embedded one, to be drawn first; another of the user's is left as it is."""
    root = Path(settings.data_root)
    return settings.recipe == "demo" and (not root.exists() or (root / "Heads").is_dir())


def run_stages(settings, name, plan):
    """Run one seed's stages; returns [(label, command, result file, seconds)] of the evaluations.

    The seconds are those of all stages since the evaluation before, whenever they ran.
    """
    experiment, done, since = Experiment(settings.experiment_root, name), [], []
    parts = list(config.Reproduce.__dataclass_fields__["from_"].metadata["choices"])
    for part, label, command, result in plan:
        since.append(label)
        if parts.index(part) >= parts.index(settings.from_):
            print(f"\n$ python {shlex.join(command)}", flush=True)
            if not settings.dry_run and run_by_the_clock(experiment, label, command):
                raise ValueError(f"{label} stopped with the message above. Mend that and run the same command again: "
                                 "what is done is not done again")
        elif result and not result.exists():
            print(f"{label}: left out, --from {settings.from_} finds no {result}")
            since.clear()
            continue
        if result:
            seconds = sum(entry["seconds"] for stage, entry in read_times(experiment).items() if stage in since)
            done.append((label, "python " + shlex.join(command), result, round(seconds, 1)))
            since.clear()
    return done


def run_by_the_clock(experiment, label, command):
    """Run a stage, note in log/reproduce.json what it took; returns its exit code.

    What was cut off goes on in the next run, so their times add up. What is whole is skipped by the next run: the
    longer time counts, that of the run which did the work.
    """
    start, code = time.monotonic(), None
    try:
        code = run_stage(command)
    finally:
        seconds = time.monotonic() - start
        if code == 0 or experiment.folder.is_dir():
            times = read_times(experiment)
            old = times.get(label, {"seconds": 0.0, "whole": False})
            total = max(old["seconds"], seconds) if old["whole"] else old["seconds"] + seconds
            times[label] = {"seconds": round(total, 2), "whole": old["whole"] or code == 0}
            write_json(experiment / TIMES, times)
    return code


def read_times(experiment):
    """Return {label of a stage: {"seconds", "whole": whether it came to its end}}."""
    return read_json(experiment / TIMES) if (experiment / TIMES).exists() else {}


def run_stage(command):
    """Run a stage's command; returns its exit code. What asks this process to stop stops the stage first."""
    root = Path(__file__).resolve().parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
                                interrupt.EXIT_CODE: str(STOPPED)}
    script = [command[0]] if command[0] == "-m" else [str(root / command[0])]
    stage = None
    with interrupt.remembered(lambda: stage and stage.terminate()):
        stage = subprocess.Popen([sys.executable, *script, *command[1:]], env=environment)
        code = stage.wait()
        if interrupt.asked() or code == STOPPED:
            interrupt.leave()
    return code


def collect(settings, runs):
    """Make the rows of results.json, one an evaluation, with a value a seed."""
    rows = []
    for label, command, _, _ in runs[0]:
        if any(label not in [name for name, *_ in run] for run in runs):
            continue
        found = [(read_json(result), seconds) for run in runs for name, _, result, seconds in run if name == label]
        evals = [e for e, _ in found]
        train = {k: v for k, (v, _) in trained_by(label, settings.recipe).items()}
        paper, source = PAPER.get(label, (None, None)) if settings.recipe == "voc" else (None, None)
        rows.append({"variant": "plain" if settings.plain else settings.recipe, "stage": label,
                     "split": evals[0]["list"],
                     "miou": [e["miou"] for e in evals], "threshold": [e["threshold"] for e in evals],
                     "fixed_miou": [e["fixed_miou"] for e in evals], "paper": paper, "paper_source": source,
                     "seconds": [seconds for _, seconds in found], "command": command,
                     "init": train["er_init" if "er_init" in train else "init"].replace("{name}", settings.name),
                     "backbone": f"ResNet38d, width {train['width']:g}, blocks {' '.join(map(str, train['blocks']))}"})
    return rows


def trained_by(label, recipe):
    """Return the defaults of the training whose network an evaluation's maps come from."""
    if label.startswith("DeepLab"):
        return flags.defaults(config.TrainSeg, recipe)
    if label == "CGNet, random walk":
        return flags.defaults(config.TrainAff, recipe)
    return flags.defaults(MODELS["model_oc" if label.startswith("ordinary") else "model_cse"].Settings, recipe)


def print_table(rows, settings):
    print(f"\nRecipe {settings.recipe}"
          + (": critters, a small setting of the same code from scratch; not the paper's numbers" if
             settings.recipe == "demo" else "")
          + f", {settings.seeds} seed{'s' if settings.seeds > 1 else ''}, mIoU in percent")
    print(f"{'stage':<30} {'split':<6} {'best':>14} {'at t':>6} {'fixed':>14} {'paper':>6} {'time':>9}  command")
    for row in rows:
        fixed = spread(row["fixed_miou"]) if row["fixed_miou"][0] is not None else "-"
        at = f"{np.mean(row['threshold']):.2f}" if row["threshold"][0] is not None else "-"
        print(f"{row['stage']:<30} {row['split']:<6} {spread(row['miou']):>14} {at:>6} {fixed:>14} "
              f"{row['paper'] if row['paper'] is not None else '-':>6} {duration(np.mean(row['seconds'])):>9}  "
              f"{row['command']}")
    print("best: the threshold of CAMs is chosen on pixel truth, as the papers do; fixed: a threshold set beforehand; "
          "time: of all stages since the row above, for one seed")


def duration(seconds):
    """Write a time as 45 s, 3:20 min or 2:05 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    large, small, unit = (whole // 60, whole % 60, "min") if whole < 3600 else (whole // 3600, whole % 3600 // 60, "h")
    return f"{large}:{small:02d} {unit}"


def spread(values):
    """Write a mean, and with several seeds the standard deviation."""
    return f"{np.mean(values):.1f}" + (f" +- {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def print_places(experiment):
    print(f"\nLook at  {experiment / 'infer_model_oc'}/  the ordinary classifier's CAMs\n"
          f"         {experiment / 'infer'}/  the CGNet's\n"
          f"         {experiment / 'train'}/  picture, mask, erased picture, what the classifier still sees\n"
          f"         {experiment / 'eval'}/  tables and curves\n"
          f"         {experiment / 'rw'}/  pseudo labels;  {experiment / 'seg'}/  DeepLab's\n"
          f"         {experiment / 'results.json'}\n         {experiment / 'report.html'}")


if __name__ == "__main__":
    flags.run(main)
