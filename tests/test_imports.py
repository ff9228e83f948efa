"""Who knows whom: arrows go down only, one file knows paths, one knows processes, no file is trusted with a program."""
import ast
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.stages import DEMO

FOLDERS = ("models", "networks", "methods", "data", "tools")
# Files of the root that are no stages.
SHARED = ("config", "config_models", "recipes", "pipeline", "advice", "tables", "results", "gallery", "comparison")
STAGES = {p.stem for p in ROOT.glob("*.py")} - {*SHARED}
MODULES = {str(p.relative_to(ROOT)): ast.parse(p.read_text("utf-8"))
           for folder in (".", *FOLDERS, "data/prepare", "benchmarks", "examples")
           for p in sorted((ROOT / folder).glob("*.py"))}
# What a module of a folder may import of our own. A root stage is imported by nobody.
MAY_IMPORT = {
    "networks": {"networks"},
    "methods": {"methods"},
    "data": {"data", "tools"},
    "tools": {"tools"},
    "recipes": {"tools"},
    "config": {"recipes", "tools"},
    "config_models": {"config", "tools"},
    "models": {"models", "networks", "methods", "data", "tools", "config", "config_models"},
    "pipeline": {"models", "tools", "config", "config_models"},
    "advice": {"pipeline", "tools", "config"},
    "tables": {"pipeline", "tools", "config"},
    "results": {"pipeline", "tools"},
    "gallery": {"pipeline", "advice", "data", "tools", "config"},
    "comparison": {"pipeline", "advice", "tables", "gallery", "tools", "config"},
    "stage": {*SHARED, "models", "networks", "methods", "data", "tools"},
    "benchmarks": {"models", "networks", "methods", "data", "tools", "config", "benchmarks", "infer", "train"},
    "examples": {"pipeline", "advice", "models", "networks", "methods", "data", "tools", "config", "infer_aff"},
}
# Those of networks/ and methods/ that open files, and the command that says what a file is.
WEIGHTS = {"networks/pretrained.py", "networks/weight_files.py", "networks/weight_report.py",
           "networks/weight_flags.py"}
WRITERS = {"tools/aside.py", "tools/files.py", "tools/maps.py", "tools/experiment.py", "tools/lock.py",
           "data/prepare/writing.py", "data/prepare/critters.py", "networks/weight_files.py"}


def imports(tree):
    """Give the full names of all modules that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where an arrow goes"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(name):
    return name.split(".")[0]


def layer(path):
    if "/" in path:
        return path.split("/")[0]
    name = path.removesuffix(".py")
    return name if name in SHARED else "stage"


def calls(tree):
    """Give (written name of what is called, the call) of each call."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keywords(call):
    return {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}


def in_folders(*folders):
    return [path for path in MODULES if layer(path) in folders]


def test_the_modules_are_found():
    assert {"train", "infer", "evaluation", "reproduce"} <= STAGES
    assert {"methods/cse.py", "networks/cam.py", "data/layout.py", "tools/engine.py", "config.py"} <= MODULES.keys()


def test_arrows_go_down():
    own, wrong = {*FOLDERS, *STAGES, *SHARED, "benchmarks", "examples", "tests"}, {}
    for path, tree in MODULES.items():
        wrong[path] = ({top(name) for name in imports(tree)} & own) - MAY_IMPORT[layer(path)]
    assert not {path: names for path, names in wrong.items() if names}


def test_networks_and_methods_open_no_file_and_know_no_path():
    wrong = {}
    for path in sorted({*in_folders("networks", "methods")} - WEIGHTS):
        known = {top(name) for name in imports(MODULES[path])}
        wrong[path] = known - {"torch", "numpy", "math", "functools", "itertools", "dataclasses", "collections",
                               "contextlib", "warnings", "torchvision", "timm", "difflib", "re", "shlex", "struct",
                               layer(path)}
        wrong[path] |= {name for name, _ in calls(MODULES[path])} & {"open", "torch.load", "torch.save", "np.load",
                                                                     "np.save"}
    assert not {path: names for path, names in wrong.items() if names}


def test_one_file_knows_processes():
    wrong = {}
    for path in MODULES.keys() - {"tools/distributed.py"}:
        written = {ast.unparse(node) for node in ast.walk(MODULES[path])
                   if isinstance(node, (ast.Attribute, ast.Constant))}
        wrong[path] = {name for name in imports(MODULES[path]) if name.startswith("torch.distributed")}
        wrong[path] |= {name for name in written if name.startswith("torch.distributed.")}
        wrong[path] |= written & {"'WORLD_SIZE'", "'RANK'", "'LOCAL_RANK'"}
    assert not {path: names for path, names in wrong.items() if names}


def writes(path, name, call):
    """Whether a call writes to a path, as far as its words tell."""
    last = name.split(".")[-1]
    if last in ("write_text", "write_bytes", "mkdir", "makedirs", "rename", "rmtree", "savez", "unlink",
                "savez_compressed", "imwrite", "touch") or name in ("os.replace", "shutil.move"):
        return True
    if name in ("torch.save", "np.save", "json.dump", "pickle.dump"):
        return path != "tools/crf.py"
    if name == "open" or last == "open" and name.startswith(("path", "self.path")):
        mode = call.args[1].value if len(call.args) > 1 else keywords(call).get("mode", "r")
        return bool(set(mode) & set("wax+"))
    return False


def test_one_file_writes():
    """A heuristic: what writes to a path is in WRITERS."""
    wrong = [(path, ast.unparse(call)) for path in MODULES.keys() - WRITERS if layer(path) != "benchmarks"
             for name, call in calls(MODULES[path]) if writes(path, name, call)]
    assert not wrong


