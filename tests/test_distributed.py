"""Two processes compute what one computes, and a batch in parts what the whole one does: losses, gradients, weights,
and the maximum of the masks over the whole batch.
"""
import json
import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.aeft import AEFT
from methods.agnostic import Agnostic
from methods.classification import Classification
from methods.cse import CSE
from networks import parameter_groups
from networks.cam import CAMNet
from networks.gpp import GPPNet
from tests.conftest import ROOT
from tests.stages import in_two, run_of
from tools import distributed
from tools.engine import fit, poly_sgd, prepare, to_device
from tools.experiment import Experiment

WORLD, EPOCHS, STEPS, BATCH, CLASSES = 2, 2, 3, 8, 3
CPU = torch.device("cpu")
CASES = ("oc", "cse_batch", "cse_image", "agnostic", "aeft")
SMALL = torch.randn(4, 3, 1, 2, generator=torch.Generator().manual_seed(0))


class Killed(Exception):
    pass


def tiny_net(seed, norm="frozen", kind=CAMNet):
    torch.manual_seed(seed)
    net = kind(CLASSES, width=0.0625, blocks=(1, 1, 1, 1, 0, 0), dilation=(1, 1, 1), norm=norm)
    if kind is CAMNet:
        nn.init.uniform_(net.fc8.weight, 0, 1)      # CAMs above 0, so that there is something to erase
    else:
        for layer in (net.fc8, net.fc9):            # both gates see something; and it dies of a large loss
            nn.init.uniform_(layer.weight, -0.3, 0.3)
    return net


def loader(case, start):
    """Give this process's part of each batch; in step 1 the second process has no class at all, in step 2 one image."""
    for step in range(start, EPOCHS * STEPS):
        generator = torch.Generator().manual_seed(step)
        image = torch.randn(BATCH, 3, 24, 32, generator=generator)
        label = torch.eye(CLASSES)[torch.randint(CLASSES, (BATCH,), generator=generator)]
        label[0] = 1
        target = label.argmax(1)
        empty = {1: [1, 3, 5, 7], 2: [3]}.get(step % STEPS, [])
        label[empty], target[empty] = 0, -1
        image[step % BATCH] *= 3                    # the maximum lies now in one part, now in another
        draw = torch.rand(BATCH, generator=generator)
        batch = {"image": image, "label": label, "target": draw if case == "aeft" else target}
        yield {k: v[distributed.rank()::distributed.world()] for k, v in batch.items()}


def train(case, folder, killed_at=None, accumulate=1):
    """Train a tiny network; returns its weights, each step's gradients and the logged rows."""
    net = tiny_net(1, "train" if case == "oc_norm" else "frozen", GPPNet if case == "aeft" else CAMNet)
    objective = Classification(net, distributed.global_mean)
    if case.startswith("cse"):
        objective = CSE(net, tiny_net(2), 3.0, 0.5, case.removeprefix("cse_"), distributed.global_max,
                        distributed.global_mean)
    if case == "agnostic":
        objective = Agnostic(net, tiny_net(2), 3.0, 0.5, "batch", distributed.global_max, distributed.global_mean)
    if case == "aeft":      # no pixel and no image at a threshold, where rounding would choose
        objective = AEFT(net, 1, 6 // distributed.world(), 9.0, 2.0, 2.0, (1.0, 10.0, 0.01),
                         gather=distributed.gather_rows, global_mean=distributed.global_mean)
    prepare(objective, CPU, SimpleNamespace(accumulate=accumulate, checkpoint_blocks=False, compile=False))
    optimizer, schedule = poly_sgd(parameter_groups(net, 0.1, 5e-4, ["fc8"]), 0.1, EPOCHS * STEPS, momentum=0.9)
    experiment, steps = Experiment(folder, case), []

    def on_step(step, batch):
        if step == killed_at:
            raise Killed
        steps.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})

    # Smooth in place of ReLU: near 0 rounding chooses between ReLU's two slopes, and the runs part by a thousandth.
    with suppress(Killed), patch.object(F, "relu", lambda x, inplace=False: F.softplus(x, beta=5)):
        run = run_of(experiment, case, EPOCHS, STEPS, BATCH, save_minutes=0, print_freq=1)
        fit(objective, net, optimizer, schedule, partial(loader, case), run, on_step)
    distributed.barrier()
    return {"weights": net.state_dict(), "gradients": steps, "rows": experiment.epochs(f"train_{case}")}


def normalise(part):
    """Normalise one process's part of a small batch; returns output, gradient, statistics."""
    layer, x = nn.BatchNorm2d(3), part.clone().requires_grad_()
    to_device(layer, CPU)
    y = layer(x)
    (y * torch.arange(y[0].numel()).reshape(y[0].shape)).sum().backward()
    return y.detach(), x.grad, layer.running_mean, layer.running_var


def find_maximum():
    """Weigh the maximum over processes of 3 (rank + 1) x by rank + 1: -> value, gradient; and so with equal values."""
    rank, found = distributed.rank(), []
    for slope in (3 * (rank + 1), 1):
        x = torch.tensor(2.0, requires_grad=True)
        peak = distributed.global_max(slope * x)
        ((rank + 1) * peak).backward()
        found.append((float(peak.detach()), float(x.grad)))
    return found


