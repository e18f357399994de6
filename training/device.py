"""Where to compute, and in which precision: `auto` looks at the hardware before it chooses."""

import contextlib
import ctypes
import logging
import os
import shutil
from typing import Any

import torch
from torch import nn

from training import distributed
from training.errors import UsageError

FLOPS_PER_CORE = 1e11  # a second, roughly, of a CPU core in a training step
SECONDS_THAT_PAY = 1800  # of training: compiling takes a minute, and saves a tenth


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


def select_compile(wanted: bool | str, work: float, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """auto, True or False to whether to compile, and the reason for it; `work` is the run's floating-point operations.

    UsageError where it was asked for and can't be done.
    """
    if wanted == "auto" and (device.type != "cpu" or dtype != torch.bfloat16):
        return False, "no: found faster in bf16 on a CPU only; try --compile"
    if wanted == "auto" and work < SECONDS_THAT_PAY * FLOPS_PER_CORE * distributed.num_cpus():
        return False, "no: it takes a minute, too long for a run this short"
    if not wanted:
        return False, "no: as asked for"
    problem = why_no_compiling(device)
    if problem and wanted != "auto":
        raise UsageError(f"--compile: {problem}. Install what is missing, or leave it out")
    if problem:
        return False, f"no: {problem}"
    why = "a long run gets faster by it" if wanted == "auto" else "as asked for"
    return True, f"yes: {why}; the first steps take up to a minute"


def why_no_compiling(device: torch.device) -> str:
    """What keeps torch.compile from working here, found by compiling one addition; empty where it works."""
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        return "there is no C++ compiler (g++ or clang++)"
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a GPU that nobody asked for
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever it is, it would be the same in the first step
        return f"torch.compile does not work here ({str(error).strip().splitlines()[0]})"
    return ""


def compile_model(model: nn.Module, device: torch.device) -> nn.Module:
    """The model behind torch.compile, sharing its weights; on a CPU it draws the same random numbers as without."""
    on_cpu: Any = {"fallback_random": True} if device.type == "cpu" else None
    return torch.compile(model, dynamic=False, options=on_cpu)  # pyright: ignore[reportReturnType]


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next one: the system takes long to give it out anew.

    (mallopt(3): memory is returned above M_TRIM_THRESHOLD, and blocks above M_MMAP_THRESHOLD are never kept.)
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
