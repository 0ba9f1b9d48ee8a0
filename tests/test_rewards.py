"""Rewards and their combination. Golden source: hand computation (set F1 also from scikit-learn)."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from qoqmed.errors import DataError, PluginError
from qoqmed.rewards.accuracy import Accuracy
from qoqmed.rewards.combine import combine, judge
from qoqmed.rewards.format import Format
from qoqmed.rewards.iou import IoU
from qoqmed.types import Answer, Box, Case, Flaw, Mask, Medium, Reading, Rollout, Status, Target, Verdict

SPACE = ("a", "b", "c", "hand fracture and edema")
CASE = Case("c1", "ct", "set", "diagnosis", "", (Medium("image"),), SPACE, Target(labels=("a", "b")))
LEFT = Box(0, 0, 0.5, 1, "a")
ROLLOUT = Rollout("c1", 0, (1,), "text")


def one(reward, case, reading):
    (verdict,) = reward.score([case], [ROLLOUT], [reading])
    return verdict


def answer(*labels):
    return Reading(answer=Answer(labels=labels))


def with_target(**fields):
    return replace(CASE, target=Target(**fields))


@pytest.mark.parametrize(
    ("labels", "value"),
    [(("a", "b"), 1.0), (("b", "a"), 1.0), (("a",), 2 / 3), (("a", "b", "c"), 0.8), (("c",), 0.0), ((), 0.0)],
)
def test_accuracy_by_hand(labels, value):
    assert one(Accuracy(), CASE, answer(*labels)).value == pytest.approx(value)


label_sets = st.sets(st.sampled_from(SPACE), min_size=1)


@settings(max_examples=30, deadline=None)
@given(label_sets, label_sets)
def test_accuracy_equals_scikit_learn(true, predicted):
    rows = MultiLabelBinarizer(classes=SPACE).fit_transform([true, predicted])
    value = one(Accuracy(), with_target(labels=tuple(true)), answer(*predicted)).value
    assert value == pytest.approx(f1_score(rows[:1], rows[1:], average="samples", zero_division=0))


def test_accuracy_at_the_edges():
    unread = one(Accuracy(), CASE, Reading())
    assert (unread.value, unread.reason) == (0.0, "no answer was found")
    assert one(Accuracy(), with_target(labels=()), answer()).value == 1.0
    assert one(Accuracy(), with_target(labels=()), answer("a")).value == 0.0
    assert one(Accuracy(), with_target(), answer("a")).status is Status.NOT_APPLICABLE


def test_iou_against_the_whole_mask_by_hand():
    array = np.zeros((4, 4), bool)
    array[:, 0] = array[:, 3] = True  # two parts, 8 pixels
    case = with_target(mask=Mask(array=array))
    assert one(IoU(), case, Reading(boxes=(LEFT,))).value == pytest.approx(4 / 12)
    assert one(IoU(), case, Reading(boxes=(LEFT, Box(0, 0, 1, 1)))).value == pytest.approx(8 / 16)
    assert one(IoU(), case, Reading(boxes=(replace(LEFT, medium=1),))).value == 0.0
    assert one(IoU(), case, Reading()).value == 0.0


def test_iou_against_boxes_takes_the_best_pair():
    case = with_target(boxes=(Box(0, 0, 0.25, 1), Box(0.5, 0, 1, 1)))
    assert one(IoU(), case, Reading(boxes=(LEFT,))).value == pytest.approx(0.5)
    assert one(IoU(), case, Reading(boxes=(LEFT, Box(0.5, 0, 1, 1)))).value == 1.0
    assert one(IoU(), case, Reading()).value == 0.0


def test_iou_not_applicable():
    for target in ({"mask": Mask(array=np.zeros((2, 2), bool)), "boxes": (LEFT,)}, {}, {"boxes": ()}):
        assert one(IoU(), with_target(**target), Reading(boxes=(LEFT,))).status is Status.NOT_APPLICABLE


def test_iou_wants_loaded_masks():
    with pytest.raises(DataError, match="c1: the mask was not loaded"):
        one(IoU(), with_target(mask=Mask(path="m.png")), Reading())
    with pytest.raises(DataError, match="not flat"):
        one(IoU(), with_target(mask=Mask(array=np.ones((2, 2, 3), bool))), Reading())


def boxed(labels, *names):
    return Reading(answer=Answer(labels=labels), boxes=tuple(replace(LEFT, label=name) for name in names))


@pytest.mark.parametrize(
    ("reading", "value"),
    [
        (boxed(("a",), "A"), 1.0),
        (boxed(("a", "b"), "a", "b"), 1.0),
        (boxed(("a", "b"), "a, b"), 1.0),
        (boxed(("a", "b"), "a"), 0.0),
        (boxed(("a",), ""), 0.0),
        (boxed(("a",), "lesion"), 0.0),
        (boxed(("a",), "no a"), 0.0),
        (boxed(("hand fracture and edema",), "Hand fracture and edema"), 1.0),
        (boxed((), "a"), 0.0),
        (boxed(None, "a"), 0.0),
    ],
)
def test_format_of_a_diagnosis(reading, value):
    assert one(Format(), CASE, reading).value == value


def test_format_of_a_localisation():
    case = replace(with_target(boxes=(LEFT,)), label_space=())
    assert one(Format(), case, Reading(boxes=(LEFT,))).value == 1.0
    assert one(Format(), case, Reading()).value == 0.0
    unclosed = one(Format(), case, Reading(boxes=(LEFT,), flaws=(Flaw("think_unclosed"),)))
    assert (unclosed.value, unclosed.reason) == (0.0, "malformed: think_unclosed")


def test_format_needs_a_picture():
    ecg = replace(CASE, media=(Medium("ecg"),))
    assert one(Format(), ecg, answer("a")).status is Status.NOT_APPLICABLE


NONE = Verdict.not_applicable("")
WEIGHTS = {"accuracy": 0.6, "iou": 0.2, "format": 0.2}


@pytest.mark.parametrize(
    ("accuracy", "iou", "form", "value"),
    [
        (Verdict(1.0), Verdict(0.5), Verdict(0.0), 0.7),
        (Verdict(1.0), NONE, Verdict(0.0), 0.6 / 0.8),  # an image without a mask
        (Verdict(0.5), NONE, NONE, 0.5),  # an ECG
        (NONE, Verdict(0.25), Verdict(1.0), 0.625),  # localisation
        (NONE, NONE, NONE, None),
        (Verdict(1.0), Verdict.invalid("x"), Verdict(1.0), None),
    ],
)
def test_combine_by_hand(accuracy, iou, form, value):
    got = combine({"accuracy": accuracy, "iou": iou, "format": form}, WEIGHTS)
    assert got == (None if value is None else pytest.approx(value))


def test_a_weight_of_zero_is_only_logged():
    assert combine({"x": Verdict.invalid("broken"), "y": Verdict(0.5)}, {"x": 0.0, "y": 2.0}) == 0.5
    assert combine({"x": Verdict(1.0)}, {"x": 0.0}) is None


class Fake:
    low, high = -1.0, 1.0

    def __init__(self, *verdicts):
        self.verdicts = verdicts

    def score(self, cases, rollouts, readings):
        if isinstance(self.verdicts[0], Exception):
            raise self.verdicts[0]
        return self.verdicts


def judged(*verdicts, n=1):
    return judge({"mine": Fake(*verdicts)}, [CASE] * n, [ROLLOUT] * n, [Reading()] * n)


def test_judge_gives_one_mapping_a_rollout():
    rewards = {"accuracy": Accuracy(), "mine": Fake(Verdict(np.float32(-1)), NONE)}
    first, second = judge(rewards, [CASE] * 2, [ROLLOUT] * 2, [answer("a", "b"), Reading()])
    assert (first["accuracy"].value, first["mine"].value) == (1.0, -1.0)
    assert (second["accuracy"].value, second["mine"].status) == (0.0, Status.NOT_APPLICABLE)
    assert type(first["mine"].value) is float


def test_a_reward_that_raises_is_invalid_with_its_name():
    verdicts = judged(KeyError("lung"), n=2)
    assert [verdict["mine"].status for verdict in verdicts] == [Status.INVALID] * 2
    assert verdicts[0]["mine"].reason == "reward mine: KeyError: 'lung'"


def test_a_users_mistake_passes_through():
    with pytest.raises(DataError, match="not loaded"):
        judge({"iou": IoU()}, [with_target(mask=Mask(path="m.png"))], [ROLLOUT], [Reading()])


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        ((Verdict(0.0), Verdict(0.0)), "got:      2 verdicts"),
        ((Verdict(None),), "no number"),
        ((Verdict(1.5),), "left its range"),
        ((0.5,), "something else than a Verdict"),
        ((Verdict(0.5, Status.INVALID),), "with status invalid"),
    ],
)
def test_a_broken_reward_is_named(verdicts, words):
    with pytest.raises(PluginError, match=words) as caught:
        judged(*verdicts)
    assert "qoqmed.rewards mine (test_rewards:Fake)" in str(caught.value)
