"""Imported segmentations (`mask_source`): a case says who drew its mask, and every metric tells such masks apart."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qoqmed.actor import complete
from qoqmed.config.schema import EvaluationConfig
from qoqmed.datasets.rows import RowReader
from qoqmed.errors import DataError
from qoqmed.evaluating import summarise
from qoqmed.media.cache import MediaCache
from qoqmed.metrics.clinical import figures
from qoqmed.metrics.predictions import prediction_of, read_predictions, write_predictions
from qoqmed.rewards.combine import judge
from qoqmed.rewards.hungarian_boxes import HungarianBoxes
from qoqmed.rewards.iou import IoU
from qoqmed.scoring import chosen, score_file
from qoqmed.statistics import facts, metrics
from qoqmed.types import Answer, Box, Case, Group, Mask, Medium, Prediction, Reading, Rollout, Target
from qoqmed.updating import Updated

INSIDE = np.zeros((8, 8), dtype=bool)
INSIDE[:, :4] = True
LEFT = Box(0.0, 0.0, 0.5, 1.0)
ATTRIBUTES = {"mask/source": "BiomedParse"}
CASE = Case("a", "ct", "s", "diagnosis", "", (Medium("image"),), ("x",), Target(("x",), mask=Mask(array=INSIDE)))
PSEUDO = replace(CASE, id="b", attributes=ATTRIBUTES)
READING = Reading("", (LEFT,), Answer(("x",), "x"))


def score(reward: Any, case: Case, reading: Reading = READING) -> Any:
    return judge({"r": reward}, [case], [Rollout(case.id, 0, (), "")], [reading])[0]["r"]


def group(case: Case, value_box: Box) -> Group:
    rewards = {"iou": IoU(), "boxes": HungarianBoxes()}
    rollout, reading = Rollout(case.id, 0, (1,), ""), replace(READING, boxes=(value_box,))
    verdicts = judge(rewards, [case], [rollout], [reading])
    return Group(case, None, (rollout,), (reading,), verdicts, (verdicts[0]["iou"].value,))  # type: ignore[arg-type]


def test_a_row_says_who_drew_its_mask() -> None:
    reader = RowReader("set", defaults={"mask_source": "BiomedParse"})
    row = {"id": "a", "domain": "ct", "question": "?", "media": {"image": "a.png"}}
    assert reader.case(row | {"mask": "m.png"}).mask_source == "BiomedParse"
    assert reader.case(row).attributes == {}  # no mask, nothing drawn
    assert reader.case(row | {"mask": "m.png"}).box_source == "BiomedParse"  # still to be taken from it
    with pytest.raises(DataError, match="no text"):
        reader.case(row | {"attributes": {"mask/source": 3}})


def test_boxes_taken_from_such_a_mask_are_marked(tmp_path: Any) -> None:
    made = complete(PSEUDO, tmp_path, MediaCache(0))
    assert made.target.boxes == (replace(LEFT, label="x"),)
    assert made.attributes == {"mask/source": "BiomedParse", "boxes/source": "BiomedParse"}
    own = replace(PSEUDO, target=replace(PSEUDO.target, boxes=(LEFT,)))
    assert complete(own, tmp_path, MediaCache(0)).attributes == ATTRIBUTES  # a person's boxes beside it
    assert complete(own, tmp_path, MediaCache(0)).box_source == ""
    assert complete(CASE, tmp_path, MediaCache(0)).attributes == {}


@pytest.mark.parametrize("reward", [IoU(), IoU(parts="best"), HungarianBoxes()])
def test_verdicts_and_their_reasons_name_the_source(reward: Any) -> None:
    verdict, plain = score(reward, PSEUDO), score(reward, CASE)
    assert verdict.source == "BiomedParse" and verdict.reason.endswith(", drawn by BiomedParse")
    assert plain.source == "" and "drawn" not in plain.reason
    assert verdict.value == plain.value == pytest.approx(1.0)
    assert score(reward, PSEUDO, Reading()).source == "BiomedParse"


def test_only_what_is_compared_with_it_is_marked(tmp_path: Any) -> None:
    own = replace(PSEUDO, target=replace(PSEUDO.target, boxes=(LEFT,)))
    assert score(IoU(), own).source == "BiomedParse"  # the mask goes before the boxes
    assert score(HungarianBoxes(), own).source == ""
    derived = replace(complete(PSEUDO, tmp_path, MediaCache(0)), id="c")
    boxes_only = replace(derived, target=replace(derived.target, mask=None))
    assert score(IoU(), boxes_only).source == score(HungarianBoxes(), boxes_only).source == "BiomedParse"


def test_metrics_of_a_step_tell_them_apart() -> None:
    """By hand: 1 on the person's mask; half of it, 0.5, on the imported one."""
    half = replace(LEFT, y2=0.5)
    numbers = metrics(facts([group(CASE, LEFT), group(PSEUDO, half)]), Updated({}, 0.0, 1, 0), None, 0.0, {})
    assert numbers["rewards/iou/mean"] == pytest.approx(0.75)
    assert numbers["rewards/iou/pseudo_masks"] == pytest.approx(0.5)
    assert numbers["rewards/iou/pseudo_masks_share"] == 0.5
    assert numbers["rewards/boxes/pseudo_masks"] < numbers["rewards/boxes/mean"]
    plain = metrics(facts([group(CASE, LEFT)]), Updated({}, 0.0, 1, 0), None, 0.0, {})
    assert not any("pseudo" in name for name in plain)


