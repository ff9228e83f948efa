"""Names of tensors: ours, the authors', and those of files in which something stands before them.

On disk, weights carry the authors' names: our own without the leading `backbone.` / `pool.`.
"""
import re
import shlex

import torch

OWN = ("module.", "backbone.", "pool.", "model.model.")        # before our own names, and DistributedDataParallel's
# Of several networks in a file that fit, the one whose prefix comes first here is taken; without one, _meant asks.
NO_PREFIX = "the names without a prefix"
PREFIXES = ("", "network.", "state_dict.", "model.", "model_state_dict.", "model_state.", "net.", "params.", "weights.")


def official(name):
    """Translate one of our own names, or one of a DistributedDataParallel file, to the authors' name, or timm's."""
    for start in OWN:
        name = name.removeprefix(start)
    return name


def fit(given, backbone, head, where):
    """Find a network's tensors in {name: tensor} of any file.

    backbone, head  the official names that the network needs;  where  the file, for errors
    Returns ({official name: name in the file}, what stands before the backbone's names there, "" where nothing does,
    and what stands before those of other networks that fit as well: see PREFIXES).
    Raises ValueError where several different networks fit, or a tensor is there in two forms.
    """
    wanted, places = set(backbone), {}
    for name in given:
        for start in starts_of(name):
            if name[len(start):] in wanted:
                places.setdefault(start, set()).add(name[len(start):])
    if not places:
        return {name: name for name in head if name in given}, "", []
    count = {start: sum(not name.endswith("num_batches_tracked") for name in found) for start, found in places.items()}
    best = [start for start in places if count[start] == max(count.values())]
    prefix = best[0] if len(best) == 1 else _meant(given, best, places, where)
    others = [start for start in best if not _alike(given, start, prefix, places)]

    found = {name: prefix + name for name in places[prefix]}
    for name in head:
        here = next((start + own + name for start in outwards(prefix) for own in ("", "pool.")
                     if start + own + name in given), None)
        if here:
            found[name] = here
    for other in given:
        name = official(other)
        if name in found and other != found[name]:
            raise ValueError(f"{where}: {name} is there twice, once as {other if other != name else found[name]}")
    return found, prefix, others


def starts_of(name):
    """List what may stand before a name in a.b.c: "", "a.", "a.b."."""
    return [name[:i] for i in range(len(name)) if i == 0 or name[i - 1] == "."]


def outwards(prefix):
    """List a prefix and those around it: "a.b." gives "a.b.", "a.", ""."""
    return [prefix, *reversed(starts_of(prefix))]


def without_wrappers(name):
    """Cut off all that may stand before our names: module., backbone., pool., model., in any order."""
    return re.sub(r"^((module|backbone|pool|model)\.)+", "", name)


def taken_from(prefix):
    """Name the place of a network in a file, as --take of networks.pretrained takes it, by its backbone's prefix."""
    return home_of(prefix).rstrip(".") or prefix.rstrip(".")


def home_of(prefix):
    """Return what stands before the whole network whose backbone is at this prefix: without our own wrappers."""
    return next(start for start in reversed(outwards(prefix)) if _is_own(prefix.removeprefix(start)))


def _meant(given, best, places, where):
    """Choose between places in a file where equally much fits."""
    first = best[0]
    if all(_alike(given, start, first, places) for start in best[1:]):
        return min(best, key=len)
    known = [start for start in best if any(_is_at(start, prefix) for prefix in PREFIXES)]
    if known:
        return min(known, key=lambda start: next(i for i, prefix in enumerate(PREFIXES) if _is_at(start, prefix)))
    there = ", ".join(start.rstrip(".") or NO_PREFIX for start in best)
    last = taken_from(best[-1])
    raise ValueError(f"{where} holds {len(best)} networks that fit ({there}). Take one out: python -m "
                     f"networks.pretrained {shlex.quote(str(where))} --take {last} --to {last.split('.')[-1]}.pth")


def _alike(given, start, other, places):
    """Tell whether two places hold the same tensors."""
    return all(_same(given[start + name], given[other + name]) for name in places[start] & places[other])


def _is_at(start, prefix):
    """Tell whether what stands before the names is a prefix of PREFIXES and, after it, wrappers of ours alone."""
    return start.startswith(prefix) and _is_own(start.removeprefix(prefix))


def _is_own(prefix):
    """Tell whether a prefix consists of wrappers of ours and model."""
    return without_wrappers(prefix) == ""


def _same(a, b):
    return a is b or a.shape == b.shape and torch.equal(a, b)
