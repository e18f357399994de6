"""training_history.json is strict JSON of equally long lists, and what is none is not read as one."""

import json
import math

import pytest

from training import history


def two_epochs(split: str = "test") -> history.History:
    records = history.new_history(split)
    for epoch in (1, 2):
        history.append(records, dict.fromkeys(records, epoch / 3) | {"epoch": epoch})
    return records


@pytest.mark.parametrize("split", ["test", "val"])
def test_what_is_written_is_strict_json_of_equal_lists_and_reads_back_the_same(tmp_path, split):
    path, records = tmp_path / "training_history.json", two_epochs(split)
    history.write_json(path, records)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content == records == history.read(path)
    assert {len(values) for values in content.values()} == {2}
    assert {"epoch", "train_loss", "train_acc", f"{split}_loss", f"{split}_acc", "lr", "epoch_time"} < content.keys()
    assert history.monitored_split(content) == split
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_refused_and_the_file_stays_as_it_was(tmp_path, value):
    path = tmp_path / "training_history.json"
    history.write_json(path, two_epochs())
    with pytest.raises(ValueError, match="JSON"):
        history.write_json(path, {"epoch": [1], "train_loss": [value]})
    assert history.read(path) == two_epochs()


@pytest.mark.parametrize("change", [{"val_acc": 1.0}, {"epoch": None}])
def test_an_epoch_with_a_figure_too_many_or_too_few_is_refused_and_the_lists_stay_equal(change):
    records = two_epochs()
    figures = dict.fromkeys(records, 1.0) | change
    figures = {name: value for name, value in figures.items() if value is not None}
    with pytest.raises(KeyError):
        history.append(records, figures)
    assert records == two_epochs()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"null",
        b"[1, 2]",
        b'{"epoch": [1], "train_loss": [0.5',
        b'{"epoch": [], "train_loss": []}',
        b'{"train_loss": [0.5]}',
        b'{"epoch": [1, 2], "train_loss": [0.5]}',
        b'{"epoch": [1], "train_loss": 0.5}',
        b'{"epoch": "1", "train_loss": "2"}',
        b"\xff\xfe\x00 no text",
        bytes(100),
    ],
)
def test_read_returns_none_for_a_file_that_is_no_history(tmp_path, content):
    path = tmp_path / "training_history.json"
    path.write_bytes(content)
    assert history.read(path) is None


def test_read_returns_none_for_a_missing_file_or_a_folder(tmp_path):
    assert history.read(tmp_path / "training_history.json") is None
    assert history.read(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"train_loss": [0.5]}, {"train_loss": 0.5}, {"train_loss": "12"}, {"train_loss": [1.0, None]},
        {"train_loss": [1.0, True]}, {"train_loss": [1.0, "1"]}, {"train_loss": [1.0, math.nan]},
        history.new_history("test"),
    ],
)  # fmt: skip
def test_a_history_with_one_damaged_list_is_none(tmp_path, change):
    path = tmp_path / "training_history.json"
    path.write_text(json.dumps(two_epochs() | change))
    assert history.read(path) is None
