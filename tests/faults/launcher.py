"""A process that has all of the scripts imported and forks a real run of one for every request: no wait for torch.

It reads a JSON line for each request: `{"argv": ...}` starts a run and is answered with its process id, `{"wait": pid}`
with its exit code, negative for a signal. The runs are killed and stopped by their process ids, not through here.
"""

import json
import os
import resource
import runpy
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parents[2]))

import sabotage
import torch

import evaluate_vit  # noqa: F401
import evaluation.report  # noqa: F401
import train_vit_cifar10  # noqa: F401
from training.data import load_dataset
from training.history import new_history
from training.plots import plot_training_curves


def warm_up() -> None:
    """Read the data and draw once: what that imports and caches, the runs have from the start. No autograd: it starts
    threads, which do not survive a fork."""
    load_dataset("digits", "", img_size=16)
    records = {name: [1.0] for name in new_history("test")}
    with tempfile.TemporaryDirectory() as folder:
        plot_training_curves(records, Path(folder) / "curves.png", "run")


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            become(**request)
        print(answer, flush=True)


def become(
    argv: list[str], out: str, err: str, cwd: str, sabotages: list[list[Any]], file_size: int | None, user: int | None
) -> NoReturn:
    """Run a script as `python ARGV` does. `file_size` limits its files, `user` is whom it runs as."""
    for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    torch.set_num_threads(1)  # renews torch's other thread pool too, before two threads of ours find it forked away
    code = 1
    try:
        for name, *arguments in sabotages:
            getattr(sabotage, name)(*arguments)
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warm_up()
    serve()
