"""What evaluate_vit.py does with each of its options: flip, corruptions, a second model, pictures of your own."""

import base64
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import evaluate_vit
from evaluate_vit import EvaluateConfig, main
from evaluation.comparison import compare_predictions
from evaluation.corruptions import CORRUPTIONS, corrupt
from evaluation.figures import FIGURES
from evaluation.predictions import fingerprint
from evaluation.run_record import read_run
from resnet import ResNet18
from tests.run_folders import write_run
from training import checkpoint, history
from training.cli import parse
from training.data import Dataset, load_dataset
from training.errors import RunError, UsageError
from vit import VisionTransformer

ALWAYS = {
    "training_curves", "confusion_matrix", "per_class_accuracy", "reliability", "confidence", "predictions", "mistakes",
}  # fmt: skip
VIT_ONLY = {"attention", "position_embeddings", "patch_filters"}
WRITTEN_BY_TRAINING = (
    "config.json",
    "training_history.json",
    "training_curves.png",
    "augmented_images.png",
    "last.pth",
)
COMPARISON = {"comparison_curves", "comparison_classes", "comparison_images"}


def write_checkpoint(
    path: Path, model: nn.Module, class_names: list[str], img_size: int, records: dict[str, Any], **config: Any
) -> str:
    """Write a checkpoint as a run does, with an untrained model."""
    path.parent.mkdir(exist_ok=True, parents=True)
    settings = {"dataset": "digits", "data_dir": "data", "data_url": "", "img_size": img_size, **config}
    settings["num_epochs"] = len(records["epoch"])
    arguments = {"num_classes": len(class_names)}
    if isinstance(model, VisionTransformer):
        arguments |= {"img_size": img_size, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 1}
    content = {
        "model_name": type(model).__name__, "model_args": arguments, "config": settings, "precision": "float32",
        "data": {"class_names": class_names, "mean": [0.5] * 3, "std": [0.5] * 3}, "epoch": len(records["epoch"]),
        "history": records, "chosen_on": "test", "model": model.state_dict(),
    }  # fmt: skip
    checkpoint.save(path, content)
    return str(path)


def tiny_vit(num_classes: int = 10, img_size: int = 8) -> VisionTransformer:
    model = VisionTransformer(img_size, 4, embed_dim=12, depth=1, num_heads=1, num_classes=num_classes)
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # so that its predictions differ from image to image
    nn.init.zeros_(model.head.bias)
    return model


def one_epoch() -> dict[str, list[float]]:
    return {name: [1.0] for name in history.new_history("test")} | {"test_acc": [10.0]}


@pytest.fixture(autouse=True)
def seeded(monkeypatch, tmp_path):
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def digits(tmp_path) -> str:
    return write_checkpoint(tmp_path / "run" / "best_model.pth", tiny_vit(), list("0123456789"), 8, one_epoch())


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Dataset:
    """Images of two classes that may be mirrored, instead of CIFAR-10's."""
    random = np.random.default_rng(0)
    plain = random.uniform(30, 220, (40, 3, 1, 1)) + random.uniform(-30, 30, (40, 3, 8, 8))  # each of its own colour
    images = torch.from_numpy(plain.astype(np.uint8))
    dataset = Dataset(["cat", "dog"], images, torch.arange(40) % 2, images, torch.arange(40) % 2)
    monkeypatch.setattr(evaluate_vit, "load_dataset", lambda *args: dataset)
    return dataset


@pytest.fixture
def cats(tmp_path, pictures) -> str:
    path = tmp_path / "cats" / "best_model.pth"
    return write_checkpoint(path, tiny_vit(num_classes=2), ["cat", "dog"], 8, one_epoch(), dataset="cifar10")


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def logits_of(path: str, images: Tensor) -> Tensor:
    """The model's logits, by hand."""
    saved = torch.load(path, weights_only=True)
    model = evaluate_vit.MODELS[saved["model_name"]](**saved["model_args"]).eval()
    model.load_state_dict(saved["model"])
    with torch.inference_mode():
        return model((images.float() / 255 - 0.5) / 0.5)


