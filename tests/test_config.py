"""The config holds the recipe and the presets, explains every field, and names a field with a bad value."""

import ast
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import config_vit_cifar10
import train_resnet_cifar10
from config_vit_cifar10 import ViTConfig
from evaluation.run_record import read_run
from train_resnet_cifar10 import ResNetConfig
from training.cli import parse_training_command
from training.errors import UsageError
from training.provenance import FREE_ON_RESUME

EVIDENCE = Path(__file__).parents[1] / "results" / "presets"

FIELDS: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(ViTConfig)}
NUMBERS = {name for name, kind in FIELDS.items() if {int, float} & {kind, *get_args(kind)}}
POSITIVE = {  # 0 makes no sense here; for the other numbers it means "off", "all" or "none"
    "img_size", "num_epochs", "batch_size", "learning_rate", "save_every", "patch_size", "embed_dim", "depth",
    "num_heads", "mlp_ratio", "muon_learning_rate", "layer_decay",
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
def test_the_presets_are_the_choices_and_each_makes_a_config(config_class):
    assert {config_class.from_preset(name).preset for name in config_class.presets} == set(config_class.presets)
    assert set(get_args(get_type_hints(config_class)["preset"])) == set(config_class.presets)


@pytest.mark.parametrize(
    "path", sorted(EVIDENCE.glob("*/*/config.json")), ids=lambda path: path.parent.relative_to(EVIDENCE).as_posix()
)
def test_a_preset_is_what_the_runs_with_its_name_had(path):
    """The README gives their accuracy as the preset's."""
    saved = read_run(path.parent).config  # with the default of a setting that is younger
    preset = ViTConfig.from_preset(path.parent.parent.name.removesuffix("-bf16")).to_dict()
    free = {*FREE_ON_RESUME, "preset", "seed", "dataset"}
    assert {name: preset[name] for name in preset if name not in free} == {
        name: saved[name] for name in preset if name not in free
    }


@pytest.mark.parametrize("preset", ["cpu-15min", "cpu-1h", "overnight", "strong"])
def test_the_presets_of_the_new_recipe_share_it_and_strong_has_the_baselines_size(preset):
    config, baseline = ViTConfig.from_preset(preset), ViTConfig()
    model = (config.global_pool, config.qk_norm, config.pos_embed, config.zero_init)
    assert (model, config.optimizer) == (("avg", True, "relative", True), "muon")
    assert (config.schedule, config.rel_pos_lr_scale) == ("wsd", 30)
    assert 0 < config.warmup <= config.num_epochs / 10
    size = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_epochs")
    same = all(getattr(config, name) == getattr(baseline, name) for name in size)
    assert same == (preset == "strong")


def test_a_checkpoint_of_before_an_option_was_added_has_it_off():
    """refuse_other_run and the evaluator take the defaults for what a saved config or model does not name."""
    config = ViTConfig()
    options = (config.global_pool, config.qk_norm, config.pos_embed, config.zero_init, config.small_images_share)
    assert options == ("token", False, "learn", False, 0)
    assert (config.optimizer, config.schedule) == ("adamw", "cosine")


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
    monkeypatch.setenv("COLUMNS", "400")  # wide enough for each docstring on one line
    with pytest.raises(SystemExit):
        parse_training_command(config_class, "", ["--help"])
    shown = capsys.readouterr().out
    assert [text for text in docstrings.values() if text not in shown] == []


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_number_that_is_not_finite_or_negative_or_not_a_number_is_refused_by_name(name):
    bad_values: list[Any] = [math.nan, math.inf, -math.inf, -1, -0.5, 10**30, "1", None, True, [1]]
    for bad in bad_values:
        with pytest.raises(ValueError, match=name):
            ViTConfig(**{name: bad})


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_zero_is_refused_exactly_where_it_makes_no_sense(name):
    zero: Any = 0 if FIELDS[name] is int else 0.0
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
        ({"num_epochs": 9, "warmup_epochs": 10}, "warmup_epochs"),
        ({"warmup_epochs": 100.5}, "warmup_epochs"),
        ({"warmup_epochs": "none"}, "warmup_epochs"),
        ({"crop_padding": 32}, "crop_padding"),
        ({"small_images_share": 1.1}, "small_images_share"),
        ({"augment_policy": "trivialaugment", "auto_augment": False}, "give --auto-augment"),
        ({"small_images_share": 0.5, "patch_size": 32}, "small_images_share"),
        ({"small_images_share": 0.5, "img_size": 21, "patch_size": 3}, "small_images_share"),
        ({"pos_embed": "rope"}, "pos_embed"),
        ({"pos_embed": "sincos"}, "pos_embed"),
        ({"global_pool": "mean"}, "global_pool"),
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
        ({"batch_size": "64"}, "batch_size"),
        ({"auto_augment": 1}, "auto_augment"),
        ({"compile": "no"}, "compile"),
        ({"data_dir": None}, "data_dir"),
        ({"data_dir": ""}, "data_dir"),
        ({"output_dir": " "}, "output_dir"),
        ({"dataset": "mnist"}, "dataset"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"schedule": "constant"}, "schedule"),
        ({"device": "tpu"}, "device"),
        ({"precision": "fp16"}, "precision"),
        ({"preset": "large"}, "preset"),
        ({"preset": ["quick"]}, "preset"),
    ],
)
def test_a_bad_value_is_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        ViTConfig(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_epochs": 50.0}, "num_epochs must be a whole number, got 50.0"),
        ({"dropout": "0.1"}, "dropout must be a number, got '0.1'"),
        ({"warmup_epochs": "no"}, "warmup_epochs must be a number or auto, got 'no'"),
        ({"compile": 1}, "compile must be True or False or auto, got 1"),
        ({"optimizer": "adam"}, "optimizer must be adamw or sgd or muon, got 'adam'"),
        ({"data_dir": None}, "data_dir must be a text, got None"),
        ({"dropout": 1}, "dropout must be between 0 and 0.99, got 1"),
        ({"num_epochs": 5, "warmup_epochs": 6}, "warmup_epochs must be at most num_epochs 5, got 6: give both"),
    ],
)
def test_the_message_says_what_would_be_right(arguments, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        ViTConfig(**arguments)
    assert str(caught.value) == message


def test_a_whole_number_is_accepted_for_a_float_and_the_warmup_may_fill_the_run():
    config = ViTConfig(mlp_ratio=4, num_epochs=10, warmup_epochs=10)
    assert config == ViTConfig(mlp_ratio=4.0, num_epochs=10, warmup_epochs=10.0)


@pytest.mark.parametrize(
    ("num_epochs", "vit", "resnet"),
    [(1, 0.2, 0.2), (5, 1, 1), (24, 4.8, 4.8), (25, 5, 5), (49, 9.8, 5), (50, 10, 5), (100, 10, 5), (1000, 10, 5)],
)
def test_a_short_run_warms_up_for_a_fifth_and_a_long_one_as_its_recipe(num_epochs, vit, resnet):
    assert ViTConfig(num_epochs=num_epochs).warmup == pytest.approx(vit, rel=1e-12)
    assert ResNetConfig(num_epochs=num_epochs).warmup == pytest.approx(resnet, rel=1e-12)
    assert ViTConfig(num_epochs=num_epochs, warmup_epochs=0.5).warmup == 0.5
    assert ViTConfig(num_epochs=num_epochs, warmup_epochs=num_epochs).warmup == num_epochs


@pytest.mark.parametrize(
    ("share", "num_epochs", "small"),
    [(0, 10, 0), (0.5, 3, 2), (0.65, 100, 65), (1, 7, 7), (0.8, 1, 0), (0.8, 2, 1), (1, 1, 1)],
)
def test_the_share_of_small_images_is_a_whole_number_of_epochs(share, num_epochs, small):
    assert ViTConfig(small_images_share=share, num_epochs=num_epochs).small_epochs == small


def test_the_saved_settings_hold_the_warmup_as_a_number():
    assert ViTConfig(num_epochs=5).to_dict()["warmup_epochs"] == 1
    assert ViTConfig().to_dict() == ViTConfig(warmup_epochs=10).to_dict()  # as runs saved it before there was auto
    assert ResNetConfig().to_dict() == ResNetConfig(warmup_epochs=5).to_dict()
    assert ViTConfig(**ViTConfig(num_epochs=5).to_dict()).warmup == 1


@pytest.mark.parametrize(
    ("flags", "warmup_epochs", "warmup"),
    [
        ("--num-epochs 5", "auto", 1),
        ("--num-epochs 5 --warmup-epochs 2", 2, 2),
        ("--warmup-epochs 10", 10, 10),
        ("--warmup-epochs 0.5", 0.5, 0.5),
        ("--warmup-epochs=1", 1, 1),
        ("--warmup-epochs auto", "auto", 10),
        ("--preset no-warmup", "auto", 0),
        ("--preset no-warmup --warmup-epochs auto", "auto", 0),
        ("--preset no-warmup --warmup-epochs=0.5", 0.5, 0.5),
        ("--preset quick --num-epochs 10", "auto", 2),
        ("--preset cpu-15min", "auto", 1),
        ("--preset cpu-15min --num-epochs 3", "auto", 0.6),
        ("--preset strong --num-epochs 4", "auto", 0.8),
        ("--preset strong --num-epochs 200", "auto", 5),
        ("--preset strong --num-epochs 4 --warmup-epochs 4", 4, 4),
        ("--preset demo --num-epochs 1", "auto", 0.2),
    ],
)
def test_the_warmup_is_a_number_or_auto_on_the_command_line(flags, warmup_epochs, warmup):
    config = parse_training_command(ViTConfig, "", flags.split()).config
    assert (config.warmup_epochs, config.warmup) == (warmup_epochs, warmup)
    assert type(config.warmup_epochs) is not bool


def test_a_warmup_that_is_given_is_refused_where_it_is_longer_than_the_run():
    with pytest.raises(UsageError, match=r"warmup_epochs must be at most num_epochs 4, got 5\.0: give both"):
        parse_training_command(ViTConfig, "", ["--preset=strong", "--num-epochs=4", "--warmup-epochs=5"])


def test_a_config_cannot_be_changed_after_its_check():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ViTConfig().num_epochs = -1  # pyright: ignore[reportAttributeAccessIssue]
