"""--device and --precision look at the hardware before they choose."""

import pytest
import torch

from training import device
from training.errors import UsageError

CPU = torch.device("cpu")


@pytest.mark.parametrize("there", [False, True])
def test_auto_takes_a_gpu_if_there_is_one(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.select_device("auto").type == ("cuda" if there else "cpu")


def test_a_device_that_is_not_there_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda"):
        device.select_device("cuda")


@pytest.mark.parametrize(
    ("avx512", "amx", "dtype"),
    [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32)],
)
def test_auto_is_bf16_only_where_the_cpu_has_it(monkeypatch, avx512, amx, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert device.select_precision("auto", CPU)[0] == dtype
    assert device.select_precision("fp32", CPU)[0] == torch.float32
    assert device.select_precision("bf16", CPU)[0] == torch.bfloat16


def test_a_torch_without_these_questions_means_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert device.select_precision("auto", CPU)[0] == torch.float32


@pytest.mark.parametrize(("dtype", "result"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)])
def test_products_are_done_in_the_chosen_precision(dtype, result):
    with device.autocast(CPU, dtype):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == result


def test_compiling_without_a_compiler_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="--compile needs a C"):
        device.compile_model(torch.nn.Linear(2, 2), CPU)
