"""config_vit_cifar10.py holds the recipe and its presets, explains every field, and refuses bad values by name."""

import ast
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest

import config_vit_cifar10
import train_resnet_cifar10
from config_vit_cifar10 import ViTConfig
from train_resnet_cifar10 import ResNetConfig
from training.cli import parse_training_command

FIELDS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(ViTConfig)}
NUMBERS = {name for name, kind in FIELDS.items() if kind in (int, float)}
POSITIVE = {  # 0 means nothing here; in the other numbers it is "off", "all" or "none"
    "img_size", "num_epochs", "batch_size", "learning_rate", "save_every", "patch_size", "embed_dim", "depth",
    "num_heads", "mlp_ratio",
}  # fmt: skip


def test_the_defaults_are_the_recipe():
    recipe = {
        "dataset": "cifar10", "data_dir": "data", "max_train_images": 0, "val_size": 0, "img_size": 32,
        "patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3, "mlp_ratio": 4, "dropout": 0.1,
        "num_epochs": 100, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.001, "weight_decay": 0.05,
        "warmup_epochs": 10, "crop_padding": 4, "horizontal_flip": True, "auto_augment": True,
        "augment_policy": "cifar10", "random_erasing": 0, "mixup_alpha": 0, "cutmix_alpha": 0, "label_smoothing": 0,
        "num_workers": 0,
        "seed": 42, "device": "auto", "precision": "auto", "compile": "auto", "save_every": 50, "preset": "baseline",
        "output_dir": "checkpoints/vit_tiny_cifar10",
    }  # fmt: skip
    assert recipe.items() <= ViTConfig().to_dict().items()
    assert ResNetConfig().output_dir == "checkpoints/resnet18_cifar10"


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("baseline", {}),
        ("quick", {"num_epochs": 50}),
        ("small", {"embed_dim": 96, "depth": 6}),
        ("patch2", {"patch_size": 2}),
        ("patch8", {"patch_size": 8}),
        ("no-augment", {"auto_augment": False, "crop_padding": 0, "horizontal_flip": False}),
        ("no-warmup", {"warmup_epochs": 0}),
    ],
)
def test_a_preset_changes_what_its_name_says_and_nothing_else(preset, changes):
    assert ViTConfig.from_preset(preset).to_dict() == ViTConfig().to_dict() | {"preset": preset} | changes


@pytest.mark.parametrize("config_class", [ViTConfig, ResNetConfig])
def test_every_preset_is_a_choice_and_makes_a_config(config_class):
    assert {config_class.from_preset(name).preset for name in config_class.presets} == set(config_class.presets)


def test_the_demo_needs_no_download_and_no_cifar_folder():
    demo = ViTConfig.from_preset("demo")
    assert (demo.dataset, demo.output_dir) == ("digits", "checkpoints/demo")


@pytest.mark.parametrize("config_class", [ViTConfig, ResNetConfig])
def test_help_shows_a_docstring_for_every_field(config_class, capsys, monkeypatch):
    docstrings = {}
    trees = [ast.parse(Path(str(module.__file__)).read_text()) for module in (config_vit_cifar10, train_resnet_cifar10)]
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    for name in ("TrainConfig", config_class.__name__):
        body = classes[name].body
        for field, following in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(following, ast.Expr):
                docstrings[ast.unparse(field.target)] = ast.literal_eval(following.value)
    assert docstrings.keys() == {field.name for field in dataclasses.fields(config_class)}
    monkeypatch.setenv("COLUMNS", "400")  # no docstring is broken over lines
    with pytest.raises(SystemExit):
        parse_training_command(config_class, "", ["--help"])
    shown = capsys.readouterr().out
    assert [text for text in docstrings.values() if text not in shown] == []


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_number_is_refused_by_name_where_it_is_not_finite_negative_or_no_number(name):
    bad_values: list[Any] = [math.nan, math.inf, -math.inf, -1, -0.5, 10**30, "1", None, True, [1]]
    for bad in bad_values:
        with pytest.raises(ValueError, match=name):
            ViTConfig(**{name: bad})


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_zero_is_refused_exactly_where_it_means_nothing(name):
    zero = FIELDS[name](0)
    if name in POSITIVE:
        with pytest.raises(ValueError, match=name):
            ViTConfig(**{name: zero})
    else:
        assert getattr(ViTConfig(**{name: zero}), name) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"patch_size": 5}, "patch_size"),
        ({"img_size": 30}, "patch_size"),
        ({"num_heads": 5}, "num_heads"),
        ({"embed_dim": 100}, "num_heads"),
        ({"num_epochs": 9}, "warmup_epochs"),
        ({"warmup_epochs": 101}, "warmup_epochs"),
        ({"crop_padding": 32}, "crop_padding"),
        ({"dropout": 1.0}, "dropout"),
        ({"augment_policy": "cifar100"}, "augment_policy"),
        ({"augment_policy": ""}, "augment_policy"),
        ({"randaugment_magnitude": 31}, "randaugment_magnitude"),
        ({"randaugment_magnitude": 9.0}, "randaugment_magnitude"),
        ({"random_erasing": 1.01}, "random_erasing"),
        ({"mixup_alpha": 101}, "mixup_alpha"),
        ({"cutmix_alpha": 101}, "cutmix_alpha"),
        ({"mix_probability": 1.01}, "mix_probability"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"cache": 1}, "cache"),
        ({"num_epochs": 50.0}, "num_epochs"),
        ({"batch_size": "64"}, "batch_size"),
        ({"auto_augment": 1}, "auto_augment"),
        ({"compile": "no"}, "compile"),
        ({"data_dir": None}, "data_dir"),
        ({"data_dir": ""}, "data_dir"),
        ({"output_dir": " "}, "output_dir"),
        ({"dataset": "mnist"}, "dataset"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"device": "tpu"}, "device"),
        ({"precision": "fp16"}, "precision"),
        ({"preset": "large"}, "preset"),
        ({"preset": ["quick"]}, "preset"),
    ],
)
def test_a_bad_value_is_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        ViTConfig(**arguments)


def test_a_whole_number_does_for_a_float_and_the_warmup_may_fill_the_run():
    config = ViTConfig(mlp_ratio=4, num_epochs=10, warmup_epochs=10)
    assert config == ViTConfig(mlp_ratio=4.0, num_epochs=10, warmup_epochs=10)


def test_a_config_cannot_be_changed_after_its_check():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ViTConfig().num_epochs = -1  # pyright: ignore[reportAttributeAccessIssue]