def test_pillow_opens_no_format_that_can_hold_a_program():
    wrong = [(path, ast.unparse(call)) for path in MODULES if layer(path) != "benchmarks"
             for name, call in calls(MODULES[path])
             if name == "Image.open" and not any(k.arg == "formats" for k in call.keywords)]
    assert not wrong


def test_one_file_knows_the_experiments_folders():
    """No other names `ckpt` or `made_by.json`, save in words for people (docstrings, messages)."""
    for path in in_folders("stage", "models", "tools", "methods", "networks", "config"):
        if path in ("tools/experiment.py", "tools/provenance.py"):
            continue
        for name, call in calls(MODULES[path]):
            if name.split(".")[-1] == "Path" and call.args:
                text = ast.unparse(call.args[0])
                assert "ckpt" not in text and "made_by" not in text, (path, text)


def trusts(path, name, call):
    """Whether a call could run a program that lies in a file."""
    given = keywords(call)
    return (given.get("allow_pickle") and name.split(".")[-1] != "save"
            or given.get("weights_only", name != "torch.load") is not True
            # tools/crf.py talks to its own child processes in pickles, through pipes.
            or layer(path) != "benchmarks" and path != "tools/crf.py"
            and name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec"))


def test_no_file_is_trusted_with_a_program():
    assert not [(path, ast.unparse(call)) for path in MODULES for name, call in calls(MODULES[path])
                if trusts(path, name, call)]


@pytest.mark.parametrize("module", ["tools.crf", "pipeline", "reproduce", "report", "evaluation"])
def test_what_starts_quickly_pulls_in_no_torch(module):
    program = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "torchvision", "timm", "matplotlib"} & set(loaded.stdout.split())


def run_and_list(cwd, *words):
    """Run Python with these words: its exit code, the last line it wrote, and the packages that the run loaded."""
    done = subprocess.run([sys.executable, "-X", "importtime", *map(str, words)], cwd=cwd, capture_output=True,
                          text=True)
    loaded, said = [], done.stdout.splitlines()
    for line in done.stderr.splitlines():
        loaded.append(top(line.split("|")[-1].strip())) if line.startswith("import time:") else said.append(line)
    return done.returncode, said[-1], set(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("command", [*((f"{stage}.py",) for stage in sorted(STAGES)), ("-m", "data.prepare"),
                                     ("-m", "networks.pretrained"), ("train.py", "--model", "aeft_gpp")], ids=" ".join)
def test_help_comes_before_torch(command):
    code, _, loaded = run_and_list(ROOT, *command, "--help")
    assert code == 0 and not loaded & {"torch", "torchvision", "timm", "matplotlib"}
    assert "PIL" not in loaded or command[0] in ("estimate.py", "reproduce.py", "-m")


@pytest.mark.slow
@pytest.mark.parametrize("words, said", [
    (("train.py", "--name", "X", "--no_such"), "--no_such"), (("train.py", "--name", "X", "--lr", -1), "--lr"),
    (("train.py", "--name", "X", "--T", 3), "--model aeft_gpp"), (("train.py", "--model", "no_such"), "model_oc"),
    (("infer_seg.py", "--shard", "3/2"), "--shard"), (("-m", "networks.pretrained"), "FILE")])
def test_a_mistake_in_the_flags_is_told_before_torch(words, said):
    code, message, loaded = run_and_list(ROOT, *words)
    assert code == 2 and said in message and "torch" not in loaded


@pytest.mark.parametrize("words", [("evaluation.py", "--dict_dir", "dict"),
                                   ("evaluation.py", "--task", "crf", "--dict_dir", "crf/02"), ("report.py",)])
def test_what_measures_and_shows_runs_without_torch(place, words):
    code, message, loaded = run_and_list(place, ROOT / words[0], *DEMO[:4], *words[1:])
    assert code == 0, message
    assert "numpy" in loaded and not loaded & {"torch", "torchvision", "timm"}


def test_the_papers_network_needs_torch_alone(place):
    only = (place / "data/critters/ImageSets/Segmentation/train.txt").read_text().split()[0]
    code, message, loaded = run_and_list(place, ROOT / "infer.py", *DEMO, "--dict", "--dict_dir", "new", "--only", only)
    assert code == 0 and (place / f"experiment/X/new/{only}.npz").exists(), message
    assert "torch" in loaded and not loaded & {"torchvision", "timm", "matplotlib"}


UNTIL_TORCH = """
import os, sys

class Torch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.exit()

sys.meta_path.insert(0, Torch())
try:
    import {stage}
finally:
    print(os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage, users, expected", [*((stage, {}, "PASSIVE") for stage in sorted(STAGES)),
                                                    ("train", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_openmps_threads_sleep_while_they_wait(stage, users, expected):
    """OpenMP reads the variable when torch is loaded; a user's own value stays. Children inherit it."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | users
    done = subprocess.run([sys.executable, "-c", UNTIL_TORCH.format(stage=stage)], cwd=ROOT, capture_output=True,
                          text=True, check=True, env=environment)
    assert done.stdout.split() == [expected]


def test_a_stages_header_is_its_contract():
    headers = {path: ast.get_docstring(MODULES[path]) or "" for path in in_folders("stage")}
    assert not [path for path, text in headers.items()
                if "\n\n" not in text or f"python {path}" not in text or "Writes" not in text]


def test_every_module_says_what_it_is():
    assert not [path for path in MODULES
                if (ROOT / path).read_text("utf-8").strip() and not ast.get_docstring(MODULES[path])]
