"""Train a Vision Transformer from scratch on small images.

    python train_vit_cifar10.py                              # the recipe: ViT-Tiny, CIFAR-10, 100 epochs
    python train_vit_cifar10.py --preset demo                # scikit-learn's digits: no download, a minute or two
    python train_vit_cifar10.py --dataset image-folder --data-dir DIR      # DIR/{train,test}/<class>/*
    python train_vit_cifar10.py --resume                     # go on where a stopped run left off

The files of the run go to checkpoints/vit_tiny_cifar10; `python evaluate_vit.py` shows what the best model does.
"""

if __name__ == "__main__":  # Ctrl-C while torch is being imported ends the script without a traceback
    from training.errors import end_at_interrupt

    end_at_interrupt()

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from config_vit_cifar10 import TrainConfig, ViTConfig
from training import checkpoint, console, distributed, history
from training.cli import parse_training_command
from training.data import Dataset, create_eval_loader, get_cifar10_dataloaders, load_dataset
from training.data.augment import Augmentation
from training.data.loader import ImageLoader
from training.data.mix import Mixing
from training.device import Compiled, compile_errors, prepare, select_compile, select_device, select_precision
from training.engine import evaluate, train_one_epoch
from training.errors import exit_codes
from training.optim import create_optimizer, create_scheduler, scale_relative_positions
from training.pretrained import begin_fine_tuning, decay_by_layer
from training.provenance import FREE_ON_RESUME, cpu_name, describe_machine, describe_run, resume_command
from training.run import Run
from vit import VisionTransformer


def main(
    config: TrainConfig, create_model: Callable[..., nn.Module], resume: bool, overwrite: bool, extend: bool
) -> None:
    """A run from its settings to its files. `create_model` takes the config's model_args and num_classes."""
    device = select_device(config.device)
    shared = {name: value for name, value in config.to_dict().items() if name not in FREE_ON_RESUME}
    shared |= {"device": device.type, "precision": config.precision, "compile": config.compile, "extend": extend}
    with compile_errors(), Run(config, resume, overwrite, extend) as run:
        prepare(device)
        with distributed.rank_0_first(device, shared):  # rank 0 may download or decode, the others then read
            dataset = load_dataset(config.dataset, config.data_dir, config.img_size, config.data_url, config.cache)
        train(config, create_model, device, dataset, run)


def train(
    config: TrainConfig, create_model: Callable[..., nn.Module], device: torch.device, dataset: Dataset, run: Run
) -> None:
    """Train from the beginning, or from what the run has saved: data, model, optimizer, epochs."""
    config = run.broadcast_start()
    train_loader, eval_loader = create_loaders(config, dataset, device)
    dtype, why_dtype = select_precision(config.precision, device)
    metadata = describe_run(config, create_model, dataset, train_loader, eval_loader.split, dtype)
    was_compiled = run.saved["machine"]["compile"] if run.saved else None
    whole = len(train_loader.images) >= config.batch_size > distributed.world_size()
    compiled, why_compiled = select_compile(config.compile, metadata["work"], device, dtype, was_compiled, whole)

    torch.manual_seed(config.seed)
    model = create_model(**metadata["model_args"]).to(device)
    if isinstance(config, ViTConfig):
        begin_fine_tuning(model, config, dataset.class_names, new=not run.saved)
    distributed.seed_dropout(config.seed)
    batch_size = len(range(distributed.rank(), config.batch_size, distributed.world_size()))  # this rank's share
    step_model = distributed.data_parallel(Compiled(model, batch_size, device) if compiled else model, device)

    optimizer = create_optimizer(
        model, config.optimizer, config.learning_rate, config.weight_decay, config.muon_learning_rate
    )
    if isinstance(config, ViTConfig):
        decay_by_layer(optimizer, model, config.layer_decay)
        scale_relative_positions(optimizer, model, config.rel_pos_lr_scale)
    run.begin(model, optimizer, train_loader, create_model, metadata, describe_machine(device, compiled))
    warmup_steps, total_steps = round(config.warmup * len(train_loader)), config.num_epochs * len(train_loader)
    scheduler = create_scheduler(optimizer, warmup_steps, total_steps, run.steps_done, config.schedule)
    print_ready(config, metadata, why_dtype, why_compiled, train_loader, eval_loader)
    if run.saved:
        console.say(f"Resumed   after {run.state.epoch} epochs and {run.sums.step} steps of the next")

    for _ in run.epochs():  # which sets train_loader's epoch
        train_one_epoch(
            step_model, train_loader, optimizer, scheduler, dtype, run,
            clip_grad_norm=config.clip_grad_norm, label_smoothing=config.label_smoothing,
        )  # fmt: skip
        run.finish_epoch(evaluate(model, eval_loader, dtype, run.signals.check))
    run.finish()
    if eval_loader.split == "val":  # only now, and once: no choice was made on these images
        test_best_model(model, dataset, train_loader, dtype, run)


