"""Train a Vision Transformer from scratch on small images.

    python train_vit_cifar10.py                              # the recipe: ViT-Tiny, CIFAR-10, 100 epochs
    python train_vit_cifar10.py --preset demo                # scikit-learn's digits: no download, a minute or two
    python train_vit_cifar10.py --dataset image-folder --data-dir DIR      # DIR/{train,test}/<class>/*
    python train_vit_cifar10.py --resume                     # go on where a stopped run left off

The files of the run go to checkpoints/vit_tiny_cifar10; `python evaluate_vit.py` shows what the best model does.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from config_vit_cifar10 import TrainConfig, ViTConfig
from training import checkpoint, console, history
from training.augment import Augmentation
from training.cli import parse_training_command
from training.data import Dataset, create_eval_loader, get_cifar10_dataloaders, load_dataset
from training.device import compile_model, select_device, select_precision
from training.engine import evaluate, train_one_epoch
from training.errors import UsageError, exit_codes
from training.loader import ImageLoader, save_contact_sheet
from training.mix import Mixing
from training.optim import create_optimizer, create_scheduler
from vit import VisionTransformer

# What a resumed run may do otherwise than before: none of it changes what the model is or learns from.
FREE_ON_RESUME = (
    *("preset", "output_dir", "data_dir", "data_url", "cache"),
    *("num_workers", "device", "compile", "save_every"),
)


def main(config: TrainConfig, create_model: Callable[..., nn.Module], resume: bool, overwrite: bool) -> None:
    """A run from its settings to its files. `create_model` takes the config's model_args and num_classes."""
    folder = Path(config.output_dir)
    if not (resume or overwrite):
        checkpoint.refuse_used_folder(folder)
    saved = checkpoint.load_last(folder) if resume else None
    device = select_device(config.device)
    dtype, why_dtype = select_precision(config.precision, device)

    dataset = load_dataset(config.dataset, config.data_dir, config.img_size, config.data_url, config.cache)
    train_loader, eval_loader = create_loaders(config, dataset, device)
    split, steps_per_epoch = eval_loader.split, len(train_loader)

    torch.manual_seed(config.seed)
    model_args = {**config.model_args, "num_classes": len(dataset.class_names)}
    metadata = {  # all that the evaluator needs beside the weights
        "model_name": create_model.__name__,
        "model_args": model_args,
        "config": config.to_dict(),
        "data": {
            "class_names": dataset.class_names,
            "num_train_images": len(train_loader.images),
            **train_loader.stats,
        },
        "split": split,
        "precision": str(dtype).removeprefix("torch."),
    }
    if saved:
        refuse_other_run(saved, metadata)
    model = create_model(**model_args).to(device)
    step_model = compile_model(model, device) if config.compile else model
    optimizer = create_optimizer(model, config.optimizer, config.learning_rate, config.weight_decay)
    scheduler = create_scheduler(optimizer, config.warmup_epochs * steps_per_epoch, config.num_epochs * steps_per_epoch)
    records = history.new_history(split)
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        checkpoint.set_random_state(saved["random_state"], device)
        records = saved["history"]
    first_epoch = len(records["epoch"])

    if overwrite:
        checkpoint.move_aside(folder)
    checkpoint.create_folder(folder)
    if not saved:
        history.write_json(folder / "config.json", {**metadata, **describe_machine(device)})
    save_contact_sheet(train_loader, folder / "augmented_images.png")
    flops = count_flops(create_model, model_args, config.img_size)
    print_ready(metadata, model, flops, why_dtype, device, train_loader, eval_loader)

    for epoch in range(first_epoch, config.num_epochs):
        start = time.perf_counter()
        console.print_epoch_header(epoch + 1, config.num_epochs)
        train_loader.set_epoch(epoch)
        epochs_to_estimate = config.num_epochs - epoch if epoch == first_epoch else 0
        with closing(console.TrainProgress(steps_per_epoch, len(train_loader.images), epochs_to_estimate)) as progress:
            metrics = train_one_epoch(
                step_model, train_loader, optimizer, scheduler, dtype, progress,
                clip_grad_norm=config.clip_grad_norm, label_smoothing=config.label_smoothing,
            )  # fmt: skip
        metrics |= evaluate(model, eval_loader, dtype)
        metrics |= {"epoch": epoch + 1, "epoch_time": time.perf_counter() - start}
        new_best = metrics[f"{split}_acc"] > max(records[f"{split}_acc"], default=-1.0)
        history.append(records, metrics)

        weights = {**metadata, "epoch": epoch + 1, "model": model.state_dict(), "history": records}
        last_epoch = epoch + 1 == config.num_epochs
        kept = {
            "best_model.pth": new_best,
            f"checkpoint_epoch_{epoch + 1}.pth": last_epoch or (epoch + 1) % config.save_every == 0,
            "final_model.pth": last_epoch,
        }
        for name in (name for name, due in kept.items() if due):
            checkpoint.save(folder / name, {**weights, "chosen_on": split if name == "best_model.pth" else None})
        checkpoint.save_last(folder, weights, optimizer, scheduler, device)
        history.write_json(folder / "training_history.json", records)
        draw_curves(records, folder)
        console.print_summary(metrics, split, new_best)

    if first_epoch == config.num_epochs:
        print(f"\nThis run has all its {config.num_epochs} epochs already.")
        history.write_json(folder / "training_history.json", records)  # it may have been stopped just before this
        draw_curves(records, folder)
    print_best(records, folder)
    if split == "val":  # only now, and once: no choice was made on these images
        model.load_state_dict(checkpoint.load(folder / "best_model.pth")["model"])
        test = evaluate(model, create_eval_loader(dataset, "test", train_loader.stats, device), dtype)
        history.write_json(folder / "test_result.json", test)
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
    )


