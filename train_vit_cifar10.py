"""Train a Vision Transformer from scratch on small images.

    python train_vit_cifar10.py                              # the recipe: ViT-Tiny, CIFAR-10, 100 epochs
    python train_vit_cifar10.py --preset demo                # scikit-learn's digits: no download, a minute or two
    python train_vit_cifar10.py --dataset image-folder --data-dir DIR      # DIR/{train,test}/<class>/*
    python train_vit_cifar10.py --resume                     # go on where a stopped run left off

The files of the run go to checkpoints/vit_tiny_cifar10; `python evaluate_vit.py` shows what the best model does.
"""

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from config_vit_cifar10 import TrainConfig, ViTConfig
from training import checkpoint, console, distributed, history
from training.cli import parse_training_command
from training.data import Dataset, create_eval_loader, get_cifar10_dataloaders, load_dataset
from training.data.augment import Augmentation
from training.data.contact_sheet import save_contact_sheet
from training.data.loader import ImageLoader
from training.data.mix import Mixing
from training.device import (
    Compiled,
    compile_errors,
    keep_freed_memory,
    select_compile,
    select_device,
    select_precision,
)
from training.engine import evaluate, train_one_epoch
from training.errors import RunError, exit_codes
from training.optim import create_optimizer, create_scheduler
from training.provenance import cpu_name, describe_machine, refuse_other_run, resume_command, warn_of_other_machine
from training.run_folder import RunFolder
from training.signals import DeferredSignals, StopRequested
from training.tensorboard import require_tensorboard, tensorboard
from vit import VisionTransformer


def main(
    config: TrainConfig, create_model: Callable[..., nn.Module], resume: bool, overwrite: bool, extend: bool
) -> None:
    """A run from its settings to its files. `create_model` takes the config's model_args and num_classes."""
    device = select_device(config.device)
    number = config.num_processes
    if number == "auto":
        number = distributed.choose_num_processes(config.batch_size, estimate_work(config, create_model), device)
    with ExitStack() as held:
        again = config, create_model, resume, overwrite, extend
        # before the folder is locked and OpenMP has threads: a copy of this process has the lock, and not the threads
        held.enter_context(distributed.processes(number, device, main, *again))
        if config.tensorboard:
            require_tensorboard()
        folder = saved = None
        if distributed.rank() == 0:  # the others wait for what it finds, and write nothing
            folder = held.enter_context(RunFolder(Path(config.output_dir), console.print_warning))
            if distributed.was_restarted() and folder.holds_run():
                began_it = folder.load_last()["machine"]["launch"] == distributed.launch()
                resume, overwrite = resume or began_it, overwrite and not began_it
            if not (resume or overwrite):
                folder.refuse_used()
            saved = folder.load_last() if resume else None
        held.enter_context(compile_errors())
        keep_freed_memory()
        train(config, create_model, device, folder, saved, overwrite, extend)


