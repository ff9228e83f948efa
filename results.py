"""What was measured, as rows: those of results.json and of reproduce.py's tables, and how they are printed."""
import numpy as np

import pipeline
from tools.activation import FIGURES
from tools.clock import duration
from tools.experiment import Experiment
from tools.files import read_json


def collect(settings, experiment, chain, runs):
    """Make the rows of results.json: one for each evaluation, with a value for each seed."""
    rows = []
    for stage in chain:
        found = [entry for run in runs for entry in run if entry[0] == stage.title]
        if not stage.task or len(found) < len(runs):
            continue
        evals, (paper, source) = [read_json(result) for _, _, result, _ in found], stage.paper
        backbone, init = trained_network(experiment, pipeline.network_behind(chain, stage))
        rows.append({"variant": "plain" if settings.plain else settings.recipe, "stage": stage.title,
                     "split": evals[0]["list"],
                     "miou": [e["miou"] for e in evals], "threshold": [e["threshold"] for e in evals],
                     "fixed_miou": [e["fixed_miou"] for e in evals],
                     "paper": paper if settings.recipe == "voc" else None,
                     "paper_source": source if settings.recipe == "voc" else None,
                     "seconds": [seconds for *_, seconds in found], "command": found[0][1],
                     "init": init, "backbone": backbone,
                     **{key: evals[0][key] for key in ("ground_truth",) if key in evals[0]}})
    return rows


def collect_activation(chain, runs):
    """List, for each evaluation of CAMs, {"stage", "split", "threshold", each figure of tools.activation: one a seed}.
    """
    rows = []
    for stage in chain:
        evals = [read_json(result) for run in runs for title, _, result, _ in run
                 if title == stage.title and stage.task == "cam"]
        own = [e["activation"] for e in evals if "activation" in e]
        if own and len(own) == len(runs):
            rows.append({"stage": stage.title, "split": evals[0]["list"], "threshold": own[0]["threshold"],
                         **{figure: [one[figure] for one in own] for figure in FIGURES}})
    return rows


def trained_network(experiment, ckpt):
    """Return the words for the backbone in ckpt/MODEL/network.json and for what it was started from."""
    path = experiment / ckpt / "network.json"
    try:
        network = read_json(path)
        name, stride, *_ = network["backbone"]["name"], network["backbone"]["output_stride"]
        shape = network["backbone"]
        words = [str(name), *([f"width {shape['width']:g}"] if "width" in shape else []),
                 *([f"blocks {' '.join(map(str, shape['blocks']))}"] if "blocks" in shape else []), f"stride {stride}"]
        return ", ".join(words), str(network["init"])
    except (ValueError, OSError, KeyError, TypeError):
        return f"unknown: {path} is missing or damaged", "unknown"


def show(rows, settings):
    if not rows:
        print("\nNothing was measured")
        return
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
    print("best: the threshold of CAMs is chosen on the ground truth, as the papers do; fixed: a threshold set "
          "beforehand; time: of all stages since the row above, for one seed")
    for kind in dict.fromkeys(row["ground_truth"] for row in rows if "ground_truth" in row):
        print(f"ground truth: {kind}")
    for network in dict.fromkeys(f"{row['backbone']}; started from {row['init']}" for row in rows):
        print(f"network: {network}")


def show_activation(rows):
    """Print how well each class's own map covers its objects; - for what a seed could not measure."""
    if not rows:
        return
    print(f"\nEach class's own map at threshold {rows[0]['threshold']:g}, mean over the classes, in percent\n"
          f"{'stage':<30} {'split':<6}" + "".join(f" {figure:>14}" for figure in FIGURES))
    for row in rows:
        print(f"{row['stage']:<30} {row['split']:<6}"
              + "".join(f" {spread(row[figure]):>14}" for figure in FIGURES))
    print("erased: of an object, by its own soft mask; intrusion: of a mask, on objects of other classes, in the "
          "images that show one")


def spread(values):
    """Write a mean, and with several seeds the standard deviation; - where a seed could not measure it, or none did."""
    if not values or None in values:
        return "-"
    return f"{np.mean(values):.1f}" + (f" +- {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def collect_table(settings, rows, experiments, failures):
    """Make a table's rows for JSON: {"variant", "title", "model", "seeds": [{...} or {"failed"}]}.

    experiments  {(variant, seed): (name, its stages)};  failures  {(variant, seed): reason}
    """
    table = []
    for variant, row in rows.items():
        seeds = []
        for (other, seed), (name, chain) in experiments.items():
            if other != variant:
                continue
            entry = {"seed": seed, "experiment": name}
            if (variant, seed) in failures:
                entry["failed"] = failures[variant, seed]
            else:
                entry |= _numbers(Experiment(settings.experiment_root, name), row.model, chain)
            seeds.append(entry)
        table.append({"variant": variant, "title": row.title, "model": row.model, "flags": list(row.flags),
                      "seeds": seeds})
    return table


def _numbers(experiment, model, chain):
    """Read what was measured in one experiment: the CAM, the best CRF, the figures of the activation, of training."""
    numbers = {"crf": None, "crf_alpha": None}
    for stage in chain:
        if not stage.task:
            continue
        found = read_json(experiment / next(iter(stage.writes)))
        if stage.task == "cam":
            numbers |= {"cam": found["miou"], "threshold": found["threshold"], "fixed": found["fixed_miou"],
                        "list": found["list"]}
            numbers |= {figure: found.get("activation", {}).get(figure) for figure in FIGURES}
        elif numbers["crf"] is None or found["miou"] > numbers["crf"]:
            numbers |= {"crf": found["miou"], "crf_alpha": stage.reads[0].split("/")[-1]}
    *_, last = [{}, *experiment.epochs(f"train_{model}")]
    return numbers | {"trained_seconds": sum(row["seconds"] for row in experiment.epochs(f"train_{model}")),
                      "last_epoch": {k: v for k, v in last.items() if k.startswith(("p_", "erased"))}}


def show_table(settings, table):
    """Print a table: means over the seeds, and their spread; rows that failed with the reason."""
    count = f"{settings.seeds} seed{'s' if settings.seeds > 1 else ''}"
    print(f"\nTable {settings.table}, recipe {settings.recipe}, {count}, mIoU in percent. The papers' own values of it "
          "are not known here: -")
    titles = ("CAM, best", "CAM, fixed", "+ CRF", *FIGURES, "training")
    print(f"{'':<42}" + "".join(f"{title:>16}" for title in titles) + f"{'paper':>7}")
    for row in table:
        done = [entry for entry in row["seeds"] if "failed" not in entry]
        cells = [spread([entry[key] for entry in done]) for key in ("cam", "fixed", "crf", *FIGURES)]
        cells.append(duration(np.mean([entry["trained_seconds"] for entry in done])) if done else "-")
        print(f"{row['title']:<42}" + "".join(f"{cell:>16}" for cell in cells) + f"{'-':>7}")
        for entry in row["seeds"]:
            if "failed" in entry:
                print(f"    seed {entry['seed']} failed: {entry['failed']}")
    shared = {}
    for row in table:
        shared.setdefault(row["seeds"][0]["experiment"], []).append(row["title"])
    for titles in shared.values():
        if len(titles) > 1:
            print(f"One training in this recipe: {'; '.join(titles)}")
