"""How far a training is: its checkpoint last.pth, the weights of each epoch, its log."""
import shlex
import sys
import time

import torch
from tqdm import tqdm

from tools import distributed
from tools.files import load_checkpoint, save_checkpoint
from tools.meter import Meter
from tools.provenance import FOLDERS, differing


class Progress:
    """What last.pth holds of a tools.engine.Run, and how it is written and read."""

    def __init__(self, run, network, optimizer, schedule, on_epoch):
        self.run, self.network, self.optimizer, self.schedule = run, network, optimizer, schedule
        self.on_epoch = on_epoch
        self.folder = run.experiment / f"ckpt/{run.model}"
        self.step, self.meter, self.skipped, self.earlier = 0, Meter(), 0, 0.0
        self.started = self.saved = time.monotonic()
        self.saved_step = 0

    def seconds(self):
        """Return the seconds that the open epoch has taken, earlier runs included."""
        return self.earlier + time.monotonic() - self.started

    def minutes_unsaved(self):
        return (time.monotonic() - self.saved) / 60

    def summary(self):
        """Describe the open epoch for the screen."""
        words = " ".join(f"{name} {value:.3f}" for name, value in self.meter.means().items() if value is not None)
        return f"{words} {self.meter.images / self.seconds():.1f} images/s"

    def skip_or_stop(self, mine):
        """Leave out a step whose loss or gradient is not finite, or raise ValueError if no more may be.

        mine  (values {name: number}, images) of this process's part of the batch, None if nothing is wrong with it
        """
        epoch, number, _ = self.run.plan.place_of(self.step)
        allowed = self.run.settings.skip_nonfinite
        self.meter.skipped += 1
        self.skipped += 1
        spoiled = [found for found in distributed.gather(mine) if found]
        words = ", ".join(f"{name} {value:.4g}" for name, value in spoiled[0][0].items())
        names = ", ".join(image for _, images in spoiled for image in images)
        text = (f"epoch {epoch}, step {number}: the loss or its gradient is not finite ({words}) on the images "
                f"{names or 'of this batch'}")
        if self.skipped <= allowed:
            if distributed.is_main():
                self.run.experiment.log(self.run.stage, text)
                tqdm.write(f"{text}: left out, {self.skipped} of at most {allowed}")
            return
        self.meter.skipped -= 1
        self.skipped -= 1
        self.save()
        raise ValueError(f"{text}. The last good checkpoint is {self.folder / 'last.pth'}, from before this step: the "
                         "same command resumes there. --skip_nonfinite N leaves out up to N such batches; look at the "
                         "images; a lower --lr, or --precision fp32, may help")

    def save(self):
        """Write last.pth."""
        state = {"settings": self.run.record, "network": self.network.state_dict(),
                 "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(), "step": self.step,
                 "meter": self.meter.state(), "skipped": self.skipped, "seconds": self.seconds()}
        if self.run.images:
            state["images"] = self.run.images.of
        distributed.on_main(lambda: save_checkpoint(self.folder / "last.pth", state))
        self.saved, self.saved_step = time.monotonic(), self.step

    def resume(self):
        """Load last.pth; returns whether there was one. An epoch whose end was interrupted is ended now."""
        path = self.folder / "last.pth"
        if not path.exists():
            return False
        saved = load_checkpoint(path)
        if not isinstance(saved, dict) or not isinstance(saved.get("settings"), dict):
            raise ValueError(f"{path} is not what a training saves to resume from: --overwrite starts again")
        settings, images = differing(saved, self.run.record, self.run.images)
        if settings and all(words.startswith("inputs ") for words in settings):
            changed = ", ".join(words.partition(":")[0].removeprefix("inputs ") for words in settings)
            raise ValueError(f"{path} was trained from other files than are there now: {'; '.join([changed, *images])} "
                             f"changed. {self.ways_on()}")
        if settings:
            raise ValueError(f"{path} was trained with other settings ({'; '.join(settings + images)}). Run it again "
                             "with the old ones, start anew with --overwrite, or take another --name")
        if images:
            raise ValueError(f"{path} was trained on other images or labels ({'; '.join(images)}). {self.ways_on()}")
        try:
            self.network.load_state_dict(saved["network"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.schedule.load_state_dict(saved["schedule"])
            self.step, self.meter, self.skipped = int(saved["step"]), Meter(saved["meter"]), int(saved["skipped"])
            self.earlier = float(saved["seconds"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{path} lacks what a training resumes from, or holds it in another form "
                             f"({type(error).__name__}): --overwrite with other settings, or deleting "
                             f"{self.folder}, starts again") from None
        self.saved_step = self.step
        if self.run.plan.ends_epoch(self.step):
            self.close_epoch()
        return True

    def ways_on(self):
        """Say what can be done where the images have changed since a training began."""
        run, settings = self.run, vars(self.run.settings)
        words = "Undo the change, and the same command resumes; --overwrite trains anew on the images as they are now"
        start = next((flag for flag in ("er_init", "init") if flag in settings), None)
        if not start or not any(p.stem.isdecimal() for p in self.folder.glob("*.pth")):
            return words
        # The advised command has another --name: paths relative to this experiment have to be written out.
        own = {flag: value for flag, value in settings.items() if flag.endswith("_init") and isinstance(value, str)}
        own |= {flag: str(run.experiment.find_folder(settings[flag])) for flag in FOLDERS if flag in settings}
        own |= {start: f"{run.experiment.name}/{run.model}", "name": f"{run.experiment.name}_2"}
        line = [*sys.argv, *(word for flag, value in own.items() for word in (f"--{flag}", value))]
        return (f"{words}; or a new experiment starts from the weights of this one (--max_epochs says for how long): "
                f"python {shlex.join(line)}")

    def close_epoch(self):
        """Write EEE.pth of the epoch that has ended, measure and log it, unless that is done, and begin the next."""
        run, epoch, seconds = self.run, self.run.plan.epoch_of(self.step - 1), self.seconds()
        weights = self.folder / f"{epoch:03d}.pth"
        if not distributed.on_main(weights.exists):
            distributed.on_main(lambda: save_checkpoint(weights, run.weights(self.network)))
        logged = distributed.on_main(lambda: any(r["epoch"] == epoch for r in run.experiment.epochs(run.stage)))
        if not logged:
            row = {"epoch": epoch, **self.meter.means(), "lr": self.optimizer.param_groups[0]["lr"],
                   "seconds": round(seconds, 2), "images_per_second": round(self.meter.images / seconds, 2)}
            if run.device.type == "cuda":
                row["memory_gib"] = round(torch.cuda.max_memory_allocated(run.device) / 2**30, 2)
            if self.meter.skipped:
                row["skipped"] = self.meter.skipped
            if self.on_epoch:
                row.update(self.on_epoch(epoch))
            if distributed.is_main():
                run.experiment.log_epoch(run.stage, row)
                text = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
                                 if not isinstance(v, (list, dict)))
                self.run.experiment.log(self.run.stage, text)
                tqdm.write(f"{run.stage}  {text}")
        self.meter, self.earlier, self.started = Meter(), 0.0, time.monotonic()
