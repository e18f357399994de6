"""README.md and docs/ against the repository: links, flags, files, and the counts that the README states."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

from config_vit_cifar10 import ViTConfig
from vit import VisionTransformer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
SCRIPTS = [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py"), ROOT / "training" / "cli.py"]
FOREIGN_FLAGS = {  # of torchrun and TensorBoard
    *("--standalone", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id"),
    *("--max-restarts", "--logdir"),
}
MAX_WORDS = 1500  # of the README: ten minutes
MAX_LINES = 1499  # of the files that it says to read


def test_the_readme_is_read_in_ten_minutes():
    assert len(README.split()) <= MAX_WORDS


def test_the_files_to_read_have_as_many_lines_as_the_readme_says():
    stated = re.search(r"Read these files in this order, ([\d,]+) lines", README)
    assert stated
    files = re.findall(r"^\d\. `(.+?)`", README, re.MULTILINE)
    assert len(files) == 8
    lines = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    assert int(stated[1].replace(",", "")) == lines, f"they have {lines:,} lines: say so in README.md"
    assert lines <= MAX_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in headings(path), target


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_docs_page_is_linked_from_the_readme():
    assert {page.name for page in PAGES} - {"README.md"} == set(re.findall(r"\(docs/([\w-]+\.md)", README))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_exist(page):
    known = {"--help"} | FOREIGN_FLAGS
    for script in SCRIPTS:
        known |= flags(script)
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read_text())) <= known


@pytest.mark.parametrize(
    ("script", "page"),
    [
        ("config_vit_cifar10.py", "settings.md"),
        ("training/cli.py", "settings.md"),
        ("evaluate_vit.py", "evaluation.md"),
        ("export_vit.py", "weights.md"),
        ("run_experiments.py", "experiments.md"),
        ("benchmarks/throughput.py", "speed.md"),
    ],
)
def test_the_reference_names_every_flag(script, page):
    text = (ROOT / "docs" / page).read_text()
    for names in fields(ROOT / script).values():
        assert any(f"`{name}`" in text or f"{name} " in text for name in names), names


def test_the_reference_has_the_defaults():
    text, config = (ROOT / "docs" / "settings.md").read_text(), ViTConfig()
    rows = [(name.replace("-", "_"), word) for name, word in re.findall(r"^\| `--([\w-]+)` \| `?([^|` ]+)", text, re.M)]
    stated = {name: {"off": False, "none": "", "official": ""}.get(word, word) for name, word in rows}
    defaults = {name: getattr(config, name) for name in stated if hasattr(config, name) and name != "preset"}
    assert len(defaults) > 35
    for name, default in defaults.items():
        assert type(default)(stated[name]) == default, name


@pytest.mark.parametrize(
    ("preset", "words"),
    [("baseline", "({:,} parameters)"), ("cpu-15min", "of {:.1f} million parameters"), ("cpu-1h", "of {:.1f} million")],
)
def test_the_readme_has_the_numbers_of_parameters(preset, words):
    number = sum(p.numel() for p in VisionTransformer(**ViTConfig.from_preset(preset).model_args).parameters())
    assert words.format(number if "," in words else number / 1e6) in README


def rows_of_table(page: str, first_column: str) -> list[list[str]]:
    """The cells of the table on a page of docs/ whose first column has that heading, its heading left out."""
    table = (ROOT / "docs" / page).read_text().split(f"\n| {first_column} |")[1].split("\n\n")[0]
    return [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_the_page_of_the_speed_has_the_rates_that_were_measured():
    measured = json.loads((ROOT / "results" / "throughput.json").read_text())["images_per_second"]
    rates = {name: f"{row['images_per_second']:.1f}" for name, row in measured.items()}
    called = {"this repository": "ours", "the step's matrix products alone": "products alone"}
    for title, *cells in rows_of_table("speed.md", "images/s"):
        name = title.partition(" (")[0]
        columns = [f"{called.get(name, name)} {kind}" for kind in ("fp32", "bf16", "fp32 compiled", "bf16 compiled")]
        assert cells == [rates.get(column, "") for column in columns]
    measured = json.loads((ROOT / "results" / "augment_benchmark.json").read_text())["pipelines"]
    rows = rows_of_table("speed.md", "pipeline")
    assert [rate for _, rate in rows] == [f"{rate:,.0f}" for rate in measured.values()]
    assert all(name.replace(",", "") in title.replace(",", "") for (title, _), name in zip(rows, measured, strict=True))


def test_the_page_of_the_newer_recipe_has_the_sizes_of_its_presets():
    rows = {title: cells for title, *cells in rows_of_table("newer-recipe.md", "setting")}
    for i, preset in enumerate(["baseline", "cpu-15min", "cpu-1h", "overnight"]):
        config = ViTConfig.from_preset(preset)
        number = sum(p.numel() for p in VisionTransformer(**config.model_args).parameters())
        assert rows["width, blocks, heads"][i] == f"{config.embed_dim}, {config.depth}, {config.num_heads}"
        assert rows["parameters"][i] == f"{number:,}"
        assert (rows["batch"][i], rows["epochs"][i]) == (str(config.batch_size), str(config.num_epochs))
        small = f"the first {config.small_epochs}" if config.small_epochs else "none"
        assert rows["of them on images of 16×16"][i] == small


def fields(script: Path) -> dict[str, set[str]]:
    """The fields of a script's settings, with their flags: --name, and --no-name for one that can be a bool."""
    found = {}
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ClassDef) and (node.name.endswith("Config") or node.name == "Command"):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    kind, name = ast.unparse(line.annotation), line.target.id
                    if not kind.startswith(("ClassVar", "tyro.conf.OmitArgPrefixes", "tyro.conf.Positional")):
                        flag = name.replace("_", "-")
                        found[name] = {f"--{flag}"} | ({f"--no-{flag}"} if re.search(r"\bbool\b", kind) else set())
    return found


def flags(script: Path) -> set[str]:
    return {flag for names in fields(script).values() for flag in names}


def test_the_page_of_the_code_names_what_is_there():
    table = (ROOT / "docs" / "code.md").read_text().split("## Where things are")[1].split("## ")[0]
    named = set(re.findall(r"`([^`]+?)/?`", table))
    missing = top_level() - named
    assert not missing, f"name them in docs/code.md: {sorted(missing)}"
    rooms = ("training", "training/data", "evaluation", "benchmarks")
    modules = {path.name for room in rooms for path in (ROOT / room).glob("*.py")} - {"__init__.py"}
    assert modules <= named, f"name them in docs/code.md: {sorted(modules - named)}"
    gone = {name for name in named if not (ROOT / name).exists()} - modules - {"LOG.md"}
    assert not gone, f"these are gone, docs/code.md has them still: {sorted(gone)}"


def top_level() -> set[str]:
    """Files and folders at the top that git knows, without those whose names begin with a dot."""
    git = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if git.returncode:
        pytest.skip("this is no clone")
    return {name for line in git.stdout.splitlines() if (name := line.split("/")[0])[0] != "."}
