"""All settings that are accepted train a step with a finite loss; a refusal names the field."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import nn

from config_vit_cifar10 import DatasetName, TrainConfig, ViTConfig
from resnet import ResNet18
from tests.steps import Steps
from train_resnet_cifar10 import ResNetConfig
from train_vit_cifar10 import create_loaders
from training.data import Dataset
from training.device import select_device, select_precision
from training.engine import train_one_epoch
from training.optim import create_optimizer, create_scheduler, scale_relative_positions
from training.pretrained import begin_fine_tuning, decay_by_layer
from vit import VisionTransformer

NUM_IMAGES, NUM_CLASSES = 20, 3
MODELS: dict[type[TrainConfig], Callable[..., nn.Module]] = {ViTConfig: VisionTransformer, ResNetConfig: ResNet18}
STEADY = settings(derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])

# Valid values of each field, with the edges of its range; small where a step would take long, or few images exist.
VALUES: dict[str, SearchStrategy[Any]] = {
    "dataset": st.sampled_from(get_args(DatasetName)),
    "data_dir": st.text(min_size=1).filter(str.strip),
    "data_url": st.text(),
    "max_train_images": st.integers(0, NUM_IMAGES - 6),
    "val_size": st.sampled_from([0, NUM_CLASSES, 6]),
    "img_size": st.sampled_from([4, 8, 9, 12, 16]),
    "small_images_share": st.just(0) | st.floats(0, 1),
    "num_epochs": st.integers(1, 12) | st.just(10**6),
    "batch_size": st.integers(1, 8) | st.just(10**6),
    "optimizer": st.sampled_from(["adamw", "sgd", "muon"]),
    "learning_rate": st.floats(1e-12, 1e3) | st.integers(1, 1000),
    "muon_learning_rate": st.floats(1e-12, 1e3) | st.integers(1, 1000),
    "schedule": st.sampled_from(["cosine", "linear", "wsd"]),
    "weight_decay": st.floats(0, 1e3),
    "warmup_epochs": st.just("auto") | st.integers(0, 13) | st.floats(0, 13) | st.just(10**6),
    "clip_grad_norm": st.floats(0, 1e6),
    "crop_padding": st.integers(0, 9),
    "augment_policy": st.sampled_from(["cifar10", "imagenet", "svhn", "randaugment", "trivialaugment"]),
    "randaugment_magnitude": st.integers(0, 30),
    "random_erasing": st.floats(0, 1),
    "mixup_alpha": st.just(0) | st.floats(0, 100),
    "cutmix_alpha": st.just(0) | st.floats(0, 100),
    "mix_probability": st.floats(0, 1),
    "label_smoothing": st.floats(0, 0.99),
    "num_workers": st.integers(0, 3) | st.just(256),
    "seed": st.integers(0, 2**63 - 1),
    "device": st.sampled_from(["auto", "cpu", "cuda", "mps"]),
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
    "output_dir": st.text(min_size=1).filter(str.strip),
    "save_minutes": st.floats(0, 1e6),
    "save_every": st.integers(1, 10**6),
    "patch_size": st.sampled_from([1, 2, 3, 4, 8, 9, 16]),
    "embed_dim": st.integers(1, 24),
    "depth": st.integers(1, 3),
    "num_heads": st.sampled_from([1, 2, 3, 4]),
    "mlp_ratio": st.floats(0.01, 4) | st.integers(1, 4),
    "dropout": st.floats(0, 0.99),
    "global_pool": st.sampled_from(["token", "avg"]),
    "pos_embed": st.sampled_from(["learn", "relative"]),
    "init_from": st.text(),
    "layer_decay": st.floats(0.01, 1) | st.just(1),
    "rel_pos_lr_scale": st.floats(0, 1000) | st.just(1),
}


def values_of(config_class: type[TrainConfig], field: dataclasses.Field) -> SearchStrategy[Any]:
    if field.name == "preset":
        return st.sampled_from(sorted(config_class.presets))
    if field.name == "img_size" and config_class is ResNetConfig:
        return st.sampled_from([9, 12, 18])
    return VALUES[field.name] if field.name in VALUES else st.booleans()


@st.composite
def arguments(draw: DrawFn, config_class: type[TrainConfig]) -> dict[str, Any]:
    """Valid values for some of the fields, small ones for others; the rest keep their defaults. They may not fit."""
    small = {"img_size": 12, "depth": 1, "embed_dim": 12, "num_epochs": 20, "crop_padding": 2}
    names = {field.name for field in dataclasses.fields(config_class)}
    given_fields = {
        field.name: draw(values_of(config_class, field))
        for field in dataclasses.fields(config_class)
        if draw(st.booleans())
    }
    return {name: value for name, value in small.items() if name in names} | given_fields


def misfits(config_class: type[TrainConfig], values: dict[str, Any]) -> set[str]:
    """The fields that do not fit the others, as their docstrings have it."""
    all_values: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(config_class)} | values
    wrong = set()
    if all_values["warmup_epochs"] != "auto" and all_values["warmup_epochs"] > all_values["num_epochs"]:
        wrong.add("warmup_epochs")
    if all_values["crop_padding"] >= all_values["img_size"]:
        wrong.add("crop_padding")
    if all_values["augment_policy"] != "cifar10" and not all_values["auto_augment"]:
        wrong.add("augment_policy")
    wrong |= {name for name in ("mixup_alpha", "cutmix_alpha") if 0 < all_values[name] < 1e-3}
    too_small = all_values["img_size"] < 2 * config_class.ranges["img_size"][0]
    if all_values["small_images_share"] and (all_values["img_size"] % 2 > 0 or too_small):
        wrong.add("small_images_share")
    if config_class is ViTConfig:
        if all_values["small_images_share"] and all_values["img_size"] // 2 % all_values["patch_size"] > 0:
            wrong.add("small_images_share")
        if all_values["img_size"] % all_values["patch_size"] > 0:
            wrong.add("patch_size")
        if all_values["embed_dim"] % all_values["num_heads"] > 0:
            wrong.add("num_heads")
        if all_values["embed_dim"] * all_values["mlp_ratio"] < 1:  # an MLP of no width
            wrong.add("mlp_ratio")
    return wrong


def first_loss(config: TrainConfig) -> float:
    """The loss of one training step on random images, computed by the program's own parts."""
    random = torch.Generator().manual_seed(0)
    size = (NUM_IMAGES, 3, config.img_size, config.img_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=random)
    labels = torch.arange(NUM_IMAGES) % NUM_CLASSES
    dataset = Dataset(["a", "b", "c"], images, labels, images, labels, mirrorable=config.dataset != "digits")
    device = select_device("cpu")
    loader, _ = create_loaders(config, dataset, device)
    torch.manual_seed(config.seed)
    model = MODELS[type(config)](**config.model_args, num_classes=NUM_CLASSES)
    if isinstance(config, ViTConfig):
        begin_fine_tuning(model, config, dataset.class_names, new=False)
    optimizer = create_optimizer(
        model, config.optimizer, config.learning_rate, config.weight_decay, config.muon_learning_rate
    )
    if isinstance(config, ViTConfig):
        decay_by_layer(optimizer, model, config.layer_decay)
        scale_relative_positions(optimizer, model, config.rel_pos_lr_scale)
    warmup_steps, total_steps = round(config.warmup * len(loader)), config.num_epochs * len(loader)
    scheduler = create_scheduler(optimizer, warmup_steps, total_steps, schedule=config.schedule)
    steps = Steps()
    loader.set_epoch(0, len(loader) - 1)  # its last step, with what images are left for it
    train_one_epoch(
        model, loader, optimizer, scheduler, select_precision(config.precision, device)[0], steps,
        clip_grad_norm=config.clip_grad_norm, label_smoothing=config.label_smoothing,
    )  # fmt: skip
    assert steps.sums.step == 1
    return steps.sums.metrics()["train_loss"]


