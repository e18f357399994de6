"""An epoch takes the steps that plain torch would take, and reports what scikit-learn would; what explodes stops."""

import copy
import itertools
import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tests.steps import Steps
from training.data import channel_stats, load_dataset
from training.data.loader import ImageLoader
from training.data.mix import Mixing
from training.engine import EpochSums, evaluate, predict, train_one_epoch
from training.errors import RunError
from training.optim import create_optimizer, create_scheduler
from vit import VisionTransformer

DIGITS = load_dataset("digits", "", img_size=8)
MEAN, STD = channel_stats(DIGITS.train_images)


def tiny_vit(dropout: float = 0.0, **options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=8, patch_size=2, embed_dim=48, depth=2, num_heads=3, dropout=dropout, **options)
    nn.init.normal_(model.head.weight, std=0.5)  # so that the logits differ from the start
    return model


def digits_loader(num_images: int, batch_size: int, split: str = "train", **arguments) -> ImageLoader:
    images, labels = DIGITS.train_images[:num_images], DIGITS.train_labels[:num_images]
    return ImageLoader(images, labels, MEAN, STD, batch_size, split=split, **arguments)


def run_epoch(
    model: nn.Module, loader: ImageLoader, optimizer, scheduler=None, sync_every=1, after_sync=lambda: None,
    **arguments,
):  # fmt: skip
    scheduler = scheduler or LambdaLR(optimizer, lambda step: 1.0)
    steps = Steps(None, after_sync, sync_every)
    train_one_epoch(model, loader, optimizer, scheduler, torch.float32, steps, **arguments)
    return steps.sums.metrics()


def by_hand(loader: ImageLoader) -> tuple[torch.Tensor, torch.Tensor]:
    """All images, normalized by numpy, and labels."""
    pixels = loader.images.numpy() / 255
    normalized = (pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    return torch.from_numpy(normalized).float(), loader.labels


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_equals_scikit_learns_log_loss_and_accuracy(split):
    model, loader = tiny_vit(dropout=0.5), digits_loader(250, batch_size=100, split=split)  # the last batch is of 50
    images, labels = by_hand(loader)
    with torch.no_grad():
        probabilities = model.eval()(images).double().softmax(dim=1).numpy()
    model.train()  # evaluate has to switch the dropout off
    figures = evaluate(model, loader, torch.float32)
    assert figures.keys() == {f"{split}_loss", f"{split}_acc"}
    assert figures[f"{split}_loss"] == pytest.approx(log_loss(labels, probabilities, labels=range(10)), rel=1e-5)
    assert figures[f"{split}_acc"] == pytest.approx(100 * accuracy_score(labels, probabilities.argmax(axis=1)))


def test_predict_returns_logits_and_labels_in_the_images_order():
    model, loader = tiny_vit(), digits_loader(70, batch_size=32)
    logits, labels = predict(model, loader, torch.float32)
    with torch.no_grad():
        expected = model(by_hand(loader)[0])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(labels, DIGITS.train_labels[:70])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mixing", [None, Mixing(10, mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.7)])
def test_soft_targets_and_label_smoothing_enter_loss_and_accuracy_as_their_formulas_say(mixing, label_smoothing):
    model, loader = tiny_vit(), digits_loader(250, batch_size=16, mixing=mixing, shuffle_seed=3)
    losses, correct = [], []
    for images, labels in loader:
        targets = torch.eye(10)[labels] if labels.ndim == 1 else labels
        with torch.no_grad():
            log_probabilities = model(images).double().log_softmax(dim=1)
        smooth = (1 - label_smoothing) * targets + label_smoothing / 10  # arXiv 1512.00567, section 7
        losses += (-(smooth * log_probabilities).sum(dim=1)).tolist()
        correct += (log_probabilities.argmax(dim=1) == targets.argmax(dim=1)).tolist()
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    figures = run_epoch(model, loader, still, label_smoothing=label_smoothing)
    assert figures["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert figures["train_acc"] == pytest.approx(100 * np.mean(correct))


def test_an_epoch_takes_the_steps_written_by_hand():
    model, loader = tiny_vit(), digits_loader(48, batch_size=32)
    expected = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    figures = run_epoch(model, loader, optimizer, LambdaLR(optimizer, lambda step: [1.0, 0.5, 0.0][step]))

    images, labels = by_hand(loader)
    for part, learning_rate in ((slice(0, 32), 0.1), (slice(32, 48), 0.05)):
        log_probabilities = expected(images[part]).log_softmax(dim=1)
        loss = -log_probabilities.gather(1, labels[part, None]).mean()
        gradients = torch.autograd.grad(loss, [*expected.parameters()])
        for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
            parameter.data -= learning_rate * gradient
    torch.testing.assert_close(flat(model), flat(expected), rtol=1e-4, atol=1e-5)
    assert (flat(model) - flat(tiny_vit())).norm() > 0.01
    assert figures["lr"] == pytest.approx(0.05)  # of the last step


@pytest.mark.parametrize(("clip_grad_norm", "shortened"), [(0.01, True), (1e6, False), (0.0, False)])
def test_clip_grad_norm_shortens_long_gradients_and_no_others(clip_grad_norm, shortened):
    model, loader = tiny_vit(), digits_loader(32, batch_size=32)
    images, labels = by_hand(loader)
    loss = nn.functional.cross_entropy(model(images), labels)
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, [*model.parameters()])])
    before = flat(model)
    run_epoch(model, loader, torch.optim.SGD(model.parameters(), lr=1.0), clip_grad_norm=clip_grad_norm)
    expected = gradient * clip_grad_norm / gradient.norm() if shortened else gradient
    torch.testing.assert_close(before - flat(model), expected, rtol=1e-2, atol=1e-5)
    assert gradient.norm() > 0.1


