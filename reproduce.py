"""Run every stage of a recipe in order, skip what is whole, and print one table beside the paper's.

Writes  results.json of each experiment (NAME, or NAME_SEED for further seeds); what the stages write
Run     python reproduce.py --recipe demo
"""
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import config
from tools.experiment import Experiment, alpha_name, read_json, write_json

# mIoU on VOC train, percent, and where it is stated. None: not known to us.
PAPER = {
    "ordinary classifier, CAM": (48.0, "AffinityNet, README and paper"),
    "CGNet, CAM": (56.0, "OC-CSE, authors (issue 3 of their repository)"),
}


def main():
    settings = config.parse(config.Reproduce)
    settings.name = settings.name or settings.recipe + ("_plain" if settings.plain else "")
    names = [settings.name if s == 0 else f"{settings.name}_{settings.seed + s}" for s in range(settings.seeds)]
    results = []
    for i, name in enumerate(names):
        results.append(run_seed(settings, name, settings.seed + i))
    if not settings.dry_run:
        rows = collect(settings, results)
        experiment = Experiment(settings)
        write_json(experiment / "results.json", {"rows": rows})
        print_table(rows, settings)
        print_places(settings, experiment)


def run_seed(settings, name, seed):
    """Run the stages for one seed; returns [(label, command, evaluation file or None, seconds)]."""
    done = []
    for label, command, result in stages(settings, name, seed):
        words = [sys.executable, *command]
        print(f"\n$ python {shlex.join(command)}", flush=True)
        start = time.monotonic()
        if not settings.dry_run and subprocess.run(words, check=False).returncode:
            raise ValueError(f"{label} stopped with the message above. Mend that, then run the same command again: "
                             "what is done is not done again")
        done.append((label, "python " + shlex.join(command), result, time.monotonic() - start))
    return done


def stages(settings, name, seed):
    """List (label, command, the evaluation's result file or None) of all stages in order."""
    infer = {k: v for k, (v, _) in config.defaults(config.Infer, settings.recipe).items()}
    data = config.defaults(config.Train, settings.recipe, "model_oc")["data_root"][0]
    data = settings.data_root if settings.data_root != data else data
    if settings.plain:
        data = "data/critters_plain"
    common = ["--recipe", settings.recipe, "--name", name, "--data_root", data, "--experiment_root",
              settings.experiment_root]
    run = [*common, "--device", settings.device, "--num_workers", str(settings.num_workers)]
    precise = ["--precision", settings.precision]
    folder = Path(settings.experiment_root) / name
    alphas = [f"{a:g}" for a in infer["alphas"]]

    plan = []
    if settings.recipe == "demo":
        plan.append(("draw the critters", ["-m", "data.prepare", "critters", "--out", data,
                                           *(["--plain"] if settings.plain else [])], None))
    plan += [
        ("ordinary classifier", ["train.py", "--model", "model_oc", *run, *precise, "--seed", str(seed)], None),
        ("ordinary classifier, maps", ["infer.py", "--model", "model_oc", "--dict", "--vis", *run, *precise], None),
        ("ordinary classifier, CAM", ["evaluation.py", "--task", "cam", "--dict_dir", "dict_model_oc", *common],
         folder / "eval/cam_dict_model_oc_train.json"),
        ("CGNet", ["train.py", "--model", "model_cse", "--cl_init", f"{name}/model_oc", *run, *precise,
                   "--seed", str(seed)], None),
        ("CGNet, maps", ["infer.py", "--model", "model_cse", "--dict", "--crf", "--vis", "--alphas", *alphas, *run,
                         *precise], None),
        ("CGNet, CAM", ["evaluation.py", "--task", "cam", "--dict_dir", "dict", *common],
         folder / "eval/cam_dict_train.json"),
    ]
    for alpha in infer["alphas"]:
        plan.append((f"CGNet, CAM + CRF, alpha {alpha:g}",
                     ["evaluation.py", "--task", "crf", "--dict_dir", f"crf/{alpha_name(alpha)}", *common],
                     folder / f"eval/crf_crf_{alpha_name(alpha)}_train.json"))
    return plan


def collect(settings, results):
    """Make the rows of results.json from the evaluations of all seeds."""
    train = {k: v for k, (v, _) in config.defaults(config.Train, settings.recipe, "model_cse").items()}
    rows = []
    for stage in zip(*results):
        label, command, _, _ = stage[0]
        if stage[0][2] is None:
            continue
        found = [read_json(path) for _, _, path, _ in stage]
        paper, source = PAPER.get(label, (None, None)) if settings.recipe == "voc" else (None, None)
        rows.append({"variant": "plain" if settings.plain else settings.recipe, "stage": label,
                     "split": found[0]["list"], "miou": [f["miou"] for f in found],
                     "threshold": [f["threshold"] for f in found],
                     "fixed_miou": [f["fixed_miou"] for f in found], "paper": paper, "paper_source": source,
                     "seconds": [round(s, 1) for _, _, _, s in stage], "command": command,
                     "backbone": f"ResNet38d, width {train['width']:g}, blocks {' '.join(map(str, train['blocks']))}",
                     "init": train["er_init"]})
    return rows


def print_table(rows, settings):
    print(f"\nRecipe {settings.recipe}"
          + (": critters, a small setting of the same code from scratch; not the paper's numbers" if
             settings.recipe == "demo" else "")
          + f", {settings.seeds} seed{'s' if settings.seeds > 1 else ''}, mIoU in percent")
    print(f"{'stage':<30} {'split':<6} {'best':>14} {'at t':>6} {'fixed':>14} {'paper':>6}")
    for row in rows:
        fixed = spread(row["fixed_miou"]) if row["fixed_miou"][0] is not None else "-"
        at = f"{np.mean(row['threshold']):.2f}" if row["threshold"][0] is not None else "-"
        print(f"{row['stage']:<30} {row['split']:<6} {spread(row['miou']):>14} {at:>6} {fixed:>14} "
              f"{row['paper'] if row['paper'] is not None else '-':>6}")
    print("best: the threshold is chosen on pixel truth, as the papers do; fixed: a threshold set beforehand")


def spread(values):
    """Write a mean, and with several seeds the standard deviation."""
    return f"{np.mean(values):.1f}" + (f" +- {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def print_places(settings, experiment):
    print(f"\nLook at  {experiment / 'infer_model_oc'}/   the ordinary classifier's CAMs\n"
          f"         {experiment / 'infer'}/            the CGNet's\n"
          f"         {experiment / 'train'}/            picture, mask, erased picture, what the classifier still sees\n"
          f"         {experiment / 'eval'}/             tables and curves\n"
          f"         {experiment / 'results.json'}")


if __name__ == "__main__":
    config.run(main)