def figures_in(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.png")}


def evaluate(path: str, *args: Any, **options: Any) -> dict[str, Any]:
    main(EvaluateConfig(path, "out", device="cpu", **options))
    return read(Path("out"))


def test_all_figures_of_a_vit_are_drawn(digits, capsys):
    evaluate(digits)
    assert figures_in(Path("out")) == ALWAYS | VIT_ONLY
    assert "No " not in capsys.readouterr().out


def test_pictures_that_are_not_where_the_training_found_them_are_asked_for(tmp_path, pictures):
    path = write_checkpoint(
        tmp_path / "best_model.pth", tiny_vit(num_classes=2), ["cat", "dog"], 8, one_epoch(), dataset="image-folder",
        data_dir="elsewhere",
    )  # fmt: skip
    with pytest.raises(RunError, match=r"learned from the pictures in elsewhere, which is no folder here: give --data"):
        main(EvaluateConfig(path, "out", device="cpu"))


def test_skipped_figures_are_not_drawn_and_those_of_an_earlier_evaluation_removed(digits, capsys):
    evaluate(digits)
    kept = evaluate(digits, skip=("attention", "predictions"))
    assert figures_in(Path("out")) == (ALWAYS | VIT_ONLY) - {"attention", "predictions"}
    page = Path("out/report.html").read_text()
    assert "attention: left out by --skip" in page
    assert kept["num_images"] == 360


def test_a_model_with_relative_positions_has_all_figures_too(digits, tmp_path):
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 1}
    shape |= {"global_pool": "avg", "pos_embed": "relative", "qk_norm": True}
    saved = checkpoint.load(tmp_path / "run" / "best_model.pth")
    saved["model_args"] = {**shape, "num_classes": 10}
    saved["model"] = VisionTransformer(**saved["model_args"]).state_dict()
    checkpoint.save(tmp_path / "run" / "best_model.pth", saved)
    evaluate(digits)
    assert figures_in(Path("out")) == ALWAYS | VIT_ONLY


@pytest.mark.parametrize("inside", [".", "evaluation"])
def test_the_folder_of_another_run_is_refused(digits, tmp_path, inside):
    write_run(tmp_path / "other", [70.0])
    before = {path: path.read_bytes() for path in (tmp_path / "other").rglob("*")}
    with pytest.raises(
        UsageError, match=r"^--output-dir .*other.*: .*other holds a run, and .*run/best_model.pth is not in"
    ):
        main(EvaluateConfig(digits, str(tmp_path / "other" / inside), device="cpu"))
    assert {path: path.read_bytes() for path in (tmp_path / "other").rglob("*")} == before


def test_the_evaluation_of_another_checkpoint_replaces_none_unless_the_folder_is_named(digits, tmp_path):
    main(EvaluateConfig(digits, device="cpu", skip=FIGURES))
    file = tmp_path / "run" / "evaluation" / "evaluation.json"
    own, last = json.loads(file.read_text()), shutil.copy(digits, tmp_path / "run" / "final_model.pth")
    with pytest.raises(UsageError, match=r"run/evaluation holds the evaluation of best_model.pth: name another folder"):
        main(EvaluateConfig(str(last), device="cpu", skip=FIGURES))
    assert json.loads(file.read_text()) == own
    main(EvaluateConfig(str(last), str(file.parent), device="cpu", skip=FIGURES))


def test_the_evaluation_of_other_images_replaces_none_unless_the_folder_is_named(digits, tmp_path):
    main(EvaluateConfig(digits, device="cpu", skip=FIGURES))
    file = tmp_path / "run" / "evaluation" / "evaluation.json"
    own = json.loads(file.read_text())
    file.write_text(json.dumps(own | {"test_images_sha256": "of other images"}))
    before = {path: path.read_bytes() for path in file.parent.iterdir()}
    with pytest.raises(UsageError, match=r"run/evaluation holds the evaluation of other images: name another folder"):
        main(EvaluateConfig(digits, dataset="digits", device="cpu", skip=FIGURES))
    assert {path: path.read_bytes() for path in file.parent.iterdir()} == before
    main(EvaluateConfig(digits, str(file.parent), dataset="digits", device="cpu", skip=FIGURES))
    file.write_text(json.dumps(own | {"test_images_sha256": "of the run's images, before some were added"}))
    main(EvaluateConfig(digits, device="cpu", skip=FIGURES))
    assert json.loads(file.read_text()) == own


@pytest.mark.parametrize("place", ["run/of-another", "run/finetuned", "run/finetuned/evaluation"])
def test_a_folder_within_that_of_another_run_is_free(digits, tmp_path, place):
    (tmp_path / "run" / "training_history.json").write_text("{}")
    (tmp_path / "run" / "finetuned").mkdir()
    path = shutil.copy(digits, tmp_path / "run" / "finetuned")
    main(EvaluateConfig(str(path), str(tmp_path / place), device="cpu", skip=FIGURES))
    assert (tmp_path / place / "evaluation.json").exists()


@pytest.mark.parametrize("skip", [(), ("training_curves",)])
def test_a_file_that_training_wrote_stays_as_it_is(digits, tmp_path, skip):
    folder = tmp_path / "run"
    written = {name: f"{name} of the run".encode() for name in WRITTEN_BY_TRAINING}
    for name, content in written.items():
        (folder / name).write_bytes(content)
    others = tuple(name for name in FIGURES if name != "training_curves")
    main(EvaluateConfig(digits, str(folder), device="cpu", skip=others + skip))
    assert {name: (folder / name).read_bytes() for name in written} == written
    page = (folder / "report.html").read_text()
    shown = base64.b64encode(written["training_curves.png"]).decode() in page
    assert shown == (not skip)


def test_an_unknown_figure_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"skip must name figures.*training_curves.*got 'atention'"):
        EvaluateConfig(skip=("attention", "atention"))


def test_help_shows_an_example_of_each_option_and_names_the_figures(capsys):
    with pytest.raises(SystemExit):
        parse(EvaluateConfig, evaluate_vit.__doc__ or "", ["--help"])
    said = capsys.readouterr().out
    examples = [line for line in said.splitlines() if line.startswith("    python evaluate_vit.py")]
    for flag in ("--checkpoint", "--compare", "--flip", "--corruptions", "--skip", "--images"):
        assert any(f" {flag} " in line for line in examples)
    assert all(name in said for name in FIGURES)


@pytest.mark.parametrize(
    "option", [{"flip": True}, {"corruptions": True}, {"compare": "x"}, {"skip": ("attention",)}, {"data_dir": "x"}]
)
def test_options_without_use_for_pictures_are_refused_with_them(option):
    [name] = option
    with pytest.raises(ValueError, match=f"leave out --{name.replace('_', '-')}"):
        EvaluateConfig(images=("cat.jpg",), **option)


def test_flip_averages_the_probabilities_and_changes_nothing_else(cats, pictures, capsys):
    plain = evaluate(cats, skip=tuple(FIGURES))
    flipped = evaluate(cats, skip=tuple(FIGURES), flip=True)
    own, mirrored = (
        logits_of(cats, images).double().softmax(1) for images in (pictures.test_images, pictures.test_images.flip(3))
    )
    mean = (own + mirrored) / 2
    labels = pictures.test_labels
    assert flipped["flip"]["accuracy"] == 100 * (mean.argmax(1) == labels).double().mean().item()
    assert flipped["flip"]["loss"] == pytest.approx(-mean[range(40), labels].log().mean().item(), rel=1e-5)
    assert flipped["flip"]["loss"] != pytest.approx(plain["loss"], rel=1e-4)
    assert {name: value for name, value in flipped.items() if name != "flip"} == plain
    assert f"mirror images: {flipped['flip']['accuracy']:.2f}%" in capsys.readouterr().out


def test_flip_is_refused_for_digits(digits):
    with pytest.raises(UsageError, match="--flip"):
        evaluate(digits, flip=True)
    assert not Path("out").exists()


def test_every_corruption_is_evaluated_and_nothing_else_changes(cats, pictures):
    plain = evaluate(cats, skip=tuple(FIGURES))
    found = evaluate(cats, skip=tuple(set(FIGURES) - {"corruptions"}), corruptions=True)
    assert figures_in(Path("out")) == {"corruptions"}
    assert found["corruptions"].keys() == CORRUPTIONS.keys()
    for name, (_, strengths, _) in CORRUPTIONS.items():
        rows = found["corruptions"][name]
        assert tuple(row["strength"] for row in rows) == strengths
        for row in rows:
            logits = logits_of(cats, corrupt(pictures.test_images, name, row["strength"]))
            assert row["accuracy"] == 100 * (logits.argmax(1) == pictures.test_labels).double().mean().item()
            loss = nn.functional.cross_entropy(logits, pictures.test_labels).item()
            assert row["loss"] == pytest.approx(loss, rel=1e-4)
    assert {name: value for name, value in found.items() if name != "corruptions"} == plain