def test_figures_of_an_evaluation_tell_them_apart() -> None:
    groups = [group(CASE, LEFT), group(PSEUDO, replace(LEFT, y2=0.5))]
    predictions = [prediction_of(one.case, one.readings[0]) for one in groups]
    made = summarise(EvaluationConfig(), groups, predictions)
    assert made["overall"]["rewards/iou"] == pytest.approx(0.75)
    assert made["domains"]["ct"]["rewards/iou/pseudo_masks"] == pytest.approx(0.5)
    assert made["overall"]["pseudo_masks"] == made["datasets"]["ct/s"]["pseudo_masks"] == 1
    assert made["overall"]["support"] == 2


def test_the_predictions_file_keeps_the_source(tmp_path: Any) -> None:
    path = tmp_path / "predictions.jsonl"
    written = [prediction_of(CASE, READING), prediction_of(PSEUDO, READING)]
    write_predictions(path, written)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert "mask_source" not in first and second["mask_source"] == "BiomedParse"
    assert read_predictions(path) == written
    path.write_text(json.dumps(second | {"mask_source": 1}))
    with pytest.raises(DataError, match="mask_source"):
        read_predictions(path)


def test_pseudo_masks_are_summed_over_data_sets_and_domains() -> None:
    def one(name: str, domain: str, dataset: str, source: str) -> Prediction:
        return Prediction(name, domain, dataset, ("x",), ("x",), ("x",), source)

    ct = [one("1", "ct", "s", "M"), one("2", "ct", "t", "M"), one("3", "ct", "t", "")]
    made = figures([*ct, one("4", "mri", "u", "M")])
    assert made["overall"]["pseudo_masks"] == 3 and made["domains"]["ct"]["pseudo_masks"] == 2
    assert made["datasets"]["ct/t"]["pseudo_masks"] == 1


def test_saved_responses_have_sizes_and_sources(tmp_path: Any) -> None:
    Image.fromarray(INSIDE.astype(np.uint8) * 255).resize((20, 10), 0).save(tmp_path / "m.png")
    block = '<think>x</think>\n```json\n[{"bbox_2d": [0, 0, 10, 10], "label": "x"}]\n```\n\\boxed{x}'
    row = {"id": "a", "response": block, "target": ["x"], "label_space": ["x"], "width": 20, "height": 10}
    rows = [row | {"mask": "m.png"}, row | {"mask": "m.png", "mask_source": "BiomedParse", "id": "b"}]
    rows.append(row | {"id": "c", "attributes": {"media/sizes_px": [[200, 100]]}})
    file = tmp_path / "responses.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    plain, pseudo, told = score_file(file, chosen({"iou": 1.0}, None))
    assert plain.case.attributes == {"media/sizes_px": [[20, 10]]}
    assert told.case.attributes == {"media/sizes_px": [[200, 100]]}
    assert pseudo.verdicts["iou"].reason.endswith("drawn by BiomedParse")
    file.write_text(json.dumps(row | {"attributes": {"views/transform": 7}}))
    with pytest.raises(DataError, match="views/transform") as caught:
        score_file(file, chosen({"iou": 1.0}, None))
    assert (caught.value.problems[0].where or "").endswith("responses.jsonl:1")
