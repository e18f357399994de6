"""Where to compute, and in which precision: `auto` looks at the hardware before it chooses."""

import contextlib
import ctypes
import logging
import os
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException  # torch has no public name for it

from training import distributed
from training.errors import RunError, UsageError, first_line

FLOPS_PER_CORE = 1e11  # a second, roughly, of a CPU core in a training step
SECONDS_THAT_PAY = 1800  # of training: compiling takes a minute, and saves some 7 %


def select_device(name: str) -> torch.device:
    """auto, cpu, cuda or mps to a device; UsageError for one that this machine lacks."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in found.items() if there)
    if not found[name]:
        raise UsageError(f"--device {name}: torch finds no such device here; use --device auto")
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # one GPU for each of several processes
        number = int(os.environ["LOCAL_RANK"])
        if number >= torch.cuda.device_count():
            raise UsageError(f"there are {torch.cuda.device_count()} GPUs: start no more processes than that")
        torch.cuda.set_device(number)
        return torch.device(name, number)
    return torch.device(name)


def select_precision(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """auto, fp32 or bf16 to a dtype for the matrix products, and the reason for it."""
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[name], "as asked for"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private: another torch may lack them
        fast = any(getattr(torch.cpu, check, bool)() for check in checks)
    else:
        fast = False
    return (torch.bfloat16, f"the {device.type} has bf16 arithmetic") if fast else (
        torch.float32, f"the {device.type} has no bf16 arithmetic torch knows of",
    )  # fmt: skip


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Products in `dtype`, what is summed up over many numbers in fp32; no change for fp32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def select_compile(
    wanted: bool | str, work: float, device: torch.device, dtype: torch.dtype, before: bool | None = None
) -> tuple[bool, str]:
    """auto, True or False to whether to compile, and the reason for it; the same in all processes.

    `work` is the run's floating-point operations; a resumed run, which compiled or did not `before`, stays with that.
    UsageError where it was asked for and can't be done.
    """
    if not wanted:
        return False, "no: --compile is off"
    why = "as asked for"
    if wanted == "auto":
        why = "a long run gets faster by it" if before is None else "as the run began"
        if before is False:
            return False, f"no: {why}"
        if before is None and (device.type != "cpu" or dtype != torch.bfloat16):
            return False, "no: found faster in bf16 on a CPU only; try --compile"
        if before is None and work < SECONDS_THAT_PAY * FLOPS_PER_CORE * min(2, distributed.num_cpus()):
            return False, "no: it takes a minute, too long for a run this short"
    problem = next(filter(None, distributed.gather(why_no_compiling(device))), "")  # of any process
    if problem and wanted != "auto":
        raise UsageError(f"--compile: {problem}. Install what is missing, or leave it out")
    return not problem, f"no: {problem}" if problem else f"yes: {why}; the first steps take up to a minute"


def why_no_compiling(device: torch.device) -> str:
    """What keeps torch.compile from working here, found by compiling one addition; empty where it works."""
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        return "there is no C++ compiler (g++ or clang++)"
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a GPU that nobody asked for
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever it is, it would be the same in the first step
        return f"torch.compile does not work here ({first_line(error)})"
    return ""


@contextlib.contextmanager
def compile_errors() -> Iterator[None]:
    """Inside it, what torch.compile can't do with the model is a RunError, in place of pages about its inside."""
    try:
        yield
    except TorchDynamoException as error:
        raise RunError(
            f"torch.compile failed ({first_line(error)}); --resume --no-compile goes on without it"
        ) from None


class Compiled(nn.Module):
    """The model, sharing its weights, behind torch.compile for batches of `batch_size`, and as it is for any other.

    An epoch's last, smaller batch is not worth a minute of compiling, and torch 2.15 fails on one of a single image. On
    a CPU the compiled model draws the same random numbers as the other.
    """

    def __init__(self, model: nn.Module, batch_size: int, device: torch.device):
        super().__init__()
        on_cpu: Any = {"fallback_random": True} if device.type == "cpu" else None
        self.model, self.batch_size = model, batch_size
        self.compiled = torch.compile(model, dynamic=False, options=on_cpu)

    def forward(self, images: Tensor) -> Tensor:
        return (self.compiled if len(images) == self.batch_size > 1 else self.model)(images)


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next one: the system takes long to give it out anew.

    mallopt(3): memory is returned above M_TRIM_THRESHOLD, and blocks above M_MMAP_THRESHOLD are never kept.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt and (mallopt(-3, 2**30) or mallopt(-3, 2**25)):  # M_MMAP_THRESHOLD; before glibc 2.35, 32 MiB at most
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