def test_a_second_model_is_compared_on_the_same_images(cats, pictures, tmp_path, capsys):
    path = tmp_path / "other" / "best_model.pth"
    other = write_checkpoint(path, ResNet18(2), ["cat", "dog"], 8, one_epoch(), dataset="cifar10")
    found = evaluate(cats, compare=str(path.parent))
    assert 0 < found["comparison"]["num_only_this_right"] + found["comparison"]["num_only_other_right"] < 40
    second = found["comparison"]
    assert figures_in(Path("out")) == ALWAYS | VIT_ONLY | COMPARISON
    assert (second["model_name"], second["num_parameters"], second["chosen_on"]) == ("ResNet18", 11_169_858, "test")
    answers = [logits_of(checkpoint_file, pictures.test_images).argmax(1) for checkpoint_file in (cats, other)]
    right = [answer == pictures.test_labels for answer in answers]
    assert second["accuracy"] == 100 * right[1].double().mean().item()
    assert second["num_only_this_right"] == int((right[0] & ~right[1]).sum())
    assert second["num_only_other_right"] == int((~right[0] & right[1]).sum())
    assert second["difference"] == pytest.approx(found["accuracy"] - second["accuracy"])
    page = Path("out/report.html").read_text()
    assert f"B is ResNet18 ({other})" in page
    assert f"{second['difference']:+.2f} points" in page
    assert ("these images do not show which model is better" in page) == (second["mcnemar_p"] >= 0.05)
    assert "ResNet18" in capsys.readouterr().out
    evaluate(cats)
    assert not figures_in(Path("out")) & COMPARISON  # those of an earlier evaluation would mislead


def test_the_predictions_of_two_evaluations_give_the_same_comparison_as_one_evaluation_of_both(pictures):
    folders = [write_run(Path(name), [50.0]) for name in ("one", "two")]
    paths = []
    for folder in folders:
        path = Path(folder) / "best_model.pth"
        paths.append(write_checkpoint(path, tiny_vit(2), ["cat", "dog"], 8, one_epoch(), dataset="cifar10"))
        main(EvaluateConfig(folder, device="cpu", skip=tuple(FIGURES)))
        lines = (Path(folder) / "evaluation" / "predictions.csv").read_text().splitlines()
        probabilities = logits_of(paths[-1], pictures.test_images).double().softmax(1)
        assert lines[0] == "label,predicted,confidence"
        for line, label, row in zip(lines[1:], pictures.test_labels, probabilities, strict=True):
            *numbers, confidence = line.split(",")
            assert numbers == [str(int(label)), str(int(row.argmax()))]
            assert float(confidence) == pytest.approx(float(row.max()), abs=2e-6)
    expected = evaluate(paths[0], compare=paths[1], skip=tuple(FIGURES))["comparison"]
    found = compare_predictions(*(read_run(Path(folder)) for folder in folders))
    assert found == {name: expected[name] for name in found}
    assert found["num_both_right"] < 40


def test_other_pixels_labels_and_orders_have_other_fingerprints(pictures):
    images, labels = pictures.test_images, pictures.test_labels
    dark = images.clone()
    dark[-1, -1, -1, -1] ^= 1
    others = [
        replace(pictures, test_images=dark), replace(pictures, test_labels=1 - labels),
        replace(pictures, test_images=images.flip(0), test_labels=labels.flip(0)),
    ]  # fmt: skip
    assert len({fingerprint(dataset) for dataset in (pictures, *others)}) == 4
    assert fingerprint(pictures) == fingerprint(replace(pictures, train_images=dark, test_images=images.clone()))


def test_a_second_model_gets_the_images_in_its_own_size(digits, tmp_path):
    other = write_checkpoint(tmp_path / "o.pth", tiny_vit(img_size=12), list("0123456789"), 12, one_epoch())
    found = evaluate(digits, compare=other, skip=tuple(FIGURES))["comparison"]
    images = load_dataset("digits", "", 12)
    answers = logits_of(other, images.test_images).argmax(1)
    assert found["accuracy"] == 100 * (answers == images.test_labels).double().mean().item()


def test_a_model_does_not_differ_from_itself(cats, capsys):
    found = evaluate(cats, compare=cats)["comparison"]
    assert (found["difference"], found["difference_interval"]) == (0, [0, 0])
    said = capsys.readouterr().out
    assert "No comparison_curves.png: both models are from the same run" in said
    assert "No comparison_images.png: both models get the same images right" in said
    assert "these images do not show which model is better" in Path("out/report.html").read_text()


