"""The settings of a run: edit a default here, pass a flag (`--num-epochs 50`), or choose a named set with --preset.

The defaults are the classic recipe: ViT-Tiny (patch 4, 192/12/3), 100 epochs of AdamW with 10 epochs of warmup and
AutoAugment. A flag given beats the preset, and the preset beats the default in this file.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self

DatasetName = Literal["cifar10", "cifar100", "digits", "image-folder"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What every run has, whatever the model. Checked when it is made: a ValueError names the field."""

    dataset: DatasetName = "cifar10"
    """images to learn; digits needs no download, image-folder reads DATA_DIR/{train,test}/<class>/*"""
    data_dir: str = "data"
    """folder the data is read from, and downloaded to"""
    data_url: str = ""
    """where to download the official CIFAR archive from; empty is the official address"""
    cache: bool = True
    """keep the decoded images of image-folder as one file beside them, remade when a picture changes"""
    max_train_images: int = 0
    """train on this many images only, each class in its share; 0 is all of them"""
    val_size: int = 0
    """hold out this many training images and choose the best epoch on them; 0 chooses on the test split"""
    img_size: int = 32
    """height and width the images are resized to, in pixels"""

    num_epochs: int = 100
    """passes over the training images (the recipe: 100)"""
    batch_size: int = 64
    """images a step (the recipe: 64)"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw (Loshchilov and Hutter, 2017), or sgd with Nesterov momentum 0.9"""
    learning_rate: float = 1e-3
    """learning rate at its peak, at the end of the warmup (the recipe: 0.001)"""
    weight_decay: float = 0.05
    """weight decay of weight matrices; biases, norms, tokens and position embeddings have none (the recipe: 0.05)"""
    warmup_epochs: int = 10
    """epochs in which the learning rate rises linearly from 0, before its cosine decay to 0 (the recipe: 10)"""
    clip_grad_norm: float = 0.0
    """shorten gradients to this L2 norm where they are longer; 0 is off (the ViT paper: 1.0)"""

    crop_padding: int = 4
    """pad each side by this many pixels, then crop at random; 0 is off (the recipe: 4)"""
    horizontal_flip: bool = True
    """mirror images at random, one in two; never done to digits, which would no longer be what they are"""
    auto_augment: bool = True
    """change colours and shapes at random, by the augment_policy"""
    augment_policy: Literal["cifar10", "imagenet", "svhn", "randaugment", "trivialaugment"] = "cifar10"
    """one of AutoAugment's policies (arXiv 1805.09501), RandAugment (1909.13719) or TrivialAugmentWide (2103.10158)"""
    randaugment_magnitude: int = 9
    """strength of RandAugment's two operations, 0 to 30 (torchvision: 9)"""
    random_erasing: float = 0.0
    """chance that a box of an image is blacked out (arXiv 1708.04896); 0 is off (DeiT: 0.25)"""
    mixup_alpha: float = 0.0
    """blend pairs of images and labels by a share drawn from Beta(alpha, alpha) (arXiv 1710.09412); 0 is off"""
    cutmix_alpha: float = 0.0
    """paste a box of one image into another (arXiv 1905.04899); 0 is off; with MixUp too, each does half the batches"""
    mix_probability: float = 1.0
    """chance that a batch is mixed at all, by MixUp or CutMix"""
    label_smoothing: float = 0.0
    """share of the target that is spread over all classes (arXiv 1512.00567); 0 is off"""
    num_workers: int = 0
    """threads that prepare coming images while the model computes; 0: none; the batches are the same"""

    seed: int = 42
    """seed of the weights, the order of the images, their augmentation and the dropout"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to compute; auto takes a GPU if there is one"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """arithmetic of the matrix products; auto is bf16 where the hardware has it (elsewhere it would be slower)"""
    num_processes: int | Literal["auto"] = "auto"
    """processes that share each step; auto takes two for a long run on a CPU, one elsewhere; torchrun overrides it"""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile the model (--compile, --no-compile); auto does for long bf16 runs on a CPU"""

    output_dir: str
    """folder for the files of the run"""
    tensorboard: bool = False
    """write each epoch's figures for TensorBoard too; needs `pip install tensorboard`"""
    save_minutes: float = 10.0
    """in the middle of an epoch, save what --resume goes on from after so many minutes; 0: only when an epoch ends"""
    save_every: int = 50
    """keep a checkpoint_epoch_N.pth after every so many epochs, and after the last"""

    ranges: ClassVar[dict[str, tuple[float, float]]] = {  # field: lowest and highest value accepted
        "max_train_images": (0, 10**9),
        "val_size": (0, 10**9),
        "img_size": (4, 1024),
        "num_epochs": (1, 10**6),
        "batch_size": (1, 10**6),
        "learning_rate": (1e-12, 1e3),
        "weight_decay": (0, 1e3),
        "warmup_epochs": (0, 10**6),
        "clip_grad_norm": (0, 1e6),
        "crop_padding": (0, 1024),
        "randaugment_magnitude": (0, 30),
        "random_erasing": (0, 1),
        "mixup_alpha": (0, 100),
        "cutmix_alpha": (0, 100),
        "mix_probability": (0, 1),
        "label_smoothing": (0, 0.99),
        "num_workers": (0, 256),
        "seed": (0, 2**63 - 1),
        "num_processes": (1, 1024),
        "save_minutes": (0, 1e6),
        "save_every": (1, 10**6),
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    model_fields: ClassVar[tuple[str, ...]] = ()  # fields that are arguments of the model

    def __post_init__(self):
        for field in fields(self):
            check_type(field.name, getattr(self, field.name), field.type)
        for name, (low, high) in self.ranges.items():
            value = getattr(self, name)
            if value != "auto" and not low <= value <= high:  # written so that NaN fails too
                raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value}")
        if self.warmup_epochs > self.num_epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} is longer than the run of num_epochs {self.num_epochs}: "
                "lower the one or raise the other"
            )
        if self.crop_padding >= self.img_size:
            raise ValueError(f"crop_padding must be below img_size {self.img_size}, got {self.crop_padding}")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if 0 < getattr(self, name) < 1e-3:  # below, a Beta distribution can't be drawn from in single precision
                raise ValueError(f"{name} must be 0 (off) or at least 0.001, got {getattr(self, name)}")
        for name in ("data_dir", "output_dir"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must name a folder, got {getattr(self, name)!r}")

    @classmethod
    def from_preset(cls, preset: str) -> Self:
        return cls(preset=preset, **cls.presets[preset])  # pyright: ignore[reportCallIssue]

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments that build the model, but for the number of classes, which follows the data."""
        return {name: getattr(self, name) for name in self.model_fields}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ViTConfig(TrainConfig):
    """A Vision Transformer's run; the defaults are ViT-Tiny on CIFAR-10."""

    preset: Literal["baseline", "quick", "small", "patch2", "patch8", "no-augment", "no-warmup", "demo"] = "baseline"
    """named set of values that the flags start from (the names of `presets`, below)"""
    patch_size: int = 4
    """height and width of a patch, in pixels; must divide img_size"""
    embed_dim: int = 192
    """width of a token's vector; num_heads must divide it"""
    depth: int = 12
    """number of transformer blocks"""
    num_heads: int = 3
    """attention heads of a block"""
    mlp_ratio: float = 4.0
    """hidden width of the MLP, over embed_dim"""
    dropout: float = 0.1
    """chance that an activation is zeroed, after the embedding, the attention's projection and the MLP's layers"""
    output_dir: str = "checkpoints/vit_tiny_cifar10"
    """folder for the files of the run"""

    ranges: ClassVar[dict[str, tuple[float, float]]] = TrainConfig.ranges | {
        "patch_size": (1, 1024),
        "embed_dim": (1, 65536),
        "depth": (1, 1000),
        "num_heads": (1, 65536),
        "mlp_ratio": (0.01, 100),
        "dropout": (0, 0.99),
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "baseline": {},
        "quick": {"num_epochs": 50},
        "small": {"embed_dim": 96, "depth": 6},
        "patch2": {"patch_size": 2},  # 257 tokens an image in place of 65
        "patch8": {"patch_size": 8},  # 17 tokens
        "no-augment": {"auto_augment": False, "crop_padding": 0, "horizontal_flip": False},
        "no-warmup": {"warmup_epochs": 0},
        # scikit-learn's digits, 8x8 pixels doubled to 16x16, and a model of their size: two minutes on two
        # cores. AutoAugment's policy was searched on photographs and costs accuracy here (results/LOG.md).
        "demo": {
            "dataset": "digits",
            "img_size": 16,
            "crop_padding": 2,
            "auto_augment": False,
            "embed_dim": 96,
            "depth": 4,
            "dropout": 0.0,
            "num_epochs": 100,
            "warmup_epochs": 5,
            "output_dir": "checkpoints/demo",
        },
    }
    model_fields: ClassVar[tuple[str, ...]] = (
        "img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "dropout",
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        if self.img_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide img_size {self.img_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide embed_dim {self.embed_dim}")
        if self.embed_dim * self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} leaves the MLP of embed_dim {self.embed_dim} no width")


def check_type(name: str, value: object, annotation: Any) -> None:
    """ValueError, naming the field, for a value that is not of the field's type (edited into this file, say)."""
    for kind, called in ((int, "a whole number"), (bool, "True or False")):
        if annotation == kind | Literal["auto"]:
            if value == "auto" or type(value) is kind:
                return
            raise ValueError(f"{name} must be auto or {called}, got {value!r}")
    if annotation is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
    elif isinstance(annotation, type):
        ok = type(value) is annotation
    else:  # Literal
        if value not in annotation.__args__:
            raise ValueError(f"{name} must be one of {', '.join(annotation.__args__)}, got {value!r}")
        return
    if not ok:
        raise ValueError(f"{name} must be of type {annotation.__name__}, got {value!r}")
