"""Train ResNet-18 on the same data, in the same loop and to the same files as the ViT, to compare the two.

    python train_resnet_cifar10.py                            # CIFAR-10, 100 epochs
    python compare_runs.py checkpoints/vit_tiny_cifar10 checkpoints/resnet18_cifar10

The files of the run go to checkpoints/resnet18_cifar10; evaluate_vit.py takes its checkpoints too.
"""

if __name__ == "__main__":  # Ctrl-C while torch is being imported ends the script without a traceback
    from training.errors import end_at_interrupt

    end_at_interrupt()

import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

from config_vit_cifar10 import TrainConfig
from resnet import ResNet18
from train_vit_cifar10 import main
from training import distributed
from training.cli import parse_training_command
from training.errors import exit_codes
from training.provenance import resume_command


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(TrainConfig):
    """The settings of a ResNet-18's run: SGD with Nesterov momentum, the usual recipe on CIFAR."""

    preset: Literal["baseline", "quick", "no-augment", "no-warmup"] = "baseline"
    """named set of values, which flags then change"""
    optimizer: Literal["adamw", "sgd", "muon"] = "sgd"
    """sgd with Nesterov momentum 0.9; adamw, or muon for the hidden layers (then lower learning_rate to about 0.001)"""
    batch_size: int = 128
    """images per step, over all processes together"""
    learning_rate: float = 0.1
    """learning rate at its peak, at the end of the warmup"""
    weight_decay: float = 5e-4
    """weight decay of convolutions and the last layer; biases and norms have none"""
    compile: bool | Literal["auto"] = False
    """torch.compile the model: takes a minute at the start, and gains nothing clear on two cores"""
    output_dir: str = "checkpoints/resnet18_cifar10"
    """folder for the files of the run"""

    ranges: ClassVar[dict[str, tuple[float, float]]] = TrainConfig.ranges | {
        "img_size": (9, 1024)  # below 9 the last stage has one pixel, and a last batch of one image has no variance
    }
    recipe_warmup: ClassVar[float] = 5


if __name__ == "__main__":
    with exit_codes(f"What was saved before stays. Go on with: {resume_command(sys.argv)}"), distributed.peers():
        command = parse_training_command(ResNetConfig, __doc__ or "")
        main(command.config, ResNet18, command.resume, command.overwrite, command.extend)
