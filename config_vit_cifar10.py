"""The settings of a run: edit a default here, pass a flag (`--num-epochs 50`), or choose a named set with --preset.

The defaults are the classic recipe, "the recipe" below: ViT-Tiny (patch 4, width 192, 12 blocks, 3 heads), 100 epochs
of AdamW with 10 of warmup, AutoAugment. A flag given beats the preset, and the preset beats the default in this file.

To add a setting: write a field and its docstring, which --help shows; docs/settings.md and tests/test_cli.py list it. A
number may be 0 to 10^9 unless `ranges` says otherwise. An argument of the model also goes into `model_fields`.
To add a preset: put its values into `presets`, and its name into the choices of the field `preset`.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

DatasetName = Literal["cifar10", "cifar100", "svhn", "fashion-mnist", "digits", "image-folder"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of any run, whatever the model. A bad value raises a ValueError that names the field."""

    dataset: DatasetName = "cifar10"
    """images to learn from; digits needs no download, image-folder reads DATA_DIR/{train,test}/<class>/*"""
    data_dir: str = "data"
    """folder that the images are read from, and downloaded to"""
    data_url: str = ""
    """web address of a folder with the official files, or of CIFAR's archive; empty: the official address"""
    cache: bool = True
    """store the decoded images of image-folder in one file beside them; it is remade when an image changes"""
    max_train_images: int = 0
    """train on this many images only, with the classes in their proportions; 0: on all"""
    val_size: int = 0
    """hold out this many training images and choose the best epoch on them; 0: choose on the test split"""
    img_size: int = 32
    """height and width the images are resized to, in pixels"""
    small_images_share: float = 0.0
    """share of the epochs, the first ones, that train on images of half the height and width (arXiv 2104.00298)"""

    num_epochs: int = 100
    """passes over the training images (the recipe: 100)"""
    batch_size: int = 64
    """images per step, over all processes together (the recipe: 64)"""
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    """adamw (arXiv 1711.05101), sgd with Nesterov momentum 0.9, or muon (training/muon.py; outer layers: adamw)"""
    learning_rate: float = 1e-3
    """learning rate at its peak, at the end of the warmup (the recipe: 0.001)"""
    muon_learning_rate: float = 0.02
    """the peak for the weights that muon updates; learning_rate is that of the others (0.02: Muon's authors)"""
    schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    """how the learning rate falls to 0 (linear: arXiv 2310.07831; wsd: in the last 30 % after warmup, 2405.18392)"""
    weight_decay: float = 0.05
    """weight decay of weight matrices; biases, norms, tokens and position embeddings have none (the recipe: 0.05)"""
    warmup_epochs: float | Literal["auto"] = "auto"
    """epochs of linear warmup from 0, then decay; auto: the preset's or 10 (ResNet: 5), at most a fifth of the run"""
    clip_grad_norm: float = 0.0
    """scale longer gradients down to this L2 norm; 0: off (the ViT paper: 1.0)"""

    crop_padding: int = 4
    """pad each side by this many pixels, then crop at random; 0: off (the recipe: 4)"""
    horizontal_flip: bool = True
    """mirror each image with probability 1/2; digits and house numbers are never mirrored"""
    auto_augment: bool = True
    """change colours and shapes at random, as augment_policy says"""
    augment_policy: Literal["cifar10", "imagenet", "svhn", "randaugment", "trivialaugment"] = "cifar10"
    """one of AutoAugment's policies (arXiv 1805.09501), RandAugment (1909.13719) or TrivialAugmentWide (2103.10158)"""
    randaugment_magnitude: int = 9
    """strength of RandAugment's two operations, 0 to 30 (torchvision: 9)"""
    random_erasing: float = 0.0
    """probability of blacking out a box of an image (arXiv 1708.04896); 0: off (DeiT: 0.25)"""
    mixup_alpha: float = 0.0
    """MixUp: blend pairs of images and labels, with weights from Beta(alpha, alpha) (arXiv 1710.09412); 0: off"""
    cutmix_alpha: float = 0.0
    """CutMix: paste a box of one image into another (arXiv 1905.04899); 0: off; with MixUp, each gets half the steps"""
    mix_probability: float = 1.0
    """probability that MixUp or CutMix is applied to a batch"""
    label_smoothing: float = 0.0
    """share of the target that is spread over all classes (arXiv 1512.00567); 0: off"""
    num_workers: int = 0
    """threads that prepare the next images while the model computes; the batches are the same with any number"""

    seed: int = 42
    """seed of the weights, the order of the images, their augmentation and dropout, and which are held out or kept"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to compute; auto: on a GPU if there is one"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """arithmetic of the matrix products; auto: bf16 where the hardware has it (elsewhere it is slower)"""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile the model (--compile, --no-compile); auto: for long bf16 runs on a CPU"""

    output_dir: str
    """folder for the files of the run"""
    tensorboard: bool = False
    """also write each epoch's numbers for TensorBoard; needs `pip install tensorboard`"""
    save_minutes: float = 10.0
    """minutes between the saves for --resume within an epoch; 0: save only at the end of an epoch"""
    save_every: int = 50
    """keep a checkpoint_epoch_N.pth every this many epochs, and after the last"""

    ranges: ClassVar[dict[str, tuple[float, float]]] = {  # lowest and highest allowed; of other numbers, 0 and 10^9
        "img_size": (4, 1024), "small_images_share": (0, 1), "num_epochs": (1, 10**6), "batch_size": (1, 10**6),
        "learning_rate": (1e-12, 1e3), "muon_learning_rate": (1e-12, 1e3),
        "weight_decay": (0, 1e3), "randaugment_magnitude": (0, 30), "random_erasing": (0, 1), "mixup_alpha": (0, 100),
        "cutmix_alpha": (0, 100), "mix_probability": (0, 1), "label_smoothing": (0, 0.99), "num_workers": (0, 256),
        "seed": (0, 2**63 - 1), "save_every": (1, 10**6),
    }  # fmt: skip
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "baseline": {},
        "quick": {"num_epochs": 50},
        "no-augment": {"auto_augment": False, "crop_padding": 0, "horizontal_flip": False},
        "no-warmup": {"warmup_epochs": 0},
    }
    recipe_warmup: ClassVar[float] = 10  # epochs
    model_fields: ClassVar[tuple[str, ...]] = ()  # the fields that are arguments of the model

    def __post_init__(self):
        for field in fields(self):
            check_field(field.name, getattr(self, field.name), field.type, *self.ranges.get(field.name, (0, 10**9)))
        if self.warmup > self.num_epochs:
            raise ValueError(
                f"warmup_epochs must be at most num_epochs {self.num_epochs}, got {self.warmup_epochs}: give both"
            )
        smallest = 2 * self.ranges["img_size"][0]
        if self.small_images_share and (self.img_size % 2 or self.img_size < smallest):
            raise ValueError(f"small_images_share needs an even img_size, at least {smallest:g}, got {self.img_size}")
        if self.crop_padding >= self.img_size:
            raise ValueError(f"crop_padding must be below img_size {self.img_size}, got {self.crop_padding}")
        if self.augment_policy != "cifar10" and not self.auto_augment:
            raise ValueError(
                f"augment_policy {self.augment_policy} has no use without auto_augment: give --auto-augment"
            )
        for name in ("mixup_alpha", "cutmix_alpha"):
            if 0 < getattr(self, name) < 1e-3:  # single precision can't draw from such a Beta distribution
                raise ValueError(f"{name} must be 0 (off) or at least 0.001, got {getattr(self, name)}")
        for name in ("data_dir", "output_dir"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must name a folder, got {getattr(self, name)!r}")

    @classmethod
    def from_preset(cls, preset: str) -> Self:
        """The settings of that name. The warmup stays "auto", so that it shrinks where a flag shortens the run."""
        values = {name: "auto" if name == "warmup_epochs" else value for name, value in cls.presets[preset].items()}
        return cls(preset=preset, **values)  # pyright: ignore[reportCallIssue]

    @property
    def warmup(self) -> float:
        """Epochs of warmup, with "auto" replaced: the preset's or the recipe's, but at most a fifth of the run."""
        if self.warmup_epochs == "auto":
            preset = self.presets[getattr(self, "preset", "baseline")]
            return min(preset.get("warmup_epochs", self.recipe_warmup), self.num_epochs / 5)
        return self.warmup_epochs

    @property
    def small_epochs(self) -> int:
        """Epochs, the first ones, whose images have half the height and width; not the last, unless the share is 1."""
        small = round(self.small_images_share * self.num_epochs)
        return small if self.small_images_share == 1 else min(small, self.num_epochs - 1)

    def full_epochs(self, epochs: int) -> float:
        """Epochs of full-size images that cost as much as the first `epochs`: one of half the size costs a quarter."""
        return epochs - 0.75 * min(epochs, self.small_epochs)

    @property
    def model_args(self) -> dict[str, Any]:
        """The arguments that build the model, except num_classes, which the dataset gives."""
        return {name: getattr(self, name) for name in self.model_fields}

    def to_dict(self) -> dict[str, Any]:
        """All fields, for config.json and checkpoints; warmup_epochs as a number."""
        return asdict(self) | {"warmup_epochs": self.warmup}


# What the presets cpu-15min to strong share. Sources of the techniques: the docstrings of the fields; the values were
# found here (docs/tried.md).
NEW_RECIPE: dict[str, Any] = {
    "global_pool": "avg", "qk_norm": True, "pos_embed": "relative", "zero_init": True, "dropout": 0.0,
    "optimizer": "muon", "learning_rate": 2e-3, "schedule": "wsd", "rel_pos_lr_scale": 30, "warmup_epochs": 1,
    "batch_size": 256, "label_smoothing": 0.1, "auto_augment": False, "val_size": 1000,
}  # fmt: skip
# Long runs see an image often: they need stronger augmentation, and fit them better at a lower rate of Muon.
LONG_RUN: dict[str, Any] = {
    "auto_augment": True, "cutmix_alpha": 1.0, "mix_probability": 0.5, "muon_learning_rate": 0.005,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ViTConfig(TrainConfig):
    """The settings of a Vision Transformer's run; the defaults are ViT-Tiny on CIFAR-10."""

    preset: Literal[
        "baseline", "quick", "small", "patch2", "patch8", "no-augment", "no-warmup", "demo",
        "cpu-15min", "cpu-1h", "overnight", "strong",
    ] = "baseline"  # fmt: skip
    """named set of values, which flags then change"""
    patch_size: int = 4
    """height and width of a patch, in pixels; must divide img_size"""
    embed_dim: int = 192
    """width of a token's vector; num_heads must divide it"""
    depth: int = 12
    """number of transformer blocks"""
    num_heads: int = 3
    """attention heads of a block"""
    mlp_ratio: float = 4.0
    """hidden width of the MLP, divided by embed_dim"""
    dropout: float = 0.1
    """probability of zeroing an activation, after the embedding, the attention's projection and the MLP's layers"""
    global_pool: Literal["token", "avg"] = "token"
    """what the head reads: the class token, or without one the mean of the patches (arXiv 2205.01580)"""
    qk_norm: bool = False
    """LayerNorm of each head's queries and keys (arXiv 2302.05442)"""
    pos_embed: Literal["learn", "relative"] = "learn"
    """a learned vector for each place, or a learned bias for each offset between two patches (arXiv 2103.14030)"""
    rel_pos_lr_scale: float = 1.0
    """factor on the learning rate of the relative positions: they begin between -9 and 0, far for AdamW; 1: off"""
    zero_init: bool = False
    """residual branches and logits begin at zero (arXiv 1901.09321), the blocks' other matrices larger; for muon"""
    init_from: str = ""
    """weights to begin with: a .safetensors or .pth file, or a folder that holds one (docs/weights.md)"""
    freeze_backbone: bool = False
    """train only the head"""
    layer_decay: float = 1.0
    """factor on the learning rate from each layer to the one below (arXiv 2106.08254); 1: off (BEiT: 0.65 to 0.85)"""
    output_dir: str = "checkpoints/vit_tiny_cifar10"
    """folder for the files of the run"""

    ranges: ClassVar[dict[str, tuple[float, float]]] = TrainConfig.ranges | {
        "patch_size": (1, 1024), "embed_dim": (1, 65536), "depth": (1, 1000), "num_heads": (1, 65536),
        "mlp_ratio": (0.01, 100), "dropout": (0, 0.99), "layer_decay": (0.01, 1), "rel_pos_lr_scale": (0, 1000),
    }  # fmt: skip
    presets: ClassVar[dict[str, dict[str, Any]]] = TrainConfig.presets | {
        "small": {"embed_dim": 96, "depth": 6},
        "patch2": {"patch_size": 2},  # 257 tokens per image instead of 65
        "patch8": {"patch_size": 8},  # 17 tokens
        # scikit-learn's digits, 8x8 pixels doubled to 16x16, and a small model: a minute or two on two cores.
        # AutoAugment's policy was searched on photographs and costs accuracy here (results/LOG.md).
        "demo": {
            "dataset": "digits", "img_size": 16, "crop_padding": 2, "auto_augment": False, "embed_dim": 96, "depth": 4,
            "dropout": 0.0, "num_epochs": 100, "warmup_epochs": 5, "output_dir": "checkpoints/demo",
        },
        # A recipe of 2026. Costs on two cores with bf16; JPEG test images, 1,000 training images held out:
        # python train_vit_cifar10.py --preset cpu-15min: 15 minutes, 85.14 ± 0.59 % (3 seeds, bf16 and fp32)
        "cpu-15min": NEW_RECIPE | {"embed_dim": 96, "depth": 6, "num_epochs": 20, "small_images_share": 0.8},
        # python train_vit_cifar10.py --preset cpu-1h: 52 minutes, 89.27 ± 0.45 % (3 seeds)
        "cpu-1h": NEW_RECIPE | LONG_RUN
        | {"embed_dim": 128, "depth": 6, "num_heads": 4, "num_epochs": 60, "small_images_share": 0.8},
        # python train_vit_cifar10.py --preset overnight: 4.8 hours, 91.77 % (1 seed); strong was not run
        "overnight": NEW_RECIPE | LONG_RUN
        | {"embed_dim": 192, "depth": 8, "num_heads": 6, "num_epochs": 120, "small_images_share": 0.75},
        "strong": NEW_RECIPE | LONG_RUN | {"warmup_epochs": 5, "batch_size": 128},  # for a GPU
    }  # fmt: skip
    model_fields: ClassVar[tuple[str, ...]] = (
        "img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "dropout", "global_pool", "qk_norm",
        "pos_embed", "zero_init",
    )  # fmt: skip

    def __post_init__(self):
        super().__post_init__()
        if self.img_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide img_size {self.img_size}")
        if self.small_images_share and self.img_size // 2 % self.patch_size:
            raise ValueError(f"small_images_share: patch_size {self.patch_size} does not divide {self.img_size // 2}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide embed_dim {self.embed_dim}")
        if self.embed_dim * self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} leaves the MLP of embed_dim {self.embed_dim} no width")


def check_field(name: str, value: object, annotation: Any, low: float, high: float) -> None:
    """Raise a ValueError, naming the field, if the value is not of its type or is a number out of its range."""
    kinds = (annotation,) if get_origin(annotation) is Literal else get_args(annotation) or (annotation,)
    words = [word for kind in kinds for word in get_args(kind)]
    kind = float if type(value) is int and float in kinds else type(value)
    if kind not in kinds and value not in words:
        called = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
        expected = [called[kind] for kind in kinds if kind in called] + words
        raise ValueError(f"{name} must be {' or '.join(expected)}, got {value!r}")
    if isinstance(value, int | float) and not low <= value <= high:  # written so that NaN fails too
        raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value}")
