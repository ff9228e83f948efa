"""The training loop: killed and started again it ends as if nothing had happened."""
import json
import os
import signal
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data.loader import Plan
from tests.stages import run_of
from tools import interrupt
from tools.engine import Run, fit, poly_sgd, run_training, start_from
from tools.experiment import Experiment
from tools.meter import Meter
from tools.provenance import digest

EPOCHS, STEPS = 3, 4
CPU = torch.device("cpu")


class Killed(Exception):
    pass


class Flat(nn.Module):
    def forward(self, x):
        return x[:, :, None, None]


class SpoilGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 0


class Objective(nn.Module):
    """A regression with dropout; "p_rare" is nan in most steps."""

    def __init__(self, spoil_at=()):
        super().__init__()
        torch.manual_seed(5)
        self.network = nn.Sequential(nn.Linear(6, 8), Flat(), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.4),
                                     nn.Linear(8, 1))
        self.spoil_at = spoil_at

    def forward(self, batch, epoch):
        step = int(batch["step"])
        if "the picture" in self.spoil_at and step in self.spoil_at:
            batch["image"] = batch["image"] * float("inf")
        loss = ((self.network(batch["image"]) - batch["image"][:, :1]) ** 2).mean() * (1 + epoch)
        if step in self.spoil_at:
            loss = loss * float("nan") if "the gradient" not in self.spoil_at else SpoilGradient.apply(loss)
        return {"loss": loss, "loss_twice": 2 * loss.detach(),
                "p_rare": torch.tensor(float(step) if step % 4 == 1 else float("nan")),
                "p_never": torch.tensor(float("nan"))}


def loader(start):
    for step in range(start, EPOCHS * STEPS):
        generator = torch.Generator().manual_seed(100 + step)
        yield {"image": torch.randn(5, 6, generator=generator), "step": torch.tensor(step),
               "index": torch.arange(5) + 5 * (step % STEPS)}


def train(folder, killed_at=None, record=None, spoil_at=(), loader=loader, on_epoch=None, ids=(), **settings):
    """Train the tiny objective in a folder; killed_at raises in the middle of that step."""
    objective = Objective(spoil_at)
    optimizer, schedule = poly_sgd([{"params": list(objective.parameters()), "lr": 0.05, "weight_decay": 1e-3}], 0.05,
                                   EPOCHS * STEPS, momentum=0.9)
    experiment = Experiment(folder, "X")

    def on_step(step, batch):
        assert step == batch["step"]
        if step == killed_at:
            raise Killed

    with suppress(Killed):
        run = run_of(experiment, "model_oc", EPOCHS, STEPS, 5, record or {"lr": 0.05}, ids=ids,
                     weights=lambda net: {"own." + name: value for name, value in net.state_dict().items()},
                     **{"save_minutes": 0, "print_freq": 1} | settings)
        fit(objective, objective.network, optimizer, schedule, loader, run, on_step, on_epoch)
    return objective, optimizer, experiment


def assert_same(a, b):
    for x, y in zip(*({**o.state_dict()}.items() for o in (a[0], b[0])), strict=True):
        assert x[0] == y[0] and torch.equal(x[1], y[1])
    old, new = (o[1].state_dict() for o in (a, b))
    assert old["param_groups"] == new["param_groups"]
    for i, state in old["state"].items():
        assert torch.equal(state["momentum_buffer"], new["state"][i]["momentum_buffer"])


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


# ---- optimizer and schedule ----

def test_the_rate_falls_as_a_polynomial_and_stays_after_the_last_step():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, (0.1, 0.2))]
    optimizer, schedule = poly_sgd(groups, 0.1, 5)
    assert [g["momentum"] for g in optimizer.param_groups] == [5e-4, 5e-4]
    rates = []
    for _ in range(8):
        rates.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    expected = [(1 - min(step, 4) / 5) ** 0.9 for step in range(8)]
    assert [r[0] for r in rates] == pytest.approx([0.1 * e for e in expected])
    assert [r[1] for r in rates] == pytest.approx([0.2 * e for e in expected])


def test_power_and_momentum_can_be_chosen():
    optimizer, schedule = poly_sgd([nn.Parameter(torch.zeros(1))], 1.0, 4, power=2, momentum=0.9)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.75**2)
    assert optimizer.param_groups[0]["momentum"] == 0.9