def create_loaders(config: TrainConfig, dataset: Dataset, device: torch.device) -> tuple[ImageLoader, ImageLoader]:
    """The loader of the training images, and that of the held-out or test images that choose the best epoch."""
    policy = config.augment_policy if config.auto_augment else ""
    augmentation = Augmentation(
        config.crop_padding, config.horizontal_flip, policy, config.randaugment_magnitude, config.random_erasing
    )
    mixing = Mixing(len(dataset.class_names), config.mixup_alpha, config.cutmix_alpha, config.mix_probability)
    return get_cifar10_dataloaders(
        dataset, batch_size=config.batch_size, num_workers=config.num_workers, augmentation=augmentation,
        mixing=mixing if config.mixup_alpha or config.cutmix_alpha else None, val_size=config.val_size,
        max_train_images=config.max_train_images, small_epochs=config.small_epochs, seed=config.seed,
        device=device, rank=distributed.rank(), world_size=distributed.world_size(),
    )  # fmt: skip


def print_ready(
    config: TrainConfig, metadata: dict[str, Any], why_precision: str, why_compiled: str, train_loader: ImageLoader,
    eval_loader: ImageLoader,
) -> None:  # fmt: skip
    """What is about to run, on what."""
    device, num_classes = train_loader.images.device, len(metadata["data"]["class_names"])
    images = f"{len(train_loader.images):,} training and {len(eval_loader.images):,} {eval_loader.split} images"
    threads = console.counted(torch.get_num_threads(), "thread")
    hardware = f"{cpu_name()}, {threads}" if device.type == "cpu" else str(device)
    if distributed.world_size() > 1:
        hardware = f"{distributed.world_size()} processes of {hardware}"
    small = f", {config.small_epochs} with images of half the size" if config.small_epochs else ""
    epochs, steps = console.counted(config.num_epochs, "epoch"), console.counted(len(train_loader), "step")
    console.say(
        f"Model     {metadata['model_name']}: {metadata['num_parameters']:,} parameters, "
        f"{metadata['flops'] / 1e9:.3g} GFLOP an image (forward and backward)\n"
        f"Device    {hardware}, {metadata['precision']} ({why_precision})\n"
        f"Compile   {why_compiled}\n"
        f"Data      {config.dataset}: {images}, {config.img_size}x{config.img_size}, {num_classes} classes\n"
        f"Training  {epochs} ({config.warmup:g} to warm up{small}) of {steps}, {config.batch_size} images a step, "
        f"{config.optimizer}, seed {config.seed}\n"
        f"Output    {config.output_dir}"
    )


def test_best_model(
    model: nn.Module, dataset: Dataset, train_loader: ImageLoader, dtype: torch.dtype, run: Run
) -> None:
    """Print and write down what the best model, chosen on other images, does on the test images."""
    ranks = distributed.rank(), distributed.world_size()
    images, labels, device = dataset.test_images, dataset.test_labels, train_loader.images.device
    test_loader = create_eval_loader(images, labels, "test", train_loader.stats, device, *ranks)
    best: Any = distributed.broadcast(checkpoint.load(run.folder.path / "best_model.pth") if run.folder else None)
    model.load_state_dict(best["model"])
    test = evaluate(model, test_loader, dtype)
    if run.folder:
        history.write_json(run.folder.path / "test_result.json", test | {"epoch": best["epoch"]} | run.cost)
    console.say(f"Test Loss of that model: {test['test_loss']:.4f} | Test Acc: {test['test_acc']:.2f}%")


if __name__ == "__main__":
    with exit_codes(f"What was saved before stays. Go on with: {resume_command(sys.argv)}"), distributed.peers():
        command = parse_training_command(ViTConfig, __doc__ or "")
        main(command.config, VisionTransformer, command.resume, command.overwrite, command.extend)
