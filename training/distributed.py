"""Several processes that train one model, started by torchrun. With one process all of this does nothing.

Each process is a rank; rank 0 writes and prints. Environment variables are torchrun's: RANK, LOCAL_RANK, WORLD_SIZE,
LOCAL_WORLD_SIZE and, after an elastic restart, TORCHELASTIC_RESTART_COUNT.
"""

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.parallel import DistributedDataParallel

from training.errors import PeerError, UsageError

T = TypeVar("T")
PARENT = "STOP_WITHOUT_PARENT"  # environment variable: the number of the process without which this one should end


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


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Inside it, this process is one of torchrun's, or of a suite of experiments; PeerError where another one fails."""
    if parent := os.getppid() if under_torchrun() else int(os.environ.get(PARENT, 0)):
        threading.Thread(target=stop_without_parent, args=(parent,), daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise PeerError("another process of this run failed; what was saved is kept: go on with --resume") from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def stop_without_parent(parent: int) -> None:
    """Send this process SIGTERM once the process that started it is gone. Killed, that one could not do so itself."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def rank_0_first(device: torch.device) -> Iterator[None]:
    """Rank 0 does what is inside, then the others do it, then all are connected.

    A rank waits for the others as long as they take, be it an hour of download. PeerError where another one fails,
    UsageError where the ranks have found devices of different types.
    """
    if world_size() == 1:
        yield
        return
    store, *_ = next(iter(rendezvous("env://")))  # torchrun's own, which outlives a restart of its processes
    store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    if rank() > 0:
        wait_for(store, ["rank 0"])
    try:
        yield
    except BaseException:
        store.set("failed", "")  # torchrun stops the other ranks on this machine only
        raise
    store.set(f"rank {rank()}", device.type)
    everyone = [f"rank {number}" for number in range(world_size())]
    wait_for(store, everyone)
    devices = sorted({store.get(name).decode() for name in everyone})
    if len(devices) > 1:
        raise UsageError(f"the processes found different devices ({', '.join(devices)}): give one with --device")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=rank(), world_size=world_size())
    share_cores()


def wait_for(store: PrefixStore, names: list[str]) -> None:
    """Wait until all names are in the store; the store's own waiting would end with an error after minutes."""
    while not store.check(names):
        if store.check(["failed"]):
            raise PeerError("another process of this run failed before the run began: start it again")
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
