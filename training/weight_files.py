"""Files of ViT weights, ours or somebody else's: read without executing anything, and given timm's names.

The names in a file may be timm's, which our model has, torchvision's (VisionTransformer) or transformers'
(ViTForImageClassification). A file is safetensors, or torch loads it with weights_only=True.
"""

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from training import checkpoint
from training.errors import RunError, first_line, is_out_of_memory

FILES = ("model.safetensors", "pytorch_model.bin", "best_model.pth")  # in a folder the first of them is taken
RENAMED = [  # torchvision's and transformers' names, old and new ones, to timm's; one after the other
    (r"^((module|_orig_mod|vit)\.)+", ""),
    (r"^(class_token|embeddings\.cls_token)$", "cls_token"),
    (r"^(encoder\.pos_embedding|embeddings\.position_embeddings)$", "pos_embed"),
    (r"^(conv_proj|embeddings\.patch_embeddings\.projection)\.", "patch_embed.proj."),
    (r"^(encoder\.layers\.encoder_layer_|encoder\.layer\.|layers\.)(?=\d)", "blocks."),
    (r"\.(ln_1|layernorm_before)\.", ".norm1."),
    (r"\.(ln_2|layernorm_after)\.", ".norm2."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.v."),
    (r"\.(self_attention\.out_proj|attention\.output\.dense|attention\.o_proj)\.", ".attn.proj."),
    (r"\.(mlp\.0|mlp\.linear_1|intermediate\.dense)\.", ".mlp.fc1."),
    (r"\.(mlp\.3|mlp\.linear_2|output\.dense)\.", ".mlp.fc2."),
    (r"^(encoder\.ln|layernorm)\.", "norm."),
    (r"^(heads\.head|classifier)\.", "head."),
]
UNUSED = re.compile(r"(pooler\..*|embeddings\.mask_token)$")  # transformers': no classifier reads them


def find_file(source: str) -> Path:
    """The file of weights that `source` is or holds; RunError where there is none."""
    path = Path(source)
    if os.path.isdir(path):  # not of Path, which raises where nobody may look
        files = [path / name for name in FILES if os.path.exists(path / name)]
        if not files:
            raise RunError(f"--init-from: the folder {path} holds none of {', '.join(FILES)}")
        return files[0]
    if not os.path.exists(path):
        raise RunError(f"--init-from: there is no file or folder {path}, or no permission to look")
    return path


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in a file by timm's names, and what is known of their model: num_heads, pos_embed, class_names.

    RunError for a file that is damaged, holds something else, or would have to be executed.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # of unusual pickles
                content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunError(f"--init-from: can't read {path}: {first_line(error)}") from None
    except Exception as error:  # of any type, in a damaged file; torch's own message would advise to load it unsafely
        if is_out_of_memory(error):
            raise
        raise RunError(
            f"--init-from: {path} is damaged, or holds more than tensors and plain values; nothing of it was executed"
        ) from None
    if isinstance(content, dict) and "format_version" in content:  # our own
        content = checkpoint.load(path)  # checks its digest
        about = known(content, path)
    else:
        about = read_config(path.with_name("config.json")) if path.name in FILES else {}
    for key in ("state_dict", "model"):  # as training scripts wrap them
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(map(is_weight, content.items())):
        raise RunError(f"--init-from: {path} is no file of a ViT's weights, which are tensors of floats by their names")
    weights = {name: tensor.float() for name, tensor in rename(content).items() if not UNUSED.match(name)}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise RunError(f"--init-from: {name} in {path} is not finite")
    return weights, about


def is_weight(item: tuple[Any, Any]) -> bool:
    name, tensor = item
    return isinstance(name, str) and isinstance(tensor, Tensor) and tensor.is_floating_point()


def read_config(path: Path) -> dict[str, Any]:
    """What the config.json beside weights says of their model; nothing where there is none."""
    try:
        return known(json.loads(path.read_text()), path) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"--init-from: can't read {path}: {first_line(error)}") from None


def known(config: Any, path: Path) -> dict[str, Any]:
    """num_heads, pos_embed and class_names, as far as a checkpoint of ours or a config.json at `path` says them."""
    try:
        config = config.get("checkpoint", config)  # export_vit.py puts our part there
        model_args = config.get("model_args", {})
        data = config.get("data", config.get("pretrained_cfg", {}))
        labels = data.get("class_names") or data.get("label_names") or config.get("label_names")
        if names := config.get("id2label"):  # transformers', which makes up LABEL_0, LABEL_1 and so on
            numbers = sorted(names, key=int)
            labels = None if names[numbers[0]] == "LABEL_0" else [names[number] for number in numbers]
        about = {
            "num_heads": model_args.get("num_heads", config.get("num_attention_heads")),
            "pos_embed": model_args.get("pos_embed"),
            "class_names": list(labels) if labels else None,
        }
    except (AttributeError, TypeError, ValueError):
        raise RunError(f"--init-from: {path} does not describe a model as timm, transformers or we do") from None
    return {name: value for name, value in about.items() if value is not None}


def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under timm's names; separate queries, keys and values become one tensor."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for query in [name for name in renamed if ".attn.q." in name]:
        parts = [query.replace(".q.", f".{part}.") for part in "qkv"]
        if len({renamed[part].shape if part in renamed else None for part in parts}) == 1:
            renamed[query.replace(".q.", ".qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed
