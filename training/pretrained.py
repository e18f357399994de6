"""Fine-tuning: begin with somebody's weights, train only the head, give the first layers smaller learning rates."""

import math
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import distributed
from training.console import print_warning, say
from training.errors import UsageError
from training.optim import REL_POS, scale_learning_rates
from training.weight_files import find_file, read_weights

HEAD_WIDTH = 64  # of an attention head in all ViTs of the paper, of DeiT and of timm's sizes


def begin_fine_tuning(model: nn.Module, config: Any, class_names: list[str], new: bool) -> None:
    """Do what --init-from and --freeze-backbone ask for. A run that is not `new` has its weights already."""
    if config.init_from and new and distributed.rank() == 0:  # DistributedDataParallel gives them to the other ranks
        load_pretrained(model, config.init_from, config.model_args, class_names)
    if config.freeze_backbone:
        if new and not config.init_from and distributed.rank() == 0:
            print_warning("--freeze-backbone without --init-from: the head learns from a backbone that knows nothing")
        freeze_backbone(model)


def load_pretrained(model: nn.Module, source: str, model_args: dict[str, Any], class_names: list[str]) -> None:
    """Load the weights of `source`, a file or a folder, into a ViT and print what was loaded, adapted and left fresh.

    `model_args` and `class_names` are those of `model`. RunError for a source that can't be read, UsageError for
    weights that do not fit the model.
    """
    path = find_file(source)
    weights, about = read_weights(path)
    own = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    fitted, adapted, fresh = fit(weights, own, about.get("class_names"), class_names)
    refuse_misfits(path, weights, about, fitted, fresh, own, model_args)
    model.load_state_dict({**own, **fitted})
    if "num_heads" not in about and model_args["embed_dim"] != HEAD_WIDTH * model_args["num_heads"]:
        print_warning(
            f"{path} does not say how many heads its model has, usually embed_dim / {HEAD_WIDTH}; these settings have "
            f"--num-heads {model_args['num_heads']}, and another number makes another model of the same weights"
        )
    say(f"Weights   {len(fitted)} tensors from {path}")
    for note in adapted:
        say(f"          adapted: {note}")
    for why in dict.fromkeys(fresh.values()):
        say(f"          fresh: {', '.join(name for name in fresh if fresh[name] == why)} ({why})")


def fit(
    weights: dict[str, Tensor], own: dict[str, Tensor], their_classes: list[str] | None, class_names: list[str]
) -> tuple[dict[str, Tensor], list[str], dict[str, str]]:
    """Adapt weights to the shapes of the model's `own` tensors; what does not fit is returned as it is.

    Returns the weights, what was adapted, and the names of the tensors that stay as they were, each with the reason.
    """
    fitted, adapted, fresh = dict(weights), [], {}
    had_token, has_token = "cls_token" in weights, "cls_token" in own
    if had_token and not has_token:
        del fitted["cls_token"]
        adapted.append("no class token")
    if has_token and not had_token:
        fresh["cls_token"] = "not in the file"

    name = "patch_embed.proj.weight"
    kernel, size = fitted.get(name), own[name].shape[-1]
    if kernel is not None and kernel.shape[:2] == own[name].shape[:2] and kernel.ndim == 4:
        height, width = kernel.shape[2:]
        if height == width and width not in (0, size):
            fitted[name] = resample_patch_embed(kernel, size)
            adapted.append(f"{name} from {width}x{width} to {size}x{size}")
    positions, own_positions = fitted.get("pos_embed"), own.get("pos_embed")
    if (
        positions is not None and own_positions is not None
        and positions.ndim == 3 and positions.shape[::2] == own_positions.shape[::2]
    ):  # fmt: skip
        (token, patches), (own_token, own_patches) = (
            split_positions(positions, had_token), split_positions(own_positions, has_token)
        )  # fmt: skip
        old_grid, grid = math.isqrt(patches.shape[1]), math.isqrt(own_patches.shape[1])
        if 0 < old_grid**2 == patches.shape[1]:
            tokens = [token if had_token else own_token] if has_token else []
            fitted["pos_embed"] = torch.cat([*tokens, resample_pos_embed(patches, grid)], dim=1)
            if old_grid != grid:  # else it stays bit for bit
                adapted.append(f"pos_embed from {old_grid}x{old_grid} to {grid}x{grid}")
    for name in [name for name in own if name.endswith(REL_POS) and name in fitted]:
        biases, own_biases = fitted[name], own[name]
        if biases.ndim == 2 and biases.shape[1] == own_biases.shape[1]:
            fitted[name] = resample_biases(biases, own_biases, had_token, has_token)
            if biases.shape != own_biases.shape:
                adapted.append(f"{name} from {len(biases)} to {len(own_biases)} rows")

    if why := why_fresh_head(fitted.get("head.bias"), their_classes, class_names, had_token == has_token):
        for name in ("head.weight", "head.bias"):
            fitted.pop(name, None)
            fresh[name] = why
    return fitted, adapted, fresh


def why_fresh_head(
    bias: Tensor | None, their_classes: list[str] | None, class_names: list[str], same_feature: bool
) -> str:
    """Why the file's head, with that bias, can't be taken; empty where it can."""
    num_classes = bias.numel() if bias is not None else 0
    if not num_classes:
        return "not in the file"
    if num_classes != len(class_names):
        return f"{num_classes} classes in the file, {len(class_names)} in the data"
    if (their_classes or class_names) != class_names:
        return "other classes in the file"
    return "" if same_feature else "the file's head reads another feature"