def assert_accepted_ones_train(config_class: type[TrainConfig], values: dict[str, Any]) -> None:
    wrong = misfits(config_class, values)
    if wrong:
        with pytest.raises(ValueError, match="|".join(wrong)):
            config_class(**values)
    else:
        assert math.isfinite(first_loss(config_class(**values)))


@settings(STEADY, max_examples=150)
@given(arguments(ViTConfig))
@example({"embed_dim": 12, "mlp_ratio": 0.08, "depth": 1})  # an MLP of no width
@example({"mixup_alpha": 1e-46, "depth": 1})  # 0 in fp32
@example({"cutmix_alpha": 1e-46, "depth": 1})
def test_a_vit_trains_with_all_settings_it_accepts_and_names_those_it_refuses(values):
    assert_accepted_ones_train(ViTConfig, values)


@settings(STEADY, max_examples=15)
@given(arguments(ResNetConfig))
def test_a_resnet_trains_with_all_settings_it_accepts_and_names_those_it_refuses(values):
    assert_accepted_ones_train(ResNetConfig, values)


@pytest.mark.parametrize("config_class", [ViTConfig, ResNetConfig])
@settings(STEADY)
@given(st.integers(1, 10**6), st.floats(0, 1))
def test_any_number_of_epochs_has_a_warmup_that_is_its_recipes_or_a_fifth_or_what_was_given(config_class, epochs, part):
    config = config_class(num_epochs=epochs)
    assert 0 < config.warmup <= min(config_class.recipe_warmup, epochs / 5)
    assert config.warmup == config_class.recipe_warmup or epochs < 5 * config_class.recipe_warmup
    assert config_class(**config.to_dict()).to_dict() == config.to_dict()
    assert config_class(num_epochs=epochs, warmup_epochs=part * epochs).warmup == part * epochs


