"""The batches depend on seed and epoch alone; batch size, chunks, threads and ranks change no pixel."""

import threading

import numpy as np
import pytest
import torch
from torch import Tensor

from training.data import loader as loader_module
from training.data.augment import Augmentation
from training.data.loader import ImageLoader, normalize
from training.data.mix import Mixing

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
NUM_IMAGES = 150
AUGMENTATION = Augmentation(crop_padding=1, horizontal_flip=True, policy="cifar10", erasing=0.5)
MIXING = Mixing(NUM_IMAGES, mixup_alpha=1.0, cutmix_alpha=1.0, probability=0.7)


def random_images(num_images: int = NUM_IMAGES) -> Tensor:
    return torch.randint(256, (num_images, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()


def numbered_loader(batch_size: int = 32, **arguments) -> ImageLoader:
    """Random images, each labelled with its number."""
    arguments = {"shuffle_seed": 42, "augmentation": AUGMENTATION, "split": "train"} | arguments
    return ImageLoader(random_images(), torch.arange(NUM_IMAGES), MEAN, STD, batch_size, **arguments)


def batches_of(loader: ImageLoader, epoch: int = 0, start_step: int = 0) -> list[tuple[Tensor, Tensor]]:
    loader.set_epoch(epoch, start_step)
    return list(loader)


def epoch_of(loader: ImageLoader, epoch: int = 0) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches_of(loader, epoch), strict=True)
    return torch.cat(images), torch.cat(labels)


def assert_same(found: list[tuple[Tensor, Tensor]], expected: list[tuple[Tensor, Tensor]]) -> None:
    for batch, other in zip(found, expected, strict=True):
        assert torch.equal(batch[0], other[0])
        assert torch.equal(batch[1], other[1])


def interleaved(batch_size: int = 32, world_size: int = 1, epoch: int = 0, **arguments) -> list[tuple[Tensor, Tensor]]:
    """The batches of an epoch, put together from the ranks' shares: each image of a batch belongs to one rank."""
    ranks = [
        batches_of(numbered_loader(batch_size, rank=rank, world_size=world_size, **arguments), epoch)
        for rank in range(world_size)
    ]
    batches = []
    for step, shares in enumerate(zip(*ranks, strict=True)):
        size = min(batch_size, NUM_IMAGES - step * batch_size)
        batch = tuple(torch.full((size, *part.shape[1:]), -1, dtype=part.dtype) for part in shares[0])
        for rank, share in enumerate(shares):
            for whole, part in zip(batch, share, strict=True):
                whole[rank::world_size] = part
        batches.append(batch)
    return batches


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks an epoch."""
    monkeypatch.setattr(loader_module, "chunk_size", lambda images: 64)


@pytest.mark.parametrize("mixing", [None, MIXING])
def test_the_images_of_the_first_epochs_are_halved_each_pixel_the_mean_of_four(mixing):
    small, full = numbered_loader(small_epochs=2, mixing=mixing), numbered_loader(mixing=mixing)
    for epoch, start_step in ((0, 0), (1, 2), (2, 0), (3, 1)):
        expected = batches_of(full, epoch, start_step)
        if epoch < 2:
            expected = [(b.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5)), y) for b, y in expected]
        for (images, labels), (halved, same) in zip(batches_of(small, epoch, start_step), expected, strict=True):
            torch.testing.assert_close(images, halved)
            assert torch.equal(labels, same)


def test_normalize_shifts_and_scales_each_channel_and_leaves_its_input():
    images = random_images(4)
    before = images.clone()
    expected = (images.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(normalize(images, MEAN, STD), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(32, [32, 32, 32, 32, 22]), (50, [50] * 3), (149, [149, 1]), (400, [150])]
)
def test_an_epoch_has_every_image_once_and_keeps_the_smaller_last_batch(batch_size, sizes):
    loader = numbered_loader(batch_size)
    assert [len(labels) for _, labels in loader] == sizes
    assert len(loader) == len(sizes)
    assert sorted(epoch_of(loader)[1].tolist()) == list(range(NUM_IMAGES))


def test_labels_stay_with_their_images():
    images, labels = epoch_of(numbered_loader(augmentation=None))
    assert torch.equal(images, normalize(random_images()[labels], MEAN, STD))


def test_an_images_augmentation_depends_on_its_index_not_on_its_position():
    images, labels = epoch_of(numbered_loader(), epoch=5)
    augmented = AUGMENTATION(random_images(), AUGMENTATION.draw(42, 5, NUM_IMAGES))
    assert torch.equal(images, normalize(augmented[labels], MEAN, STD))


def test_order_and_pixels_are_a_function_of_seed_and_epoch():
    images, labels = epoch_of(numbered_loader(), epoch=5)
    assert_same([epoch_of(numbered_loader(), epoch=5)], [(images, labels)])
    for other in (epoch_of(numbered_loader(), epoch=6), epoch_of(numbered_loader(shuffle_seed=43), epoch=5)):
        assert not torch.equal(other[1], labels)
        assert not torch.equal(other[0][other[1].argsort()], images[labels.argsort()])  # the augmentation differs too


def test_an_epochs_order_is_pinned():
    """A change of the order changes every result of this repository: make it on purpose only."""
    images = torch.zeros(50_000, 3, 1, 1, dtype=torch.uint8)
    loader = ImageLoader(images, torch.arange(50_000), MEAN, STD, 5, shuffle_seed=42, split="train")
    loader.set_epoch(3)
    assert next(iter(loader))[1].tolist() == [14736, 18029, 31053, 14295, 35830]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [32, 64])
def test_batch_size_workers_and_ranks_change_no_image_and_no_order(batch_size, num_workers, world_size):
    images, labels = zip(*interleaved(batch_size, world_size, epoch=1, num_workers=num_workers), strict=True)
    assert_same([(torch.cat(images), torch.cat(labels))], [epoch_of(numbered_loader(), epoch=1)])


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("batch_size", [32, 37, 147, 149])  # the last batch has 22, 2, 3 and 1 images: empty shares too
@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (1.0, 1.0)], ids=["mixup", "cutmix", "both"])
def test_the_ranks_shares_of_mixed_batches_interleave_to_those_of_one_process(alphas, batch_size, world_size):
    mixing = Mixing(NUM_IMAGES, *alphas)
    expected = batches_of(numbered_loader(batch_size, mixing=mixing), epoch=1)
    assert all(targets.ndim == 2 for _, targets in expected)
    assert_same(interleaved(batch_size, world_size, epoch=1, mixing=mixing), expected)


def test_without_mixing_a_rank_prepares_its_share_only(monkeypatch):
    prepared, augment = [], Augmentation.__call__
    monkeypatch.setattr(Augmentation, "__call__", lambda *args: prepared.append(len(args[1])) or augment(*args))
    for mixing, num_images in ((None, 75), (MIXING, 150)):
        prepared.clear()
        batches_of(numbered_loader(rank=1, world_size=2, mixing=mixing))
        assert sum(prepared) == num_images


@pytest.mark.parametrize("chunk_size", [1, 50, 4096])
def test_chunks_change_no_pixel(chunk_size, monkeypatch):
    expected = epoch_of(numbered_loader(), epoch=1)
    monkeypatch.setattr(loader_module, "chunk_size", lambda images: chunk_size)
    assert_same([epoch_of(numbered_loader(), epoch=1)], [expected])


@pytest.mark.parametrize("arguments", [{}, {"num_workers": 2}, {"rank": 1, "world_size": 2}], ids=str)
def test_an_epoch_that_begins_in_its_middle_has_the_rest_of_the_whole_one(arguments):
    loader = numbered_loader(16, mixing=MIXING, **arguments)
    whole = batches_of(loader, epoch=3)
    for step in range(len(loader) + 1):
        assert_same(batches_of(loader, 3, start_step=step), whole[step:])
    assert len(loader) == len(whole)  # the length is always that of a whole epoch
    assert len(batches_of(loader, 4)) == len(whole)  # the next epoch begins at step 0


@pytest.mark.parametrize("change", [{"num_workers": 1}, {"num_workers": 2}], ids=str)
def test_mixed_batches_are_the_same_for_any_number_of_workers(change):
    mixed = batches_of(numbered_loader(mixing=MIXING), epoch=2)
    assert_same(batches_of(numbered_loader(mixing=MIXING, **change), epoch=2), mixed)
    expected = [
        MIXING(*batch, seed=42, epoch=2, step=step) for step, batch in enumerate(batches_of(numbered_loader(), 2))
    ]
    assert_same(mixed, expected)
    assert {targets.ndim for _, targets in mixed} == {1, 2}  # some are mixed, some are not


def test_without_a_seed_images_come_in_their_own_order():
    images, labels = epoch_of(numbered_loader(shuffle_seed=None, augmentation=None))
    assert labels.tolist() == list(range(NUM_IMAGES))
    assert torch.equal(images, normalize(random_images(), MEAN, STD))


@pytest.mark.parametrize("part", [{"augmentation": AUGMENTATION}, {"mixing": MIXING}], ids=["augmentation", "mixing"])
def test_augmentation_and_mixing_need_a_seed(part):
    with pytest.raises(ValueError, match="shuffle_seed"):
        numbered_loader(**({"shuffle_seed": None, "augmentation": None} | part))


def test_an_abandoned_epoch_leaves_no_thread_and_the_next_one_is_whole():
    loader, before = numbered_loader(num_workers=2), threading.active_count()
    batches = iter(loader)
    next(batches)
    assert threading.active_count() > before
    del batches
    assert threading.active_count() == before
    assert len(batches_of(loader)) == len(loader)


def test_an_error_in_a_worker_is_raised_in_the_caller(monkeypatch):
    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(Augmentation, "__call__", fail)
    with pytest.raises(ZeroDivisionError):
        batches_of(numbered_loader(num_workers=2))
