"""Several processes that train one model, started by torchrun. With one process all of this does nothing.

Each process is a rank; rank 0 writes and prints. Environment variables are torchrun's: RANK, LOCAL_RANK, WORLD_SIZE,
LOCAL_WORLD_SIZE and, after an elastic restart, TORCHELASTIC_RESTART_COUNT.
"""

import contextlib
import functools
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.parallel import DistributedDataParallel

from training.errors import PeerError, RunError, Terminated, UsageError, first_line

T = TypeVar("T")
PARENT = "STOP_WITHOUT_PARENT"  # environment variable: the number of the process without which this one should end
SECONDS_TO_READ = 3  # that a process which fails gives the others to learn of it


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def was_restarted() -> bool:
    """Whether torchrun has started these processes again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def launch_id() -> str | None:
    """A name that this launch of torchrun keeps through its restarts and shares with no other launch.

    The run id does not do: it is "none" by default, and a user may give it twice. torchrun makes a new folder for the
    logs of each launch, which holds a folder `attempt_N` for each restart.
    """
    folder, attempt, _ = os.environ.get("TORCHELASTIC_ERROR_FILE", "").rpartition("/attempt_")
    return folder if attempt else None


def num_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def store() -> PrefixStore:
    """torchrun's store, on which the processes leave notes before they are connected; PeerError where it is gone."""
    try:
        shared, *_ = next(iter(rendezvous("env://", timeout=timedelta(seconds=30))))  # it is older than this process
    except dist.DistError:
        raise PeerError("torchrun can't be reached: another process of this run has ended") from None
    shared.set_timeout(timedelta(minutes=30))  # torch's own, for what torch waits for
    return PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), shared)  # it outlives a restart


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Inside it, this process is one of torchrun's, or of a suite of experiments; PeerError where another one fails.

    torchrun ends the others on the same machine only. So a process that fails leaves a note, at which they look.
    """
    if parent := os.getppid() if under_torchrun() else int(os.environ.get(PARENT, 0)):
        threading.Thread(target=stop_without_parent, args=(parent,), daemon=True).start()
    if world_size() == 1:
        yield
        return
    store()  # while it is there: an error may come when it is not
    try:
        yield
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower()):
            raise PeerError("another process of this run failed; what was saved is kept: go on with --resume") from None
        if not dist.is_initialized() and not leave_together(error) and isinstance(error, UsageError):
            raise RunError(str(error)) from None  # this machine's first process, which would say it, has not failed
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def leave_together(error: BaseException) -> bool:
    """Leave a note of the error, and wait a moment until the others have read it: torchrun may take its store away.

    Returns whether the first process of this machine ends too.
    """
    ended = [f"ended {number}" for number in range(world_size())]
    first = ended[rank() - int(os.environ.get("LOCAL_RANK", 0))]
    with contextlib.suppress(RuntimeError, KeyboardInterrupt, Terminated):  # the store is gone; a signal ends the wait
        why = first_line(error) if isinstance(error, Exception) else "it was stopped"
        store().compare_set("failed", "", f"process {rank()}: {why}")  # the first note stays
        store().set(ended[rank()], "")
        end = time.monotonic() + SECONDS_TO_READ
        while not store().check(ended) and time.monotonic() < end:
            time.sleep(0.1)
        return store().check([first])
    return False


def stop_without_parent(parent: int) -> None:
    """Send this process SIGTERM once the process that started it is gone. Killed, that one could not do so itself."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def rank_0_first(device: torch.device, shared: dict[str, Any]) -> Iterator[None]:
    """Rank 0 does what is inside, then the others do it, then all are connected.

    A rank waits for the others as long as they take, be it an hour of download. PeerError where another one fails,
    UsageError where the settings that all must share differ, as on two machines with other flags.
    """
    if world_size() == 1:
        yield
        return
    everyone = range(world_size())
    store().set(f"settings {rank()}", json.dumps(shared))
    wait_for([f"settings {number}" for number in everyone])
    found = [json.loads(store().get(f"settings {number}")) for number in everyone]
    for name in shared:
        if len(values := sorted({str(settings[name]) for settings in found})) > 1:
            raise UsageError(f"{name} is not the same in all processes ({', '.join(values)}): give them the same flags")
    if rank() > 0:
        wait_for(["done 0"])
    yield
    store().set(f"done {rank()}", "")
    wait_for([f"done {number}" for number in everyone])
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=PrefixStore("group", store()), rank=rank(), world_size=world_size())
    share_cores()


def wait_for(names: list[str]) -> None:
    """Wait until all names are in the store; its own waiting would end with an error after minutes."""
    while not store().check(names):
        if store().check(["failed"]):
            raise PeerError(f"another process of this run ended before it began: {store().get('failed').decode()}")
        time.sleep(0.1)


def share_cores() -> None:
    """Give each process its share of the machine's cores, unless the user has set OMP_NUM_THREADS.

    torchrun sets it to 1 where the user has not, so torchrun's own environment is what tells.
    """
    try:
        by_user = b"OMP_NUM_THREADS=" in Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:  # not on Linux
        by_user = os.environ.get("OMP_NUM_THREADS", "1") != "1"
    if not by_user:
        torch.set_num_threads(max(1, num_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model behind DistributedDataParallel, which averages the gradients over the ranks; alone, the model."""
    if world_size() == 1:
        return model
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of the class token, where a rank has one image
    return DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )


def seed_dropout(seed: int) -> None:
    """Give every rank dropout of its own; the weights were initialized from the same seed in all."""
    if rank():
        torch.manual_seed(int(np.random.SeedSequence([seed, rank()]).generate_state(1, np.uint64)[0]))


def broadcast(content: T) -> T:
    """What rank 0 gives, to all; tensors on the CPU and plain values."""
    if world_size() == 1:
        return content
    box = [content]
    dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


@torch.no_grad()
def broadcast_buffers(model: nn.Module) -> None:
    """Give all ranks rank 0's buffers: each has computed BatchNorm's statistics from its own share of the images."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


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


def max_over_ranks(value: int) -> int:
    """The largest value of any rank, so that all ranks decide alike."""
    if world_size() == 1:
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)
