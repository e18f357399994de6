"""Every figure can be drawn for any number of classes, epochs and images, and for any class name."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from PIL import Image

from benchmarks import promise, time_to_accuracy
from config_experiments import SUITES
from evaluation import attention_plots, comparison_plots, evaluation_plots, metrics
from evaluation.comparison_plots import Curves, plot_comparison
from evaluation.data_efficiency import DataLine
from tests.run_folders import write_run
from training import plots
from training.errors import UsageError
from training.history import new_history
from vit import VisionTransformer

pytestmark = [pytest.mark.filterwarnings("error::UserWarning"), pytest.mark.filterwarnings("ignore:Glyph")]
LONG = "a very long name of a class, as folders of museums and of herbaria have them, " + "x" * 20


def names_of(num_classes: int) -> list[str]:
    odd = [LONG + "1", LONG + "2", "$x_1$", "<b>&", "new\nline", "猫", "\udcff", "", " ", "{"]
    return (odd + [f"class {i}" for i in range(num_classes)])[:num_classes]


def history_of(num_epochs: int, split: str = "test", seconds: float = 100.0) -> dict[str, list[float]]:
    records = {name: [1.0 + i for i in range(num_epochs)] for name in new_history(split)}
    return records | {"epoch_time": [seconds] * num_epochs}


@pytest.fixture
def path(tmp_path):
    yield tmp_path / "figure.png"
    with Image.open(tmp_path / "figure.png") as figure:
        width, height = figure.size
        assert 300 < width < 2000  # fits into a README
        assert 200 < height < 2400
        assert np.asarray(figure.convert("L")).min() < 128  # something is drawn
    assert plt.get_fignums() == []


@pytest.fixture(params=[2, 10, 100, 1000])
def evaluation(request):
    """All metrics of random predictions with so many classes, some of them without an image."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(150, request.param, generator=generator)
    return metrics.measure(logits, torch.randint(request.param, (150,), generator=generator), names_of(request.param))


def test_the_confusion_matrix_of_any_number_of_classes(evaluation, path):
    names = [row["name"] for row in evaluation["per_class"]]
    evaluation_plots.plot_confusion_matrix(np.array(evaluation["confusion_matrix"]), names, path)


def test_the_bars_of_any_number_of_classes(evaluation, path):
    evaluation_plots.plot_per_class_accuracy(evaluation["per_class"], evaluation["accuracy"], path)


def test_the_confidence_of_any_number_of_classes(evaluation, path):
    evaluation_plots.plot_confidence(evaluation["per_class"], path)


def test_two_models_on_any_number_of_classes(evaluation, path):
    names = ("ViT (checkpoints/a)", "ResNet (checkpoints/b)")
    evaluation_plots.plot_class_differences(evaluation["per_class"], evaluation["per_class"][::-1], names, path)


