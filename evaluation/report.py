"""report.html: one page that contains its figures, and needs no other file and no network."""

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
from evaluation.trained import MOVED, TrainedModel
from training.console import format_time
from training.files import write_atomically
from training.history import mean_speed, monitored_split

HERE = Path(__file__).parent
MAX_MISTAKES = 400  # in the page's list
MAX_BYTES = 1_500_000  # of their pictures, so that the page stays below 5 MB
THUMBNAIL = 64  # pixels: larger images are made smaller


def write_report(path: Path, results: Results, left_out: dict[str, str]) -> None:
    """Write the page about an evaluation. The figures are read from the page's own folder.

    `left_out` gives the reason for each figure that is not shown. Names of classes, files and folders can't run
    anything: they are escaped, and the page forbids all requests and all scripts except its own.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda value: f"{value:.2f} %"
    script, style = ((HERE / name).read_text() for name in ("report.js", "report.css"))
    files = {name: path.with_name(f"{name}.png") for name in FIGURES if name not in left_out}
    page = environment.get_template("report.html.j2").render(
        evaluation=results.evaluation, left_out=left_out, corruptions=CORRUPTIONS,
        trained=describe(results.trained), other=describe(results.other) if results.other else None,
        figures={name: encode(file.read_bytes()) for name, file in files.items() if file.exists()},
        mistakes=list_mistakes(results), num_mistakes=int((results.logits.argmax(dim=1) != results.labels).sum()),
        style=Markup(style), script=Markup(script), script_hash=encode(hashlib.sha256(script.encode()).digest()),
    )  # fmt: skip
    write_atomically(path, lambda file: file.write(page.encode(errors="replace")))


def describe(trained: TrainedModel) -> dict[str, Any]:
    """The run of a model as the page shows it: settings, machine, and cost, which is None without a history.

    The cost is the number of epochs, done and planned, their time and speed, and the last epoch's accuracy in percent.
    """
    run, records = trained.run, trained.records
    machine = {
        name: run[name]
        for name in ("cpu", "device", "threads", "world_size", "versions", "git_revision")
        if name in run
    }
    if isinstance(machine.get("versions"), dict):
        machine["versions"] = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    if trained.moved:  # what is known is of the run's end
        machine = {"machine": MOVED}
    cost = records and {
        "epochs": len(records["epoch"]), "planned": trained.num_epochs,
        "time": format_time(sum(records["epoch_time"])), "images_per_second": mean_speed(records),
        "last_acc": records[f"{monitored_split(records)}_acc"][-1],
    }  # fmt: skip
    return {"title": trained.title, "config": trained.saved["config"], "machine": machine, "cost": cost}


def list_mistakes(results: Results) -> list[dict[str, Any]]:
    """Mistakes, each with its picture, most confident first: as many as the page's size allows, of varied pairs."""
    shown, num_bytes = [], 0
    names = results.dataset.class_names
    for index in mistakes.varied_mistakes(results.probabilities, results.labels, MAX_MISTAKES).tolist():
        data = encode(thumbnail(results.dataset.test_images[index]))
        num_bytes += len(data)
        if num_bytes > MAX_BYTES:
            break
        predicted = int(results.probabilities[index].argmax())
        shown.append({
            "index": index, "true": names[int(results.labels[index])], "predicted": names[predicted],
            "probability": 100 * results.probabilities[index, predicted].item(), "data": data,
        })  # fmt: skip
    return sorted(shown, key=lambda row: -row["probability"])


def thumbnail(image: Tensor) -> bytes:
    """A uint8 image (3, H, W) as a PNG file of at most THUMBNAIL pixels along each side."""
    picture = tv.to_pil_image(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def encode(content: bytes) -> str:
    return base64.b64encode(content).decode()
