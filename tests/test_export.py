"""export_vit.py: each form gives the model's logits in the library that it is for, and comes back with --init-from."""

import json
import shutil
import stat
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from torch import Tensor

import evaluate_vit
import export_vit
import train_vit_cifar10
from config_vit_cifar10 import ViTConfig
from evaluation import export
from evaluation.model_card import DATASETS, model_card, recipe_of
from evaluation.report import describe
from evaluation.trained import TrainedModel
from export_vit import ExportConfig, main
from resnet import ResNet18
from training import checkpoint
from training.cli import parse, parse_training_command
from training.errors import RunError, UsageError
from training.pretrained import load_pretrained
from vit import VisionTransformer

DEMO = [
    "--preset=demo", "--num-epochs=1", "--warmup-epochs=0", "--depth=2", "--embed-dim=48", "--max-train-images=640",
    "--learning-rate=0.003", "--device=cpu", "--precision=fp32", "--no-compile",
]  # fmt: skip
VARIANTS = {
    "baseline": [],
    "avg": ["--global-pool=avg", "--qk-norm", "--mlp-ratio=2"],
    "relative": ["--global-pool=avg", "--pos-embed=relative", "--qk-norm", "--zero-init", "--optimizer=muon"],
}
BATCHES = (1, 7, 64)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A short training of each kind of model, by name."""
    folder = tmp_path_factory.mktemp("runs")
    for name, flags in VARIANTS.items():
        command = parse_training_command(ViTConfig, "", [*DEMO, *flags, f"--output-dir={folder / name}"])
        train_vit_cifar10.main(command.config, VisionTransformer, resume=False, overwrite=False, extend=False)
    return {name: folder / name for name in VARIANTS}


@pytest.fixture(autouse=True)
def in_own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def export_to(output: str, run: Path, form: str, *flags: str) -> Path:
    main(parse(ExportConfig, "", [str(run), "--format", form, "--output", output, *flags]))
    return Path(output)


def trained(run: Path) -> Any:
    return TrainedModel.load(str(run), evaluate_vit.MODELS, torch.device("cpu"))


@torch.inference_mode()
def expected(model: TrainedModel, images: Tensor) -> Tensor:
    """The model's logits for images in 0..1, normalized here by hand."""
    mean, std = (torch.tensor(model.stats[name])[:, None, None] for name in ("mean", "std"))
    return model.model((images - mean) / std)


def random_images(batch_size: int) -> Tensor:
    return torch.rand(batch_size, 3, 16, 16, generator=torch.Generator().manual_seed(batch_size))


@pytest.mark.parametrize("name", ["baseline", "avg", "relative"])
def test_timm_loads_the_folder_with_the_same_logits(runs, name, capsys):
    folder = export_to("exported", runs[name], "safetensors")
    assert "timm 1." in capsys.readouterr().out
    model, theirs = trained(runs[name]), timm.create_model("local-dir:exported", pretrained=True).eval()
    mean, std = (torch.tensor(model.stats[name])[:, None, None] for name in ("mean", "std"))
    for batch_size in BATCHES:
        images = random_images(batch_size)
        with torch.inference_mode():
            torch.testing.assert_close(theirs((images - mean) / std), expected(model, images), rtol=0, atol=1e-5)
    data = timm.data.resolve_model_data_config(theirs)  # pyright: ignore[reportAttributeAccessIssue]
    assert (data["input_size"], list(data["mean"]), list(data["std"])) == ((3, 16, 16), *model.stats.values())
    assert getattr(theirs, "pretrained_cfg")["label_names"] == model.class_names  # noqa: B009 it is no Tensor
    assert stat.S_IMODE((folder / "model.safetensors").stat().st_mode) == stat.S_IMODE(
        (folder / "README.md").stat().st_mode
    )


