"""A training script in a process of its own: started or resumed, watched through its files, ended with its parent."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import distributed, history
from training.errors import RunError, UsageError, first_line
from training.files import create_folder
from training.provenance import FREE_ON_RESUME, PRECISIONS

ROOT = Path(__file__).parents[1]
LOOK_EVERY = 0.5  # seconds between looks at a run


def what_counts(config: Any) -> dict[str, Any]:
    """The settings that tell a run from others: what it is and learns from, and a precision that was asked for."""
    free = FREE_ON_RESUME if config.precision == "auto" else set(FREE_ON_RESUME) - {"precision"}
    return {name: value for name, value in config.to_dict().items() if name not in free}


@dataclass
class Job:
    """One run: a script, its flags, the settings that they make, and its folder. Its console goes to `log`."""

    name: str
    script: str
    flags: list[str]
    config: Any
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def epochs_done(self) -> int:
        """Epochs that its history has, which is read anew."""
        records = history.read(self.folder / "training_history.json")
        return len(records["epoch"]) if records else 0

    def share_done(self) -> float:
        """The share of the training's arithmetic that is done."""
        return self.config.full_epochs(self.epochs_done()) / self.config.full_epochs(self.config.num_epochs)

    def is_finished(self) -> bool:
        """Whether the folder holds this run with all its epochs, and its test where one is due.

        UsageError where it holds a run of other settings.
        """
        about = history.read_object(self.folder / "config.json")
        if not isinstance(about.get("config"), dict):
            return False
        saved = {**type(self.config)().to_dict(), **about["config"]}  # one that it does not know had its default
        if saved["precision"] == "auto":
            saved["precision"] = PRECISIONS.get(about.get("precision", ""), "auto")
        planned = what_counts(self.config)
        changes = [
            f"{name} is {saved[name]} there and {value} here" for name, value in planned.items() if saved[name] != value
        ]
        if about.get("extended_from"):
            changes.append("it was extended, so its learning rates are others")
        if changes:
            raise UsageError(f"{self.folder} holds another run ({', '.join(changes)}): choose another --output-dir")
        tested = not self.config.val_size or (self.folder / "test_result.json").exists()
        return self.epochs_done() == self.config.num_epochs and tested

    def start(self, threads: int) -> None:
        """Start the script, or let it go on with what is in the folder. RunError where it can't be started there."""
        create_folder(self.folder.parent)
        resume = ["--resume"] if any(self.folder.glob("last*.pth")) else []
        try:
            with open(self.log, "ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, str(ROOT / self.script), *self.flags, "--output-dir", str(self.folder), *resume],
                    env=os.environ | {"OMP_NUM_THREADS": str(threads), distributed.PARENT: str(os.getpid())},
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,  # Ctrl-C is for the parent, which passes it on
                )  # fmt: skip
        except OSError as error:
            raise RunError(f"can't start it with its console in {self.log}: {first_line(error)}") from None

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal: at SIGTERM it saves and ends."""
        if self.process:  # which may have ended: then nothing is sent
            self.process.send_signal(number)

    def wait(self) -> None:
        if self.process:
            self.process.wait()

    @property
    def failed(self) -> bool:
        """Whether it has ended in any other way than finished and saved."""
        return bool(self.process and self.process.returncode) or not self.is_finished()

    def outcome(self) -> str:
        """What became of it, in a line."""
        code = self.process.returncode if self.process else 0
        if self.failed:
            how = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:  # as the system does where the memory runs out
                how += " (out of memory? fewer runs side by side need less)"
            return f"FAILED {self.name} in {self.folder}, {how}: {self.last_line()}; see {self.log}"
        records: dict[str, Any] = history.read(self.folder / "training_history.json") or {}
        split = history.monitored_split(records)
        return f"done {self.folder}: best {split} accuracy {max(records[f'{split}_acc']):.2f}%"

    def last_line(self) -> str:
        """The last line of its console: the error of a run that failed."""
        lines = self.log.read_text(errors="replace").strip().splitlines() or ["no output"]
        return lines[-1].removeprefix("error: ")

    def first_speed(self) -> float:
        """Wait until its first steps are timed, or it has ended. Returns images a second; RunError if it failed."""
        while True:
            ended = self.ended()
            if found := re.search(r"(\S+) images/s: about", self.log.read_text(errors="replace")):
                return float(found[1])
            records = history.read(self.folder / "training_history.json")
            if records:  # the first epoch was too short to be timed so
                return records["images_per_second"][0]
            if ended:
                raise RunError(f"{self.name} could not be measured: {self.last_line()}")
            time.sleep(LOOK_EVERY)