def fail_in_main(error):
    def action():
        raise error
    try:
        distributed.on_main(action)
    except Exception as caught:
        return f"{type(caught).__name__}: {caught}"


def work(folder):
    """Do in one of the processes all that the tests look at."""
    rank = int(os.environ["RANK"])
    distributed.start("cpu")
    asked = []
    found = {case: train(case, folder) for case in (*CASES, "oc_norm")}
    found |= {(case, 2): train(case, folder / "in parts", accumulate=2) for case in CASES}
    train("cse_batch", folder / "begun by two", killed_at=4)
    found |= {
        "world": (distributed.rank(), distributed.world(), distributed.is_main()),
        "maximum": find_maximum(),
        "normalised": normalise(SMALL[rank::WORLD]),
        "mean": float(distributed.global_mean(torch.tensor(float(10 * rank)))),
        "sum": distributed.sum_array(np.array([1, rank]), CPU).tolist(),
        "share": distributed.share(list("abcde")),
        "agreed": distributed.agree(rank == 0, rank == 1, False), "gathered": distributed.gather(f"of {rank}"),
        "parts": [distributed.share(list("abcdefg"), part, 3) for part in range(3)],
        "first": distributed.on_main(lambda: asked.append(rank) or f"made by {rank}"), "asked": asked,
        "broken": fail_in_main(ValueError("the disk is full")),
        "lost": fail_in_main(FileNotFoundError("no folder X")),
    }
    torch.save(found, folder / f"{rank}.pt")
    distributed.stop()


@pytest.fixture(scope="module")
def both(zygote, tmp_path_factory):
    """Give what the two processes found, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "work.py").write_text("from pathlib import Path\nfrom tests.test_distributed import work\nwork(Path())\n")
    in_two(zygote, folder, folder / "work")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)], folder


def close(a, b, what, by=1e-5):
    torch.testing.assert_close(a, b, rtol=by, atol=by, msg=lambda text: f"{what}: {text}")


def assert_trained_alike(one, other, logged):
    """Compare to 1e-5: all gradients (of the largest in any step), the last weights, what is logged.

    AEFT's gradients to 1e-4: what it attracts and repels are differences of means, whose rounding is as large as ever.
    """
    by = 1e-4 if "loss_repel" in one["rows"][-1] else 1e-5
    start = tiny_net(1, kind=GPPNet if "fc9.weight" in one["weights"] else CAMNet).state_dict()
    assert max((one["weights"][k] - start[k]).abs().max() for k in start) > 0.005
    assert len(one["gradients"]) == EPOCHS * STEPS == 6
    for step, (mine, theirs) in enumerate(zip(one["gradients"], other["gradients"], strict=True)):
        assert mine.keys() == theirs.keys() and len(mine) > 5
        for name, gradient in mine.items():
            scale = max(gradients[name].abs().max() for gradients in one["gradients"])
            close(theirs[name] / scale, gradient / scale, f"gradient of {name} in step {step}", by)
    for name, weight in one["weights"].items():
        close(other["weights"][name], weight, name)
    for mine, theirs in zip(one["rows"], other["rows"], strict=True):
        for name in ("lr", *logged):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-5), name


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Give what one process with the whole batch computes in each case."""
    return {case: train(case, tmp_path_factory.mktemp("one")) for case in CASES}


def logged(case):
    if case.startswith("cse"):
        return "loss", "loss_cls", "loss_cse", "p_target_erased", "p_rest_erased", "erased"
    return {"agnostic": ("loss", "loss_cls", "loss_cse", "p_target_erased", "erased"),
            "aeft": ("loss", "loss_cls", "p_present", "p_absent"), "oc": ("loss", "p_present", "p_absent")}[case]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(both, one, case):
    for rank in range(WORLD):
        assert_trained_alike(one[case], both[0][rank][case] | {"rows": both[0][0][case]["rows"]}, logged(case))


@pytest.mark.slow
def test_a_batchnorm_over_processes_is_torchs_own_over_the_batch(both):
    y, gradient, mean, var = normalise(SMALL)
    for rank in range(WORLD):
        found = both[0][rank]["normalised"]
        for mine, theirs in zip((y[rank::WORLD], gradient[rank::WORLD], mean, var), found):
            torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_batchnorm_is_trained_on_the_whole_batch(both, tmp_path):
    """Behind BatchNorm gradients are small differences of large numbers, which ReLUs amplify: early steps are close."""
    one, two = train("oc_norm", tmp_path), both[0][1]["oc_norm"]
    for step in range(3):
        for name, gradient in one["gradients"][step].items():
            scale = gradient.abs().max()
            close(two["gradients"][step][name] / scale, gradient / scale, f"gradient of {name} in step {step}", 1e-3)
    assert one["weights"].keys() == two["weights"].keys()
    for name, value in one["weights"].items():
        if "num_batches" in name:
            assert value == two["weights"][name] == EPOCHS * STEPS
        else:
            assert (value - two["weights"][name]).norm() < 0.02 * value.norm(), name
    losses = [[row["loss"] for row in found["rows"]] for found in (one, both[0][0]["oc_norm"])]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_batch_in_parts_in_two_processes(both, one, case):
    for rank in range(WORLD):
        found = both[0][rank][case, 2] | {"rows": both[0][0][case, 2]["rows"]}
        assert_trained_alike(one[case], found, logged(case))