def refuse_other_run(saved: dict[str, Any], metadata: dict[str, Any]) -> None:
    """UsageError that lists in what a resumed run would differ from the one it goes on with."""
    other = [
        f"{name} was {saved['config'].get(name)}, is {value}"
        for name, value in metadata["config"].items()
        if name not in FREE_ON_RESUME and saved["config"].get(name) != value
    ]
    if not other:
        names = ("model_name", "model_args", "data", "split", "precision")
        other = [f"{name} is not what it was" for name in names if saved[name] != metadata[name]]
    if other:
        raise UsageError(f"--resume goes on with what the run began with: {'; '.join(other)}")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Where, with what and how a run was made: versions, threads, git revision, command line."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    versions = {name: version(name) for name in ("torchvision", "numpy", "scikit-learn")}
    return {
        "command": [Path(sys.executable).name, *sys.argv],
        "git_revision": revision,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), **versions},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def count_flops(create_model: Callable[..., nn.Module], model_args: dict[str, Any], img_size: int) -> int:
    """Floating-point operations of one image's forward and backward pass, counted by torch without computing them."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        create_model(**model_args).eval()(torch.empty(1, 3, img_size, img_size)).sum().backward()
    return counter.get_total_flops()


def print_ready(
    metadata: dict[str, Any], model: nn.Module, flops: int, why_precision: str, device: torch.device,
    train_loader: ImageLoader, eval_loader: ImageLoader,
) -> None:  # fmt: skip
    """What is about to run, on what."""
    config, img_size = metadata["config"], metadata["config"]["img_size"]
    num_classes = len(metadata["data"]["class_names"])
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    images = f"{len(train_loader.images):,} training and {len(eval_loader.images):,} {metadata['split']} images"
    hardware = f"{cpu_name()}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
    schedule = f"{config['num_epochs']} epochs of {len(train_loader)} steps, {config['batch_size']} images a step"
    print(
        f"Model     {metadata['model_name']}: {num_parameters:,} parameters, "
        f"{flops / 1e9:.2f} GFLOP an image (forward and backward)\n"
        f"Device    {hardware}, {metadata['precision']} ({why_precision})\n"
        f"Data      {config['dataset']}: {images}, {img_size}x{img_size}, {num_classes} classes\n"
        f"Training  {schedule}, {config['optimizer']}, seed {config['seed']}\n"
        f"Output    {config['output_dir']}",
        flush=True,
    )


def print_best(records: history.History, folder: Path) -> None:
    """The end of a run."""
    split = history.monitored_split(records)
    best = max(records[f"{split}_acc"])
    epoch = records["epoch"][records[f"{split}_acc"].index(best)]
    print(f"\nBest {split} accuracy: {best:.2f}% in epoch {epoch}. The run is in {folder}")


def draw_curves(records: history.History, folder: Path) -> None:
    from training.plots import plot_training_curves  # here, because it takes seconds: the first step should not wait

    plot_training_curves(records, folder / "training_curves.png", folder.name)


if __name__ == "__main__":
    with exit_codes("Go on with the same command and --resume."):
        command = parse_training_command(ViTConfig, __doc__ or "")
        main(command.config, VisionTransformer, command.resume, command.overwrite)
