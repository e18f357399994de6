"""A training script in a process of its own: started or resumed, watched through its files, ended with its parent."""

import json
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
from training.provenance import FREE_ON_RESUME

ROOT = Path(__file__).parents[1]
LOOK_EVERY = 0.5  # seconds between looks at a run


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

    @property
    def epochs_done(self) -> int:
        records = history.read(self.folder / "training_history.json")
        return len(records["epoch"]) if records else 0

    @property
    def share_done(self) -> float:
        """The share of the training's arithmetic: an epoch with images of half the size costs a quarter."""
        done, small = self.epochs_done, self.config.small_epochs
        return (done - 0.75 * min(done, small)) / self.config.full_epochs

    @property
    def finished(self) -> bool:
        """Whether the folder holds this run with all its epochs, and its test where one is due.

        UsageError where it holds a run of other settings.
        """
        try:
            saved = json.loads((self.folder / "config.json").read_text())["config"]
            saved = {**type(self.config)().to_dict(), **saved}  # a setting that it does not know had its default
        except (OSError, ValueError, KeyError, TypeError):
            return False
        planned = self.config.to_dict()
        other = [name for name in planned if name not in FREE_ON_RESUME and saved[name] != planned[name]]
        if other:
            changes = ", ".join(f"{name} is {saved[name]} there and {planned[name]} here" for name in other)
            raise UsageError(f"{self.folder} holds another run ({changes}): choose another --output-dir")
        tested = not self.config.val_size or (self.folder / "test_result.json").exists()
        return self.epochs_done == self.config.num_epochs and tested

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
        if self.process and not self.ended():
            self.process.send_signal(number)

    def wait(self) -> None:
        if self.process:
            self.process.wait()

    @property
    def failed(self) -> bool:
        """Whether it has ended in any other way than finished and saved."""
        return bool(self.process and self.process.returncode) or not self.finished

    def outcome(self) -> str:
        """What became of it, in a line."""
        code = self.process.returncode if self.process else 0
        if self.failed:
            return f"FAILED {self.name} in {self.folder}, exit code {code}: {self.last_line()}; see {self.log}"
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
            if found := re.search(r"(\d+) images/s: about", self.log.read_text(errors="replace")):
                return float(found[1])
            records = history.read(self.folder / "training_history.json")
            if records and records["epoch"]:  # the first epoch was too short to be timed so
                return records["images_per_second"][0]
            if ended:
                raise RunError(f"{self.name} could not be measured: {self.last_line()}")
            time.sleep(LOOK_EVERY)
