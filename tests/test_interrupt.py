"""Ctrl-C while a script is still importing torch ends it at once, without a traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.errors import exit_codes

ROOT = Path(__file__).parent.parent
PATIENCE = 60  # seconds, for what should take one or two
STAND_IN = """import pathlib, sys, time
pathlib.Path("importing").touch()
while not pathlib.Path("go on").exists():
    time.sleep(0.01)
sys.exit(7)
"""


def start_importing(script: str, module: str, folder: Path, **options) -> subprocess.Popen:
    """Start a script, and wait until it imports `module`: a stand-in that Python finds first, and that waits too."""
    (folder / f"{module}.py").write_text(STAND_IN)
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, ROOT / script, "--help"]
    process = subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True, **options)
    end = time.monotonic() + PATIENCE
    while not (folder / "importing").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("evaluate_vit.py", "tyro"), ("evaluate_vit.py", "torch"), ("evaluate_vit.py", "sklearn"),  # in this order
        ("compare_runs.py", "tyro"), ("compare_runs.py", "torch"),
        ("train_vit_cifar10.py", "torch"), ("train_resnet_cifar10.py", "torch"), ("export_vit.py", "torch"),
        ("run_experiments.py", "torch"),
    ],
)  # fmt: skip
def test_an_interrupt_while_a_script_imports_prints_no_traceback(script, module, tmp_path):
    process = start_importing(script, module, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=PATIENCE)[1] == ""
    assert process.returncode in (-signal.SIGINT, 130)


@pytest.mark.parametrize(
    "script",
    [
        "evaluate_vit.py", "compare_runs.py", "train_vit_cifar10.py", "train_resnet_cifar10.py", "export_vit.py",
        "run_experiments.py",
    ],
)  # fmt: skip
def test_an_ignored_interrupt_stays_ignored(script, tmp_path):
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731 as nohup and `&` in a script do
    process = start_importing(script, "torch", tmp_path, preexec_fn=ignore)
    process.send_signal(signal.SIGINT)
    (tmp_path / "go on").touch()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 7


@pytest.mark.parametrize(
    ("before", "inside"),
    [(signal.SIG_DFL, signal.default_int_handler), (signal.SIG_IGN, signal.SIG_IGN)],
)
def test_from_main_on_an_interrupt_is_a_keyboard_interrupt_unless_it_is_ignored(before, inside):
    previous = signal.signal(signal.SIGINT, before)
    try:
        with exit_codes():
            assert signal.getsignal(signal.SIGINT) == inside
    finally:
        signal.signal(signal.SIGINT, previous)
