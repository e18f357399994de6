"""--init-from takes other people's weights: the logits are theirs, adapted tensors are timm's, bad files one line.

Also --freeze-backbone and --layer-decay.
"""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.layers.patch_embed import resample_patch_embed as timm_resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT

import train_vit_cifar10
from config_vit_cifar10 import ViTConfig
from training import checkpoint, engine
from training.errors import RunError, UsageError
from training.optim import create_optimizer
from training.pretrained import (
    begin_fine_tuning,
    decay_by_layer,
    load_pretrained,
    resample_biases,
    resample_patch_embed,
    resample_pos_embed,
)
from training.provenance import count_flops
from vit import VisionTransformer

SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
CLASSES = list("0123456789")


@pytest.fixture(autouse=True)
def seeded(monkeypatch, tmp_path):
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)


def filled(model: nn.Module) -> Any:
    """The model in eval mode, with weights whose every number matters to the logits."""
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return model.eval()


def create(num_classes: int = 10, **args: Any) -> VisionTransformer:
    return VisionTransformer(**{**SMALL, **args}, num_classes=num_classes).eval()


def load(source: Path | str, model: nn.Module | None = None, classes: list[str] = CLASSES, **args: Any) -> Any:
    """Load `source` into a new model of SMALL with `args`, or into `model`."""
    model = model or create(len(classes), **args)
    config = ViTConfig(**{**SMALL, **args})
    load_pretrained(model, str(source), config.model_args, classes)
    return model


def write(model: nn.Module, path: Path | str = "weights.safetensors") -> Path:
    safetensors.torch.save_file(model.state_dict(), path)
    return Path(path)


@torch.inference_mode()
def assert_same_logits(ours: nn.Module, theirs: Any, img_size: int = 16) -> None:
    images = torch.randn(2, 3, img_size, img_size)
    expected = theirs(images)
    torch.testing.assert_close(ours(images), getattr(expected, "logits", expected), rtol=1e-4, atol=1e-4)


# Sizes: all of ViT-Ti, and two blocks of the larger ones, which have the same names and shapes in every block.
@pytest.mark.parametrize(
    ("name", "width", "heads", "depth"), [("tiny", 192, 3, 12), ("small", 384, 6, 2), ("base", 768, 12, 2)]
)
def test_timms_weights_give_timms_logits(name, width, heads, depth):
    theirs = timm.create_model(f"vit_{name}_patch16_224", depth=depth, num_classes=10).eval()
    args = {"img_size": 224, "patch_size": 16, "embed_dim": width, "depth": depth, "num_heads": heads}
    ours = load(write(theirs), **args)
    assert_same_logits(ours, theirs, 224)


@pytest.mark.parametrize(
    "options",
    [
        {"qk_norm": True},
        {"global_pool": "avg", "class_token": False, "fc_norm": False},
        {"no_embed_class": True},
    ],
    ids=["qk_norm", "avg", "no_embed_class"],
)
def test_timms_options_that_we_have_give_timms_logits(options):
    theirs = filled(timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=10, **options))
    own = {name: value for name, value in options.items() if name in ("qk_norm", "global_pool")}
    assert_same_logits(load(write(theirs), **own), theirs)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_torchvisions_weights_give_torchvisions_logits(suffix):
    theirs = filled(TorchvisionViT(16, 4, 2, 3, 24, 96, num_classes=10))
    path = write(theirs)
    if suffix == ".pth":
        torch.save({"state_dict": theirs.state_dict()}, path := path.with_suffix(".pth"))
    assert_same_logits(load(path), theirs)


def transformers_vit(num_classes: int = 10, **args: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=16, patch_size=4,
        num_labels=num_classes, layer_norm_eps=1e-6, **args,
    )  # fmt: skip
    return filled(transformers.ViTForImageClassification(config))


def test_transformers_weights_give_transformers_logits_under_the_names_in_files_and_in_memory(capsys):
    theirs = transformers_vit()
    theirs.save_pretrained("folder")
    in_file = safetensors.torch.load_file("folder/model.safetensors")
    assert in_file.keys() != theirs.state_dict().keys()  # the older names, for older versions to read
    assert_same_logits(load("folder"), theirs)
    assert_same_logits(load(write(theirs)), theirs)
    assert "fresh" not in capsys.readouterr().out