WRONG_TYPES = st.sampled_from([None, b"1", [1], {}, (), 1j, object()])
NO_INTEGERS = WRONG_TYPES | st.text() | st.floats() | st.booleans()
NO_NUMBERS = WRONG_TYPES | st.text() | st.booleans() | st.sampled_from([math.nan, math.inf, -math.inf])


def bad_values(config_class: type[TrainConfig], field: dataclasses.Field) -> SearchStrategy[Any]:
    """Values of another type, or out of the field's range."""
    low, high = config_class.ranges.get(field.name, (0, 10**9))
    below, above = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    out_of_range = st.floats(max_value=below) | st.floats(min_value=above)
    if field.name == "warmup_epochs":  # a number or "auto"
        return NO_NUMBERS.filter(lambda value: value != "auto") | out_of_range
    if get_args(field.type):  # one of several words
        return WRONG_TYPES | st.text().filter(lambda text: text not in get_args(field.type))
    if field.type is int:
        return NO_INTEGERS | st.integers(max_value=int(low) - 1) | st.integers(min_value=int(high) + 1)
    if field.type is float:
        return NO_NUMBERS | out_of_range
    if field.type is bool:
        return WRONG_TYPES | st.text() | st.integers() | st.floats()
    no_folders = st.sampled_from(["", " ", "\t\n"]) if field.name in ("data_dir", "output_dir") else st.nothing()
    return WRONG_TYPES | st.integers() | st.floats() | st.booleans() | no_folders


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ViTConfig)])
@settings(STEADY, max_examples=40)
@given(st.data())
def test_a_value_of_another_type_or_out_of_range_is_refused_by_name(name, data):
    for config_class in MODELS:
        for field in dataclasses.fields(config_class):
            if field.name == name:
                value = data.draw(bad_values(config_class, field))
                with pytest.raises(ValueError, match=name):
                    config_class(**{name: value})
