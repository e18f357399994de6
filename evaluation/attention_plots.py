"""Figures of what a Vision Transformer has learned: attention maps, position embeddings, patch filters."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from sklearn.decomposition import PCA
from torch import Tensor

from training.plots import picture_grid, save_figure, short

NUM_HEADS = 4  # heads of the last block that are shown
NUM_FILTERS = 28  # as in figure 7 of the ViT paper
NUM_POSITIONS = 16  # patches along a side whose similarities are shown
COLOURS = plt.get_cmap("inferno")  # gets lighter as the value grows, so it reads in black and white too


def overlay(image: Tensor, attention: Tensor, size: int = 160) -> np.ndarray:
    """Lay an attention map (S, S) over a uint8 image (3, H, H): RGB in 0..1, at least `size` pixels wide.

    Brighter patches get more attention; the map's largest value has the brightest colour. The image is shown in grey.
    """
    side = image.shape[-1]
    scale = -(-size // side)
    grey = image.float().mean(dim=0).numpy() / 255
    grey = np.kron(grey, np.ones((scale, scale)))
    patch = side // attention.shape[-1] * scale
    heat = COLOURS((attention / attention.max().clamp(min=1e-12)).numpy())[..., :3]
    return 0.65 * np.kron(heat, np.ones((patch, patch, 1))) + 0.35 * grey[..., None]


def plot_attention(images: Tensor, captions: list[str], rollout: Tensor, heads: Tensor, path: Path) -> None:
    """A row for each uint8 image (n, 3, H, H): image, rollout (n, S, S), heads of the last block (n, heads, S, S)."""
    title = "Which patches get attention (brighter is more)"
    figure, grid = picture_grid(len(images), 2 + min(NUM_HEADS, heads.shape[1]), tile=1.7, caption=0.38, title=title)
    for i, (row, image, caption) in enumerate(zip(grid, images, captions, strict=True)):
        draw_image(row[0], image.permute(1, 2, 0).numpy(), caption)
        draw_maps(row[1:], image, rollout[i], heads[i], titled=i == 0)
    save_figure(figure, path)


def plot_classified(
    image: Tensor, top: list[tuple[str, float]], maps: tuple[Tensor, Tensor] | None, path: Path, title: str
) -> None:
    """A picture as the model sees it, uint8 (3, H, H), its top classes, and rollout and heads where there are any."""
    num_maps = 1 + min(NUM_HEADS, len(maps[1])) if maps else 0
    figure, row = plt.subplots(
        1, 2 + num_maps, figsize=(2.1 * num_maps + 5.4, 2.7), width_ratios=[1, 1.4] + [1] * num_maps,
        layout="constrained",
    )  # fmt: skip
    draw_image(row[0], image.permute(1, 2, 0).numpy(), "as the model sees it")
    bars = row[1].barh(range(len(top)), [100 * probability for _, probability in top], color="C0")
    row[1].bar_label(bars, fmt="%.1f %%", padding=3, fontsize=9)
    row[1].set_yticks(range(len(top)), [short(name, 18) for name, _ in top], fontsize=9)
    row[1].invert_yaxis()
    row[1].set(xlim=(0, 135), xticks=[])
    row[1].set_title("top classes", fontsize=9.5)
    row[1].spines[:].set_visible(False)
    row[1].grid(visible=False)
    if maps:
        draw_maps(row[2:], image, *maps)
    figure.suptitle(short(title, 40 + 10 * num_maps))
    save_figure(figure, path)


def draw_maps(row: np.ndarray, image: Tensor, rollout: Tensor, heads: Tensor, titled: bool = True) -> None:
    """The image under its rollout (S, S), and under each of its heads (heads, S, S), as far as the row reaches."""
    titles = ["rollout, all blocks", *(f"last block, head {i + 1}" for i in range(len(heads)))]
    for axes, attention, title in zip(row, [rollout, *heads], titles, strict=False):
        draw_image(axes, overlay(image, attention), title if titled else "")


def draw_image(axes: Axes, pixels: np.ndarray, title: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_title(title, fontsize=9.5)
    axes.axis("off")


def plot_position_embeddings(similarity: Tensor, path: Path) -> None:
    """A small map for each patch (S, S, S, S): the cosine similarity of its position embedding to all others."""
    side = len(similarity)
    shown = np.unique(np.linspace(0, side - 1, min(side, NUM_POSITIONS)).round().astype(int))
    gap = max(1, side // 8)
    step = side + gap
    maps = similarity.numpy()[np.ix_(shown, shown)]  # (K, K, S, S)
    maps = np.pad(maps, [(0, 0), (0, 0), (0, gap), (0, gap)], constant_values=np.nan)  # (K, K, step, step)
    sheet = maps.transpose(0, 2, 1, 3).reshape(len(shown) * step, -1)[:-gap, :-gap]
    figure, axes = plt.subplots(figsize=(7.4, 6.4), layout="constrained")
    picture = axes.imshow(sheet, cmap="cividis", vmin=-1, vmax=1, interpolation="nearest")
    centres = np.arange(len(shown)) * step + (side - 1) / 2
    axes.set_xticks(centres, (shown + 1).tolist(), fontsize=9)
    axes.set_yticks(centres, (shown + 1).tolist(), fontsize=9)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set(title="Similarity of the position embeddings", xlabel="column of the patch", ylabel="row of the patch")
    figure.colorbar(picture, label="cosine similarity to the embedding of each patch", shrink=0.85)
    save_figure(figure, path)


def plot_position_biases(biases: Tensor, path: Path) -> None:
    """A row for each block (L, H, 2S - 1, 2S - 1), a map for each of its first heads: exp(bias) by the key's place."""
    shown = biases[:, :NUM_HEADS].exp()  # a bias of 1 multiplies a key's share of the attention by e
    figure, grid = picture_grid(*shown.shape[:2], tile=1.3, caption=0.25, title="Positions that a head prefers")
    reach = shown.shape[-1] // 2
    for layer, (row, maps) in enumerate(zip(grid, shown, strict=True), start=1):
        for head, (axes, values) in enumerate(zip(row, maps, strict=True), start=1):
            draw_image(axes, COLOURS((values / values.max()).numpy()), f"block {layer}, head {head}")
            axes.plot(reach, reach, "+", color="C0", markersize=9)  # the patch that attends
    save_figure(figure, path)


def plot_patch_filters(model: Any, path: Path) -> None:
    """The principal components of the patch embedding's filters, as RGB, each with its share of the variance."""
    weights = model.patch_embed.proj.weight.detach().float().cpu()  # (D, 3, P, P)
    flat = weights.flatten(1).numpy()
    pca = PCA(min(NUM_FILTERS, *flat.shape), svd_solver="full").fit(flat)
    components, shares = np.asarray(pca.components_), np.asarray(pca.explained_variance_ratio_)
    title = "Principal components of the patch filters, with their share of the variance"
    figure, grid = picture_grid(-(-len(components) // 7), 7, tile=1.2, caption=0.25, title=title)
    for axes, component, share in zip(grid.flat, components, shares, strict=False):
        component = component.reshape(weights.shape[1:]).transpose(1, 2, 0)  # (P, P, 3)
        axes.imshow(0.5 + 0.5 * component / np.abs(component).max(), interpolation="nearest")
        axes.set_title(f"{100 * share:.1f} %", fontsize=9, pad=3)
    save_figure(figure, path)