@pytest.mark.parametrize("name", ["baseline", "relative"])
def test_onnxruntime_has_the_same_logits_for_any_batch(runs, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export_to("folder/vit.onnx", runs[name], "onnx")
    assert [file.name for file in path.parent.iterdir()] == ["vit.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [place.name for place in (*session.get_inputs(), *session.get_outputs())] == ["images", "logits"]
    about = session.get_modelmeta().custom_metadata_map
    assert (json.loads(about["class_names"]), about["img_size"]) == (list("0123456789"), "16")
    for batch_size in BATCHES:
        images = random_images(batch_size)
        (logits,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(logits, expected(trained(runs[name]), images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["baseline", "relative"])
def test_torch_export_has_the_same_logits_for_any_batch(runs, name):
    program = torch.export.load(export_to("vit.pt2", runs[name], "torch-export")).module()
    for batch_size in BATCHES:
        images = random_images(batch_size)
        torch.testing.assert_close(program(images), expected(trained(runs[name]), images), rtol=0, atol=1e-5)


def evaluation(source: Path, output: str) -> dict[str, Any]:
    flags = ["--checkpoint", str(source), "--output-dir", output, "--device=cpu", "--skip", *evaluate_vit.FIGURES]
    evaluate_vit.main(parse(evaluate_vit.EvaluateConfig, "", flags))
    return json.loads(Path(output, "evaluation.json").read_text())


def test_the_evaluator_measures_the_same_of_the_folder_and_of_what_began_from_it(runs):
    folder = export_to("exported", runs["baseline"], "safetensors")
    before = evaluation(runs["baseline"], "before")
    assert np.any(before["confusion_matrix"], axis=0).sum() > 1  # it tells some classes from others
    assert evaluation(folder, "after") == before | {"checkpoint": "exported/model.safetensors"}

    saved = checkpoint.load(runs["baseline"] / "best_model.pth")
    torch.manual_seed(7)
    model = VisionTransformer(**saved["model_args"])
    load_pretrained(model, str(folder), saved["model_args"], saved["data"]["class_names"])
    checkpoint.save(Path("best_model.pth"), saved | {"model": model.state_dict()})
    again = evaluation(Path("best_model.pth"), "again")
    assert again == before | {"checkpoint": "best_model.pth"}


def test_half_precision_halves_the_file_and_an_export_can_be_exported(runs):
    whole = export_to("whole", runs["baseline"], "safetensors")
    half = export_to("half", whole, "safetensors", "--dtype=bf16")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    assert 1.9 < sizes[0] / sizes[1] < 2.1
    logits, images = {}, random_images(64)
    for folder in (whole, half):
        logits[folder] = expected(trained(folder), images)
    difference = (logits[half] - logits[whole]).abs().max()
    assert 0 < difference < 0.1
    export_to("vit.pt2", half, "torch-export")


def test_the_card_tells_of_the_run(runs):
    shutil.copytree(runs["avg"], "run")
    evaluate = evaluation(Path("run"), "run/evaluation")
    card = (export_to("exported", Path("run"), "safetensors") / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "timm"
    assert yaml.safe_load(head)["license"] == "mit"
    for said in (
        "Training images: 640 of scikit-learn's handwritten digits.",
        "num_epochs 1, batch_size 64, optimizer adamw, learning_rate 0.003",
        "qk_norm True",
        f"test images of scikit-learn's handwritten digits: {evaluate['accuracy']:.2f} %",
        "the epoch was chosen on these images, which flatters it a little.",
        "1 epoch in", "## Limits", "MIT, as the code",
    ):  # fmt: skip
        assert said in text, said
    assert "muon" not in text
    assert "\n\n\n" not in text


def test_an_exported_folder_knows_the_epochs_after_the_best_one(runs):
    shutil.copytree(runs["avg"], "run")
    longer = {name: values * 3 for name, values in json.loads(Path("run/training_history.json").read_text()).items()}
    longer |= {"epoch": [1, 2, 3], "images_per_second": [400.0, 100.0, 100.0]}
    Path("run/training_history.json").write_text(json.dumps(longer))
    folder = export_to("exported", Path("run"), "safetensors")
    assert trained(folder).records == longer
    assert "3 epochs in" in (folder / "README.md").read_text()
    assert "133 training images/s" in (folder / "README.md").read_text()


def test_the_card_of_a_checkpoint_within_an_epoch_claims_no_epochs_accuracy(runs):
    shutil.copytree(runs["baseline"], "run")
    evaluation(Path("run"), "run/evaluation")
    model = trained(Path("run"))
    for step in (0, 7):
        card = model_card(replace(model, saved={**model.saved, "epoch_sums": {"step": step}}), "fp32")
        assert ("Not measured." in card) == (step > 0)
        assert ("Measured by the run after epoch 1" in card) == (step == 0)


def test_an_exported_folder_knows_that_its_weights_are_from_within_an_epoch(runs):
    shutil.copytree(runs["baseline"], "run")
    saved = checkpoint.load(Path("run/last.pth"))
    checkpoint.save(Path("run/last.pth"), saved | {"epoch_sums": saved["epoch_sums"] | {"step": 7}})
    folder = export_to("exported", Path("run/last.pth"), "safetensors")
    assert "Not measured." in (folder / "README.md").read_text()
    assert evaluation(folder, "after")["steps_since_epoch"] == 7


def test_an_exported_folder_brings_its_evaluation_along(runs):
    shutil.copytree(runs["baseline"], "run")
    measured = evaluation(Path("run"), "run/evaluation")
    folder = export_to("exported", Path("run"), "safetensors")
    shutil.rmtree("run")
    again = export_to("again", folder, "safetensors", "--dtype=fp16")
    wide = export_to("wide", again, "safetensors")  # in fp32, but of weights that were rounded
    wider = export_to("wider", wide, "safetensors")
    for path in (folder, again, wide, wider):
        assert json.loads((path / "evaluation.json").read_text()) == measured
        assert (
            f"Accuracy on 360 test images of scikit-learn's handwritten digits: {measured['accuracy']:.2f} %"
            in (path / "README.md").read_text()
        )
    for path in (again, wide, wider):
        assert "these are rounded to fp16" in (path / "README.md").read_text()
    assert "rounded" not in (folder / "README.md").read_text()


@pytest.mark.parametrize("other", [{"epoch": 7}, {"checkpoint": "run/checkpoint_epoch_1.pth"}, {"accuracy": ...}, None])
def test_an_evaluation_of_another_file_or_epoch_or_a_damaged_one_stays_behind(runs, other):
    shutil.copytree(runs["baseline"], "run")
    content = evaluation(Path("run"), "run/evaluation") | (other or {})
    text = json.dumps({name: value for name, value in content.items() if value is not ...}) if other else "[]"
    Path("run/evaluation/evaluation.json").write_text(text)
    folder = export_to("exported", Path("run"), "safetensors")
    assert not (folder / "evaluation.json").exists()
    assert "Accuracy on" not in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "source", ["", "/home/me/models/vit-cifar10-15min", "/home/me/theirs/model.safetensors", ".", "model.safetensors"]
)
@pytest.mark.parametrize("dataset", DATASETS)
def test_the_card_names_the_data_that_the_model_learned_from_and_no_other(runs, dataset, source):
    model, names = trained(runs["baseline"]), {**DATASETS, "image-folder": "the pictures in `flowers`"}
    config = model.saved["config"] | {"dataset": dataset, "data_dir": "/home/me/flowers", "init_from": source}
    card = model_card(replace(model, saved={**model.saved, "config": config}), "fp32")
    began = {
        "": "", "/home/me/models/vit-cifar10-15min": "vit-cifar10-15min", "/home/me/theirs/model.safetensors": "theirs",
        ".": "other weights",
    }.get(source, source)  # fmt: skip
    learned = f", after what `{began}` had learned from: expect" if began else " alone: expect"
    for said in (
        f"# A Vision Transformer for {names[dataset]}\n", f"Training images: 640 of {names[dataset]}.",
        f"It has learned from {names[dataset]}{learned}", f"the weights `{began}`" if began else "from scratch",
    ):  # fmt: skip
        assert said in card, said
    assert "/home" not in card
    assert ("horizontal_flip" in card) == (dataset not in ("digits", "svhn"))
    others = [name for key, name in names.items() if key != dataset and name not in names[dataset]]
    assert not [name for name in others if name in card]


@pytest.mark.parametrize(
    ("changes", "machine", "said"),
    [
        ({}, {}, " on AMD EPYC, "), ({}, {"world_size": 8}, " on AMD EPYC, 8 processes, "),
        ({"machines_before": [{}]}, {}, "resumed under other conditions"),
        ({"extended_from": [1]}, {}, "planned for 1 epochs, then"),
    ],
)  # fmt: skip
def test_the_card_says_where_and_how_the_run_went_on(runs, changes, machine, said):
    model = trained(runs["baseline"])
    saved = {**model.saved, **changes, "machine": {"device": "cpu", "cpu": "AMD EPYC", **machine}}
    assert said in model_card(replace(model, saved=saved), "fp32")


def test_an_export_of_an_export_knows_that_the_run_went_on_elsewhere(runs):
    shutil.copytree(runs["avg"], "run")
    about = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps(about | {"machines_before": [{}]}))
    again = export_to("again", export_to("exported", Path("run"), "safetensors"), "safetensors")
    card = (again / "README.md").read_text()
    assert "resumed under other conditions" in card
    assert about["cpu"] not in card
    assert list(describe(trained(again))["machine"]) == ["machine"]


def test_the_card_says_that_held_out_images_which_chose_the_epoch_flatter(runs):
    shutil.copytree(runs["avg"], "run")
    content = evaluation(Path("run"), "run/evaluation") | {"chosen_on": "val"}
    Path("run/evaluation/evaluation.json").write_text(json.dumps(content))
    records = Path("run/training_history.json")
    records.write_text(records.read_text().replace("test_", "val_"))
    model = trained(Path("run"))
    card = model_card(replace(model, saved=model.saved | {"chosen_on": "val"}), "fp32")
    assert "% of the val images; the epoch was chosen on these images, which flatters it" in card
    assert card.count("flatters") == 1


def test_the_card_has_a_setting_of_0_where_that_is_not_off_and_none_without_use():
    settings = ViTConfig.from_preset("cpu-15min").to_dict()
    assert {"seed 0", "rel_pos_lr_scale 0"} <= set(recipe_of(settings | {"seed": 0, "rel_pos_lr_scale": 0}))
    assert "rel_pos_lr_scale 30" not in recipe_of(settings | {"pos_embed": "learn"})
    assert not {"randaugment_magnitude 9", "random_erasing 0.0"} & set(recipe_of(settings))


def test_the_card_of_a_fine_tuned_model_names_what_it_began_with(runs):
    flags = [*DEMO, f"--init-from={runs['baseline']}", "--output-dir=tuned"]
    command = parse_training_command(ViTConfig, "", flags)
    train_vit_cifar10.main(command.config, VisionTransformer, resume=False, overwrite=False, extend=False)
    card = (export_to("exported", Path("tuned"), "safetensors") / "README.md").read_text()
    assert "license: other" in card
    assert "Trained from the weights `baseline`" in card
    assert str(runs["baseline"].parent) not in card  # no paths of the machine


# What is refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format=safetensors", "--output=there"], "there exists: remove it"),
        (["--format=onnx", "--output=new"], r"--output: onnx is a file whose name ends in \.onnx, got 'new'"),
        (
            ["--format=torch-export", "--output=vit.pth"],
            r"a file whose name ends in \.pt2, got 'vit\.pth'",
        ),
        (["--format=onnx", "--output=new.onnx", "--dtype=bf16"], "--dtype is of safetensors"),
        (["--format=jpeg", "--output=new"], "format"),
        (["--format=onnx"], "output"),
    ],
)
def test_bad_usage_is_one_line(runs, flags, message):
    Path("there").mkdir()
    with pytest.raises(UsageError, match=message) as caught:
        main(parse(ExportConfig, "", [str(runs["baseline"]), *flags]))
    assert "\n" not in str(caught.value)
    assert [path.name for path in Path().iterdir()] == ["there"]


def test_a_package_that_is_missing_is_named_at_once(monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name.startswith("onnxr") else True)
    with pytest.raises(RunError, match=r"needs onnxruntime: pip install -c constraints\.txt onnxruntime"):
        export_to("vit.onnx", Path("nowhere"), "onnx")


def test_without_timm_the_folder_is_checked_by_our_own_reader(runs, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    export_to("exported", runs["baseline"], "safetensors")
    out = capsys.readouterr().out
    assert "evaluate_vit.py has the same logits" in out
    assert "timm is not installed" in out


def test_a_resnet_is_refused():
    weights = ResNet18(num_classes=2).state_dict()
    content = {"model_name": "ResNet18", "model_args": {"num_classes": 2}, "model": weights}
    checkpoint.save(Path("best_model.pth"), content)
    with pytest.raises(RunError, match=r"best_model.pth is a ResNet18: a VisionTransformer is needed here"):
        export_to("vit.onnx", Path("best_model.pth"), "onnx")


@pytest.mark.parametrize("form", ["safetensors", "torch-export"])
def test_an_export_that_differs_leaves_nothing_behind(runs, form, monkeypatch):
    """The model that is compared with gets other weights after it was written."""
    written = export.compare

    def compare(model: TrainedModel, *args: Any) -> str:
        changed = trained(runs["baseline"])
        torch.nn.init.ones_(changed.model.head.bias)
        return written(changed, *args)

    monkeypatch.setattr(export, "compare", compare)
    with pytest.raises(RunError, match=r"reads other logits from the export, by .*: nothing was written"):
        export_to("folder/vit.pt2", runs["baseline"], form)
    assert list(Path("folder").iterdir()) == []


def test_numbers_beyond_half_precision_are_refused(runs):
    saved = checkpoint.load(runs["baseline"] / "best_model.pth")
    saved["model"]["head.bias"][0] = 1e6
    checkpoint.save(Path("best_model.pth"), saved)
    with pytest.raises(RunError, match=r"head.bias has numbers too large for fp16: choose --dtype bf16 or fp32"):
        export_to("exported", Path("best_model.pth"), "safetensors", "--dtype=fp16")


def is_refused(folder: Path, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        TrainedModel.load(str(folder), evaluate_vit.MODELS, torch.device("cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data", ..., "is damaged: data.class_names must be a list of names"),
        ("data.class_names", [0, 1], "is damaged: data.class_names must be a list of names"),
        ("data.class_names", ["cat"], "is damaged: its model has other classes, or another image size, than its data"),
        ("data.mean", [0.5, 0.5], "is damaged: data.mean must be three numbers"),
        ("data.std", [1, 1, float("nan")], "is damaged: data.std must be three numbers"),
        ("config", [], "is damaged: config.data_dir must be a text"),
        ("config.dataset", "imagenet", "is damaged: config.dataset must be the name of a dataset"),
        ("config.img_size", "16", "is damaged: config.img_size must be a whole number"),
        ("config.init_from", 3, "is damaged: config.init_from must be a text"),
        ("precision", "load", "is damaged: precision must be float32 or bfloat16"),
        ("epoch", ..., "is damaged: epoch must be a whole number"),
        ("history.lr", [], "is damaged: history must be equally long lists of numbers"),
        ("history", {"epoch": [1]}, "is damaged: history must be equally long lists of numbers"),
        ("machine", "mine", "is damaged: machine must be an object"),
        ("model_name", ..., "is damaged: model_name must be a text"),
        ("model_args", {}, "is damaged: model_args.img_size must be a whole number"),
    ],
)
def test_a_part_of_config_json_that_is_missing_or_of_another_type_is_named(runs, name, value, message):
    with_part(export_to("exported", runs["baseline"], "safetensors"), name, value)
    is_refused(Path("exported"), f"^exported/config.json {message}$")


def with_part(folder: Path, name: str, value: Any) -> None:
    """Give a part of config.json's `checkpoint` another value, or remove it where that is `...`."""
    content = json.loads((folder / "config.json").read_text())
    *outer, last = name.split(".")
    part = reduce(dict.__getitem__, outer, content["checkpoint"])
    part.pop(last) if value is ... else part.update({last: value})
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model_name", "Other", "is a Other: a VisionTransformer or ResNet18 is needed here"),
        ("model_args.depth", "2", "can't be rebuilt: "),
        ("model_args.depth", 3, "can't be rebuilt: 12 of its tensors do not fit, such as blocks.2.attn.proj.bias"),
        ("model_args.num_heads", 0, "can't be rebuilt: num_heads must be at least 1"),
        ("model_args.width", 9, "can't be rebuilt: .*unexpected keyword argument 'width'"),
    ],
)
def test_a_model_that_is_not_that_of_the_weights_is_one_line(runs, name, value, message):
    with_part(export_to("exported", runs["baseline"], "safetensors"), name, value)
    is_refused(Path("exported"), f"exported/model.safetensors {message}")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", None, "can't read exported/config.json beside model.safetensors: No such file .*--init-from"),
        ("config.json", lambda content: content[:200], "exported/config.json is damaged: "),
        ("config.json", lambda _: b"\xff", "exported/config.json is damaged: "),
        ("config.json", lambda _: b"[" * 100_000, "exported/config.json is damaged: "),
        ("config.json", lambda _: b"[1]", "exported/config.json was not written by export_vit.py: it has no object"),
        ("config.json", lambda _: b'{"architecture": "vit"}', "it has no object `checkpoint` .*train with --init-from"),
        ("model.safetensors", None, "no checkpoint exported/best_model.pth"),
        ("model.safetensors", lambda content: content[:-10], "exported/model.safetensors is damaged: "),
        ("model.safetensors", lambda content: content[:4], "exported/model.safetensors is damaged: "),
        ("model.safetensors", lambda _: b"", "exported/model.safetensors is damaged: "),
        (
            "model.safetensors",
            lambda content: content.replace(b"head.bias", b"tail.bias"),
            "2 of its tensors do not fit",
        ),
    ],
)
def test_a_damaged_file_of_the_folder_is_named_in_one_line(runs, name, change, message):
    path = export_to("exported", runs["baseline"], "safetensors") / name
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    is_refused(path.parent, message)


def test_a_name_that_is_too_long_is_one_line(runs):
    name = "x" * 300
    for source, output in ((name, "new"), (str(runs["baseline"]), name)):
        with pytest.raises(RunError, match="File name too long"):
            export_to(output, Path(source), "safetensors")


def test_a_place_that_can_not_be_written_is_one_line(runs):
    Path("file").write_text("")
    with pytest.raises(RunError, match=r"can't write to the folder file: File exists; choose another --output"):
        export_to("file/vit.pt2", runs["baseline"], "torch-export")


def test_every_format_that_the_help_names_is_there():
    assert set(export.FORMATS) == set(export_vit.ExportConfig.__annotations__["format"].__args__)