# ---- starting again ----

def test_killed_while_an_epoch_is_measured_it_is_measured_after_the_restart(tmp_path):
    def measure(killed_in):
        def on_epoch(epoch):
            if epoch == killed_in:
                raise Killed
            return {"miou": 10.0 + epoch}
        return on_epoch

    whole = train(tmp_path / "whole", on_epoch=measure(None))
    train(tmp_path / "cut", on_epoch=measure(1))
    assert (tmp_path / "cut/X/ckpt/model_oc/001.pth").exists()
    resumed = train(tmp_path / "cut", on_epoch=measure(None))
    assert_same(whole, resumed)
    rows = resumed[2].epochs("train_model_oc")
    assert [row["miou"] for row in rows] == [10, 11, 12]
    assert without_times(rows) == without_times(whole[2].epochs("train_model_oc"))


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [0, 1, 6, 8, 11])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, killed_at):
    whole = train(tmp_path / "whole")
    train(tmp_path / "cut", killed_at)
    resumed = train(tmp_path / "cut")
    assert_same(whole, resumed)
    for epoch in range(EPOCHS):
        a, b = (torch.load(run[2] / f"ckpt/model_oc/{epoch:03d}.pth") for run in (whole, resumed))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert without_times(resumed[2].epochs("train_model_oc")) == without_times(whole[2].epochs("train_model_oc"))


def test_saved_at_epochs_only_it_goes_back_to_the_last_one(tmp_path):
    whole = train(tmp_path / "whole")
    train(tmp_path / "cut", killed_at=6, save_minutes=60)
    assert torch.load(tmp_path / "cut/X/ckpt/model_oc/last.pth")["step"] == STEPS
    assert_same(whole, train(tmp_path / "cut", save_minutes=60))


def test_zero_minutes_save_at_every_step(tmp_path):
    train(tmp_path, killed_at=6)
    assert torch.load(tmp_path / "X/ckpt/model_oc/last.pth")["step"] == 6


def test_killed_twice_and_while_measuring(tmp_path):
    def measure(epoch):
        if epoch == 1 and not (tmp_path / "measured").exists():
            (tmp_path / "measured").touch()
            raise Killed
        torch.rand(3)
        return {"miou": 10.0 * epoch, "curve": [[0.1, 1.0]]}

    whole = train(tmp_path / "whole", on_epoch=lambda epoch: {"miou": 10.0 * epoch, "curve": [[0.1, 1.0]]})
    train(tmp_path / "cut", killed_at=2, on_epoch=measure)
    train(tmp_path / "cut", on_epoch=measure)
    resumed = train(tmp_path / "cut", on_epoch=measure)
    assert_same(whole, resumed)
    assert without_times(resumed[2].epochs("train_model_oc")) == without_times(whole[2].epochs("train_model_oc"))


def test_other_settings_are_refused_by_name(tmp_path):
    train(tmp_path, killed_at=5, record={"lr": 0.05, "crop": 384, "old": 1})
    words = "crop: then 384, now 320; new: then absent, now 2; old: then 1, now absent"
    with pytest.raises(ValueError, match=words) as e:
        train(tmp_path, record={"lr": 0.05, "crop": 320, "new": 2})
    assert "last.pth" in str(e.value) and "--overwrite" in str(e.value) and "lr:" not in str(e.value)


def test_a_whole_run_has_nothing_to_do(tmp_path, capsys):
    train(tmp_path)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}
    train(tmp_path, killed_at=0)
    assert "complete, 3 epochs; nothing to do" in capsys.readouterr().out
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("size", [0, 1, 100, 0.5, 0.98])
def test_a_truncated_checkpoint_is_named(tmp_path, size):
    train(tmp_path, killed_at=5)
    last = tmp_path / "X/ckpt/model_oc/last.pth"
    data = last.read_bytes()
    last.write_bytes(data[:int(size * len(data)) if isinstance(size, float) else size])
    with pytest.raises(ValueError, match="last.pth is cut off or damaged.*--overwrite"):
        train(tmp_path)