def test_a_second_model_with_other_classes_is_refused(cats, tmp_path):
    other = write_checkpoint(tmp_path / "o.pth", tiny_vit(3), ["cat", "dog", "cow"], 8, one_epoch(), dataset="cifar10")
    with pytest.raises(RunError, match=r"o\.pth knows the classes cat, dog, cow; cifar10 has cat, dog"):
        evaluate(cats, compare=other)
    assert not Path("out").exists()


def test_an_error_lists_only_the_first_of_many_classes(pictures, tmp_path):
    names = [f"class {i}" for i in range(1000)]
    path = write_checkpoint(tmp_path / "o.pth", tiny_vit(1000), names, 8, one_epoch(), dataset="cifar10")
    with pytest.raises(RunError, match="class 19 and 980 more"):
        evaluate(path)


def test_a_resnet_has_no_attention_figures_and_says_so(tmp_path, pictures, capsys):
    path = write_checkpoint(
        tmp_path / "r" / "best_model.pth", ResNet18(2), ["cat", "dog"], 8, one_epoch(), dataset="cifar10"
    )
    evaluate(path)
    assert figures_in(Path("out")) == ALWAYS
    said = capsys.readouterr().out
    assert all(f"No {name}.png: ResNet18 is not a Vision Transformer" in said for name in VIT_ONLY)


def test_a_run_without_a_finished_epoch_has_all_figures_but_the_curves(tmp_path, pictures, capsys):
    path = tmp_path / "new" / "last.pth"
    records = history.new_history("test")
    evaluation = evaluate(write_checkpoint(path, tiny_vit(2), ["cat", "dog"], 8, records, dataset="cifar10"))
    assert figures_in(Path("out")) == (ALWAYS | VIT_ONLY) - {"training_curves"}
    assert evaluation["epoch"] == 0
    assert "No training_curves.png: the run has no finished epoch" in capsys.readouterr().out


@pytest.mark.parametrize("bias", [[9.0, 0.0], [0.0, 0.0]])
def test_a_constant_predictor_is_evaluated_like_any_other(tmp_path, pictures, bias):
    model = tiny_vit(2)
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor(bias)
    path = write_checkpoint(tmp_path / "c" / "best_model.pth", model, ["cat", "dog"], 8, one_epoch(), dataset="cifar10")
    assert evaluate(path)["confusion_matrix"] == [[20, 0], [20, 0]]
    assert figures_in(Path("out")) == ALWAYS | VIT_ONLY


def test_a_perfect_model_has_no_mistakes_to_show(tmp_path, pictures, monkeypatch, capsys):
    everything_a_cat = replace(pictures, test_labels=torch.zeros(40, dtype=torch.long))
    monkeypatch.setattr(evaluate_vit, "load_dataset", lambda *args: everything_a_cat)
    model = tiny_vit(2)
    nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor([9.0, 0.0])
    path = write_checkpoint(tmp_path / "c" / "best_model.pth", model, ["cat", "dog"], 8, one_epoch(), dataset="cifar10")
    found = evaluate(path)
    assert (found["accuracy"], found["most_confused"]) == (100.0, [])
    assert "No mistakes.png: the model makes no mistake" in capsys.readouterr().out
    assert '<ul class="mistakes">' not in Path("out/report.html").read_text()


def test_broken_weights_are_an_error_of_one_line(tmp_path, pictures):
    model = tiny_vit(2)
    nn.init.constant_(model.patch_embed.proj.weight, 1e38)
    path = write_checkpoint(tmp_path / "b.pth", model, ["cat", "dog"], 8, one_epoch(), dataset="cifar10")
    with pytest.raises(RunError, match=r"b\.pth gives logits that are not finite"):
        main(EvaluateConfig(path, "pictures", images=(save_picture(tmp_path / "one.png"),), device="cpu"))
    with pytest.raises(RunError, match=r"b\.pth gives logits that are not finite"):
        evaluate(path)
    assert not list(Path("out").iterdir())