def split_positions(pos_embed: Tensor, has_token: bool) -> tuple[Tensor, Tensor]:
    """The positions of the class token (1, 1, D) and of the patches (1, T, D).

    The token's is zero where the model has none: without a token, or with timm's no_embed_class.
    """
    if not has_token or math.isqrt(pos_embed.shape[1]) ** 2 == pos_embed.shape[1]:
        return torch.zeros_like(pos_embed[:, :1]), pos_embed
    return pos_embed[:, :1], pos_embed[:, 1:]


def resample_pos_embed(pos_embed: Tensor, grid: int) -> Tensor:
    """Position embeddings (1, T, D) of a square grid for another one (1, grid^2, D); timm's resample_abs_pos_embed."""
    old = math.isqrt(pos_embed.shape[1])
    if old == grid:
        return pos_embed
    image = pos_embed.unflatten(1, (old, old)).permute(0, 3, 1, 2)  # (1, D, old, old)
    return F.interpolate(image, (grid, grid), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)


def resample_biases(biases: Tensor, own: Tensor, had_token: bool, has_token: bool) -> Tensor:
    """Relative positions of a square grid (offsets, heads) for another one; those of the class token stay, or are own.

    This is timm's resize_rel_pos_bias_table_simple. A table that is none of a square grid is returned as it is.
    """
    num_offsets, own_offsets = len(biases) - 3 * had_token, len(own) - 3 * has_token
    side, own_side = math.isqrt(max(0, num_offsets)), math.isqrt(own_offsets)
    if side == 0 or side**2 != num_offsets:
        return biases
    image = biases[:num_offsets].T.unflatten(1, (side, side))[None]  # (1, heads, side, side)
    if side != own_side:
        image = F.interpolate(image, (own_side, own_side), mode="bicubic")
    token = (biases[num_offsets:] if had_token else own[own_offsets:]) if has_token else biases[:0]
    return torch.cat([image[0].flatten(1).T, token])


def resample_patch_embed(kernel: Tensor, size: int) -> Tensor:
    """The convolution (D, C, P, P) of patches for patches of another size (D, C, size, size).

    A larger patch then has the embedding of the smaller one that it was resized from. The resizing of a patch is a
    matrix; the kernel is multiplied by its pseudo-inverse (FlexiViT, arXiv 2212.08013; timm's function of this name).
    """
    old = kernel.shape[-1]
    pixels = torch.eye(old**2, dtype=torch.float64).view(-1, 1, old, old)
    resizing = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).flatten(1)  # (P^2, size^2)
    return (kernel.double().flatten(2) @ torch.linalg.pinv(resizing.T)).float().unflatten(2, (size, size))


def refuse_misfits(
    path: Path, weights: dict[str, Tensor], about: dict[str, Any], fitted: dict[str, Tensor], fresh: dict[str, str],
    own: dict[str, Tensor], model_args: dict[str, Any],
) -> None:  # fmt: skip
    """UsageError that names the tensors of the file that are not the model's, and those that the model lacks."""
    if about.get("pos_embed") == "rope":  # no tensor shows them
        raise UsageError(f"--init-from: {path} is of an earlier version, with rotary positions, which are no more")
    wrong = [
        f"{name} is {list(fitted[name].shape)} in the file and {list(tensor.shape)} in the model"
        if name in fitted
        else f"{name} is not in the file"
        for name, tensor in own.items()
        if name not in fresh and (name not in fitted or fitted[name].shape != tensor.shape)
    ]
    wrong += [f"{name} is not in the model" for name in sorted(fitted.keys() - own.keys())]
    num_heads = about.get("num_heads", model_args["num_heads"])
    if num_heads != model_args["num_heads"]:
        wrong.append(f"num_heads is {num_heads} in the file and {model_args['num_heads']} in the model")
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UsageError(f"--init-from: {path} does not fit: {'; '.join(wrong[:3])}{more}{advice(weights, about)}")


def advice(weights: dict[str, Tensor], about: dict[str, Any]) -> str:
    """The flags that make a model of the file's sizes; empty for a file that is no ViT's."""
    blocks = {int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d+)\.", name))}
    kernel, hidden = weights.get("patch_embed.proj.weight"), weights.get("blocks.0.mlp.fc1.bias")
    if not blocks or kernel is None or kernel.ndim != 4 or hidden is None:
        return ". A ViT under timm's, torchvision's or transformers' names is needed"
    width = len(kernel)
    num_heads = about.get("num_heads", max(1, width // HEAD_WIDTH))
    ratio, qk_norm = hidden.numel() / width, "blocks.0.attn.q_norm.weight" in weights
    pos_embed = "relative" if any(name.endswith(REL_POS) for name in weights) else "learn"
    return (
        f". Its model is --embed-dim {width} --depth {max(blocks) + 1} --num-heads {num_heads} --mlp-ratio {ratio:g} "
        f"--pos-embed {pos_embed} {'--qk-norm' if qk_norm else '--no-qk-norm'}"
    )


def freeze_backbone(model: nn.Module) -> None:
    """Leave only the head to be trained: the others' gradients are not computed."""
    model.requires_grad_(False).get_submodule("head").requires_grad_(True)


def decay_by_layer(optimizer: torch.optim.Optimizer, model: nn.Module, layer_decay: float) -> None:
    """Multiply the learning rates of a ViT's layers by layer_decay^k, for a layer that is k below the head.

    This is BEiT's (arXiv 2106.08254), in timm's numbers: of L blocks the last and the norm after it have k = 1, the
    first block has k = L, patches, positions and class token have k = L + 1. Call it before the scheduler is made.
    """
    num_blocks = len(list(model.get_submodule("blocks").children()))
    factors = {}
    for name, parameter in model.named_parameters():
        module, number = f"{name}.".split(".")[:2]
        depth = num_blocks - int(number) if module == "blocks" else {"head": 0, "norm": 1}.get(module, num_blocks + 1)
        factors[parameter] = layer_decay**depth
    scale_learning_rates(optimizer, factors)
