"""--device and --precision look at the hardware before they choose."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from training import device
from training.errors import RunError, UsageError
from vit import RelPosBias, VisionTransformer

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") and device.PYTHON_H.exists()), reason="needs a C++ compiler and Python.h"
)
LONG_RUN = 1e16  # floating-point operations: the recipe's 100 epochs


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


@pytest.fixture
def two_threads():
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)  # a run in this process may have asked for them
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_gradients_of_many_relative_positions_are_the_same_each_time(two_threads):
    """As with images of 64x64: threads may add to one number together, in another order each time."""
    bias, upstream = RelPosBias(16, 3, 0, 0), torch.randn(256, 256, 3, generator=torch.Generator().manual_seed(0))
    device.prepare(CPU)
    table = bias.relative_position_bias_table
    gradients = [torch.autograd.grad(bias(256), table, upstream.permute(2, 0, 1))[0] for _ in range(20)]
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_compiling_without_a_compiler_is_refused_by_name_and_left_out_by_auto(monkeypatch):
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"--compile: there is no C\+\+ compiler"):
        device.select_compile(True, LONG_RUN, CPU, torch.bfloat16)
    assert device.select_compile("auto", LONG_RUN, CPU, torch.bfloat16) == (
        False,
        "no: there is no C++ compiler (g++ or clang++)",
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no such file: Python.h\nand much more"), "no such file: Python.h"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_compiler_that_does_not_work_is_refused_in_one_line(monkeypatch, error, said):
    def compile_nothing(function):
        raise error

    monkeypatch.setattr(device.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(device, "PYTHON_H", Path(__file__))
    monkeypatch.setattr(torch, "compile", compile_nothing)
    with pytest.raises(UsageError, match=rf"does not work here \({said}\)\. Install"):
        device.select_compile(True, LONG_RUN, CPU, torch.bfloat16)


@pytest.mark.parametrize("factor", [1.2, math.nan])
def test_a_compiler_whose_gradients_are_wrong_is_left_out_by_auto(monkeypatch, factor):
    def compile_wrongly(function):
        def compiled(x):
            right = function(x)
            return right.detach() + factor * (right - right.detach())  # the right values with a wrong gradient

        return compiled

    monkeypatch.setattr(device.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(device, "PYTHON_H", Path(__file__))
    monkeypatch.setattr(torch, "compile", compile_wrongly)
    compiled, why = device.select_compile("auto", LONG_RUN, CPU, torch.bfloat16)
    assert (compiled, why) == (False, "no: torch.compile computes wrong gradients here (docs/troubleshooting.md)")
    with pytest.raises(UsageError, match=r"--compile: torch\.compile computes wrong gradients here"):
        device.select_compile(True, LONG_RUN, CPU, torch.bfloat16)
    factor = 1.001  # as rounding may differ
    assert device.select_compile("auto", LONG_RUN, CPU, torch.bfloat16)[0]


def test_compiling_without_pythons_header_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "PYTHON_H", tmp_path / "Python.h")
    monkeypatch.setattr(device.shutil, "which", lambda name: name)
    with pytest.raises(UsageError, match=r"--compile: there is no Python\.h \(Debian: python3-dev\)"):
        device.select_compile(True, LONG_RUN, CPU, torch.bfloat16)


@needs_compiler
def test_a_compiler_that_works_is_taken():
    """In fp32: in bf16 there are machines where it does not."""
    assert device.why_no_compiling(CPU, torch.float32) == ""


@pytest.mark.parametrize(
    ("wanted", "work", "where", "dtype", "compiled"),
    [
        ("auto", LONG_RUN, "cpu", torch.bfloat16, True),
        ("auto", LONG_RUN, "cpu", torch.float32, False),
        ("auto", LONG_RUN / 1000, "cpu", torch.bfloat16, False),
        ("auto", LONG_RUN, "cuda", torch.bfloat16, False),
        (True, 0, "cpu", torch.float32, True),
        (True, 0, "cuda", torch.bfloat16, True),
        (False, LONG_RUN, "cpu", torch.bfloat16, False),
    ],
)
def test_auto_compiles_what_takes_long_enough_to_pay_for_it(monkeypatch, wanted, work, where, dtype, compiled):
    monkeypatch.setattr(device, "why_no_compiling", lambda device, dtype: "")
    monkeypatch.setattr(device.distributed, "num_cpus", lambda: 2)
    assert device.select_compile(wanted, work, torch.device(where), dtype)[0] == compiled


@pytest.mark.parametrize("before", [True, False])
def test_a_resumed_run_goes_on_as_it_began_unless_told_otherwise(monkeypatch, before):
    monkeypatch.setattr(device, "why_no_compiling", lambda device, dtype: "")
    for work in (0, LONG_RUN):
        assert device.select_compile("auto", work, CPU, torch.float32, before)[0] == before
        assert device.select_compile(not before, work, CPU, torch.float32, before)[0] != before


@pytest.mark.parametrize("wanted", [True, "auto"])
def test_what_has_no_whole_batch_is_not_compiled(monkeypatch, wanted):
    monkeypatch.setattr(device, "why_no_compiling", lambda device, dtype: "")
    for before in (None, True):
        assert not device.select_compile(wanted, LONG_RUN, CPU, torch.bfloat16, before, whole_batches=False)[0]


def test_a_model_that_can_not_be_compiled_ends_the_run_in_one_line():
    def break_the_graph(x):
        torch._dynamo.graph_break()
        return x

    with pytest.raises(RunError, match=r"torch\.compile failed .* --resume --no-compile"), device.compile_errors():
        torch.compile(break_the_graph, fullgraph=True, backend="eager")(torch.ones(2))


def test_the_model_in_training_is_compiled_in_one_piece():
    model = VisionTransformer(img_size=16, embed_dim=24, depth=2, dropout=0.1).train()
    assert torch.compile(model, fullgraph=True, backend="eager")(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_only_full_batches_of_more_than_one_image_are_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: lambda images: "compiled")
    model = torch.nn.Identity()
    for batch_size, compiled in ((4, [4]), (1, [])):
        step_model = device.Compiled(model, batch_size, CPU)
        assert [n for n in range(6) if isinstance(step_model(torch.ones(n, 2)), str)] == compiled


def test_each_blocks_relative_positions_are_looked_up_apart_from_what_is_compiled(monkeypatch):
    copied = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    monkeypatch.setattr(device, "contiguous_copy", lambda bias: copied.append(bias.shape) or bias)
    model = VisionTransformer(img_size=16, embed_dim=24, depth=2, pos_embed="relative", global_pool="avg")
    device.Compiled(model, 2, CPU)(torch.randn(2, 3, 16, 16))
    assert copied == [(3, 16, 16)] * 2


@needs_compiler
@pytest.mark.parametrize(
    ("pos_embed", "dtype", "tolerance"),
    [("learn", torch.float32, 1e-5), ("relative", torch.float32, 1e-5), ("learn", torch.bfloat16, 2**-6)],
)
def test_a_compiled_model_has_the_same_dropout_logits_and_gradients(pos_embed, dtype, tolerance):
    torch.manual_seed(0)
    model = VisionTransformer(img_size=16, embed_dim=48, depth=2, dropout=0.1, pos_embed=pos_embed)
    images, results = torch.randn(6, 3, 16, 16), []
    for step_model in (model, device.Compiled(model, len(images), CPU)):
        torch.manual_seed(1)
        with device.autocast(CPU, dtype):
            logits = step_model(images).float()
        results.append([logits, *torch.autograd.grad(logits.square().sum(), [*model.parameters()]), torch.rand(1)])
    *expected, next_draw = results[0]
    *found, next_draw_compiled = results[1]
    assert torch.equal(next_draw, next_draw_compiled)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("here", [False, True])
def test_machines_of_one_group_have_bf16_together_or_not_at_all(monkeypatch, here):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: here)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(device.distributed, "gather", lambda fast: [fast, not here])
    assert device.select_precision("auto", torch.device("cpu"))[0] == torch.float32


@pytest.mark.parametrize("cores", [1, 2])
def test_machines_of_one_group_compile_together_or_not_at_all(monkeypatch, cores):
    """The work pays for compiling on one core, and not on the two that the largest machine has."""
    monkeypatch.setattr(device.distributed, "num_cpus", lambda: cores)
    monkeypatch.setattr(device.distributed, "max_over_ranks", lambda number: max(number, 2))
    work = 1.5 * device.SECONDS_THAT_PAY * device.FLOPS_PER_CORE
    compiled, why = device.select_compile("auto", work, torch.device("cpu"), torch.bfloat16)
    assert (compiled, "too long for a run this short" in why) == (False, True)
