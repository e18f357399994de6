"""report.html: one page with the figures inside, that needs nothing else to be shown and asks for nothing."""

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from evaluation import mistakes
from evaluation.corruptions import CORRUPTIONS
from evaluation.figures import FIGURES, Results
from evaluation.trained import Trained
from training.console import format_time
from training.files import write_atomically
from training.history import History, monitored_split

HERE = Path(__file__).parent
MAX_MISTAKES = 400  # in the page's list
MAX_BYTES = 1_500_000  # of their pictures: the page stays below 5 MB
THUMBNAIL = 64  # pixels, of larger images
WIDE = {
    "training_curves",
    "predictions",
    "mistakes",
    "attention",
    "comparison_curves",
    "comparison_images",
    "confidence",
}


def write_report(path: Path, results: Results, left_out: dict[str, str]) -> None:
    """Make the page from what the evaluator found; the figures are read from the page's own folder.

    `left_out` says why a figure is not there, by its name. What stands in class, file and folder names is shown as it
    is and runs nothing: all is escaped, and the page forbids every script but its own, and every request.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda value: f"{value:.2f} %"
    script, style = ((HERE / name).read_text() for name in ("report.js", "report.css"))
    figures = [
        {
            "name": name,
            "heading": heading,
            "reading": reading,
            "wide": name in WIDE,
            "data": encode(figure.read_bytes()),
        }
        for name, (heading, reading) in FIGURES.items()
        if (figure := path.with_name(f"{name}.png")).exists()
    ]
    page = environment.get_template("report.html.j2").render(
        evaluation=results.evaluation,
        subject=describe(results.subject),
        other=describe(results.other) if results.other else None,
        figures=figures,
        left_out=left_out,
        mistakes=list_mistakes(results),
        num_mistakes=int((results.logits.argmax(dim=1) != results.labels).sum()),
        corruptions=CORRUPTIONS,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
    )
    write_atomically(path, lambda file: file.write(page.encode(errors="replace")))


def describe(trained: Trained) -> dict[str, Any]:
    """A model's run as the page shows it: settings, what it cost, and what on. `cost` is None without a history."""
    run = trained.run
    machine = {name: run[name] for name in ("cpu", "device", "threads", "versions", "git_revision") if name in run}
    if isinstance(machine.get("versions"), dict):
        machine["versions"] = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return {
        "title": trained.title,
        "config": trained.saved["config"],
        "machine": machine,
        "cost": cost_of(trained.records) if trained.records else None,
    }


def cost_of(records: History) -> dict[str, Any]:
    accuracies = records[f"{monitored_split(records)}_acc"]
    return {
        "epochs": len(records["epoch"]),
        "time": format_time(sum(records["epoch_time"])),
        "images_per_second": sum(records["images_per_second"]) / len(records["epoch"]),
        "last_acc": accuracies[-1],
    }


def list_mistakes(results: Results) -> list[dict[str, Any]]:
    """Mistakes of every kind, surest first, each with its picture: as many as the page's size allows."""
    shown, num_bytes = [], 0
    names = results.dataset.class_names
    for index in mistakes.of_every_kind(results.probabilities, results.labels, MAX_MISTAKES).tolist():
        data = encode(thumbnail(results.dataset.test_images[index]))
        num_bytes += len(data)
        if num_bytes > MAX_BYTES:
            break
        guess = int(results.probabilities[index].argmax())
        shown.append(
            {
                "index": index,
                "true": names[int(results.labels[index])],
                "predicted": names[guess],
                "chance": 100 * results.probabilities[index, guess].item(),
                "data": data,
            }
        )
    return shown


def thumbnail(image: Tensor) -> bytes:
    """A uint8 image (3, H, W) as PNG, at most THUMBNAIL pixels wide."""
    picture = tv.to_pil_image(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def encode(content: bytes) -> str:
    return base64.b64encode(content).decode()
