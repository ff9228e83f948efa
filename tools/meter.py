"""Running means of what an objective tells of each step."""
import torch

from tools import distributed


class Meter:
    """Running means of an objective's terms. Terms that are nan (nothing to average) do not count; skipped: steps."""

    def __init__(self, state=None):
        self.sums, self.counts, self.images, self.skipped = {}, {}, 0, 0
        if state:
            self.images, self.skipped = state["images"], state["skipped"]
            self.sums = {k: torch.tensor(v, dtype=torch.float64) for k, v in state["sums"].items()}
            self.counts = {k: torch.tensor(v, dtype=torch.float64) for k, v in state["counts"].items()}

    def add(self, terms, images):
        self.images += images
        for name, value in terms.items():
            value = value.detach().double()
            known = torch.ones_like(value) if name == "loss" else (~value.isnan()).double()
            # Sums from a checkpoint are on the CPU, the values maybe on a GPU. torch adds 0-d tensors of both without
            # waiting for the GPU; .to would wait.
            self.sums[name] = self.sums.get(name, 0) + (value if name == "loss" else value.nan_to_num())
            self.counts[name] = self.counts.get(name, 0) + known

    def means(self):
        """Return {name: mean over steps and processes}, None where nothing counted."""
        if not self.sums:           # every step so far was left out
            return {}
        table = distributed.sum_over_processes(self._table()).cpu()
        return {n: float(s / c) if c else None for n, (s, c) in zip(self.sums, table)}

    def state(self):
        """Return what a checkpoint keeps: the processes' mean, so that every process may start from it."""
        table = distributed.global_mean(self._table()).tolist() if self.sums else []
        sums, counts = ({n: row[i] for n, row in zip(self.sums, table)} for i in range(2))
        return {"images": self.images, "skipped": self.skipped, "sums": sums, "counts": counts}

    def _table(self):
        return torch.stack([torch.stack([self.sums[n], self.counts[n]]) for n in self.sums])    # (terms, 2)