def train(
    config: TrainConfig, create_model: Callable[..., nn.Module], device: torch.device, folder: RunFolder | None,
    saved: dict[str, Any] | None, overwrite: bool, extend: bool,
) -> None:  # fmt: skip
    """Train from the beginning, or from what was saved; rank 0 has the folder that no other process writes to."""
    dtype, why_dtype = select_precision(config.precision, device)
    with distributed.rank_0_first(device):
        dataset = load_dataset(config.dataset, config.data_dir, config.img_size, config.data_url, config.cache)
    saved = distributed.broadcast(saved)
    train_loader, eval_loader = create_loaders(config, dataset, device)
    split, steps_per_epoch = eval_loader.split, len(train_loader)
    metadata = describe_run(config, create_model, dataset, train_loader, split, dtype)
    before = saved["machine"]["compile"] if saved else None
    compiled, why_compiled = select_compile(config.compile, metadata["work"], device, dtype, before)
    machine = describe_machine(device, compiled)
    if saved:
        extend &= not saved["extended_from"] or saved["config"]["num_epochs"] != config.num_epochs  # not once more
        refuse_other_run(saved, metadata, extend)
        warn_of_other_machine(saved["machine"], machine)
        metadata["extended_from"] = saved["extended_from"] + [saved["config"]["num_epochs"]] * extend

    model, step_model = build_model(config, create_model, metadata["model_args"], device, compiled)
    optimizer = create_optimizer(model, config.optimizer, config.learning_rate, config.weight_decay)
    state = checkpoint.TrainingState(model, optimizer, device, history.new_history(split))
    if saved:
        state.load_state_dict(saved)
    steps_done = state.epoch * steps_per_epoch + state.sums.step
    scheduler = create_scheduler(
        optimizer, config.warmup_epochs * steps_per_epoch, config.num_epochs * steps_per_epoch, steps_done
    )

    def resumable() -> dict[str, Any]:
        """What --resume goes on from; every rank has to give its part."""
        return {**metadata, "machine": machine, **state.state_dict()}

    def save(files: dict[str, dict[str, Any]]) -> bool:
        files = {**files, "last.pth": resumable()}
        return folder.save(files) if folder else True

    def between_steps() -> None:
        signals.check()
        if distributed.highest(bool(folder and folder.save_due(config.save_minutes))):
            save({})

    start = resumable()
    if folder:
        begin_in_folder(folder, config, model, {**metadata, **machine}, start, not saved or extend, overwrite)
        save_contact_sheet(train_loader, folder.path / "augmented_images.png")
    print_ready(metadata, model, why_dtype, why_compiled, device, train_loader, eval_loader)
    if saved:
        print(f"Resumed   after {state.epoch} epochs and {state.sums.step} steps of the next", flush=True)

    first_epoch, complete = state.epoch, True
    with DeferredSignals() as signals, saving_when_stopped(save, config.output_dir), ExitStack() as held:
        board = held.enter_context(tensorboard(folder.path, state.epoch)) if folder and config.tensorboard else None
        for epoch in range(first_epoch, config.num_epochs):
            console.print_epoch_header(epoch + 1, config.num_epochs)
            train_loader.set_epoch(epoch, state.sums.step)
            with closing(console.TrainProgress(
                steps_per_epoch, len(train_loader.images), state.sums.step,
                epochs_left=config.num_epochs - epoch if epoch == first_epoch else 0,
            )) as progress:  # fmt: skip
                train_one_epoch(
                    step_model, train_loader, optimizer, scheduler, dtype, state.sums, progress,
                    clip_grad_norm=config.clip_grad_norm, label_smoothing=config.label_smoothing,
                    between_steps=between_steps, look_every=1 if device.type == "cpu" else console.LINE_EVERY,
                )  # fmt: skip
            start = time.perf_counter()
            figures = state.sums.figures() | evaluate(model, eval_loader, dtype, signals.check)
            figures |= {"epoch": epoch + 1, "epoch_time": state.sums.seconds + time.perf_counter() - start}
            new_best = figures[f"{split}_acc"] > max(state.history[f"{split}_acc"], default=-1.0)
            grad_norm = state.sums.grad_norm / steps_per_epoch
            state.finish_epoch(figures)
            complete = save(weights_due(config, metadata, state, new_best))
            if board:
                board.write_epoch(figures, grad_norm)
            if folder:
                with folder.going_on():
                    history.write_json(folder.path / "training_history.json", state.history)
                    draw_curves(state.history, folder.path)
            console.print_summary(figures, split, new_best)

    if not complete:
        raise RunError(f"not all of the run could be saved in {config.output_dir}: make room, then --resume")
    if folder and first_epoch == config.num_epochs:
        print(f"\nThis run has all its {config.num_epochs} epochs already.")
        draw_curves(state.history, folder.path)
    print_best(state.history, config.output_dir)
    if split == "val":  # only now, and once: no choice was made on these images
        test_best_model(model, dataset, train_loader, dtype, folder)


