"""Where to compute, in which precision, compiled or not: `auto` looks at the hardware before it chooses."""

import contextlib
import ctypes
import logging
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException  # torch has no public name for it

from training import distributed
from training.errors import RunError, UsageError, first_line
from training.optim import REL_POS

PYTHON_H = Path(sysconfig.get_path("include"), "Python.h")
FLOPS_PER_CORE = 1e11  # floating-point operations a second, roughly, of a CPU core in a training step
SECONDS_THAT_PAY = 1800  # of training, from which compiling pays: it takes a minute and saves a tenth


def select_device(name: str) -> torch.device:
    """auto, cpu, cuda or mps to a device; UsageError for one that this machine lacks."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in found.items() if there)
    if not found[name]:
        raise UsageError(f"--device {name}: torch finds no such device here; use --device auto")
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: each process has a GPU of its own
        number = int(os.environ["LOCAL_RANK"])
        if number >= torch.cuda.device_count():
            raise UsageError(f"there are {torch.cuda.device_count()} GPUs: start no more processes than that")
        torch.cuda.set_device(number)
        return torch.device(name, number)
    return torch.device(name)


def select_precision(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype for the matrix products, from auto, fp32 or bf16, and the reason for it; the same in all processes."""
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[name], "as asked for"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private: another torch may lack them
        fast = any(hasattr(torch.cpu, check) and getattr(torch.cpu, check)() for check in checks)
    else:
        fast = False
    if all(distributed.gather(fast)):
        return torch.bfloat16, f"the {device.type} has bf16 arithmetic"
    where = "another machine's" if fast else "the"
    return torch.float32, f"{where} {device.type} has no bf16 arithmetic that torch knows of"


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Products in `dtype`, what is summed up over many numbers in fp32; no change for fp32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def select_compile(
    wanted: bool | str, work: float, device: torch.device, dtype: torch.dtype, before: bool | None = None,
    whole_batches: bool = True,
) -> tuple[bool, str]:  # fmt: skip
    """Whether to compile, from auto, True or False, and the reason for it; the same in all processes.

    `work` is the run's floating-point operations. `before` is whether a resumed run was compiled until now: auto keeps
    to that. `whole_batches` is whether a step has as many images as it can, and more than one: only these steps are
    compiled. UsageError where compiling was asked for and does not work.
    """
    if not wanted:
        return False, "no: --compile is off"
    if not whole_batches:
        return False, "no: only whole batches of more than one image are compiled, and there is none"
    why = "as asked for"
    if wanted == "auto":
        why = "a long run gets faster by it" if before is None else "as the run began"
        if before is False:
            return False, f"no: {why}"
        if before is None and device.type != "cpu":
            return False, f"no: not measured on a {device.type}; try --compile"
        if before is None and dtype != torch.bfloat16:
            return False, "no: in fp32 no gain was measured on a CPU; --compile tries it"
        num_cores = distributed.max_over_ranks(min(2, distributed.num_cpus()))
        if before is None and work < SECONDS_THAT_PAY * FLOPS_PER_CORE * num_cores:
            return False, "no: it takes a minute, too long for a run this short"
    problem = next(filter(None, distributed.gather(why_no_compiling(device, dtype))), "")  # of any process
    if problem and wanted != "auto":
        raise UsageError(f"--compile: {problem}. Install what is missing, or leave it out")
    return not problem, f"no: {problem}" if problem else f"yes: {why}; the first steps take up to a minute"


def why_no_compiling(device: torch.device, dtype: torch.dtype) -> str:
    """Why torch.compile can't be used here, found by compiling a small function; empty where that function is right.

    It may work and be wrong. Seen with torch 2.15 and g++ 12.2 on an Intel Xeon with AMX: the transposition of 32 x 32
    bf16 numbers gets most of them wrong, and gradients of normalized keys are garbage or NaN (results/LOG.md).
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        return "there is no C++ compiler (g++ or clang++)"
    if device.type == "cpu" and not PYTHON_H.exists():
        return "there is no Python.h (Debian: python3-dev)"
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a GPU that nobody asked for
    try:
        tokens = torch.linspace(0, 1000, 64 * 128).sin().to(device, dtype).view(64, 128)
        plain = gradient_of_logits(attention_logits, tokens)
        compiled = gradient_of_logits(torch.compile(attention_logits), tokens)
    except Exception as error:  # of any type: the first step would raise it too
        return f"torch.compile does not work here ({first_line(error)})"
    if not (compiled - plain).norm() < 0.05 * plain.norm():  # 1e-5 where it works; NaN is not below either
        return "torch.compile computes wrong gradients here (docs/troubleshooting.md)"
    return ""


def attention_logits(tokens: Tensor) -> Tensor:
    """Products (2, 64, 64) of queries and normalized keys, two heads of width 32 of 64 tokens (64, 128)."""
    q, k = (half.unflatten(1, (2, 32)).transpose(0, 1) for half in tokens.chunk(2, dim=1))
    return q @ F.layer_norm(k, k.shape[-1:]).transpose(-2, -1)


def gradient_of_logits(function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """The gradient (64, 128) in fp32 of the sum of the cosines of function(tokens), which is another for each logit."""
    tokens = tokens.clone().requires_grad_()
    return torch.autograd.grad(function(tokens).float().cos().sum(), tokens)[0].float()


@contextlib.contextmanager
def compile_errors() -> Iterator[None]:
    """Inside it, an error of torch.compile is a RunError of one line."""
    try:
        yield
    except TorchDynamoException as error:
        raise RunError(
            f"torch.compile failed ({first_line(error)}); --resume --no-compile goes on without it"
        ) from None


@torch.library.custom_op("vit_cifar10::contiguous_copy", mutates_args=())
def contiguous_copy(x: Tensor) -> Tensor:
    """x again, row by row in memory. torch.compile can't look into it, so it computes x once, for all who read it."""
    return x.clone(memory_format=torch.contiguous_format)


contiguous_copy.register_fake(lambda x: torch.empty_like(x, memory_format=torch.contiguous_format))
contiguous_copy.register_autograd(lambda _, gradient: gradient)


class Compiled(nn.Module):
    """The model behind torch.compile for batches of `batch_size`, and the plain model, of the same weights, for others.

    An epoch's last, smaller batch is not worth a minute of compiling, and torch 2.15 fails on one of a single image. On
    a CPU the compiled model draws the same random numbers as the plain one.
    """

    def __init__(self, model: nn.Module, batch_size: int, device: torch.device):
        super().__init__()
        on_cpu: Any = {"fallback_random": True} if device.type == "cpu" else None
        for module in model.modules():
            if hasattr(module, REL_POS):  # else the compiler looks it up anew for each image
                module.register_forward_hook(lambda _, inputs, bias: contiguous_copy(bias))
        self.model, self.batch_size = model, batch_size
        self.compiled = torch.compile(model, dynamic=False, options=on_cpu)

    def forward(self, images: Tensor) -> Tensor:
        return (self.compiled if len(images) == self.batch_size > 1 else self.model)(images)


def prepare(device: torch.device) -> None:
    """What a run sets for its whole process: on a CPU, sums that come in the same order each time; memory is kept."""
    if device.type == "cpu":  # else threads add to the gradient of a relative position in the order in which they come
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next step: the system takes long to give it out again.

    mallopt(3): free memory above M_TRIM_THRESHOLD is returned, and blocks above M_MMAP_THRESHOLD are never kept.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt and (mallopt(-3, 2**30) or mallopt(-3, 2**25)):  # M_MMAP_THRESHOLD; before glibc 2.35, 32 MiB at most
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
