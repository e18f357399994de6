"""What keeps a run alive: its locked folder, saving and resuming, signals, history, TensorBoard, progress."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from training import BEGAN, checkpoint, console, distributed, history, provenance
from training.data.contact_sheet import save_contact_sheet
from training.data.loader import ImageLoader
from training.engine import EpochSums
from training.errors import RunError, Terminated
from training.run_folder import RunFolder
from training.signals import DeferredSignals, StopRequested, silence_lost_terminal
from training.tensorboard import require_tensorboard, tensorboard

NUM_STATES = 2  # numbers, at most, that an optimizer keeps for each weight
DRAW_EVERY = 30  # seconds, at least, from one drawing of the curves to the next: half a second of work


class Run:
    """A run of a config, new or resumed. Rank 0 has its folder; the other ranks write nothing.

        with Run(config, resume, overwrite, extend) as run:     # locks the folder and reads what to go on from
            run.begin(model, optimizer, ...)                    # loads that, or begins anew
            for epoch in run.epochs():
                train_one_epoch(..., run)                       # which calls sync_due and after_sync
                run.finish_epoch(evaluate(...))

    A Ctrl-C or SIGTERM after `begin` lets the step end, saves, and prints the command that goes on. A closed output
    pipe (`| head`) ends the run too, with a save only where there is one process.
    """

    def __init__(self, config: Any, resume: bool, overwrite: bool, extend: bool):
        self.config, self.resume, self.overwrite, self.extend = config, resume, overwrite, extend
        self.held = ExitStack()
        self.drawn_at = time.perf_counter()
        self.folder: RunFolder | None = None
        self.saved: dict[str, Any] | None = None
        self.board: Any = None
        self.begun = False  # whether --resume finds this run in the folder
        self.over = False  # whether its last epoch is done and saved: the model may be another from then on
        self.complete = True  # whether the last save wrote all files
        self.signals = DeferredSignals()

    def __enter__(self) -> Self:
        if self.config.tensorboard:
            require_tensorboard()
        if distributed.rank() == 0:
            with ExitStack() as held:  # left at once where the folder's run is refused
                folder = held.enter_context(RunFolder(Path(self.config.output_dir), console.print_warning))
                self.saved = self._choose_start(folder)
                self.folder, self.held = folder, held.pop_all()
        return self

    def _choose_start(self, folder: RunFolder) -> dict[str, Any] | None:
        """The checkpoint to go on from, None for a new run; UsageError where the folder's run must not be touched."""
        saved = None
        if distributed.was_restarted() and any(folder.path.glob("last*.pth")):  # by torchrun: go on with its run
            with suppress(RunError):  # nothing in it that any run can go on from
                saved = folder.load_last()
            launch = saved and saved["machine"]["launch"]
            began_it = launch is not None and launch == distributed.launch_id()
            self.resume, self.overwrite = self.resume or began_it, self.overwrite and not began_it
        if not (self.resume or self.overwrite):
            folder.refuse_used()
        if not self.resume:
            return None
        saved = saved or folder.load_last()
        config = provenance.resumed_config(self.config, saved, self.extend)  # now, before any data is read
        provenance.refuse_other_settings(saved, config, provenance.extends(config, saved, self.extend))
        return saved

    def __exit__(self, _, error: BaseException | None, __) -> None:
        with self.held:
            lost_reader = isinstance(error, BrokenPipeError) and self.begun  # of the output, as with `| head`
            if lost_reader:
                silence_lost_terminal()
            if lost_reader or isinstance(error, StopRequested):
                together = not lost_reader or distributed.world_size() == 1  # else the other ranks are in a step
                saved = self.over or (together and self.save({}))
                where = f"saved in {self.config.output_dir}" if saved else "this could not be saved"
                said = f"{where}. Go on with: {provenance.resume_command(sys.argv)}"
                if isinstance(error, StopRequested):
                    raise error.as_exit(said) from None
                if self.signals.pending:  # Ctrl-C has ended the reader too
                    raise self.signals.exit_of(self.signals.pending)(said) from None
                raise RunError(f"nobody reads the output any more; {said}") from None
            if isinstance(error, KeyboardInterrupt | Terminated) and not self.begun:
                raise type(error)("Nothing new was saved yet: give the same command again") from None
            if error:
                raise error  # for what is held to see it

    def broadcast_start(self) -> Any:
        """Give the checkpoint to go on from to all ranks. Returns the config with its warmup and small images."""
        self.saved = distributed.broadcast(self.saved)
        if self.saved:
            self.config = provenance.resumed_config(self.config, self.saved, self.extend)
        return self.config

    def begin(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, loader: ImageLoader, create_model: Callable[..., Any],
        metadata: dict[str, Any], machine: dict[str, Any],
    ) -> None:  # fmt: skip
        """Load what was saved, or begin anew; write what a run has before its first step.

        UsageError where the saved run is another than `metadata` describes, RunError where the disk has no room.
        """
        saved, self.loader, self.metadata, self.machine = self.saved, loader, metadata, machine
        self.device, self.split = loader.images.device, metadata["split"]
        self.state = checkpoint.TrainingState(model, optimizer, self.device, history.new_history(self.split))
        longer = bool(saved and provenance.extends(self.config, saved, self.extend))
        if saved:
            provenance.refuse_other_run(saved, metadata, create_model)
            left = saved["epoch"] < self.config.num_epochs
            moved = bool(self.folder) and provenance.warn_of_other_machine(saved["machine"], machine) and left
            metadata["machines_before"] = [*saved.get("machines_before", []), *([saved["machine"]] if moved else [])]
            metadata["extended_from"] = [*saved["extended_from"], *([saved["config"]["num_epochs"]] if longer else [])]
            self.state.load_state_dict(saved)
        start = self._resumable()
        self.held.enter_context(self.signals)
        if self.folder:
            self._begin_in_folder(self.folder, model, start, new=not saved or longer)
            save_contact_sheet(loader, self.folder.path / "augmented_images.png")
            if self.config.tensorboard:
                self.board = self.held.enter_context(tensorboard(self.folder.path, self.state.epoch))

    def _begin_in_folder(self, folder: RunFolder, model: nn.Module, start: dict[str, Any], new: bool) -> None:
        num_kept = 2 + math.ceil(self.config.num_epochs / self.config.save_every)  # best, final and those between
        folder.require_space(model, NUM_STATES, num_kept, resumed=not self.overwrite)
        if self.overwrite:
            folder.move_aside()
        if new:  # an extended run is new in this: its settings are not those of its folder
            checkpoint.save(folder.path / "last.pth", start)  # a disk that takes none of it is better known now
        self.begun = True
        known = history.read_object(folder.path / "config.json")  # damaged, or from before an --extend?
        is_old = "config" not in known or known.get("extended_from", []) != self.metadata["extended_from"]
        if new or is_old or self.metadata["machines_before"]:
            history.write_json(folder.path / "config.json", {**self.metadata, **self.machine})
        history.write_json(folder.path / "training_history.json", start["history"])  # it may be behind, or damaged

    @property
    def sums(self) -> EpochSums:
        """What the current epoch has come to so far."""
        return self.state.sums

    @property
    def steps_done(self) -> int:
        """Steps of the whole run so far."""
        return self.state.epoch * len(self.loader) + self.sums.step

    @property
    def cost(self) -> dict[str, Any]:
        """What the finished epochs took: images, steps, seconds, and before them, for each start, seconds to begin."""
        epochs, seconds = self.state.history["epoch_time"], self.state.startup_seconds
        return {
            "images_seen": len(epochs) * len(self.loader.images), "steps": self.steps_done, "seconds": sum(epochs),
            "startup_seconds": seconds,
        }  # fmt: skip

    def epochs(self) -> Iterator[int]:
        """The numbers, from 0, of the epochs that are left, with the loader set to the place where each goes on."""
        loader, first, last, small = self.loader, self.state.epoch, self.config.num_epochs, self.config.small_epochs
        if first < last:
            self.state.startup_seconds.append(time.perf_counter() - BEGAN)
        for epoch in range(first, last):
            console.print_epoch_header(epoch + 1, last)
            loader.set_epoch(epoch, self.sums.step)
            self.progress = console.TrainProgress(
                len(loader), len(loader.images), self.sums.step,
                epochs_left=last - epoch if epoch == first else 0, larger_left=last - small if epoch < small else 0,
            )  # fmt: skip
            self.held.callback(self.progress.close)
            self.shown, self.synced_at = self.sums.num_images, time.perf_counter()
            yield epoch

    def sync_due(self, step: int) -> bool:
        """On a CPU each step. On a GPU, which would stand still at each, every 100th, and when a signal has come.

        On both this process's second step too: the speed is measured from there on.
        """
        second = step - self.progress.batches_done == 2
        return self.device.type == "cpu" or second or step % console.LINE_EVERY == 0 or self.signals.came() > 0

    def after_sync(self) -> None:
        """Show the progress, stop if a signal asks for it, save if the last save is long ago."""
        self.signals.check()  # first, because Ctrl-C may have ended the reader of the output too
        metrics, num_images = self.sums.metrics(), self.sums.num_images - self.shown
        self.progress.update(self.sums.step, num_images, metrics["train_loss"], metrics["train_acc"], metrics["lr"])
        self.shown, self.synced_at = self.sums.num_images, time.perf_counter()
        if distributed.max_over_ranks(bool(self.folder and self.folder.save_due(self.config.save_minutes))):
            self.save({})

    def finish_epoch(self, results: dict[str, float]) -> None:
        """Put the epoch's metrics, with the `results` of its evaluation, into the history; save and show them."""
        self.progress.close()
        metrics = self.sums.metrics() | results | {"epoch": self.state.epoch + 1}
        metrics["epoch_time"] = self.sums.seconds + time.perf_counter() - self.synced_at
        accuracy = f"{self.split}_acc"
        new_best = metrics[accuracy] > max(self.state.history[accuracy], default=-1.0)
        grad_norm = self.sums.grad_norm / self.sums.step
        self.state.finish_epoch(metrics)
        self.complete = self.save(self._weights_due(new_best))
        if self.board:
            self.board.write_epoch(metrics, grad_norm)
        last_epoch = self.state.epoch == self.config.num_epochs
        if self.folder and (self.complete or not last_epoch):  # a run that has all its epochs has all its weights
            with self.folder.tolerating_disk_errors():
                history.write_json(self.folder.path / "training_history.json", self.state.history)
                if last_epoch or time.perf_counter() - self.drawn_at > DRAW_EVERY:
                    self.draw_curves()
        console.print_summary(metrics, self.split, new_best, self.complete)

    def _weights_due(self, new_best: bool) -> dict[str, dict[str, Any]]:
        """The files of weights to write at the end of this epoch, by name."""
        state, last_epoch = self.state, self.state.epoch == self.config.num_epochs
        due = {
            "best_model.pth": new_best,
            f"checkpoint_epoch_{state.epoch}.pth": last_epoch or state.epoch % self.config.save_every == 0,
            "final_model.pth": last_epoch,
        }
        weights = {**self.metadata, "epoch": state.epoch, "model": state.model.state_dict(), "history": state.history}
        chosen_on = {"best_model.pth": self.split}
        return {name: {**weights, "chosen_on": chosen_on.get(name)} for name in due if due[name]}

    def _resumable(self) -> dict[str, Any]:
        """What --resume goes on from. A collective call: all ranks make it."""
        return {**self.metadata, "machine": self.machine, **self.state.state_dict()}

    def save(self, files: dict[str, dict[str, Any]]) -> bool:
        """Write these files and last.pth. Returns whether the disk took all of them. A collective call."""
        files = {**files, "last.pth": self._resumable()}
        return self.folder.save(files) if self.folder else True

    def finish(self) -> None:
        """Print what the run reached. RunError where the disk did not take all of it."""
        self.signals.restore()  # all is saved: what comes after acts at once
        if not self.complete:
            raise RunError(f"not all of the run could be saved in {self.config.output_dir}: make room, then --resume")
        if self.folder and self.saved and self.saved["epoch"] == self.config.num_epochs:
            console.say(f"\nThis run has all its {self.config.num_epochs} epochs already.")
            self.draw_curves()
        self.over = True
        console.print_best(self.state.history, self.split, self.config.output_dir)
        if number := self.signals.came():
            raise self.signals.exit_of(number)

    def draw_curves(self) -> None:
        """training_curves.png, of all epochs so far."""
        from training.plots import plot_training_curves  # late: it takes seconds, and the first step waits

        if self.folder:
            path = self.folder.path
            plot_training_curves(self.state.history, path / "training_curves.png", path.name)
            self.drawn_at = time.perf_counter()
