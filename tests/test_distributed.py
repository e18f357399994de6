"""Several processes under torchrun train what one would: agreement, bits, signals, and what is left when one dies.

The processes are real. torchrun's take some ten seconds to start, so it is there only where it is what is tested; the
other ranks are forks of the launcher.
"""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Command, Launcher, Result, wait_until
from torch import nn
from torch.distributed import HashStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from evaluation.run_record import read_run
from resnet import ResNet18
from tests.same_runs import assert_same_bits, history_of
from training import checkpoint, distributed
from training.data import create_eval_loader, load_dataset
from training.engine import evaluate
from training.errors import PeerError, RunError, UsageError, exit_codes
from vit import Dropout, VisionTransformer

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "train_vit_cifar10.py")
SECONDS_TO_END = 60  # after one of the processes has died
TINY = [
    "--preset=demo", "--warmup-epochs=0", "--depth=1", "--embed-dim=24", "--auto-augment", "--device=cpu",
    "--precision=fp32", "--num-epochs=1", "--learning-rate=0.01",
]  # fmt: skip
# Steps of 15 images divide among neither 2 nor 4 processes, and the 13th has one image. SGD, because AdamW's steps
# hardly tell a gradient from its double. MixUp and CutMix pair the images of the whole step.
UNEVEN = [
    *TINY, "--optimizer=sgd", "--max-train-images=181", "--batch-size=15", "--dropout=0", "--label-smoothing=0.1",
    "--mixup-alpha=0.8", "--cutmix-alpha=1",
]  # fmt: skip
# All that a preset of the newer recipe has: Muon, relative positions, QK normalization, small images first, late decay.
NEWER = [
    "--preset=cpu-1h", "--dataset=digits", "--img-size=16", "--depth=2", "--embed-dim=24", "--num-heads=3",
    "--num-epochs=2", "--small-images-share=0.5", "--warmup-epochs=0", "--max-train-images=181", "--batch-size=45",
    "--val-size=20", "--device=cpu", "--precision=fp32",
]  # fmt: skip
STEPS = 205  # of an epoch, seven images each
DROPPING = [
    *TINY, "--num-epochs=2", "--max-train-images=1435", "--batch-size=7", "--dropout=0.1", "--save-every=1",
]  # fmt: skip
ENDLESS = [*UNEVEN, "--max-train-images=180", "--num-epochs=100000", "--save-every=100000"]
CHECKPOINTS = ("last.pth", "final_model.pth", "best_model.pth", "checkpoint_epoch_1.pth")
FAILED = "error: another process of this run failed; what was saved is kept: go on with --resume\n"


def torchrun(number: int, *flags: str) -> list[str]:
    """torchrun's command, to be followed by a script and its flags."""
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}", *flags]


@contextlib.contextmanager
def running(folder: Path, *args: Any) -> Iterator[Command]:
    """A run that is over, whatever happens, at the end."""
    folder.mkdir(exist_ok=True)
    run = Command(folder, *args, env={"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"})
    try:
        yield run
    finally:
        run.end()


def ranks(number: int) -> tuple[TCPStore, list[dict[str, str]]]:
    """torchrun's store, which lives as long as somebody holds it, and its environment for each of so many processes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    env |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    return store, [env | {"RANK": rank, "LOCAL_RANK": rank} for rank in map(str, range(number))]


def train(launcher: Launcher, folder: Path, number: int, *args: Any, script: str = SCRIPT) -> Result:
    """A run of so many processes to its end: torchrun's store and environment without torchrun and its imports.

    The exit code is rank 0's, and the output that of all in turn.
    """
    _store, environments = ranks(number)
    runs = [launcher.start(script, "--output-dir=run", *args, cwd=folder, env=env) for env in environments]
    results = [run.wait() for run in runs]
    return Result(results[0].code, *("".join(texts) for texts in list(zip(*results, strict=True))[1:]))


def own_lines(err: str) -> list[str]:
    """What the run itself says on stderr, between torchrun's lines."""
    return [line for line in err.splitlines() if line.startswith(("error: ", "WARNING: ", "stopped.", "process "))]