@pytest.mark.parametrize("here", [True, False])
def test_a_model_of_bf16_is_evaluated_in_fp32_where_bf16_would_be_emulated(cats, pictures, here, monkeypatch, capsys):
    saved = torch.load(cats, weights_only=True)
    checkpoint.save(Path(cats), {**saved, "precision": "bfloat16"})
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: here, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    evaluate(cats)
    evaluation = read(Path("out"))
    in_fp32 = torch.nn.functional.cross_entropy(logits_of(cats, pictures.test_images), pictures.test_labels).item()
    assert evaluation["precision"] == "bfloat16"
    assert evaluation["evaluation_precision"] == ("bfloat16" if here else "float32")
    assert (evaluation["loss"] == pytest.approx(in_fp32, rel=1e-6)) != here
    assert ("Trained in bfloat16, evaluated in float32" in capsys.readouterr().out) != here


def test_a_folder_that_cannot_be_written_is_an_error_before_the_pass_over_the_images(cats, monkeypatch):
    Path("out").write_text("in the way")
    monkeypatch.setattr(evaluate_vit.TrainedModel, "predict", lambda *args: pytest.fail("it computed first"))
    with pytest.raises(RunError, match="--output-dir"):
        evaluate(cats)


def save_picture(path: Path, size: tuple[int, int] = (30, 20)) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.mark.filterwarnings("ignore:Glyph")  # 猫, which the font lacks
def test_each_picture_of_the_user_gets_a_figure_whatever_its_name(digits, tmp_path, capsys):
    names = ["one/$x_1$.png", "two/$x_1$.png", f"{'猫' * 70}.png"]
    files = tuple(save_picture(tmp_path / name) for name in names)
    main(EvaluateConfig(digits, "out", images=files, device="cpu"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [*files, "Figures"]
    assert lines[-1] == f"Figures: {Path('out') / 'images'} (with attention maps)"
    assert {path.name for path in Path("out/images").iterdir()} == {"$x_1$.png", "$x_1$_2.png", f"{'猫' * 40}.png"}
    assert figures_in(Path("out")) == set()


def test_pictures_of_one_name_and_of_a_name_that_is_not_utf_8_have_figures_of_their_own(digits, tmp_path, capsys):
    names = ["a/cat_3.png", "a/cat.png", "b/cat.png", "b/cat_2.png", os.fsdecode(b"caf\xe9.png")]
    main(EvaluateConfig(digits, "out", images=tuple(save_picture(tmp_path / name) for name in names), device="cpu"))
    assert len(figures_in(Path("out/images"))) == len(names)
    assert "caf\N{REPLACEMENT CHARACTER}.png" in capsys.readouterr().out


def test_a_resnet_classifies_pictures_without_attention(tmp_path, capsys):
    path = write_checkpoint(tmp_path / "r.pth", ResNet18(2), ["cat", "dog"], 9, one_epoch())
    main(EvaluateConfig(path, "out", images=(save_picture(tmp_path / "cat.png"),), device="cpu"))
    assert "no attention maps: ResNet18 has none" in capsys.readouterr().out
    assert Path("out/images/cat.png").read_bytes().startswith(b"\x89PNG")


def test_a_thousand_classes_of_long_names_give_a_short_table_and_a_small_report(tmp_path, monkeypatch, capsys):
    names = [f"{'very ' * 14}long {i:04d}" for i in range(1000)]
    images = torch.randint(0, 256, (1000, 3, 8, 8), dtype=torch.uint8)
    dataset = Dataset(names, images, torch.arange(1000), images, torch.arange(1000))
    monkeypatch.setattr(evaluate_vit, "load_dataset", lambda *args: dataset)
    found = evaluate(write_checkpoint(tmp_path / "b.pth", tiny_vit(1000), names, 8, one_epoch(), dataset="cifar10"))
    said = capsys.readouterr().out
    assert "The 100 classes of 1,000 with the lowest accuracy" in said
    assert len(said.splitlines()) < 120
    assert len(found["per_class"]) == 1000
    assert figures_in(Path("out")) == ALWAYS | VIT_ONLY
    assert Path("out/report.html").stat().st_size < 5e6


def test_the_figures_never_replace_the_users_own_pictures(digits, tmp_path):
    picture = save_picture(tmp_path / "images" / "cat.png")
    content = Path(picture).read_bytes()
    with pytest.raises(UsageError, match=r"among the pictures in .*--output-dir"):
        main(EvaluateConfig(digits, str(tmp_path), images=(picture,), device="cpu"))
    assert Path(picture).read_bytes() == content
