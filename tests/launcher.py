"""A process that has imported the scripts and forks one for every request, which saves the seconds that torch takes.

A request is a line of JSON: `{"argv": ...}` starts a run and is answered with its process id, `{"wait": pid}` is
answered with its exit code, negative for a signal. To kill or stop a run, signal its process id.
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

sys.path.insert(0, str(Path(__file__).parents[1]))

import sabotage
import torch

import evaluate_vit  # noqa: F401
import evaluation.report  # noqa: F401
import train_vit_cifar10  # noqa: F401
from training.data import load_dataset
from training.history import new_history
from training.plots import plot_training_curves


def warm_up() -> None:
    """Read the data and draw once, so that the runs have what this imports and caches from the start.

    No autograd here: it starts threads, and a fork does not copy threads.
    """
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
    argv: list[str], out: str, err: str, cwd: str, sabotages: list[list[Any]], env: dict[str, str],
    file_size: int | None, user: int | None,
) -> NoReturn:  # fmt: skip
    """Run a script as `python ARGV` does, with files of at most `file_size` bytes, as the user with the id `user`.

    `env` is added to the environment; `out` and `err` are appended to.
    """
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for path, descriptor in ((out, 1), (err, 2)):  # not for reading too: a pipe would have a reader for ever
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):  # the launcher's own believe that they are pipes
        by_lines = name == "stderr" or os.isatty(descriptor)
        setattr(sys, name, open(descriptor, "w", 1 if by_lines else -1, closefd=False))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.update(env)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    torch.set_num_threads(1)  # also makes torch's other thread pool anew: the fork did not copy its threads
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
