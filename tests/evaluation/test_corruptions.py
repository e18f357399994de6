"""Each corruption does what its name says, more at each strength, and the same each time."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from evaluation import corruptions
from evaluation.corruptions import CORRUPTIONS, corrupt, shift


@pytest.fixture
def images() -> torch.Tensor:
    """Smooth enough to be images: uint8 (6, 3, 32, 32) with greys between 20 and 120."""
    noise = np.random.default_rng(0).normal(size=(6, 3, 32, 32))
    smooth = gaussian_filter(noise, (0, 0, 2, 2), mode="nearest")
    return torch.from_numpy((70 + 50 * smooth / np.abs(smooth).max()).astype(np.uint8))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_strength_changes_more_than_the_one_before_and_repeats(images, name):
    _, strengths, _ = CORRUPTIONS[name]
    before, last = images.clone(), 0.0
    for strength in strengths:
        found = corrupt(images, name, strength)
        assert (found.shape, found.dtype) == (images.shape, torch.uint8)
        change = (found.float() - images.float()).abs().mean().item()
        assert change > last
        last = change
        assert torch.equal(found, corrupt(images, name, strength))
    assert torch.equal(images, before)


@pytest.mark.parametrize("strength", CORRUPTIONS["noise"][1])
def test_noise_has_the_standard_deviation_it_says(images, strength):
    noise = corrupt(images, "noise", strength).float() - images.float()
    assert noise.std().item() / 255 == pytest.approx(strength, rel=0.05)
    assert abs(noise.mean().item()) < 1


def test_noise_is_another_for_each_image_of_all_chunks(images, monkeypatch):
    monkeypatch.setattr(corruptions, "chunk_size", lambda images: 3)
    same = images[:1].expand(6, -1, -1, -1).contiguous()
    assert len(corrupt(same, "noise", 0.1).unique(dim=0)) == 6


def test_noise_does_not_wrap_around_at_black_and_white():
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8).contiguous()
    black, white = corrupt(ends, "noise", 0.1)
    assert black.max() < 200  # no value below 0 wrapped around to a bright one
    assert white.min() > 55


def test_blur_is_a_gaussian(images):
    found = corrupt(images, "blur", 1.0)
    expected = gaussian_filter(images.numpy().astype(float), (0, 0, 1, 1), mode="mirror")
    np.testing.assert_allclose(found.numpy(), expected, atol=1)


def test_brightness_is_a_factor(images):
    expected = (images.float() * 1.5).clamp(0, 255)
    torch.testing.assert_close(corrupt(images, "brightness", 1.5).float(), expected, atol=1, rtol=0)


def test_jpeg_equals_pillows(images):
    found = corrupt(images, "jpeg", 40)
    for image, compressed in zip(images, found, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=40)
        expected = np.asarray(Image.open(file)).astype(int)
        assert np.abs(compressed.permute(1, 2, 0).numpy() - expected).mean() < 2  # the two may round differently


def test_a_shift_goes_right_and_down_and_repeats_the_edge(images):
    found = shift(images, 4)
    assert torch.equal(found[..., 4:, 4:], images[..., :-4, :-4])
    assert torch.equal(found[..., 4:, :4], images[..., :-4, :1].expand(-1, -1, -1, 4))
    assert torch.equal(found[..., :4, 4:], images[..., :1, :-4].expand(-1, -1, 4, -1))


@pytest.mark.parametrize("size", [4, 9, 48])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_of_any_size_are_accepted(name, size):
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    for strength in CORRUPTIONS[name][1]:
        assert corrupt(images, name, strength).shape == images.shape


def test_lengths_grow_with_the_image():
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(shift(images, 4)[..., 8:, 8:], images[..., :-8, :-8])