@pytest.mark.slow
@pytest.mark.parametrize("case, parts", [("oc", 4), ("cse_batch", 2), ("cse_batch", 8), ("cse_image", 4)])
def test_a_batch_in_parts(one, tmp_path, case, parts):
    assert_trained_alike(one[case], train(case, tmp_path, accumulate=parts), logged(case))


@pytest.mark.slow
def test_one_process_ends_what_two_began(both, tmp_path):
    whole = train("cse_batch", tmp_path)
    ended = train("cse_batch", both[1] / "begun by two")
    assert len(ended["gradients"]) == EPOCHS * STEPS - 4
    for name, weight in whole["weights"].items():
        close(ended["weights"][name], weight, name)
    assert [row["loss"] for row in ended["rows"]] == pytest.approx([row["loss"] for row in whole["rows"]], rel=1e-5)


@pytest.mark.slow
def test_the_gradient_of_the_maximum_goes_to_its_holder(both):
    # 3 x and 6 x at x = 2: the second process holds it, and both weights, 1 and 2, reach it. Equal: the first of them.
    assert [found["maximum"] for found in both[0]] == [[(12, 0), (2, 3)], [(12, 18), (2, 0)]]


@pytest.mark.slow
def test_what_processes_tell_each_other(both):
    first, second = both[0]
    assert first["world"] == (0, 2, True) and second["world"] == (1, 2, False)
    assert first["mean"] == second["mean"] == 5
    assert first["sum"] == second["sum"] == [2, 1]
    assert (first["share"], second["share"]) == (["a", "c", "e"], ["b", "d"])
    assert first["agreed"] == second["agreed"] == (True, True, False)
    assert first["gathered"] == second["gathered"] == ["of 0", "of 1"]
    assert (first["parts"], second["parts"]) == ([["a", "g"], ["b"], ["c"]], [["d"], ["e"], ["f"]])


@pytest.mark.slow
def test_the_main_process_goes_first(both):
    first, second = both[0]
    assert first["first"] == second["first"] == "made by 0"
    assert (first["asked"], second["asked"]) == ([0], [])
    assert first["broken"] == second["broken"] == "ValueError: the disk is full"
    assert all("no folder X" in found["lost"] for found in both[0])


# ---- one process ----

def test_alone_every_function_is_trivial():
    assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
    x = torch.tensor(3.0, requires_grad=True)
    assert distributed.global_max(x) is x and distributed.global_mean(x) == 3
    assert distributed.share([1, 2, 3]) == [1, 2, 3] and distributed.sum_array(np.arange(3), CPU).tolist() == [0, 1, 2]
    assert distributed.agree(True, False) == (True, False) and distributed.gather(3) == [3]
    assert distributed.on_main(lambda: 7) == 7
    assert fail_in_main(FileNotFoundError("no folder X")) == "FileNotFoundError: no folder X"
    distributed.barrier()
    distributed.stop()


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert distributed.start("auto") == CPU
    with pytest.raises(ValueError, match="--device cuda: this machine has no GPU .*--device cpu"):
        distributed.start("cuda")


LEAVING = """
import atexit, json, os, sys
from tools import distributed, flags

class Late:
    def __del__(self, write=os.write):
        write(1, b"taken down")

def main():
    distributed._joined = several
    print("main")
    exec(leave)

codes, late = [], Late()
for number, (leave, several) in enumerate(json.loads(sys.argv[1])):
    if pid := os.fork():        # a process for each: importing torch takes longer than the test
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        continue
    for stream in (1, 2):
        os.dup2(os.open(f"{sys.argv[2]}/{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
    atexit.register(print, "atexit")
    flags.run(main)
    break
else:
    print(codes)
"""
LEAVES = {"pass": (0, ""), "sys.exit(75)": (75, ""), "raise ValueError('no picture')": (1, "error: no picture\n")}


@pytest.mark.slow
def test_one_of_several_processes_ends_before_python_is_taken_down(tmp_path):
    """A thread of the process group would abort it then. What is printed, and registered for the end, still comes."""
    cases = [(leave, several) for leave in LEAVES for several in (True, False)]
    done = subprocess.run([sys.executable, "-c", LEAVING, json.dumps(cases), tmp_path], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    codes = json.loads(done.stdout.removesuffix("taken down"))
    for number, (leave, several) in enumerate(cases):
        code, said = LEAVES[leave]
        out, err = ((tmp_path / f"{number}.{stream}").read_text() for stream in (1, 2))
        assert codes[number] == code and "Traceback" not in err, (leave, several, err)
        assert [line for line in err.splitlines() if line.startswith("error: ")] == said.splitlines()
        assert out == "main\natexit\n" + "taken down" * (not several), (leave, several)
