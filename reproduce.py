"""Run every stage of a recipe in order, from image-level labels to a network that segments, and print one table beside
the paper's. Stages that are complete are skipped.

Writes  NAME/results.json, the rows of all seeds; report.html; what the stages write, of further seeds to NAME_SEED/
Run     python reproduce.py --recipe demo
        python reproduce.py --recipe demo --from affinity
        python reproduce.py --recipe voc --model model_cse          (any file of models/ may take its place)
        python reproduce.py --recipe lite --data_root data/mine --train_list train -- --max_epochs 9 --batch_size 4
        python reproduce.py --recipe lite --data_root data/mine --train_list train --table methods --seeds 3 --at_once 2
What follows -- goes to the trainings: each flag to those that have it. Photos without ground truth are not measured:
the maps are written, and shown in the report. It stops at the first stage that fails, with that stage's message; the
same command resumes there.
"""
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import config

import pipeline
import results
import tables
from data.layout import VOCLayout
from tools import catalog, flags, interrupt
from tools.clock import TIMES, duration, read_times
from tools.cores import cores
from tools.experiment import Experiment
from tools.files import open_to_append, write_json

DRAWN = ("data/critters", "data/critters_plain")      # where the embedded set lies unless another folder is named
STOPPED = 75        # exit code of a stage that was asked to stop: the next one must not run
OUTPUT = "log/output.txt"       # of an experiment: what its stages print, where several run at once

running_stages = set()          # the processes that run now


def main():
    words, handed = flags.split_words(sys.argv[1:])
    settings = flags.parse(config.Reproduce, words, dict.fromkeys(catalog.models(), config.Reproduce))
    if not any(word.partition("=")[0] == "--seed" for word in words):       # the authors of AEFT have one of their own
        own = flags.defaults(pipeline.settings_of_models()[settings.model], settings.recipe)
        settings.seed = own["seed"][0]
    other = settings.model != config.Reproduce.model
    settings.name = settings.name or (settings.recipe + "_plain" * settings.plain + f"_{settings.model}" * other
                                      + f"_{settings.table}" * bool(settings.table))
    if settings.plain and settings.data_root == "data/critters":
        settings.data_root = "data/critters_plain"
    if not find_spec("pydensecrf"):
        print("pydensecrf2 is not installed (it needs a C++ compiler): the CRF, and what follows from it, are left out")
    seeds = range(settings.seed, settings.seed + settings.seeds)
    if words := flags.changed(settings, "measured", "at_once") if not settings.table else ():
        raise ValueError(f"{shlex.join(words)} is for the rows of a table: add --table, or leave it out")
    if settings.table:
        make_table(settings, seeds, handed)
        return
    names = [settings.name if seed == settings.seed else f"{settings.name}_{seed}" for seed in seeds]
    layout = open_dataset(settings)
    values = [values_of(settings, name, layout) for name in names]
    chains = [pipeline.hand_on(pipeline.chain(own), handed) for own in values]
    unmeasured = pipeline.not_measured(chains[0], layout)
    for reason in unmeasured.values():
        print(reason)
    chains = [[stage for stage in chain if not stage.task or stage.list not in unmeasured] for chain in chains]
    if not settings.dry_run:
        Experiment(settings.experiment_root, settings.name).save_config("reproduce", flags.as_json(settings))
    runs = [run_stages(settings, name, commands(settings, name, seed, chain), handed if name == settings.name
                       else None)
            for name, seed, chain in zip(names, seeds, chains)]
    if settings.dry_run:
        return
    experiment = Experiment(settings.experiment_root, settings.name)
    rows = results.collect(settings, experiment, chains[0], runs)
    activation = results.collect_activation(chains[0], runs)
    if rows:
        write_json(experiment / "results.json", {"rows": rows, "activation": activation})
    results.show(rows, settings)
    results.show_activation(activation)
    for reason in unmeasured.values():
        print(reason)
    make_report(settings, values[0].measured)
    print_places(experiment, chains[0])


