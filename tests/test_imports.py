"""Who knows whom: arrows go down only, one file knows paths, one knows processes, no file is trusted with a program."""
import ast
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FOLDERS = ("models", "networks", "methods", "data", "tools")
# Files of the root that are no stages.
SHARED = ("config", "recipes", "pipeline", "advice", "tables", "results", "gallery", "comparison")
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
    "models": {"models", "networks", "methods", "data", "tools", "config"},
    "pipeline": {"tools", "config"},
    "advice": {"pipeline", "tools", "config"},
    "tables": {"pipeline", "models", "tools"},
    "results": {"pipeline", "tools"},
    "gallery": {"pipeline", "advice", "data", "tools", "config"},
    "comparison": {"pipeline", "advice", "tables", "gallery", "tools", "config"},
    "stage": {*SHARED, "models", "networks", "methods", "data", "tools"},
    "benchmarks": {"models", "networks", "methods", "data", "tools", "config", "benchmarks", "infer", "train"},
    "examples": {"pipeline", "advice", "models", "networks", "methods", "data", "tools", "config", "infer_aff"},
}
# Those of networks/ and methods/ that open files, and the command that says what a file is.
WEIGHTS = {"networks/pretrained.py", "networks/weight_files.py", "networks/weight_report.py"}
WRITERS = {"tools/files.py", "tools/maps.py", "tools/experiment.py", "tools/lock.py", "data/prepare/writing.py",
           "data/prepare/critters.py", "networks/weight_files.py"}


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