def test_only_the_best_and_the_worst_of_many_classes_have_bars(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(evaluation_plots, "save_figure", lambda figure, path: drawn.append(figure))
    rows = [{"name": f"class {i}", "accuracy": float(i)} for i in range(100)]
    evaluation_plots.plot_per_class_accuracy(rows, 49.5, tmp_path / "x.png")
    [axes] = drawn[0].axes
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == [f"class {i}" for i in (*range(99, 79, -1), *range(19, -1, -1))]
    assert [bar.get_width() for bar in axes.patches] == [*range(99, 79, -1), *range(19, -1, -1)]
    plt.close(drawn[0])


@pytest.mark.parametrize(("num_epochs", "split"), [(1, "test"), (1, "val"), (3, "val"), (300, "test")])
def test_the_curves_of_any_number_of_epochs(path, num_epochs, split):
    plots.plot_training_curves(history_of(num_epochs, split), path, "a run of $1 & <more> " * 9)


def test_the_best_epoch_is_marked_by_epoch_and_by_time(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    records = history_of(4, seconds=7200.0) | {"test_acc": [10.0, 60.0, 60.0, 30.0]}
    plots.plot_training_curves(records, tmp_path / "x.png", "title")
    _, acc_axes, lr_axes, time_axes = drawn[0].axes
    stars = [axes.lines[-1].get_xydata().tolist() for axes in (acc_axes, time_axes)]
    assert stars == [[[2, 60.0]], [[4.0, 60.0]]]  # epoch 2, after 4 hours
    assert "hours" in time_axes.get_xlabel()
    assert [line.get_ydata().tolist() for line in lr_axes.lines] == [[1, 2, 3, 4]]
    plt.close(drawn[0])


@pytest.mark.parametrize("count", [1, 5, 20, 40])
@pytest.mark.parametrize("num_epochs", [1, 30])
def test_the_curves_of_any_number_of_runs(path, count, num_epochs):
    records = history_of(num_epochs, "val")
    curves = [Curves(f"{LONG}{i}", [records] * (1 + i % 3), 500 if i % 2 else None) for i in range(count)]
    assert plot_comparison(curves, path) == max(0, count - 18)


def test_seeds_are_a_mean_and_a_band_by_epoch_images_and_time(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison_plots, "save_figure", lambda figure, path: drawn.append(figure))
    seeds = [history_of(2, seconds=3600.0 * (1 + i)) | {"test_acc": [10.0 + 4 * i, 50.0 + 2 * i]} for i in range(3)]
    plot_comparison([Curves("other", [history_of(3)]), Curves("seeds", seeds, 1000)], tmp_path / "x.png")
    _, acc_axes, images_axes, time_axes = drawn[0].axes
    expected = {acc_axes: [1, 2], images_axes: [1000, 2000], time_axes: [2, 4]}
    for axes, x in expected.items():
        [line] = [line for line in axes.lines if line.get_ydata()[0] == 14]
        assert line.get_xdata() == pytest.approx(x)
        assert line.get_ydata() == pytest.approx([14, 52])
        [band] = axes.collections
        low, high = band.get_datalim(axes.transData).intervaly
        assert (low, high) == pytest.approx((14 - 4, 52 + 2))
    assert len(images_axes.lines) == 1  # the other run does not say how many images it saw
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["seeds (test, 3 seeds)", "other (test)"]  # the best first
    plt.close(drawn[0])


def test_a_mean_time_that_the_table_lacks_is_not_drawn_and_every_curve_has_its_name(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison_plots, "save_figure", lambda figure, path: drawn.append(figure))
    several = Curves("_several machines", [history_of(2), history_of(2)], timed=False)
    for curves, num_timed in (([several, Curves("one", [history_of(2)])], 1), ([several], 0)):
        plot_comparison(curves, tmp_path / "x.png")
        times = [axes for axes in drawn[-1].axes if "time" in axes.get_title()]
        assert [len(axes.lines) for axes in times] == [num_timed] * bool(num_timed)
        labels = {text.get_text() for text in drawn[-1].legends[0].get_texts()}
        assert labels >= {" _several machines (test, 2 seeds)"}
        plt.close(drawn[-1])


def test_a_loss_far_above_the_others_is_cut_off_and_said(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison_plots, "save_figure", lambda figure, path: drawn.append(figure))
    for loss, title in ((52.4, "Loss (cut off: up to 52.4)"), (3.0, "Loss")):
        history = history_of(4) | {"test_loss": [loss, 2.0, 2.0, 1.0]}
        plot_comparison([Curves("one", [history])], tmp_path / "x.png")
        axes = drawn[-1].axes[0]
        assert axes.get_title() == title
        assert axes.get_ylim()[0] < 1
        assert axes.get_ylim()[1] == 6 if loss > 6 else axes.get_ylim()[1] > 3
        plt.close(drawn[-1])


def test_lines_against_the_training_images_have_the_colours_of_their_curves(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison_plots, "save_figure", lambda figure, path: drawn.append(figure))
    lines = [
        DataLine("full", "epochs", [(100, 20.0, 0.0), (1000, 70.0, 2.0)]),
        DataLine("full", "images seen", [(100, 30.0, 0.0), (1000, 70.0, 2.0)]),
    ]
    plot_comparison(
        [Curves("other", [history_of(2)]), Curves("full", [history_of(2)], 1000)], tmp_path / "x.png", lines
    )
    _, acc_axes, _, _, axes = drawn[0].axes
    [curve] = [line for line in acc_axes.lines if line.get_label().startswith("full")]
    assert [tuple(line[0].get_ydata()) for line in axes.containers] == [(20, 70), (30, 70)]
    assert {to_rgb(line[0].get_color()) for line in axes.containers} == {to_rgb(curve.get_color())}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "1,000"]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["as many epochs as full", "as many images seen as full"]
    plt.close(drawn[0])


def test_the_legend_names_the_experiments_of_the_longest_suite_in_full(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison_plots, "save_figure", lambda figure, path: drawn.append(figure))
    names = list(SUITES["data-efficiency"])
    plot_comparison([Curves(name, [history_of(2, "val")] * 3) for name in names], tmp_path / "x.png")
    [legend] = drawn[0].legends
    assert [text.get_text().split(" ")[0] for text in legend.get_texts()] == names[:18]
    drawn[0].canvas.draw()
    assert legend.get_window_extent().width < drawn[0].bbox.width
    plt.close(drawn[0])


def test_of_many_runs_the_best_have_colours_that_can_be_told_apart(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison_plots, "save_figure", lambda figure, path: drawn.append(figure))
    curves = [Curves(f"run {i}", [history_of(2) | {"test_acc": [1.0, float(i)]}]) for i in range(25)]
    assert plot_comparison(curves, tmp_path / "x.png") == 7
    lines = drawn[0].axes[1].lines
    grey = [line.get_ydata()[1] for line in lines if line.get_color() == "0.8"]
    assert sorted(grey) == [0, 1, 2, 3, 4, 5, 6]
    colours = {to_rgb(line.get_color()) for line in lines}
    assert len(colours) == 18 + 1
    assert [max(colour) - min(colour) < 0.05 for colour in colours].count(True) == 1  # no curve looks like a grey one
    assert drawn[0].legends[0].get_title().get_text() == "grey: 7 more, with lower accuracies"
    assert len(drawn[0].axes) == 3  # none of the runs says how many images it saw
    plt.close(drawn[0])


@pytest.mark.parametrize(("seconds", "unit"), [(1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours")])
def test_the_unit_of_time_follows_the_length_of_the_run(seconds, unit):
    assert plots.elapsed(history_of(3, seconds=seconds))[1] == unit


@pytest.mark.parametrize("num_images", [1, 5, 24])
def test_a_grid_of_predictions(path, num_images):
    images = torch.randint(0, 256, (num_images, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(num_images) % 10
    probabilities = torch.randn(num_images, 10).softmax(dim=1)
    captions = evaluation_plots.captions(labels, probabilities, names_of(10))
    evaluation_plots.plot_images(images, captions, path, "title")


def test_a_mistake_names_the_true_class_and_has_a_mark_besides_its_colour():
    probabilities = torch.tensor([[0.2, 0.8], [0.9, 0.1]])
    captions = evaluation_plots.captions(torch.tensor([1, 1]), probabilities, ["cat", "dog"])
    assert captions == ["✓ dog: 80 %", "✗ cat: 90 %\n(is dog)"]


def test_only_the_worst_of_many_classes_have_histograms(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(evaluation_plots, "save_figure", lambda figure, path: drawn.append(figure))
    histogram = {"correct": [0] * 9 + [1], "wrong": [1] * 10}
    rows = [{"name": f"class {i}", "accuracy": -float(i), "confidence_histogram": histogram} for i in range(100)]
    evaluation_plots.plot_confidence(rows, tmp_path / "x.png")
    assert [axes.get_title() for axes in drawn[0].axes] == [f"class {i}" for i in range(99, 79, -1)]
    assert "the 20 of 100 with the lowest accuracy" in drawn[0].get_suptitle()
    plt.close(drawn[0])


@pytest.mark.parametrize("confidence", [torch.ones(3), torch.zeros(3), torch.rand(50)])
def test_reliability_of_any_confidence(path, confidence):
    evaluation_plots.plot_reliability(metrics.calibration(confidence.double(), confidence > 0.5), path)


@pytest.mark.parametrize(("patch_size", "num_heads"), [(16, 1), (4, 3), (2, 12)])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_the_attention_figures_of_any_untrained_vit(tmp_path, patch_size, num_heads):
    from evaluation import attention

    model = VisionTransformer(img_size=16, patch_size=patch_size, embed_dim=24, depth=1, num_heads=num_heads)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    maps = attention.attention_maps(model, images.float() / 255)
    attention_plots.plot_attention(images, ["one", "two"], *maps, tmp_path / "1.png")
    attention_plots.plot_position_embeddings(attention.position_similarity(model), tmp_path / "2.png")
    attention_plots.plot_patch_filters(model, tmp_path / "3.png")
    one = maps[0][0], maps[1][0]
    attention_plots.plot_classified(images[0], [(LONG, 0.9), ("b", 0.1)], one, tmp_path / "4.png", LONG)
    attention_plots.plot_classified(images[0], [("a", 0.9), ("b", 0.1)], None, tmp_path / "5.png", "x.jpg")
    for i in range(1, 6):
        assert max(Image.open(tmp_path / f"{i}.png").size) < 2000


@pytest.mark.parametrize(
    ("text", "shown"),
    [("cat", "cat"), ("x" * 30, "x" * 12 + "…" + "x" * 11), ("a\n b", "a b"), ("\udcff", "?"), (LONG + "1", None)],
)
def test_long_names_are_shortened_in_the_middle(text, shown):
    assert shown is None or plots.short(text) == shown
    assert len(plots.short(text)) <= 24
    assert plots.short(LONG + "1") != plots.short(LONG + "2")


def test_an_unfinished_run_is_drawn_beside_the_promise(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    run = write_run(tmp_path / "default", [30.0, 45.5], num_epochs=100)
    promise.main(promise.PromiseConfig((run,), str(tmp_path / "new" / "x.png")))
    assert "default: 45.50 % after 2 epochs" in capsys.readouterr().out
    [axes] = drawn[0].axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 30], [2, 45.5]]
    bars = [container[2][0].get_segments()[0].tolist() for container in axes.containers]
    assert bars == [[[10, 40], [10, 50]], [[50, 70], [50, 75]], [[100, 75], [100, 80]]]
    plt.close(drawn[0])


def test_accuracy_against_time_is_at_the_end_of_each_epoch(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    machine = {"device": "cpu", "cpu": "x", "threads": 2, "world_size": 1}
    runs = [write_run(tmp_path / name, [35.0, last], "val", about=machine) for name, last in (("a", 62.0), ("b", 50.0))]
    time_to_accuracy.main(time_to_accuracy.TimeConfig(tuple(runs), str(tmp_path / "x.png")))
    table = [line.split("|")[1:6] for line in capsys.readouterr().out.splitlines() if line.startswith(("| a", "| b"))]
    assert [[cell.strip() for cell in row] for row in table] == [
        ["a", "30.0", "60.0", "60.0", "60.0"],  # minutes to 30, 40, 50 and 60 %
        ["b", "30.0", "60.0", "60.0", "-"],
    ]
    [axes] = drawn[0].axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[30, 35], [60, 62]], [[30, 35], [60, 50]]]
    plt.close(drawn[0])


@pytest.mark.parametrize(
    ("script", "config"), [(promise, promise.PromiseConfig(())), (time_to_accuracy, time_to_accuracy.TimeConfig(()))]
)
def test_a_figure_of_no_run_is_refused(script, config):
    with pytest.raises(UsageError, match="name the folders of the runs"):
        script.main(config)
