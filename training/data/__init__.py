"""Images from the disk to batches: read as uint8 tensors, shuffled, augmented a chunk at a time, normalized."""

from training.data.datasets import (
    DEFAULT_AUGMENTATION,
    Dataset,
    channel_stats,
    create_eval_loader,
    get_cifar10_dataloaders,
    load_dataset,
)

__all__ = [
    "DEFAULT_AUGMENTATION",
    "Dataset",
    "channel_stats",
    "create_eval_loader",
    "get_cifar10_dataloaders",
    "load_dataset",
]