def make_table(settings, seeds, handed):
    """Train and measure the rows of a table, seed by seed, print it and write it to NAME/table_TABLE.json.

    A row that fails is shown with its reason; the same command tries it again, and skips what is complete.
    """
    rows, layout = tables.rows_of(settings.table, settings.recipe), VOCLayout(settings.data_root)
    experiments = {(variant, seed): tables.stages(settings, layout, row, variant, seed, bool(find_spec("pydensecrf")))
                   for seed in seeds for variant, row in rows.items()}
    chains = {name: (seed, chain) for (_, seed), (name, chain) in experiments.items()}      # rows may share one
    starts, ended = starts_of(chains), {}
    with TemporaryDirectory() as folder:
        def run(name, stage=None):
            """Run one experiment's stages; returns why it failed, "" where it did not."""
            (seed, chain), message = chains[name], Path(folder, name)
            if failed := [start for start in starts[name] if ended.get(start)]:
                return f"it starts from {failed[0]}, which failed"
            try:
                if reasons := pipeline.not_measured(chain, layout):
                    raise ValueError(f"{next(iter(reasons.values()))}. --measured names another list")
                run_stages(settings, name, commands(settings, name, seed, pipeline.hand_on(chain, handed)),
                           message=message, run=stage)
                return ""
            except (ValueError, OSError) as error:
                return message.read_text("utf-8") if message.exists() else str(error)

        if settings.at_once == 1 or settings.dry_run:
            for name in chains:
                ended[name] = run(name)
        else:
            run_side_by_side(settings, starts, run, ended)
    failures = {key: ended[name] for key, (name, _) in experiments.items() if ended[name]}
    if settings.dry_run and failures:       # there is no table that would show it
        raise ValueError(next(iter(failures.values())))
    if not settings.dry_run:
        table = results.collect_table(settings, rows, experiments, failures)
        results.show_table(settings, table)
        path = Experiment(settings.experiment_root, settings.name) / f"table_{settings.table}.json"
        write_json(path, {"table": settings.table, "recipe": settings.recipe, "rows": table})
        print(path)
        if made := list(dict.fromkeys(name for key, (name, _) in experiments.items()
                                      if key not in failures and key[1] == settings.seed)):
            words = flags.changed(settings, "recipe", "data_root", "experiment_root")
            words += ["--list", settings.measured] if settings.measured else []
            print(f"The same images under each: python {shlex.join(['report.py', '--compare', *made, *words])}")


def starts_of(chains):
    """Return {name of an experiment: the others whose weights it starts from}."""
    return {name: {flag.partition("/")[0] for stage in chain for flag in stage.flags
                   if flag.partition("/")[0] in chains} - {name} for name, (_, chain) in chains.items()}