class Exploding(nn.Module):
    """A model with infinite logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images) * math.inf


def test_a_loss_that_is_not_finite_raises_and_leaves_the_weights_as_they_were():
    model, loader = Exploding(tiny_vit()), digits_loader(64, batch_size=32)
    loader.set_epoch(4)
    before = flat(model)
    with pytest.raises(
        RunError, match=r"loss became nan in batch 1 of epoch 5; .* Start anew with a lower --learning-rate"
    ):
        run_epoch(model, loader, create_optimizer(model, "adamw", learning_rate=1.0, weight_decay=0.5))
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clip_grad_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_its_step_though_the_loss_is_finite(value, clip_grad_norm):
    model, loader = tiny_vit(), digits_loader(96, batch_size=32)
    loader.set_epoch(4)
    optimizer = create_optimizer(model, "adamw", learning_rate=0.01, weight_decay=0.5)
    scheduler, sums, seen = create_scheduler(optimizer, 0, 10), EpochSums(), []
    model.get_parameter("pos_embed").register_hook(
        lambda gradient: torch.full_like(gradient, value) if seen else gradient
    )
    with pytest.raises(
        RunError,
        match=rf"the gradient's norm became {abs(value)} in batch 2 of epoch 5; .* Start anew with a lower --learning",
    ):
        train_one_epoch(
            model, loader, optimizer, scheduler, torch.float32,
            Steps(sums, lambda: seen.append(copy.deepcopy((flat(model), sums)))), clip_grad_norm=clip_grad_norm,
        )  # fmt: skip
    [(weights, sums_after_step_1)] = seen
    assert torch.equal(flat(model), weights)
    assert sums == sums_after_step_1
    assert sums.step == scheduler.last_epoch == 1
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}


def test_between_two_steps_all_that_changes_has_changed_as_often():
    model, loader = tiny_vit(dropout=0.1), digits_loader(250, batch_size=64, shuffle_seed=0)  # the last batch is of 58
    optimizer = create_optimizer(model, "adamw", learning_rate=0.01, weight_decay=0.05)
    scheduler, sums, seen, weights = create_scheduler(optimizer, 2, 4), EpochSums(), [], [flat(model)]

    def look() -> None:
        steps = {int(state["step"]) for state in optimizer.state.values()}
        seen.append((sums.step, scheduler.last_epoch, steps, sums.num_images, sums.lr))
        weights.append(flat(model))
        figures = sums.metrics()
        assert figures["train_loss"] * sums.num_images == pytest.approx(sums.loss)
        assert all(map(math.isfinite, figures.values()))
        assert sums.seconds > 0
        assert model.training

    train_one_epoch(model, loader, optimizer, scheduler, torch.float32, Steps(sums, look))
    assert seen == [
        (1, 1, {1}, 64, pytest.approx(0.005)),
        (2, 2, {2}, 128, pytest.approx(0.01)),
        (3, 3, {3}, 192, pytest.approx(0.01)),
        (4, 4, {4}, 250, pytest.approx(0.005)),
    ]
    assert all(not torch.equal(before, after) for before, after in itertools.pairwise(weights))


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_looking_every_third_step_gives_the_weights_sums_and_figures_of_looking_at_each(name):
    results = []
    for sync_every in (1, 3):
        model, loader = tiny_vit(dropout=0.1), digits_loader(250, batch_size=32, shuffle_seed=0)  # 8 steps
        optimizer = create_optimizer(model, name, learning_rate=0.01, weight_decay=0.05)
        scheduler, sums, looks = create_scheduler(optimizer, 2, 8), EpochSums(), []
        train_one_epoch(
            model, loader, optimizer, scheduler, torch.float32,
            Steps(sums, lambda sums=sums, looks=looks: looks.append((sums.step, sums.num_images)), sync_every),
            clip_grad_norm=1.0,
        )  # fmt: skip
        figures = {key: value for key, value in sums.metrics().items() if key != "images_per_second"}
        results.append((flat(model), optimizer.state_dict(), figures, sums.num_correct, looks))
        assert sums.seconds > 0
    (weights, state, figures, correct, each), (other_weights, other_state, other_figures, other_correct, thirds) = (
        results
    )
    assert torch.equal(other_weights, weights)
    torch.testing.assert_close(other_state, state, rtol=0, atol=0)
    assert other_figures == pytest.approx(figures, rel=1e-12)
    assert other_correct == correct
    assert thirds == [(3, 96), (6, 192), (8, 250)] == [each[2], each[5], each[7]]


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("clip_grad_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_between_two_looks_is_never_saved_and_the_error_names_the_batches(
    name, clip_grad_norm
):
    """That of batch 5, of which nothing but the look at batch 6 can tell."""
    model, loader = tiny_vit(), digits_loader(250, batch_size=32)
    optimizer = create_optimizer(model, name, learning_rate=0.01, weight_decay=0.5)
    gradients, saved = [], []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        gradients.append(gradient)
        return gradient * math.nan if len(gradients) == 5 else gradient

    model.get_parameter("pos_embed").register_hook(spoil)
    with pytest.raises(RunError, match=r"^the loss became nan in batches 4 to 6 of epoch 1; what was saved is untouch"):
        run_epoch(
            model, loader, optimizer, clip_grad_norm=clip_grad_norm, sync_every=3,
            after_sync=lambda: saved.append((len(gradients), flat(model))),
        )  # fmt: skip
    [(step, weights)] = saved  # the only moment at which a checkpoint could have been made
    assert step == 3
    assert weights.isfinite().all()


def test_a_loss_that_is_not_finite_at_the_look_itself_is_named_with_its_value():
    model, loader, looks = Exploding(tiny_vit()), digits_loader(64, batch_size=32), []
    optimizer = create_optimizer(model, "adamw", learning_rate=1.0, weight_decay=0.5)
    with pytest.raises(RunError, match=r"^the loss became nan in batches 1 to 2 of epoch 1; "):
        run_epoch(model, loader, optimizer, sync_every=3, after_sync=lambda: looks.append(1))  # it ends after two
    assert not looks


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_an_epoch_taken_up_in_its_middle_takes_the_steps_that_are_left_and_comes_to_the_same_figures(stop_at):
    class Stop(Exception):
        pass

    def train(loader: ImageLoader, sums: EpochSums, after_sync) -> None:
        steps = Steps(sums, after_sync)
        train_one_epoch(model, loader, optimizer, scheduler, torch.float32, steps, label_smoothing=0.1)

    def stop() -> None:
        if sums.step == stop_at:
            raise Stop

    results = []
    for stops in (False, True):
        model = tiny_vit(dropout=0.1)
        optimizer = create_optimizer(model, "adamw", learning_rate=0.01, weight_decay=0.05)
        scheduler, sums, calls = create_scheduler(optimizer, 2, 4), EpochSums(), []
        loader = digits_loader(250, batch_size=64, shuffle_seed=0, mixing=Mixing(10, mixup_alpha=1.0, probability=0.5))
        if stops:
            with pytest.raises(Stop):
                train(loader, sums, stop)
            assert sums.step == stop_at
            loader.set_epoch(0, sums.step)
            sums = EpochSums(**json.loads(json.dumps(asdict(sums))))  # plain values, and all of them
        seconds = sums.seconds
        train(loader, sums, lambda calls=calls, sums=sums: calls.append(sums.step))
        assert calls == [*range(stop_at + 1 if stops else 1, 5)]
        assert sums.num_images == 250
        assert sums.seconds > seconds or stop_at == 4
        results.append((flat(model), sums.metrics()))
    (weights, figures), (resumed_weights, resumed_figures) = results
    assert torch.equal(resumed_weights, weights)
    del figures["images_per_second"], resumed_figures["images_per_second"]
    assert resumed_figures == figures


def test_an_evaluation_can_be_stopped_between_two_batches():
    class Stop(Exception):
        pass

    def stop() -> None:
        batches.append(1)
        if len(batches) == 3:
            raise Stop

    batches, loader = [], digits_loader(250, batch_size=64, split="test")
    with pytest.raises(Stop):
        evaluate(tiny_vit(), loader, torch.float32, stop)
    evaluate(tiny_vit(), loader, torch.float32, lambda: batches.append(1))
    assert len(batches) == 3 + 4


def test_evaluation_of_a_model_that_has_exploded_raises():
    """The last step of an epoch can spoil the weights; then no checkpoint may be made of them."""
    with pytest.raises(RunError, match="loss"):
        evaluate(Exploding(tiny_vit()), digits_loader(64, batch_size=32, split="test"), torch.float32)


@pytest.mark.parametrize(
    ("options", "optimizer_name", "schedule"),
    [
        ({}, "adamw", "cosine"),
        ({"global_pool": "avg", "qk_norm": True, "pos_embed": "relative", "zero_init": True}, "muon", "wsd"),
    ],
    ids=["the classic recipe", "the new recipe"],
)
def test_a_tiny_vit_learns_64_digits_by_heart(options, optimizer_name, schedule):
    model, loader = tiny_vit(**options), digits_loader(64, batch_size=32, shuffle_seed=0)
    optimizer = create_optimizer(model, optimizer_name, learning_rate=3e-3, weight_decay=0.05)
    scheduler = create_scheduler(optimizer, warmup_steps=10, total_steps=160, schedule=schedule)
    untrained = evaluate(model, loader, torch.float32)["train_acc"]
    for epoch in range(80):
        loader.set_epoch(epoch)
        run_epoch(model, loader, optimizer, scheduler)
    assert untrained < 50
    assert evaluate(model, loader, torch.float32)["train_acc"] == 100


def test_the_gradients_norm_is_summed_before_it_is_clipped():
    model, loader, norms = tiny_vit(), digits_loader(64, batch_size=32), []
    for images, labels in zip(*(part.split(32) for part in by_hand(loader)), strict=True):
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), [*model.parameters()])
        norms.append(torch.cat([part.flatten() for part in gradients]).norm().item())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scheduler, steps = LambdaLR(optimizer, lambda step: 1.0), Steps()
    train_one_epoch(model, loader, optimizer, scheduler, torch.float32, steps, clip_grad_norm=0.01)
    assert steps.sums.grad_norm == pytest.approx(sum(norms), rel=1e-3)