def test_a_folder_says_the_heads_and_the_classes(capsys):
    transformers_vit(id2label=dict(enumerate(CLASSES))).save_pretrained("folder")
    load("folder")
    assert "fresh" not in capsys.readouterr().out
    load("folder", classes=[*CLASSES[1:], "0"])
    assert "fresh: head.weight, head.bias (other classes in the file)\n" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"num_heads is 3 in the file and 6 in the model.*--num-heads 3"):
        load("folder", num_heads=6)


def test_unknown_heads_of_an_unusual_width_are_a_warning(capsys):
    load(write(create()))
    assert "WARNING: weights.safetensors does not say how many heads" in capsys.readouterr().err
    load(write(create(embed_dim=192)), embed_dim=192)
    assert capsys.readouterr().err == ""


# Adapted tensors


@pytest.mark.parametrize(("old", "new"), [(14, 7), (7, 14), (14, 8), (4, 4), (3, 8)])
@pytest.mark.parametrize("prefix", [0, 1])
def test_position_embeddings_are_resampled_as_timm_does(old, new, prefix):
    positions = torch.randn(1, prefix + old**2, 5)
    expected = resample_abs_pos_embed(positions, [new, new], num_prefix_tokens=prefix)
    ours = torch.cat([positions[:, :prefix], resample_pos_embed(positions[:, prefix:], new)], dim=1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(16, 4), (4, 16), (16, 8), (8, 16), (14, 16), (4, 2)])
def test_patch_embeddings_are_resampled_as_timm_does(old, new):
    kernel = 0.1 * torch.randn(6, 3, old, old)
    torch.testing.assert_close(
        resample_patch_embed(kernel, new), timm_resample_patch_embed(kernel, [new, new]), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"img_size": 16, "patch_size": 8}, "adapted: pos_embed from 4x4 to 2x2\n"),
        ({"img_size": 32, "patch_size": 4}, "adapted: pos_embed from 4x4 to 8x8\n"),
        ({"img_size": 8, "patch_size": 2}, "adapted: patch_embed.proj.weight from 4x4 to 2x2\n"),
    ],
)
def test_another_grid_and_patch_size_are_adapted_as_timm_does(args, said, capsys):
    theirs = filled(timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=10))
    adapted: Any = timm.create_model("vit_tiny_patch16_224", **{**SMALL, **args}, num_classes=10).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(theirs.state_dict(), adapted)
    adapted.load_state_dict(state)
    ours = load(write(theirs), **args)
    for name, tensor in adapted.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=1e-5)
    assert_same_logits(ours, adapted, args["img_size"])
    assert said in capsys.readouterr().out


def test_a_head_of_other_classes_stays_as_it_was(capsys):
    theirs, ours = filled(create(7)), create()
    head = ours.head.weight.clone()
    load(write(theirs), ours)
    assert torch.equal(ours.head.weight, head)
    name = "blocks.1.mlp.fc2.weight"
    assert torch.equal(ours.state_dict()[name], theirs.state_dict()[name])
    assert "fresh: head.weight, head.bias (7 classes in the file, 10 in the data)\n" in capsys.readouterr().out


def test_without_a_class_token_the_patches_weights_are_taken_and_the_head_is_fresh(capsys):
    theirs = filled(create())
    ours = load(write(theirs), global_pool="avg")
    assert torch.equal(ours.pos_embed, theirs.pos_embed[:, 1:])
    assert torch.equal(ours.norm.weight, theirs.norm.weight)
    assert not torch.equal(ours.head.weight, theirs.head.weight)
    out = capsys.readouterr().out
    assert "adapted: no class token" in out
    assert "fresh: head.weight, head.bias (the file's head reads another feature)\n" in out


def test_a_class_token_that_the_file_lacks_is_fresh_with_its_position(capsys):
    theirs, ours = filled(create(global_pool="avg")), create()
    head = ours.head.weight.clone()
    token, position = ours.state_dict()["cls_token"].clone(), ours.get_parameter("pos_embed")[:, :1].clone()
    load(write(theirs), ours)
    assert torch.equal(ours.state_dict()["cls_token"], token)
    positions = torch.cat([position, theirs.get_parameter("pos_embed")], dim=1)
    assert torch.equal(ours.get_parameter("pos_embed"), positions)
    assert torch.equal(ours.head.weight, head)
    said = capsys.readouterr().out
    assert "fresh: cls_token (not in the file)\n" in said
    assert "fresh: head.weight, head.bias (the file's head reads another feature)\n" in said