def run_side_by_side(settings, starts, run, ended):
    """Run experiments, --at_once of them side by side, each after those that it starts from, and note in `ended` what
    `run` returned, {name: why it failed, or ""}. What a stage prints goes to a file in its experiment.

    starts  {name: names of those that it starts from}
    """
    began, running = time.monotonic(), {}

    def run_apart(name, threads):
        if interrupt.asked():
            interrupt.leave(said=True)
        output = Experiment(settings.experiment_root, name) / OUTPUT
        say(f"{name} begins; what it prints is in {output}")
        return run(name, partial(wait_for, output=output, threads=threads))

    order = TopologicalSorter(starts)
    order.prepare()
    with interrupt.remembered(end_stages), ThreadPoolExecutor(settings.at_once) as pool:
        try:
            while order.is_active():
                ready = order.get_ready()       # the first row is often alone: the others start from it
                threads = max(1, cores() // min(settings.at_once, len(running) + len(ready)))
                running |= {pool.submit(run_apart, name, threads): name for name in ready}
                for row in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(row)
                    ended[name] = row.result()
                    order.done(name)
                    left = (time.monotonic() - began) / len(ended) * (len(starts) - len(ended))
                    say(f"{name} {f'failed: {ended[name]}' if ended[name] else 'is complete'}\n{len(ended)} of "
                        f"{len(starts)} rows have ended, about {duration(left)} left")
        except BaseException as error:      # a stage that was asked to stop, too
            interrupt.ask()         # or a row that is between two stages would begin the next
            pool.shutdown(wait=False, cancel_futures=True)
            end_stages()
            if isinstance(error, SystemExit):       # of a row: they all say nothing, and this process once
                interrupt.leave()
            raise


def open_dataset(settings):
    """Open the dataset; None where none can be read: it is generated first, or the first stage says so."""
    try:
        return VOCLayout(settings.data_root)
    except (ValueError, OSError):
        return None


def values_of(settings, name, layout):
    """Return what this run's chain depends on; its dataset is generated first if it is the embedded one."""
    root, draw = Path(settings.data_root), ()
    embedded = root in map(Path, DRAWN) and (root / "Heads").is_dir()       # then it is checked; no folder of another
    if settings.recipe == "demo" and (not root.exists() or embedded):
        draw = ("--out", settings.data_root, *["--plain"] * settings.plain)
    values = pipeline.values_of(name, settings.recipe, settings.model)
    values = replace(values, train_list=settings.train_list, draw=draw,
                     alphas=values.alphas if find_spec("pydensecrf") else ())
    return pipeline.fit_lists(values, layout)


def commands(settings, name, seed, chain):
    """List (part, title, words of the command, the evaluation's result file or None) of all stages. part: of --from."""
    place = ["--recipe", settings.recipe, "--name", name, *flags.changed(settings, "data_root", "experiment_root")]
    compute = flags.changed(settings, "device", "precision", "num_workers") + ["--overwrite"] * settings.overwrite
    further = {"--train_list": ["--seed", str(seed), *compute], "--infer_list": compute}
    home = Path(settings.experiment_root, name)
    return [(stage.part, stage.title, [stage.script, *([] if stage.script == "-m" else place), *stage.words(),
                                       *further.get(stage.list_flag, [])],
             home / next(iter(stage.writes)) if stage.task else None) for stage in chain]


def run_stages(settings, name, plan, announce=None, message=None, run=None):
    """Run one seed's stages; returns [(title, command, result file, seconds)] of the evaluations.

    announce  the words after --: first say how long it will take, once the dataset is there; None: do not
    message   a path to which a stage that fails writes why
    run       runs a command: run_stage without it
    The seconds are those of all stages since the evaluation before, whenever they ran.
    """
    experiment, done, since = Experiment(settings.experiment_root, name), [], []
    parts = list(config.Reproduce.__dataclass_fields__["from_"].metadata["choices"])
    for part, title, command, result in plan:
        since.append(title)
        if parts.index(part) >= parts.index(settings.from_):
            if announce is not None and not settings.dry_run and command[0] != "-m":
                print_estimate(settings, announce)
                announce = None
            say(f"\n$ python {shlex.join(command)}")
            if not settings.dry_run and (code := run_by_the_clock(experiment, title, command, message, run)):
                raise ValueError(f"{title} {how_it_ended(code, experiment / OUTPUT if run else None)} and run the same "
                                 "command again: stages that are complete are skipped")
        elif result and not result.exists():
            print(f"{title}: left out, --from {settings.from_} finds no {result}")
            since.clear()
            continue
        if result:
            seconds = sum(entry["seconds"] for stage, entry in read_times(experiment).items() if stage in since)
            done.append((title, "python " + shlex.join(command), result, round(seconds, 1)))
            since.clear()
    return done


def how_it_ended(code, output=None):
    """Say why a stage stopped, and what to do. output: the file that got what it printed."""
    if code == -signal.SIGKILL:         # the stage could not say anything
        return (f"was killed, as Linux does when the memory is full. Take less of it ({'--at_once 1; ' * bool(output)}"
                "fewer --num_workers; for a training -- --accumulate 2)")
    return f"stopped with the message {f'in {output}' if output else 'above'}. Fix that"


def print_estimate(settings, handed):
    """Say how long the chain will take: see estimate.py. It runs in a process of its own, whose memory is free then."""
    words = flags.changed(settings, "name", "model", "train_list", "data_root", "experiment_root", "device",
                          "num_workers")
    command = [sys.executable, Path(__file__).with_name("estimate.py"), "--recipe", settings.recipe, *words,
               *(["--", *handed] if handed else [])]
    print("\nEstimating how long it will take, within 100 s ...", flush=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    except subprocess.TimeoutExpired:
        print("This machine is too slow or too busy for an estimate: it was stopped after 100 s", flush=True)
        return
    if done.returncode == 0:            # otherwise the first stage says why
        print(done.stdout.strip(), flush=True)


def run_by_the_clock(experiment, title, command, message=None, run=None):
    """Run a stage and write the time that it took to log/reproduce.json; returns its exit code.

    The times of an interrupted stage and of the run that resumes it add up. A later run skips a complete stage: the
    longer time counts, that of the run which did the work.
    """
    start, code = time.monotonic(), None
    try:
        code = (run or run_stage)(command, message)
    finally:
        seconds = time.monotonic() - start
        if code == 0 or experiment.folder.is_dir():
            times = read_times(experiment)
            old = times.get(title, {"seconds": 0.0, "whole": False})
            total = max(old["seconds"], seconds) if old["whole"] else old["seconds"] + seconds
            times[title] = {"seconds": round(total, 2), "whole": old["whole"] or code == 0}
            write_json(experiment / TIMES, times)
    return code


def run_stage(command, message=None):
    """Run a stage's command; returns its exit code. A signal that stops this process stops the stage first."""
    with interrupt.remembered(end_stages):
        return wait_for(command, message)


def wait_for(command, message=None, output=None, threads=None):
    """Run a stage's command; returns its exit code.

    output   a file that gets what the stage prints, at once and after what it holds
    threads  of the processor that the stage may take, unless the user's environment says it
    """
    if interrupt.asked():
        interrupt.leave(said=bool(output))
    root = Path(__file__).resolve().parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
                                interrupt.EXIT_CODE: str(STOPPED)}
    if message:
        environment[flags.MESSAGE_FILE] = str(message)
    if output:
        environment["PYTHONUNBUFFERED"] = "1"       # or a stage that is killed takes its last lines with it
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    script = [command[0]] if command[0] == "-m" else [str(root / command[0])]
    with open_to_append(output) if output else nullcontext() as printed:     # else it goes where this process prints
        stage = subprocess.Popen([sys.executable, *script, *command[1:]], env=environment, stdout=printed,
                                 stderr=printed)
        running_stages.add(stage)
        if interrupt.asked():           # while it was started, when end_stages did not know of it
            stage.terminate()
        code = stage.wait()
        running_stages.discard(stage)
    if interrupt.asked() or code == STOPPED:
        interrupt.leave(said=bool(output) or code == STOPPED)     # by run_side_by_side, or by the stage itself
    return code


def say(text):
    """Print a line in one piece: rows that run side by side print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def end_stages():
    for stage in list(running_stages):
        stage.terminate()


def make_report(settings, list_name):
    """Run report.py on the images of a list."""
    words = ["report.py", "--recipe", settings.recipe, "--name", settings.name,
             *flags.changed(settings, "data_root", "experiment_root", "model")]
    if list_name != config.Report.list:
        words += ["--list", list_name]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    if code := run_stage(words):
        raise ValueError(f"report.py {how_it_ended(code)} and run that command again: all stages are complete")


def print_places(experiment, chain):
    print("\nLook at")
    for path, what in (*((path, f"{stage.title} (overlays)") for stage in chain for path in stage.writes
                         if stage.writes[path] == ("--vis",)),
                       ("train", "what was erased, every --vis_freq steps"),
                       ("eval", "tables and curves"), ("rw", "pseudo labels"), ("seg", "masks"),
                       ("results.json", "the table above"), ("report.html", "all of it on one page")):
        if (experiment / path).exists():
            print(f"  {experiment / path}  {what}")


if __name__ == "__main__":
    flags.run(main)
