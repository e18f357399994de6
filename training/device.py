"""Where to compute, and in which precision: `auto` looks at the hardware before it chooses."""

import contextlib
import os
import shutil

import torch
from torch import nn

from training.errors import UsageError


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


def compile_model(model: nn.Module, device: torch.device) -> nn.Module:
    """The model behind torch.compile, sharing its weights. UsageError where there is no compiler to do it with."""
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UsageError("--compile needs a C++ compiler (g++ or clang++) and finds none: install one, or leave it out")
    return torch.compile(model)  # pyright: ignore[reportReturnType]
