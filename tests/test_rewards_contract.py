"""What every built-in reward promises: its range, no dependence on the batch, the same again, in other processes too.

And of those with masks and boxes, that real segmentations score what their own boxes earn (oracles: scipy, the data's
boxes, which its makers drew around the parts of its masks).
"""

import pickle
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label as connected

from qoqmed import registry
from qoqmed.boxes import RelativeFrame, best_mask_iou
from qoqmed.config.schema import Node
from qoqmed.datasets.jsonl import JsonLines
from qoqmed.media import masks
from qoqmed.rewards.hungarian_boxes import HungarianBoxes
from qoqmed.rewards.iou import IoU
from qoqmed.rewards.parts import parts_of
from qoqmed.tasks.diagnosis import Diagnosis
from qoqmed.types import SPATIAL, Box, Case, Mask, Medium, Reading, Rollout, Status, Target

ARGUMENTS = {"soft_overlong": {"max_tokens": 4}, "length_window": {"shortest": 2, "longest": 3, "ramp": 2}}
NAMES = [info.name for info in registry.available("rewards") if info.distribution == "qoqmed"]
VARIANTS = [
    *((name, ARGUMENTS.get(name, {})) for name in NAMES),
    ("iou", {"parts": "best"}),
    ("hungarian_boxes", {"size": "image", "false_positive": 0.1, "false_negative": 0.1, "max_extra": 2}),
    ("rouge", {"kind": "rouge2", "part": "response"}),
]
FLIP = {"views/transform": [{"from": "a", "to": "b", "matrix": [[-1, 0, 1], [0, 1, 0]]}]}
VIEWS = (Medium("image", view="a"), Medium("image", view="b"))
MASK = Mask(array=np.eye(6, dtype=bool))
CASES = (
    Case("1", "ct", "s", "diagnosis", "", VIEWS, ("edema", "mass"), Target(("mass",), "a mass"), attributes=FLIP),
    Case("2", "ct", "s", "grounding", "", VIEWS[:1], (), Target(boxes=(Box(0, 0, 0.5, 0.5, "mass"),))),
    Case("3", "ct", "s", "grounding", "", VIEWS[:1], (), Target(mask=MASK)),
    Case("4", "ecg", "s", "diagnosis", "", (Medium("ecg"),), ("edema", "mass"), Target(labels=())),
    Case("5", "ct", "s", "vqa", "", VIEWS[:1], (), Target(value=3.0)),
)
PIECES = (
    "<think>", "</think>", "a mass", "<answer>", "</answer>", "\\boxed{mass}", "\\boxed{edema, mass}", "\\boxed{",
    '```json\n[{"bbox_2d": [0, 0, 500, 500], "label": "mass"}]\n```',
    '```json\n[{"bbox_2d": [100, 0, 500, 990], "label": "edema", "image": 2}, {"bbox_2d": [5, 5, 9, 9]}]\n```',
    "Answer: masses", "3",
)  # fmt: skip


def make(name, arguments):
    return registry.make("rewards", Node(name, arguments))


def judged(reward, rows):
    cases, texts = zip(*rows, strict=True) if rows else ((), ())
    rollouts = [Rollout(case.id, 0, (1,) * (len(text) % 7), text) for case, text in rows]
    read = [Diagnosis().read(text, case, RelativeFrame()) for case, text in rows]
    return list(reward.score(cases, rollouts, read))


texts = st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join)


@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
@settings(max_examples=15)
@given(rows=st.lists(st.tuples(st.sampled_from(CASES), texts), max_size=6))
def test_every_reward_keeps_its_contract(name, arguments, rows):
    reward = make(name, arguments)
    verdicts = judged(reward, rows)
    assert len(verdicts) == len(rows)
    for verdict in verdicts:
        assert verdict.status is not Status.INVALID and verdict.reason
        assert (verdict.value is None) == (verdict.status is Status.NOT_APPLICABLE)
        assert verdict.value is None or reward.low <= verdict.value <= reward.high
    assert verdicts == judged(reward, rows)
    assert verdicts == [verdict for row in rows for verdict in judged(reward, [row])]
    assert verdicts == judged(pickle.loads(pickle.dumps(reward)), rows)


@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
def test_what_is_said_never_makes_a_reward_inapplicable(name, arguments):
    """Only the case does; lengths are another matter, which a rollout without tokens alone leaves out."""
    reward = make(name, arguments)
    for case in CASES:
        rows = [(case, " ".join(some)) for some in permutations(PIECES[:6], 2)] + [(case, "x")]
        rollouts = [Rollout(case.id, 0, (1,), text) for _, text in rows]
        read = [Diagnosis().read(text, case, RelativeFrame()) for case, text in rows]
        assert len({verdict.status for verdict in reward.score([case] * len(rows), rollouts, read)}) == 1


@pytest.mark.real
def test_real_masks_earn_what_their_own_boxes_do(real_root):
    mapping = {"labels": "label", "media": "files", "boxes_xywh": "bbox", "box_labels": "bbox_names"}
    data = JsonLines("manifest.jsonl", root=str(real_root), mapping=mapping)
    seen = 0
    for case in (data[i] for i in range(len(data))):
        target = case.target
        if target.mask is None or target.mask.path is None or not target.mask.path.endswith(".png") or not target.boxes:
            continue
        array = masks.load(target.mask, real_root)
        case = replace(case, target=replace(target, mask=Mask(array=array, medium=target.mask.medium)))
        numbers, count = connected(array, structure=np.ones((3, 3)))
        assert parts_of(array).numbers.tolist() == numbers.tolist()
        rows = [case], [Rollout(case.id, 0, (1,), "")], [Reading(boxes=target.boxes)]
        (matched,), (best,), (whole,) = (reward.score(*rows) for reward in (HungarianBoxes(), IoU(parts="best"), IoU()))
        each = [best_mask_iou(target.boxes, numbers == number) for number in range(1, min(count, 20) + 1)]
        assert matched.value == pytest.approx(1.0)
        assert best.value >= max(each) - 1e-12 and (count > 20 or best.value == pytest.approx(max(each)))
        assert 0.0 < whole.value <= 1.0
        assert all(case.media[box.medium].modality in SPATIAL for box in target.boxes)
        seen += 1
    assert seen > 100
