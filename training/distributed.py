"""Several processes that train one model: under torchrun, or started here. With one process all of this does nothing.

Each process is a rank; rank 0 writes and prints. Environment variables are torchrun's: RANK, LOCAL_RANK, WORLD_SIZE,
LOCAL_WORLD_SIZE and, after an elastic restart, TORCHELASTIC_RESTART_COUNT.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.parallel import DistributedDataParallel

from training.errors import PeerError, exit_codes

T = TypeVar("T")

LONG_WORK = 1e14  # floating-point operations; below, starting a second process takes longer than it saves
IMAGES_PER_PROCESS = 32  # of a step, at least: smaller products are slower
SECONDS_TO_LEAVE = 10  # after which a process that does not end is killed

connected = threading.Event()


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def was_restarted() -> bool:
    """Whether torchrun has started these processes anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def launch() -> str | None:
    """What torchrun calls this launch of processes, through all their restarts."""
    return os.environ.get("TORCHELASTIC_RUN_ID")  # the port may be another after a restart


def num_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_num_processes(batch_size: int, work: float, device: torch.device) -> int:
    """What is fastest on this machine's CPU for so many images a step and floating-point operations in all.

    Two processes of one thread beat two threads of one process (results/LOG.md): what one thread does alone, such as
    drawing random numbers, is then done twice at a time.
    """
    if device.type != "cpu" or work < LONG_WORK:
        return 1
    return max(1, min(2, num_cpus(), batch_size // IMAGES_PER_PROCESS))


@contextlib.contextmanager
def processes(number: int, device: torch.device, run: Callable[..., None], *args: Any) -> Iterator[None]:
    """Inside it, the other processes of the run are there, to be connected with: torchrun's, or `number` - 1 of ours.

    Ours call `run(*args)`, and end with this one. PeerError where one of them fails.
    """
    others: list[BaseProcess] = []
    group: dict[str, str] = {}
    if number > 1 and "RANK" not in os.environ:
        group = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        group |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
        context = process_context(device)
        ports: list[Connection] = []
        for other in range(1, number):
            env = {**group, "RANK": str(other), "LOCAL_RANK": str(other)}
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=run_as_rank, args=(env, receiver, os.getpid(), run, args), daemon=True)
            process.start()
            others.append(process)
            ports.append(sender)
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # lives as long as this frame
        for port in ports:
            port.send(str(store.port))
        group |= {"MASTER_PORT": str(store.port), "RANK": "0", "LOCAL_RANK": "0"}
        os.environ.update(group)
        connected.clear()
        threading.Thread(target=watch_others, args=(others,), daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise PeerError("another process of this run failed; what was saved is kept: go on with --resume") from None
        raise
    finally:
        connected.set()
        initialized = dist.is_initialized()
        if initialized:
            dist.destroy_process_group()
        for process in others:
            process.terminate() if initialized else process.kill()  # it waits for a connection, and hears no signal
            process.join(SECONDS_TO_LEAVE)
            process.kill()
        for name in group:
            del os.environ[name]


def process_context(device: torch.device) -> ForkContext | SpawnContext:
    """How to start another process: as a copy of this one, in no time, or anew where a copy would not work.

    What macOS's libraries and a GPU's keep in a process does not survive being copied, nor do OpenMP's threads: copy
    before they are there. Counting FLOPs starts autograd's threads wherever there is a GPU, used or not.
    """
    if sys.platform == "linux" and device.type == "cpu" and not torch.accelerator.is_available():
        return multiprocessing.get_context("fork")
    return multiprocessing.get_context("spawn")


def run_as_rank(
    env: dict[str, str], port: "Connection[str, str]", parent: int, run: Callable[..., None], args: tuple[Any, ...]
) -> None:
    """What another process does from its start to its end."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a copy would have the first process's handler after its end too
    os.environ.update(env)
    with exit_codes():
        threading.Thread(target=watch_parent, args=(parent,), daemon=True).start()
        os.environ["MASTER_PORT"] = port.recv()
        run(*args)


def watch_others(others: list[BaseProcess]) -> None:
    """End this process when another dies before they are connected; afterwards they notice each other's end at once."""
    while not connected.wait(1):
        if not all(process.is_alive() for process in others):
            print("error: another process of this run ended before the run began: start it again", file=sys.stderr)
            for process in others:
                process.kill()
            os._exit(1)


def watch_parent(parent: int) -> None:
    """End this process when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextlib.contextmanager
def rank_0_first(device: torch.device) -> Iterator[None]:
    """Rank 0 does what is inside, then all are connected, then the others do it: it may be an error, or a download."""
    if rank() == 0:
        yield
    if world_size() > 1:
        store, *_ = next(iter(rendezvous("env://")))  # torchrun keeps it when it starts the processes anew
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store),
            rank=rank(),
            world_size=world_size(),
        )
        connected.set()
        torch.set_num_threads(max(1, num_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    if rank() > 0:
        yield


def spread(model: nn.Module, device: torch.device) -> nn.Module:
    """The model behind DistributedDataParallel, which averages the gradients over the processes; alone, the model."""
    if world_size() == 1:
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of the class token, where a rank has one image
    return DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )


def seed_dropout(seed: int) -> None:
    """Have every process draw dropout of its own, from a weight initialization that was the same in all."""
    if rank():
        torch.manual_seed(int(np.random.SeedSequence([seed, rank()]).generate_state(1, np.uint64)[0]))


def broadcast(content: T) -> T:
    """What rank 0 gives, to all; tensors on the CPU and plain values."""
    if world_size() == 1:
        return content
    box = [content]
    dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def gather(content: T) -> list[T]:
    """What every rank gives, in the order of ranks."""
    if world_size() == 1:
        return [content]
    boxes: list[Any] = [None] * world_size()
    dist.all_gather_object(boxes, content)
    return boxes


def add_up(values: Tensor) -> Tensor:
    """The sums over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def highest(value: int) -> int:
    """The highest that any rank gives, so that all decide alike."""
    if world_size() == 1:
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)