@pytest.fixture(scope="module")
def uneven(launcher, tmp_path_factory) -> dict[int, tuple[Path, Result]]:
    """The same short run of 1, 2 and 4 processes."""
    folders = {number: tmp_path_factory.mktemp(f"{number}-processes") for number in (1, 2, 4)}
    return {number: (folder / "run", train(launcher, folder, number, *UNEVEN)) for number, folder in folders.items()}


@pytest.fixture(scope="module")
def dropping(launcher, tmp_path_factory) -> Path:
    """A run of two processes with dropout, not stopped."""
    folder = tmp_path_factory.mktemp("dropping")
    result = train(launcher, folder, 2, *DROPPING)
    assert (result.code, own_lines(result.err)) == (0, [])
    return folder / "run"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Path, Result]:
    """The same, stopped in its first epoch by SIGTERM to torchrun."""
    folder = tmp_path_factory.mktemp("stopped")
    with running(folder, *torchrun(2), SCRIPT, "--output-dir=run", *DROPPING) as run:
        run.wait_for(f"Batch [100/{STEPS}]")
        run.process.terminate()
        return folder / "run", run.wait(SECONDS_TO_END)


def assert_same_within(folder: Path, one: Path, tolerance: float) -> None:
    """Assert that weights and losses differ by no more than so much of the weights' change, and of the losses."""
    weights, saved = checkpoint.load(folder / "last.pth")["model"], checkpoint.load(one / "last.pth")
    torch.manual_seed(42)
    untrained = VisionTransformer(**saved["model_args"]).state_dict()
    for name, start in untrained.items():
        if name.endswith("k_norm.bias"):  # moves all scores of a query alike: its gradient is nothing but rounding
            continue
        change = (saved["model"][name] - start).norm()
        assert (weights[name] - saved["model"][name]).norm() < tolerance * change + 1e-7, name
    records, expected_records = history_of(folder), history_of(one)
    assert records.keys() == expected_records.keys()
    for name, values in expected_records.items():
        exact = name.endswith("acc") or name in ("epoch", "lr")  # each of the images counts once
        assert records[name] == (values if exact else pytest.approx(values, rel=tolerance)), name


@pytest.mark.parametrize("number", [2, 4])
def test_several_processes_come_to_the_weights_and_metrics_of_one(uneven, number):
    """Within what sums in another order make of fp32: 1e-5 of the weights' change, 1e-5 in the losses."""
    assert_same_within(uneven[number][0], uneven[1][0], 1e-5)


def test_two_processes_train_by_the_newer_recipe_as_one_does(launcher, tmp_path):
    """Less closely: orthogonal matrices, and AdamW from zero, hold more of the rounding (3.3e-4 when measured)."""
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        result = train(launcher, tmp_path / str(number), number, *NEWER)
        assert result.code == 0, result.err
    assert_same_within(tmp_path / "2" / "run", tmp_path / "1" / "run", 1e-3)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_each_line_is_said_once_and_each_file_is_there_once(uneven, number):
    folder, result = uneven[number]
    assert result.code == 0
    for line in ("Model  ", "Epoch [1/1]", "Epoch Summary:", "Train Loss:", "Test Loss:", "Best test accuracy:"):
        assert result.out.count(line) == 1, line
    assert ("processes of" in result.out) == (number > 1)
    assert {path.name for path in folder.iterdir()} == {path.name for path in uneven[1][0].iterdir()}
    assert checkpoint.load(folder / "last.pth")["machine"]["world_size"] == number


def test_a_stopped_run_of_two_processes_goes_on_to_the_bits_of_one_that_was_not(launcher, dropping, stopped, tmp_path):
    folder, result = stopped
    assert result.code != 0
    assert own_lines(result.err) == ["stopped. saved in run. Go on with: the same torchrun command with --resume"]
    at_stop = checkpoint.load(folder / "last.pth")
    assert (0, 100) <= (at_stop["epoch"], at_stop["epoch_sums"]["step"]) < (2, 0)
    resumed = shutil.copytree(folder, tmp_path / "run")
    result = train(launcher, tmp_path, 2, *DROPPING, "--resume")
    assert (result.code, own_lines(result.err)) == (0, [])
    assert_same_bits(resumed, dropping, CHECKPOINTS)


def test_each_process_draws_dropout_from_a_seed_of_its_own(dropping):
    seeds = []
    for state in checkpoint.load(dropping / "last.pth")["random_states"]:
        generator = torch.Generator()
        generator.set_state(state["cpu"])
        seeds.append(generator.initial_seed())
    assert seeds[0] == 42
    assert len(set(seeds)) == 2