# What is refused


class Malice:
    """Unpickled, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-100])
    return path


def saved(content: Any, name: str = "weights.pth") -> Path:
    torch.save(content, name)
    return Path(name)


def pickled(content: Any) -> Path:
    Path("weights.bin").write_bytes(pickle.dumps(content))
    return Path("weights.bin")


def text(name: str) -> Path:
    Path(name).write_text("no weights")
    return Path(name)


def folder(config: str) -> Path:
    Path("folder").mkdir()
    write(create(), "folder/model.safetensors")
    Path("folder/config.json").write_text(config)
    return Path("folder")


def our_checkpoint(**changes: Any) -> Path:
    content = {"model": create().state_dict(), "model_args": {**SMALL}, "data": {"class_names": CLASSES}}
    checkpoint.save(Path("best_model.pth"), {**content, **changes})
    return Path("best_model.pth")


def flipped(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: "nowhere.pth", "there is no file or folder nowhere.pth"),
        (lambda: Path.cwd(), "holds none of model.safetensors, pytorch_model.bin, best_model.pth"),
        (lambda: truncated(write(create())), "weights.safetensors is damaged"),
        (lambda: truncated(saved(create().state_dict())), "weights.pth is damaged"),
        (lambda: flipped(our_checkpoint()), "best_model.pth is damaged"),
        (lambda: text("weights.safetensors"), "weights.safetensors is damaged"),
        (lambda: text("weights.pth"), "weights.pth is damaged"),
        (lambda: saved({"model": create().state_dict(), "extra": Malice()}), "nothing of it was executed"),
        (lambda: pickled(Malice()), "nothing of it was executed"),
        (lambda: saved(create()), "nothing of it was executed"),  # a pickled module
        (lambda: saved([1, 2]), "no file of a ViT's weights"),
        (lambda: saved({}), "no file of a ViT's weights"),
        (lambda: saved({"model": {"a": torch.ones(1), "b": "text"}}), "no file of a ViT's weights"),
        (lambda: saved({"norm.weight": torch.tensor(torch.nan)}), "norm.weight in weights.pth is not finite"),
        (lambda: folder("{"), "can't read folder/config.json"),
        (lambda: folder("[1]"), "folder/config.json does not describe a model"),
        (lambda: folder('{"id2label": {"a": 1}}'), "folder/config.json does not describe a model"),
    ],
)
def test_a_file_that_is_none_is_one_line_and_executes_nothing(source, message):
    with pytest.raises(RunError) as caught:
        load(source())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("weights", "args", "message"),
    [
        (lambda: create(), {"depth": 3}, "blocks.2.norm1.weight is not in the file; .* and 9 more.*--depth 2 "),
        (lambda: create(), {"depth": 1}, "blocks.1.attn.proj.bias is not in the model"),
        (
            lambda: create(),
            {"embed_dim": 48},
            r"cls_token is \[1, 1, 24\] in the file and \[1, 1, 48\] in the model.*--embed-dim 24 ",
        ),
        (lambda: create(), {"mlp_ratio": 2}, r"mlp.fc1.weight is \[96, 24\] .*--mlp-ratio 4 "),
        (lambda: create(), {"qk_norm": True}, "q_norm.weight is not in the file.*--no-qk-norm"),
        (lambda: create(qk_norm=True), {}, "k_norm.weight is not in the model.*--qk-norm"),
        (
            lambda: create(num_heads=2),
            {"pos_embed": "relative"},
            "rel_pos.relative_position_bias_table is not in the file.*pos_embed is not in the model.*--pos-embed learn",
        ),
        (lambda: create(in_chans=1), {}, r"patch_embed.proj.weight is \[24, 1, 4, 4\]"),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=10, reg_tokens=2),
            {},
            "reg_token is not in the model",
        ),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=10, global_pool="avg"),
            {},
            "norm.weight is not in the file.*fc_norm.bias is not in the model",
        ),
        (lambda: nn.Conv2d(3, 4, 5), {}, "weight is not in the model|A ViT under timm's"),
        (lambda: nn.ParameterDict({"pos_embed": torch.ones(1, 6, 24)}), {}, r"pos_embed is \[1, 6, 24\]"),
        (lambda: nn.ParameterDict({"pos_embed": torch.ones(1, 0, 24)}), {}, r"pos_embed is \[1, 0, 24\]"),
        (lambda: nn.ModuleDict({"patch_embed": nn.ModuleDict({"proj": nn.Conv2d(3, 24, (4, 2))})}), {}, r"24, 3, 4, 2"),
        (lambda: nn.ParameterDict({"pos_embed": torch.tensor(1.0), "cls_token": torch.tensor(1.0)}), {}, "cls_token"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(weights, args, message):
    own = create(**args)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    with pytest.raises(UsageError, match=message) as caught:
        load(write(weights()), own, **args)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())


def test_what_a_checkpoint_of_ours_says_of_its_model_is_checked():
    our_checkpoint(model_args={**SMALL, "num_heads": 2})
    load("best_model.pth", num_heads=2)
    load(Path.cwd(), num_heads=2)  # the folder of its run
    with pytest.raises(UsageError, match=r"num_heads is 2 in the file and 3 in the model.*--num-heads 2"):
        load("best_model.pth", num_heads=3)


def test_a_checkpoint_with_the_rotary_positions_of_an_earlier_version_is_refused():
    our_checkpoint(model_args={**SMALL, "pos_embed": "rope"})  # its tensors are those of a model with learned ones
    with pytest.raises(UsageError, match="with rotary positions, which are no more"):
        load("best_model.pth")


def test_a_model_with_relative_positions_says_so():
    path = write(create(pos_embed="relative"))
    load(path, pos_embed="relative")
    with pytest.raises(UsageError, match=r"pos_embed is not in the file.*--pos-embed relative"):
        load(path)


@pytest.mark.parametrize("had_token", [True, False])
@pytest.mark.parametrize("has_token", [True, False])
def test_relative_positions_go_to_another_grid_as_timms(had_token, has_token):
    torch.manual_seed(0)
    theirs = torch.randn(15**2 + 3 * had_token, 4)
    own = torch.randn(7**2 + 3 * has_token, 4)
    found = resample_biases(theirs, own, had_token, has_token)
    expected = resize_rel_pos_bias_table_simple(theirs[: 15**2], (4, 4), (7**2, 4))
    torch.testing.assert_close(found[: 7**2], expected, rtol=0, atol=1e-5)
    assert torch.equal(found[7**2 :], (theirs[15**2 :] if had_token else own[7**2 :]) if has_token else theirs[:0])
    assert torch.equal(resample_biases(theirs, theirs, had_token, had_token), theirs)


# A run

DEMO = [
    "--preset=demo", "--num-epochs=2", "--warmup-epochs=0", "--depth=2", "--embed-dim=24", "--max-train-images=64",
    "--batch-size=32", "--device=cpu", "--precision=fp32", "--no-compile", "--output-dir=run",
]  # fmt: skip


def train(*args: Any) -> dict[str, Any]:
    """A training in this process. Returns the model in final_model.pth."""
    words = [*DEMO, *map(str, args)]
    command = train_vit_cifar10.parse_training_command(ViTConfig, "", words)
    train_vit_cifar10.main(command.config, VisionTransformer, command.resume, command.overwrite, command.extend)
    return torch.load("run/final_model.pth", weights_only=True)["model"]


def test_a_frozen_backbone_stays_and_a_stopped_run_goes_on_to_the_same_bits_without_the_file(monkeypatch):
    source = write(filled(create()))
    begun = safetensors.torch.load_file(source)
    flags = [f"--init-from={source}", "--freeze-backbone", "--save-minutes=1e-9"]
    uninterrupted = train(*flags)
    for name, tensor in uninterrupted.items():
        assert torch.equal(tensor, begun[name]) != name.startswith("head"), name
    Path("run").rename("uninterrupted")

    steps = iter(range(100))
    add_up = engine.distributed.add_up

    def stop(values: Tensor) -> Tensor:
        if values.shape == (4,) and next(steps) == 3:
            raise KeyboardInterrupt
        return add_up(values)

    monkeypatch.setattr(engine.distributed, "add_up", stop)
    with pytest.raises(KeyboardInterrupt):
        train(*flags)
    source.unlink()
    with pytest.raises(UsageError, match=r"init_from was weights.safetensors, is other.pth"):
        train(*flags, "--init-from=other.pth", "--resume")
    with pytest.raises(UsageError, match="freeze_backbone was True, is False"):
        train(*flags, "--no-freeze-backbone", "--resume")
    resumed = train(*flags, "--resume")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in uninterrupted.items())


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_source_that_can_not_be_taken_leaves_the_output_folder_as_it_was(overwrite):
    before = []
    if overwrite:
        train()
        before = sorted(path.name for path in Path("run").iterdir())
    write(create(depth=3))
    with pytest.raises(UsageError, match="does not fit"):
        train("--init-from=weights.safetensors", *["--overwrite"] * overwrite)
    assert sorted(path.name for path in Path("run").iterdir()) == before if overwrite else not Path("run").exists()


def test_a_frozen_backbone_without_weights_is_warned_of_once(capsys):
    config = ViTConfig(**SMALL, freeze_backbone=True)
    begin_fine_tuning(create(), config, CLASSES, new=True)
    assert "WARNING: --freeze-backbone without --init-from" in capsys.readouterr().err
    begin_fine_tuning(create(), config, CLASSES, new=False)
    assert capsys.readouterr().err == ""


def test_a_frozen_backbone_has_no_gradients_and_no_place_in_any_optimizer():
    model = create()
    config = ViTConfig(**SMALL, freeze_backbone=True)
    begin_fine_tuning(model, config, CLASSES, new=True)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"head.weight", "head.bias"}
    costs = [count_flops(VisionTransformer, 16, frozen, **config.model_args) for frozen in (True, False)]
    assert 0.3 < costs[0] / costs[1] < 0.4  # the forward pass is a third
    for name in ("adamw", "sgd", "muon"):
        optimizer = create_optimizer(model, name, 0.1, 0.05)
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert {id(parameter) for parameter in held} == {id(model.head.weight), id(model.head.bias)}
        optimizer.step()


# Layer decay


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_layer_decay_gives_each_parameter_the_rate_and_decay_that_timm_gives_it(optimizer_name, global_pool):
    options = {} if global_pool == "token" else {"global_pool": "avg", "class_token": False, "fc_norm": False}
    theirs: Any = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "depth": 5}, **options)
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    expected = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(theirs, 0.05, theirs.no_weight_decay(), layer_decay=0.7)
        for parameter in group["params"]
    }
    model = create(depth=5, global_pool=global_pool)
    optimizer = create_optimizer(model, optimizer_name, 0.3, 0.05, muon_learning_rate=0.02)
    decay_by_layer(optimizer, model, 0.7)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"] / (0.02 if "parts" in group else 0.3), group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name]), name
    assert optimizer.param_groups[0]["lr"] == 0.3  # the head's, which the history has


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd", "muon"])
def test_layer_decay_takes_steps_of_the_decayed_length(optimizer_name):
    def step(layer_decay: float) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = create()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = create_optimizer(model, optimizer_name, 0.01, weight_decay=0)
        decay_by_layer(optimizer, model, layer_decay)
        model(torch.ones(2, 3, 16, 16)).square().sum().backward()
        optimizer.step()
        return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}

    whole, decayed = step(1.0), step(0.5)
    for name, factor in {
        "head.weight": 1,
        "norm.bias": 0.5,
        "blocks.1.mlp.fc1.weight": 0.5,
        "pos_embed": 0.125,
    }.items():
        assert whole[name].abs().max() > 0
        torch.testing.assert_close(decayed[name], whole[name] * factor, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("about", "fresh"),
    [
        ({}, False), ({"model_args": {}}, False), ({"label_names": CLASSES}, False),
        ({"pretrained_cfg": {"label_names": CLASSES}}, False), ({"label_names": CLASSES[::-1]}, True),
        ({"pretrained_cfg": {"label_names": CLASSES[::-1]}}, True),
    ],
)  # fmt: skip
def test_the_head_is_fresh_where_config_json_names_other_classes(about, fresh, capsys):
    Path("folder").mkdir()
    write(create(), Path("folder") / "model.safetensors")
    Path("folder/config.json").write_text(json.dumps(about))
    load("folder")
    assert ("fresh: head.weight, head.bias (other classes in the file)\n" in capsys.readouterr().out) == fresh
