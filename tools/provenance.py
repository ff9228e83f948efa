"""Which stage wrote a folder, and from what: made_by.json, {"stage", "settings", "inputs": {path: digest}}."""
import hashlib
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tools import signatures
from tools.files import read_json, require_file, unread

MADE_BY = "made_by.json"
DATA = ("labels.json", "made_by.json", "classes.txt")       # of a dataset: where its images are compared, no more is
FOLDERS = ("crf_dir", "label_dir")                          # of a training's inputs


def verify(folder, home, data=None, above=(), images=None):
    """Raise signatures.Stale if a folder's inputs have changed since it was written; nothing without made_by.json.

    home    the folder of this experiment. A relative input is looked up in the experiment in which the folder lies,
            which is this one or another; of a folder outside of any experiment relative inputs are not compared
    data    {name: digest} of the dataset's files, compared with those in made_by.json
    above   folders that were written from this one
    images  data.signatures.Signatures of the images whose maps are read, compared with those they were made of
    """
    folder = Path(folder)
    if folder.resolve() in above:
        raise ValueError(f"{folder / MADE_BY} names the folder itself as its own input: delete the folder, "
                         "and run the stage that makes it again")
    record = read_made_by(folder)
    recorded = record.get("settings", {}).get("data", {})
    if by_image := images is not None and signatures.recorded(folder):
        recorded = {name: old for name, old in recorded.items() if name not in DATA}
    for name in recorded.keys() & (data or {}).keys():
        if recorded[name] != data[name]:
            raise signatures.Stale(f"{folder} is stale: the dataset's {name} has changed since it was made. Make it "
                                   "again (--overwrite), or name another folder", folder)
    for path, old in _inputs(folder, record, home):
        # Not Path's tests, which raise if the text cannot be a file name. A device has no digest.
        if os.path.isdir(path):
            verify(path, home, data, (*above, folder.resolve()), images)
        elif not os.path.isfile(path):
            continue
        if digest(path) != old:
            raise signatures.Stale(f"{folder} is stale: {path} has changed since it was made. Make it again "
                                   "(--overwrite), or name another folder", folder)
    if by_image:
        signatures.check(folder, images)


def unknown_inputs(folder, home):
    """List the folders from which a folder was made and whose content no record tells, as another project's maps."""
    return [path for path, digest in _inputs(Path(folder), read_made_by(folder), home)
            if digest == "unknown" and os.path.isdir(path)]


def _inputs(folder, record, home):
    """List the inputs in a folder's record that can be looked up: (path, digest). home: see verify."""
    own = _experiment_around(folder, Path(home))
    return [((own or folder) / name, digest) for name, digest in record.get("inputs", {}).items()
            if own or os.path.isabs(name)]          # an absolute name stays absolute


def _experiment_around(folder, home):
    """Return the folder of the experiment in which a folder lies: home, or else the one above that has a config/."""
    folder = folder.resolve()
    if folder.is_relative_to(home.resolve()):
        return home
    return next((above for above in folder.parents if (above / "config").is_dir()), None)


def made_with(folder):
    """Return the settings in a folder's made_by.json; empty if it has none."""
    return read_made_by(folder).get("settings", {})


def digest(path):
    """Return the sha256 of a file, or of a folder's made_by.json."""
    path = Path(path)
    if path.is_dir():
        path = path / MADE_BY
    if not path.exists():
        return "unknown"
    require_file(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unread(path, error) from None


def digests(paths):
    """Return {name: digest} of files."""
    return {path.name: digest(path) for path in paths}


def read_made_by(folder):
    """Read a folder's made_by.json; an empty dict if it has none."""
    path, remedy = Path(folder) / MADE_BY, f"delete the folder {folder}, and run the stage that makes it again"
    record = read_json(path, remedy) if path.exists() else {}
    parts = [record.get(part, {}) for part in ("settings", "inputs")] if isinstance(record, dict) else [None]
    if not all(isinstance(part, dict) for part in parts) or not isinstance(parts[0].get("data", {}), dict):
        raise ValueError(f"{path} is not what a stage writes there: {remedy}")
    return record


def differences(found, wanted, by_image=False):
    """Name what differs between two made_by records; empty if nothing does.

    by_image  the images of the dataset are compared one by one, its files need not be
    Inputs are compared by digest: an experiment may be renamed. The name of what has no digest counts.
    """
    if not found:
        return f"it holds files but no {MADE_BY}"
    words = [] if found.get("stage") == wanted["stage"] else [
        f"by {str(found.get('stage'))[:60]}, now {wanted['stage']}"]
    old, new = (_flat(record.get("settings", {})) for record in (found, wanted))
    skipped = {f"data {name}" for name in DATA} if by_image else set()
    words += _differing(old, new, skipped)
    old, new = (record.get("inputs", {}) for record in (found, wanted))
    if _content(old) != _content(new):
        words += _differing(old, new)
    return "; ".join(words[:20])


def differing(saved, record, images=None):
    """Say what differs between a last.pth and the training of now: lists of words on the settings, on the images."""
    by_image = images is not None and isinstance(saved.get("images"), dict)
    return (training_differences(saved["settings"], record, by_image),
            signatures.training_changes(saved["images"], images) if by_image else [])


def training_differences(old, new, by_image=False):
    """Name what differs between the settings of a training in last.pth and those of now: a list, empty if nothing does.

    Of weights and folders that it starts from the digest counts, not the name, and by_image (see differences) of the
    list its IDs.
    """
    inputs = [record.get("inputs") if isinstance(record.get("inputs"), dict) else {} for record in (old, new)]
    skipped = {name for name in inputs[0] if inputs[0][name] == inputs[1].get(name)}
    skipped |= {*FOLDERS} if inputs[0] and inputs[1] else set()
    skipped |= {"train_list", *(f"inputs {name}" for name in DATA)} if by_image else set()
    return _differing(_flat(old), _flat(new), skipped)


def _differing(old, new, skipped=()):
    words = []
    for key in sorted({*old, *new} - {*skipped}):
        if old.get(key) != new.get(key):
            a, b = (str(x.get(key, "absent"))[:60] for x in (old, new))
            digests = all(re.fullmatch("[0-9a-f]{60}", text) for text in (a, b))
            words.append(f"{key[-60:]}: then {a:.12}, now {b:.12}" if digests else f"{key[-60:]}: then {a}, now {b}")
    return words


def _content(inputs):
    """List what inputs hold, whatever their names: digests, and the names of those without one."""
    return sorted(name if value == "unknown" else str(value) for name, value in inputs.items())


def _flat(table):
    """Lift the entries of dicts in a dict: {"data": {"labels.json": x}} -> {"data labels.json": x}."""
    return {f"{key} {name}" if name else key: item for key, value in table.items()
            for name, item in (value.items() if isinstance(value, dict) else [("", value)])}


def versions():
    """Return the versions of Python and of the packages on which numbers depend."""
    found = {"python": sys.version.split()[0]}
    for package in ("torch", "torchvision", "numpy", "pillow", "pydensecrf2"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def revision():
    """Return the git revision of this code, with -dirty if files have changed; None outside a checkout."""
    try:
        result = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True,
                                text=True, cwd=Path(__file__).parent, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