def build_model(
    config: TrainConfig,
    create_model: Callable[..., nn.Module],
    model_args: dict[str, Any],
    device: torch.device,
    compiled: bool,
) -> tuple[nn.Module, nn.Module]:
    """The model, and what a training step calls: the same weights behind torch.compile or several processes."""
    torch.manual_seed(config.seed)
    model = create_model(**model_args).to(device)
    distributed.seed_dropout(config.seed)
    batch_size = len(range(distributed.rank(), config.batch_size, distributed.world_size()))  # this process's share
    return model, distributed.spread(Compiled(model, batch_size, device) if compiled else model, device)


def begin_in_folder(
    folder: RunFolder, config: TrainConfig, model: nn.Module, description: dict[str, Any], start: dict[str, Any],
    new: bool, overwrite: bool,
) -> None:  # fmt: skip
    """Check that there is room, and write what a run has before its first step; RunError where that can't be written.

    A run is `new` with other settings than its folder has, also where it extends a shorter one.
    """
    num_kept = 2 + math.ceil(config.num_epochs / config.save_every)  # best, final and those between
    folder.require_space(model, 2 if config.optimizer == "adamw" else 1, num_kept, resumed=not overwrite)
    if overwrite:
        folder.move_aside()
    if new:
        checkpoint.save(folder.path / "last.pth", start)  # a disk that takes none of it is better known now
    if new or not (folder.path / "config.json").exists():
        history.write_json(folder.path / "config.json", description)
    history.write_json(folder.path / "training_history.json", start["history"])  # it may be behind, or damaged


@contextmanager
def saving_when_stopped(save: Callable[[dict[str, Any]], bool], folder: str) -> Iterator[None]:
    """Inside it, a run that is asked to stop saves before it ends, and says how to go on."""
    try:
        yield
    except StopRequested as request:
        where = f"saved in {folder}" if save({}) else "this could not be saved"
        raise request.as_exit(f"{where}. Go on with: {resume_command(sys.argv)}") from None


def weights_due(
    config: TrainConfig, metadata: dict[str, Any], state: checkpoint.TrainingState, new_best: bool
) -> dict[str, dict[str, Any]]:
    """The files of weights that the end of this epoch calls for, by their names."""
    last_epoch = state.epoch == config.num_epochs
    due = {
        "best_model.pth": new_best,
        f"checkpoint_epoch_{state.epoch}.pth": last_epoch or state.epoch % config.save_every == 0,
        "final_model.pth": last_epoch,
    }
    weights = {**metadata, "epoch": state.epoch, "model": state.model.state_dict(), "history": state.history}
    chosen_on = {"best_model.pth": metadata["split"]}
    return {name: {**weights, "chosen_on": chosen_on.get(name)} for name in due if due[name]}


def test_best_model(
    model: nn.Module, dataset: Dataset, train_loader: ImageLoader, dtype: torch.dtype, folder: RunFolder | None
) -> None:
    """Say and write down what the best model, chosen on other images, does on the test images."""
    ranks = distributed.rank(), distributed.world_size()
    test_loader = create_eval_loader(dataset, "test", train_loader.stats, train_loader.images.device, *ranks)
    best = checkpoint.load(folder.path / "best_model.pth")["model"] if folder else None
    model.load_state_dict(distributed.broadcast(best) or {})
    test = evaluate(model, test_loader, dtype)
    if folder:
        history.write_json(folder.path / "test_result.json", test)
    print(f"Test Loss of that model: {test['test_loss']:.4f} | Test Acc: {test['test_acc']:.2f}%")


