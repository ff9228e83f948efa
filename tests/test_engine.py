"""The training loop: killed and started again it ends as if nothing had happened."""
import json
from contextlib import suppress

import pytest
import torch
from torch import nn

from tools.engine import Meter, fit, poly_sgd
from tools.experiment import Experiment

EPOCHS, STEPS = 3, 4
CPU = torch.device("cpu")


class Killed(Exception):
    pass


class Objective(nn.Module):
    """A regression with dropout; "p_rare" is nan in most steps."""

    def __init__(self, spoil_at=None):
        super().__init__()
        torch.manual_seed(5)
        self.network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 1))
        self.spoil_at = spoil_at

    def forward(self, batch, epoch):
        step = int(batch["step"])
        loss = ((self.network(batch["image"]) - batch["image"][:, :1]) ** 2).mean() * (1 + epoch)
        if step == self.spoil_at:
            loss = loss * float("nan")
        return {"loss": loss, "loss_twice": 2 * loss.detach(),
                "p_rare": torch.tensor(float(step) if step % 4 == 1 else float("nan")),
                "p_never": torch.tensor(float("nan"))}


def loader(start):
    for step in range(start, EPOCHS * STEPS):
        generator = torch.Generator().manual_seed(100 + step)
        yield {"image": torch.randn(5, 6, generator=generator), "step": torch.tensor(step)}


def train(folder, killed_at=None, settings=None, spoil_at=None, **kw):
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
        fit(objective, objective.network, optimizer, schedule, loader, experiment, "train_model_oc",
            settings or {"lr": 0.05}, epochs=EPOCHS, steps=STEPS, device=CPU, on_step=on_step,
            weights=lambda net: {"own." + name: value for name, value in net.state_dict().items()},
            **{"save_minutes": 0, "print_freq": 1} | kw)
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
    train(tmp_path, killed_at=5, settings={"lr": 0.05, "crop": 384, "old": 1})
    words = "crop: then 384, now 320; new: then absent, now 2; old: then 1, now absent"
    with pytest.raises(ValueError, match=words) as e:
        train(tmp_path, settings={"lr": 0.05, "crop": 320, "new": 2})
    assert "last.pth" in str(e.value) and "--overwrite" in str(e.value) and "lr:" not in str(e.value)


def test_a_whole_run_has_nothing_to_do(tmp_path, capsys):
    train(tmp_path)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}
    train(tmp_path, killed_at=0)
    assert "whole, 3 epochs; nothing to do" in capsys.readouterr().out
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("size", [0, 1, 100, 0.5, 0.98])
def test_a_truncated_checkpoint_is_named(tmp_path, size):
    train(tmp_path, killed_at=5)
    last = tmp_path / "X/ckpt/model_oc/last.pth"
    data = last.read_bytes()
    last.write_bytes(data[:int(size * len(data)) if isinstance(size, float) else size])
    with pytest.raises(ValueError, match="last.pth is cut off or damaged.*--overwrite"):
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


def test_checkpoints_have_the_authors_names(tmp_path):
    from methods.classification import Classification
    from networks.cam import CAMNet
    from networks.pretrained import official_state
    network = CAMNet(num_classes=2, width=0.03, blocks=(1, 1, 1, 1, 0, 0))
    optimizer, schedule = poly_sgd([p for p in network.parameters() if p.requires_grad], 0.01, 1)
    experiment = Experiment(tmp_path, "X")
    batch = {"image": torch.rand(2, 3, 16, 16), "label": torch.eye(2)}
    fit(Classification(network), network, optimizer, schedule, lambda start: [batch][start:], experiment,
        "train_model_oc", {}, epochs=1, steps=1, device=CPU, weights=official_state)
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
    fit(objective, objective.network, optimizer, schedule, loader, experiment, "train_model_oc", {}, epochs=EPOCHS,
        steps=STEPS, device=CPU, weights=lambda net: net.state_dict(),
        on_epoch=lambda epoch: objective.network.eval() and {})
    assert modes == [True] * EPOCHS * STEPS


# ---- what goes wrong ----

@pytest.mark.parametrize("print_freq", [1, 100])
@pytest.mark.parametrize("save_minutes", [0, 60])
def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path, print_freq, save_minutes):
    with pytest.raises(ValueError, match=r"epoch 1, step \d: loss is not finite.*model_oc"):
        train(tmp_path, spoil_at=5, print_freq=print_freq, save_minutes=save_minutes)
    folder = tmp_path / "X/ckpt/model_oc"
    assert [p.name for p in sorted(folder.glob("0*.pth"))] == ["000.pth"]
    assert all(v.isfinite().all() for v in torch.load(folder / "last.pth")["network"].values())
    assert_same(train(tmp_path / "whole"), train(tmp_path))         # whatever it was, without it all is well


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