@pytest.mark.parametrize("part, value", [("optimizer", None), ("meter", 3), ("step", "many"), ("network", {}),
                                         ("schedule", []), ("skipped", None)])
def test_a_checkpoint_of_another_form_is_named(tmp_path, part, value):
    train(tmp_path, killed_at=5)
    last = tmp_path / "X/ckpt/model_oc/last.pth"
    saved = torch.load(last)
    for change in (saved | {part: value}, {k: v for k, v in saved.items() if k != part}):
        torch.save(change, last)
        with pytest.raises(ValueError, match="last.pth lacks"):
            train(tmp_path)


# ---- what it writes ----

def test_one_log_line_an_epoch(tmp_path):
    train(tmp_path, killed_at=6)
    _, _, experiment = train(tmp_path)
    lines = (experiment / "log/train_model_oc.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["loss_twice"] == pytest.approx(2 * row["loss"])
        assert row["p_rare"] == 4 * row["epoch"] + 1            # known in one of the epoch's steps
        assert row["p_never"] is None
        assert row["lr"] < 0.05 and row["seconds"] >= 0
    assert (experiment / "log.txt").read_text().count("train_model_oc  epoch") == 3


def test_weights_are_written_as_the_stage_says(tmp_path):
    objective, _, experiment = train(tmp_path)
    state = torch.load(experiment / "ckpt/model_oc/002.pth")
    assert list(state) == ["own." + name for name in objective.network.state_dict()]
    files = sorted(p.name for p in (experiment / "ckpt/model_oc").iterdir())
    assert files == ["000.pth", "001.pth", "002.pth", "last.pth"]


def test_a_stages_settings_reach_loader_and_optimizer(tmp_path):
    asked, objective = [], Objective()

    def train_loader(start_step, **kw):
        asked.append((start_step, kw))
        return loader(start_step)

    settings = SimpleNamespace(seed=77, num_workers=3, lr=0.05, power=0.5, momentum=0.4, accumulate=1, overwrite=False,
                               precision="fp32", skip_nonfinite=0, save_minutes=9, print_freq=1)
    experiment, description = Experiment(tmp_path, "X"), {"class": "CAMNet"}
    run = Run(experiment, "model_oc", settings, {"lr": 0.05}, description, Plan(5 * STEPS, [5] * EPOCHS, 77), CPU,
              lambda net: net.state_dict(), [])
    groups = [{"params": list(objective.parameters()), "lr": 0.05}]
    run_training(objective, objective.network, groups, train_loader, run,
                 schedule_steps=15)
    assert asked == [(0, {"rank": 0, "world": 1, "num_workers": 3, "pin_memory": False})]
    assert [row["lr"] for row in experiment.epochs("train_model_oc")] == pytest.approx(
        [0.05 * (1 - step / 15) ** 0.5 for step in (4, 8, 12)])
    last = torch.load(experiment / "ckpt/model_oc/last.pth")
    assert last["optimizer"]["param_groups"][0]["momentum"] == 0.4
    assert json.loads((experiment / "ckpt/model_oc/network.json").read_text()) == description


def test_epochs_may_have_batches_of_different_sizes(tmp_path):
    """20 images: one epoch of 4 batches, then two of 2."""
    epochs, objective, plan = [], Objective(), Plan(20, [5, 10, 10], 0)
    optimizer, schedule = poly_sgd(list(objective.parameters()), 0.05, 8)
    experiment = Experiment(tmp_path, "X")
    run = run_of(experiment, "model_oc", 1, 1, 1, print_freq=1)
    run.plan = plan
    fit(objective, objective.network, optimizer, schedule, lambda start: (
        {**batch, "image": batch["image"].repeat(plan.batch_sizes[plan.epoch_of(step)] // 5, 1)}
        for step, batch in enumerate(loader(start), start)), run, on_epoch=lambda epoch: epochs.append(epoch) or {})
    assert epochs == [0, 1, 2] and torch.load(experiment / "ckpt/model_oc/last.pth")["step"] == 8


def test_the_start_is_told_and_remembered(tmp_path, capsys):
    assert start_from(None, "init", load=None) == "random" and capsys.readouterr().out == ""
    path, loaded = tmp_path / "a.pth", []
    path.write_bytes(b"weights")
    names = {"loaded": ["a", "b"], "new": ["f9.weight"], "unused": ["fc8.weight"]}
    assert start_from(path, "er_init", lambda source: loaded.append(source) or names) == digest(path)
    assert loaded == [path]
    assert capsys.readouterr().out == f"--er_init: 2 tensors from {path}; new: f9.weight; not used: 1 of the file\n"


def test_checkpoints_have_the_authors_names(tmp_path):
    from methods.classification import Classification
    from networks.cam import CAMNet
    from networks.pretrained import official_state
    network = CAMNet(num_classes=2, width=0.03, blocks=(1, 1, 1, 1, 0, 0))
    optimizer, schedule = poly_sgd([p for p in network.parameters() if p.requires_grad], 0.01, 1)
    experiment = Experiment(tmp_path, "X")
    batch = {"image": torch.rand(2, 3, 16, 16), "label": torch.eye(2)}
    fit(Classification(network), network, optimizer, schedule, lambda start: [batch][start:],
        run_of(experiment, "model_oc", 1, 1, 2, weights=official_state))
    state = torch.load(experiment / "ckpt/model_oc/000.pth")
    assert {"conv1a.weight", "b5.conv_branch1.weight", "bn7.running_var", "fc8.weight"} <= state.keys()
    assert not any(name.startswith(("backbone", "module")) for name in state)


def test_the_objective_trains_again_after_a_measurement(tmp_path):
    modes = []

    class Watched(Objective):
        def forward(self, batch, epoch):
            modes.append(self.network.training)
            return super().forward(batch, epoch)

    objective = Watched()
    optimizer, schedule = poly_sgd(list(objective.parameters()), 0.05, EPOCHS * STEPS)
    experiment = Experiment(tmp_path, "X")
    fit(objective, objective.network, optimizer, schedule, loader, run_of(experiment, "model_oc", EPOCHS, STEPS, 5),
        on_epoch=lambda epoch: objective.network.eval() and {})
    assert modes == [True] * EPOCHS * STEPS


# ---- what goes wrong ----

IDS = [f"image_{i:02d}" for i in range(5 * STEPS)]


@pytest.mark.parametrize("how", ["the loss", "the gradient", "the picture"])
@pytest.mark.parametrize("save_minutes", [0, 60])
def test_what_is_not_finite_stops_the_run_before_it_is_in_the_weights(tmp_path, how, save_minutes):
    loss = r"loss \d[.\d]*" if how == "the gradient" else "loss (nan|inf)"
    with pytest.raises(ValueError, match=rf"epoch 1, step 1: .* not finite \({loss}, loss_twice .*, gradient "
                       r"(nan|inf)\) on the images image_05, image_06, image_07, image_08, image_09. .*oc/last.pth"):
        train(tmp_path, spoil_at=(5, how), save_minutes=save_minutes, ids=IDS)
    folder = tmp_path / "X/ckpt/model_oc"
    assert [p.name for p in sorted(folder.glob("0*.pth"))] == ["000.pth"]
    last = torch.load(folder / "last.pth")
    assert last["step"] == 5 and last["skipped"] == 0
    assert all(v.isfinite().all() for v in last["network"].values())
    assert_same(train(tmp_path / "whole"), train(tmp_path))         # whatever it was, without it all is well


def test_a_batch_that_is_not_finite_may_be_left_out(tmp_path):
    """The image: it spoils BatchNorm's statistics before the loss shows it."""
    spoiled = {"spoil_at": (5, 6, 9, "the picture"), "ids": IDS}
    with pytest.raises(ValueError, match="epoch 2, step 1: .*image_05.*--skip_nonfinite N"):
        train(tmp_path / "two", skip_nonfinite=2, **spoiled)
    _, _, experiment = train(tmp_path / "two", skip_nonfinite=3, **spoiled)
    whole = train(tmp_path / "three", skip_nonfinite=3, **spoiled)
    rows = experiment.epochs("train_model_oc")
    assert [row.get("skipped") for row in rows] == [None, 2, 1]
    assert without_times(rows) == without_times(whole[2].epochs("train_model_oc"))
    assert (experiment / "log.txt").read_text().count("not finite") == 3
    assert all(v.isfinite().all() for v in whole[0].state_dict().values())

    objective = Objective()                 # the same training by hand, without the three steps
    optimizer, schedule = poly_sgd([{"params": list(objective.parameters()), "lr": 0.05, "weight_decay": 1e-3}], 0.05,
                                   EPOCHS * STEPS, momentum=0.9)
    for step, batch in enumerate(loader(0)):
        if step not in (5, 6, 9):
            torch.manual_seed(step * 1009)
            optimizer.zero_grad()
            objective(batch, step // STEPS)["loss"].backward()
            optimizer.step()
        schedule.step()
    assert_same((objective, optimizer), whole)


def test_the_count_of_left_out_batches_survives_a_restart(tmp_path):
    spoiled = {"spoil_at": (5, 9, "the loss"), "ids": IDS, "skip_nonfinite": 1}
    train(tmp_path, killed_at=7, **spoiled)
    with pytest.raises(ValueError, match="epoch 2, step 1"):
        train(tmp_path, **spoiled)
    assert train(tmp_path)[2].epochs("train_model_oc")[1]["skipped"] == 1


# ---- asked to stop, or without images ----

@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("step", [0, 3, 6, 11])
def test_asked_to_stop_it_ends_the_step_and_saves(tmp_path, capsys, number, step):
    def asking(start):
        for batch in loader(start):
            if batch["step"] == step:
                os.kill(os.getpid(), number)
            yield batch

    handlers = [signal.getsignal(n) for n in interrupt.SIGNALS]
    with pytest.raises(SystemExit) as left:
        train(tmp_path / "cut", save_minutes=60, loader=asking)
    assert left.value.code == 0 and "run the same command to resume" in capsys.readouterr().out
    assert handlers == [signal.getsignal(n) for n in interrupt.SIGNALS]
    last = tmp_path / "cut/X/ckpt/model_oc/last.pth"
    assert torch.load(last)["step"] == step if step else not last.exists()
    whole, resumed = train(tmp_path / "whole"), train(tmp_path / "cut", save_minutes=60)
    assert_same(whole, resumed)
    assert without_times(resumed[2].epochs("train_model_oc")) == without_times(whole[2].epochs("train_model_oc"))


def test_the_exit_code_of_a_stop_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("STOP_EXIT_CODE", "75")
    with pytest.raises(SystemExit) as left:
        train(tmp_path, loader=lambda start: (b for b in loader(start) if not os.kill(os.getpid(), signal.SIGUSR1)))
    assert left.value.code == 75


def test_after_a_ctrl_c_the_next_one_is_the_systems_own():
    with interrupt.remembered():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.asked() and signal.getsignal(signal.SIGINT) is not signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    with interrupt.remembered():
        assert not interrupt.asked()


def test_what_was_trained_is_saved_when_a_batch_cannot_be_read(tmp_path):
    def vanishing(start):
        for batch in loader(start):
            if batch["step"] == 6:
                raise FileNotFoundError("JPEGImages/a.jpg is gone")
            yield batch

    with pytest.raises(FileNotFoundError, match="a.jpg is gone"):
        train(tmp_path / "cut", save_minutes=60, loader=vanishing)
    assert torch.load(tmp_path / "cut/X/ckpt/model_oc/last.pth")["step"] == 6
    assert_same(train(tmp_path / "whole"), train(tmp_path / "cut"))


def test_the_meter_leaves_out_what_is_not_known():
    meter = Meter()
    for loss, p in ((1.0, float("nan")), (3.0, 0.5), (5.0, float("nan")), (7.0, 0.7)):
        meter.add({"loss": torch.tensor(loss), "p": torch.tensor(p)}, images=4)
    assert meter.means() == {"loss": 4.0, "p": pytest.approx(0.6)} and meter.images == 16
    again = Meter(meter.state())
    again.add({"loss": torch.tensor(9.0), "p": torch.tensor(float("nan"))}, images=4)
    assert again.means() == {"loss": 5.0, "p": pytest.approx(0.6)} and again.images == 20
    meter.add({"loss": torch.tensor(float("nan")), "p": torch.tensor(0.1)}, images=4)
    assert meter.means()["loss"] != meter.means()["loss"]           # a loss of nan is not passed over