def test_seed_dropout_leaves_rank_0_as_it_is_and_gives_each_other_its_own_mask(monkeypatch):
    masks = []
    for seed in (42, 43):
        for rank in range(4):
            monkeypatch.setenv("RANK", str(rank))
            torch.manual_seed(seed)
            expected = torch.get_rng_state()
            distributed.seed_dropout(seed)
            assert torch.equal(torch.get_rng_state(), expected) == (rank == 0)
            masks.append(tuple((Dropout(0.5)(torch.ones(64)) == 0).tolist()))
    assert len(set(masks)) == 8


def test_torchrun_starts_the_run_again_after_a_worker_died_and_it_ends_with_the_same_bits(dropping, tmp_path):
    flags = [SCRIPT, *DROPPING, "--output-dir=run", "--save-minutes=1e-9"]
    with running(tmp_path, *torchrun(2, "--max-restarts=1"), *flags) as run:
        run.wait_for(f"Batch [100/{STEPS}]")
        os.kill(run.workers()[1], signal.SIGKILL)
        result = run.wait()
    assert result.code == 0, result.err
    [(epochs, steps)] = re.findall(r"Resumed   after (\d) epochs and (\d+) steps", result.out)
    assert (int(epochs), int(steps)) >= (0, 99)
    assert result.out.count("Model  ") == 2
    assert_same_bits(tmp_path / "run", dropping, CHECKPOINTS)