def create_loaders(config: TrainConfig, dataset: Dataset, device: torch.device) -> tuple[ImageLoader, ImageLoader]:
    """The training loader and that of the monitored split, as the settings have them."""
    augmentation = Augmentation(
        crop_padding=config.crop_padding,
        horizontal_flip=config.horizontal_flip,
        policy=config.augment_policy if config.auto_augment else "",
        magnitude=config.randaugment_magnitude,
        erasing=config.random_erasing,
    )
    mixing = Mixing(len(dataset.class_names), config.mixup_alpha, config.cutmix_alpha, config.mix_probability)
    return get_cifar10_dataloaders(
        dataset,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        augmentation=augmentation,
        mixing=mixing if config.mixup_alpha or config.cutmix_alpha else None,
        max_train_images=config.max_train_images,
        val_size=config.val_size,
        seed=config.seed,
        device=device,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def describe_run(
    config: TrainConfig, create_model: Callable[..., nn.Module], dataset: Dataset, train_loader: ImageLoader,
    split: str, dtype: torch.dtype,
) -> dict[str, Any]:  # fmt: skip
    """All that the evaluator needs beside the weights, in plain values."""
    model_args = {**config.model_args, "num_classes": len(dataset.class_names)}
    flops = count_flops(create_model, config.img_size, **model_args)
    return {
        "model_name": create_model.__name__,
        "model_args": model_args,
        "flops": flops,  # of an image, forward and backward
        "work": flops * len(train_loader.images) * config.num_epochs,
        "config": config.to_dict(),
        "extended_from": [],  # numbers of epochs that the schedule had before --extend
        "data": {
            "class_names": dataset.class_names,
            "num_train_images": len(train_loader.images),
            **train_loader.stats,
        },
        "split": split,
        "precision": str(dtype).removeprefix("torch."),
    }


def estimate_work(config: TrainConfig, create_model: Callable[..., nn.Module]) -> float:
    """About how many floating-point operations the whole run is, known before its images are."""
    num_images = config.max_train_images or (1437 if config.dataset == "digits" else 50_000)
    flops = count_flops(create_model, config.img_size, **config.model_args, num_classes=10)
    return config.num_epochs * num_images * flops


@functools.cache  # it takes 0.3 s, and both of the above ask for it
def count_flops(create_model: Callable[..., nn.Module], img_size: int, /, **model_args: Any) -> int:
    """Floating-point operations of one image's forward and backward pass, counted by torch without computing them."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        create_model(**model_args).eval()(torch.empty(1, 3, img_size, img_size)).sum().backward()
    return counter.get_total_flops()


def print_ready(
    metadata: dict[str, Any], model: nn.Module, why_precision: str, why_compiled: str, device: torch.device,
    train_loader: ImageLoader, eval_loader: ImageLoader,
) -> None:  # fmt: skip
    """What is about to run, on what."""
    config, img_size = metadata["config"], metadata["config"]["img_size"]
    num_classes = len(metadata["data"]["class_names"])
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    images = f"{len(train_loader.images):,} training and {len(eval_loader.images):,} {metadata['split']} images"
    hardware = f"{cpu_name()}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    if distributed.world_size() > 1:
        hardware = f"{distributed.world_size()} processes of {hardware}"
    schedule = f"{config['num_epochs']} epochs of {len(train_loader)} steps, {config['batch_size']} images a step"
    print(
        f"Model     {metadata['model_name']}: {num_parameters:,} parameters, "
        f"{metadata['flops'] / 1e9:.2f} GFLOP an image (forward and backward)\n"
        f"Device    {hardware}, {metadata['precision']} ({why_precision})\n"
        f"Compile   {why_compiled}\n"
        f"Data      {config['dataset']}: {images}, {img_size}x{img_size}, {num_classes} classes\n"
        f"Training  {schedule}, {config['optimizer']}, seed {config['seed']}\n"
        f"Output    {config['output_dir']}",
        flush=True,
    )


def print_best(records: history.History, folder: str) -> None:
    """The end of a run."""
    split = history.monitored_split(records)
    best = max(records[f"{split}_acc"])
    epoch = records["epoch"][records[f"{split}_acc"].index(best)]
    print(f"\nBest {split} accuracy: {best:.2f}% in epoch {epoch}. The run is in {folder}")


def draw_curves(records: history.History, folder: Path) -> None:
    from training.plots import plot_training_curves  # here, because it takes seconds: the first step should not wait

    plot_training_curves(records, folder / "training_curves.png", folder.name)


if __name__ == "__main__":
    with exit_codes(f"What was saved before stays. Go on with: {resume_command(sys.argv)}"):
        command = parse_training_command(ViTConfig, __doc__ or "")
        main(command.config, VisionTransformer, command.resume, command.overwrite, command.extend)
