"""Loggers: nothing is lost, nothing is there twice after a resumption, NaN is kept."""

import csv
import json
import math

import pytest
import torch

from qoqmed import registry
from qoqmed.checkpoint.files import append_row, read_rows, rewind_rows
from qoqmed.config.schema import Node
from qoqmed.loggers.csv import CSVLogger
from qoqmed.loggers.jsonl import JSONLLogger
from qoqmed.loggers.tensorboard import TensorBoardLogger


def table(logger):
    with logger.path.open(newline="") as file:
        return list(csv.DictReader(file))


def values(logger, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


@pytest.mark.parametrize("name", ["csv", "jsonl", "tensorboard"])
def test_loggers_are_lightning_loggers_found_by_name(tmp_path, name):
    from lightning.fabric.loggers import Logger  # qoqmed.loggers has mended this import where torchvision breaks it

    logger = registry.make("loggers", Node(name), root_dir=tmp_path)
    assert isinstance(logger, Logger) and logger.name == name and logger.root_dir == str(tmp_path)
    logger.log_hyperparams({"seed": 1})
    logger.log_metrics({"reward": 0.5}, step=1)
    logger.save()
    logger.finalize("success")


def test_csv_is_wide_and_grows(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"reward": 0.1 + 0.2, "kl": torch.tensor(0.5)}, step=1)
    assert table(logger) == [{"step": "1", "reward": "0.30000000000000004", "kl": "0.5"}]  # there before the next call
    logger.log_metrics({"kl": 1.0, "domains/mri/n": 3}, step=2)
    assert table(logger)[0] == {"step": "1", "reward": "0.30000000000000004", "kl": "0.5", "domains/mri/n": ""}
    assert table(logger)[1] == {"step": "2", "reward": "", "kl": "1.0", "domains/mri/n": "3"}
    CSVLogger(tmp_path).log_metrics({"reward": 1.0}, step=3)  # another process goes on
    assert [row["step"] for row in table(logger)] == ["1", "2", "3"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_csv_names_and_values_that_need_quotes(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics({'rewards/"a, b"/mean': 1.0}, step=1)
    logger.log_metrics({"x": 2.0}, step=2)
    assert table(logger)[0]['rewards/"a, b"/mean'] == "1.0"


@pytest.mark.parametrize("kind", [CSVLogger, JSONLLogger])
def test_nan_and_infinity_are_kept(tmp_path, kind):
    logger = kind(tmp_path)
    logger.log_metrics({"a": float("nan"), "b": float("inf"), "c": -float("inf")}, step=1)
    row = table(logger)[0] if kind is CSVLogger else next(read_rows(logger.path))
    assert math.isnan(float(row["a"])) and float(row["b"]) == math.inf and float(row["c"]) == -math.inf


@pytest.mark.parametrize("kind", [CSVLogger, JSONLLogger])
def test_a_resumed_run_rewinds(tmp_path, kind):
    logger = kind(tmp_path)
    logger.rewind(0)  # nothing there yet
    for step in range(1, 6):
        logger.log_metrics({"reward": float(step)}, step=step)
    with logger.path.open("a") as file:
        file.write("6,0." if kind is CSVLogger else '{"step": 6, "rew')  # killed while writing
    again = kind(tmp_path)
    again.rewind(3)
    again.log_metrics({"reward": 40.0, "new": 1.0}, step=4)
    rows = table(again) if kind is CSVLogger else list(read_rows(again.path))
    assert [(int(row["step"]), float(row["reward"])) for row in rows] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_jsonl_rows(tmp_path):
    logger = JSONLLogger(tmp_path, file="scalars.jsonl")
    logger.log_metrics({"reward": torch.tensor(0.5), "n": 3}, step=1)
    assert json.loads((tmp_path / "scalars.jsonl").read_text()) == {"step": 1, "reward": 0.5, "n": 3}


def test_tensorboard_hides_what_a_resumed_run_writes_again(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    for step in (1, 2, 3):
        logger.log_metrics({"reward": step / 4, "odd": float("nan")}, step=step)
    logger.finalize("interrupted")
    assert values(logger, "reward") == {1: 0.25, 2: 0.5, 3: 0.75} and math.isnan(values(logger, "odd")[1])
    again = TensorBoardLogger(tmp_path)
    again.rewind(1)
    again.log_metrics({"reward": 5.0}, step=2)
    again.finalize("success")
    assert values(again, "reward") == {1: 0.25, 2: 5.0}


def test_json_lines_survive_a_torn_last_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert list(read_rows(path)) == []
    append_row(path, {"step": 1, "text": "é\u2028"})
    with path.open("a") as file:
        file.write('{"step": 2, "te')
    assert list(read_rows(path)) == [{"step": 1, "text": "é\u2028"}]
    append_row(path, {"step": 3})
    assert [row["step"] for row in read_rows(path)] == [1, 3]
    rewind_rows(path, 1)
    assert [row["step"] for row in read_rows(path)] == [1]