def test_a_restart_does_not_go_on_with_a_run_that_another_launch_began(tmp_path):
    """The same run id is given twice; torchrun's own default, "none", is the same for all launches."""
    command = [
        "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--rdzv-id=again",
        "--nproc-per-node=1", "--max-restarts=1", SCRIPT, *TINY, "--max-train-images=32", "--output-dir=run",
    ]  # fmt: skip
    with running(tmp_path, *command) as run:
        assert run.wait().code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with running(tmp_path, *command, "--num-epochs=2") as run:  # another run, which finds the folder used
        result = run.wait()
    assert result.code == 1
    assert [line.split(" holds a run")[0] for line in own_lines(result.err)] == ["error: run"] * 2  # and is restarted
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_going_on_with_another_number_of_processes_warns(launcher, stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    result = train(launcher, tmp_path, 1, *DROPPING, "--resume")
    assert result.code == 0, result.err
    assert re.search(r"^WARNING: the bits may differ .*world_size 2 before, 1 now", result.err)
    assert history_of(tmp_path / "run")["epoch"] == [1, 2]
    about = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (about["world_size"], [machine["world_size"] for machine in about["machines_before"]]) == (1, [2])
    with pytest.raises(RunError, match="its minutes don't add up"):
        print(read_run(tmp_path / "run").threads)


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_others_end_and_nothing_is_left_running(tmp_path, victim):
    with running(tmp_path, *torchrun(2), SCRIPT, *ENDLESS, "--output-dir=run") as run:
        run.wait_for("Epoch [2/")
        os.kill(run.workers()[victim], signal.SIGKILL)
        result = run.wait(SECONDS_TO_END)
    assert result.code == 1
    assert own_lines(result.err) in ([], [FAILED.strip()])  # torchrun may end the other before it notices
    assert checkpoint.load(tmp_path / "run" / "last.pth")["epoch"] >= 1


def test_when_torchrun_is_killed_its_processes_save_and_end_and_the_run_can_go_on_at_once(tmp_path):
    with running(tmp_path, *torchrun(2), SCRIPT, *ENDLESS, "--output-dir=run", "--save-minutes=0") as run:
        run.wait_for("Epoch [2/")
        run.family()  # finds them while torchrun is there
        run.process.kill()
        run.process.wait()
        wait_until(lambda: not run.family(), SECONDS_TO_END)
        assert not (tmp_path / "run" / ".lock").exists()
    assert checkpoint.load(tmp_path / "run" / "last.pth")["epoch_sums"]["step"] > 0  # saved in mid-epoch
    with running(tmp_path, SCRIPT, *ENDLESS, "--output-dir=run", "--resume") as resumed:
        resumed.wait_for("Resumed")


def test_the_saved_resnet_is_the_evaluated_one_to_the_last_image(launcher, tmp_path):
    """Each rank's BatchNorm has seen its own share of the images; what is saved has rank 0's statistics."""
    flags = ["--dataset=digits", "--img-size=9", "--max-train-images=64", "--batch-size=16", "--num-epochs=2"]
    script = str(ROOT / "train_resnet_cifar10.py")
    result = train(launcher, tmp_path, 2, *flags, "--device=cpu", "--precision=fp32", script=script)
    assert result.code == 0, result.err
    records, saved = history_of(tmp_path / "run"), checkpoint.load(tmp_path / "run" / "final_model.pth")
    model = ResNet18()
    model.load_state_dict(saved["model"])
    stats = {name: saved["data"][name] for name in ("mean", "std")}
    digits = load_dataset("digits", "", 9)
    found = evaluate(model, create_eval_loader(digits.test_images, digits.test_labels, "test", stats), torch.float32)
    assert records["test_acc"][-1] == found["test_acc"]
    assert records["test_loss"][-1] == pytest.approx(found["test_loss"], rel=1e-5)


def write_script(folder: Path, changes: str) -> Path:
    """The training script, with these changes, lines of Python."""
    script = folder / "train.py"
    script.write_text(
        f"import os, sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
        "import train_vit_cifar10 as train\n"
        "from training import device, distributed\n"
        "from training.cli import parse_training_command\n"
        "from training.data import download\n"
        "from training.errors import exit_codes\n"
        "from datetime import timedelta\n"
        "rank = int(os.environ['RANK'])\n"
        f"{changes}\n"
        "with exit_codes(), distributed.peers():\n"
        "    config = parse_training_command(train.ViTConfig, '').config\n"
        "    train.main(config, train.VisionTransformer, False, False, False)\n"
    )
    return script


def train_with(folder: Path, changes: str, *args: Any) -> Result:
    """What the training script does in two processes after these changes."""
    with running(folder, *torchrun(2), write_script(folder, changes), "--output-dir=run", *args) as run:
        return run.wait()


@contextlib.contextmanager
def on_two_machines(folder: Path, *commands: list[Any]) -> Iterator[list[Command]]:
    """Two torchruns of one process each, as on two machines that share a disk."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", endpoint]
    with contextlib.ExitStack() as held:
        yield [
            held.enter_context(running(folder / f"machine {number}", *launcher, *command))
            for number, command in enumerate(commands)
        ]


# torch's own patience with processes that do not answer, half an hour, is four seconds in these
IMPATIENT = """
import torch.distributed.distributed_c10d as c10d
c10d.default_pg_timeout = timedelta(seconds=4)
train.Run.draw_curves = lambda self: None  # rank 0 draws while the others wait at the end
load = train.load_dataset
"""


def test_processes_wait_for_a_download_or_a_decoding_that_takes_longer_than_torchs_patience(tmp_path, slow_url):
    """Rank 0 downloads; then the other may have to decode pictures by itself, where they are not cached."""
    change = f"""
def load_slowly(*args):
    download.download_rest({slow_url!r}, download.Path(f"archive {{rank}}"))
    return load(*args)
train.load_dataset = load_slowly
"""
    result = train_with(tmp_path, IMPATIENT + change, *UNEVEN)
    assert (result.code, own_lines(result.err)) == (0, []), result.err
    times = [(tmp_path / f"archive {rank}").stat().st_mtime for rank in (0, 1)]
    assert times[1] - times[0] > 5  # one after the other, for five seconds or more each


@pytest.mark.parametrize(
    ("changes", "flags", "why"),
    [
        ("", ["--device=tpu"], "--device"),  # on one of the machines, be it that of rank 0 or not
        (f"if not rank: sys.argv.append('--output-dir={SCRIPT}')", [], f"{SCRIPT}"),  # a file: no folder can be there
    ],
)
def test_a_process_that_fails_at_once_ends_those_on_another_machine_too(tmp_path, changes, flags, why):
    """They would wait for it as long as a download may take: torchrun ends the others on its own machine only."""
    command = [write_script(tmp_path, changes) if changes else SCRIPT, f"--output-dir={tmp_path / 'run'}", *UNEVEN]
    with on_two_machines(tmp_path, command, [*command, *flags]) as runs:
        results = [run.wait() for run in runs]
    assert [result.code for result in results] == [1, 1]
    lines = [line for result in results for line in own_lines(result.err)]
    assert len(lines) == 2, lines
    [told] = [line for line in lines if "another process of this run" in line]
    [own] = {*lines} - {told}
    [(rank, what)] = re.findall(r"^(process 1: )?error: (.*)$", own)
    assert why in what
    if "before it began" in told:  # it came before the first machine took torchrun's store away
        assert told.endswith(f"ended before it began: process {1 if rank else 0}: {what}")
    assert not (tmp_path / "run").exists()


def test_a_mistake_that_all_processes_find_is_said_once(launcher, tmp_path):
    result = train(launcher, tmp_path, 2, *TINY, "--max-train-images=1438")
    assert (result.code, result.out) == (2, "")
    assert len(own_lines(result.err)) == 1
    assert own_lines(result.err)[0].startswith("error: max_train_images")
    assert not (tmp_path / "run").exists()


def test_rank_0_reads_the_weights_to_begin_with_and_gives_them_to_all(launcher, tmp_path):
    torch.manual_seed(0)
    begun = VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=3).state_dict()
    torch.save(begun, tmp_path / "weights.pth")
    result = train(launcher, tmp_path, 2, *UNEVEN, "--init-from=weights.pth", "--freeze-backbone")
    assert result.code == 0
    trained = checkpoint.load(tmp_path / "run" / "last.pth")["model"]
    (tmp_path / "alone").mkdir()
    alone = ["--init-from", tmp_path / "weights.pth", "--freeze-backbone"]
    assert train(launcher, tmp_path / "alone", 1, *UNEVEN, *alone).code == 0
    expected = checkpoint.load(tmp_path / "alone" / "run" / "last.pth")["model"]
    torch.testing.assert_close(trained["head.weight"], expected["head.weight"], rtol=1e-4, atol=1e-6)
    assert {name for name in begun if not torch.equal(trained[name], begun[name])} == {"head.weight", "head.bias"}
    result = train(launcher, tmp_path, 2, *UNEVEN, "--init-from=weights.pth", "--depth=2", "--overwrite")
    assert result.code == 2
    assert [line.split(" does not fit")[0] for line in own_lines(result.err)] == ["error: --init-from: weights.pth"]


@pytest.mark.parametrize(
    "change", ["dataset.train_images[0] = 255 * rank", "dataset.class_names.extend(['more'] * rank)"]
)
def test_processes_that_read_different_images_are_refused(tmp_path, change):
    changes = f"""
def load(*args, load=train.load_dataset):
    dataset = load(*args)
    {change}
    return dataset
train.load_dataset = load
"""
    result = train_with(tmp_path, changes, *UNEVEN)
    assert result.code != 0
    why = "the processes read different images: give all machines the same folder, and the same version of Pillow"
    assert own_lines(result.err) == [f"error: {why}"], result.err


def test_a_rank_does_not_wait_for_one_that_has_failed(monkeypatch):
    store = HashStore()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "store", lambda: store)
    monkeypatch.setattr(distributed, "SECONDS_TO_READ", 0)
    for name in ("settings 0", "done 0"):
        store.set(name, "{}")
    cpu, why = torch.device("cpu"), "the pictures of this machine are gone"
    with pytest.raises(OSError, match=why), distributed.peers(), distributed.rank_0_first(cpu, {}):
        raise OSError(why)
    monkeypatch.setenv("RANK", "0")
    line = f"another process of this run ended before it began: process 1: {why}"
    with pytest.raises(PeerError, match=line), distributed.peers():
        distributed.wait_for(["done 0", "done 1"])


def test_output_that_nobody_reads_ends_all_processes_and_hangs_none(launcher, tmp_path):
    _store, (first_env, second_env) = ranks(2)
    second = launcher.start(SCRIPT, "--output-dir=run", *ENDLESS, cwd=tmp_path, env=second_env)
    with subprocess.Popen(
        [sys.executable, SCRIPT, "--output-dir=run", *ENDLESS], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | first_env | {"OMP_NUM_THREADS": "1"},
    ) as first:  # fmt: skip
        try:
            assert first.stdout
            assert first.stderr
            assert any("Epoch [2/" in line for line in first.stdout)
            first.stdout.close()
            assert first.wait(SECONDS_TO_END) == 1
            assert (
                "error: nobody reads the output any more; this could not be saved. Go on with: " in first.stderr.read()
            )
        finally:
            first.kill()
    result = second.wait()
    assert (result.code, own_lines(result.err)) == (1, [])  # the first says it for all of a machine


@pytest.mark.parametrize(("name", "own", "other"), [("precision", "auto", "bf16"), ("device", "cpu", "cuda")])
def test_processes_of_other_settings_are_refused_before_they_work(monkeypatch, name, own, other):
    """One would return on its own --precision before a collective call that the others wait in."""
    store = HashStore()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "store", lambda: store)
    store.set("settings 1", json.dumps({"seed": 1, name: other}))
    line = rf"{name} is not the same in all processes \({own}, {other}\): give them the same flags"
    shared = {"seed": 1, name: own}
    with pytest.raises(UsageError, match=line), distributed.rank_0_first(torch.device("cpu"), shared):
        pytest.fail("it has begun")


@pytest.mark.parametrize(("ends", "error"), [(True, UsageError), (False, RunError)])
def test_a_mistake_is_said_by_the_first_process_of_a_machine_or_by_the_one_that_finds_it_alone(
    monkeypatch, ends, error
):
    store = HashStore()
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "store", lambda: store)
    monkeypatch.setattr(distributed, "SECONDS_TO_READ", 0)
    for number in (0, 1, 2) if ends else (0, 1):
        store.set(f"ended {number}", "")
    with pytest.raises(RunError, match="why") as caught, distributed.peers():
        raise UsageError("why")
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("file", "launch"),
    [
        ("/tmp/torchelastic_x/none_y/attempt_0/1/error.json", "/tmp/torchelastic_x/none_y"),
        ("/tmp/torchelastic_x/none_y/attempt_2/0/error.json", "/tmp/torchelastic_x/none_y"),
        ("logs/attempt_1/none_z/attempt_0/0/error.json", "logs/attempt_1/none_z"),  # --log-dir logs/attempt_1
        ("", None),
    ],
)
def test_a_launch_keeps_its_name_through_restarts_and_shares_it_with_no_other(monkeypatch, file, launch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
    assert distributed.launch_id() == launch


@pytest.mark.parametrize(
    ("environment", "threads"), [({}, [4]), ({"OMP_NUM_THREADS": "1"}, []), ({"OMP_NUM_THREADS": "3"}, [])]
)
def test_cores_are_shared_out_unless_the_user_has_said_how_many_threads(monkeypatch, environment, threads):
    """The user's word is in the environment that torchrun, the parent, was started with."""
    parent = subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], **environment})
    given = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun's word to its processes
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(os, "getppid", lambda: parent.pid)
    monkeypatch.setattr(distributed, "num_cpus", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    wait_until(lambda: bool(Path(f"/proc/{parent.pid}/environ").read_bytes()))  # empty for a moment
    try:
        distributed.share_cores()
    finally:
        parent.kill()
        parent.wait()
    assert given == threads


@pytest.mark.parametrize(
    ("rank", "error", "said"),
    [
        (0, RunError, "error: why\n"), (0, PeerError, "error: why\n"), (0, UsageError, "error: why\n"),
        (2, RunError, "process 2: error: why\n"), (2, PeerError, "process 2: error: why\n"),
        (3, RunError, "process 3: error: why\n"), (3, PeerError, ""), (3, UsageError, ""),
    ],
)  # fmt: skip
def test_what_the_first_process_of_a_machine_says_too_no_other_says(monkeypatch, capsys, rank, error, said):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # to be put back

    def fail() -> None:
        print("progress")
        raise error("why")

    with pytest.raises(SystemExit) as stop, exit_codes():
        fail()
    assert stop.value.code == error.exit_code
    assert capsys.readouterr() == ("" if rank else "progress\n", said)


def test_alone_nothing_is_wrapped_or_sent():
    model, sums = nn.Linear(2, 2), torch.tensor([1.0, math.nan])
    assert distributed.data_parallel(model, torch.device("cpu")) is model
    assert distributed.add_up(sums) is sums
    assert (distributed.broadcast("a"), distributed.gather("a"), distributed.max_over_ranks(3)) == ("a", ["a"], 3)
    assert not torch.distributed.is_initialized()
