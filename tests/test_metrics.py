"""Clinical metrics and the predictions file. Golden sources: a case worked out by hand, and scikit-learn."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle
from sklearn.preprocessing import MultiLabelBinarizer

from qoqmed.errors import DataError
from qoqmed.metrics.clinical import Clinical
from qoqmed.metrics.predictions import prediction_of, read_predictions, write_predictions
from qoqmed.tasks.diagnosis import Diagnosis
from qoqmed.types import Case, Prediction, Target

PROMISED = {"accuracy", "f1", "precision", "recall", "sensitivity", "specificity"}


def row(index, target, prediction, space="abc", domain="ct", dataset="set"):
    return Prediction(str(index), domain, dataset, tuple(space), tuple(target), tuple(prediction))


def computed(rows):
    metric = Clinical()
    metric.update(rows)
    return metric.compute()


def test_by_hand():
    # a: TP 1, FN 1, FP 0, TN 1. b: TP 1, FP 1, FN 0, TN 1. c: TN 3.
    table = computed([row(1, "a", "a"), row(2, "a", "b"), row(3, "b", "b")])
    got = table["datasets"]["ct/set"]
    assert set(got) == PROMISED | {"f1_present", "exact_match", "micro_f1", "support", "unknown", "pseudo_masks"}
    assert got["accuracy"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert got["precision"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert got["recall"] == got["sensitivity"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert got["f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)  # c never occurs: F1 0, as the paper's formula has it
    assert got["f1_present"] == pytest.approx(2 / 3)
    assert got["specificity"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert got["exact_match"] == pytest.approx(2 / 3)
    assert got["micro_f1"] == pytest.approx(4 / 6)
    assert (got["support"], got["unknown"]) == (3, 0)
    assert table["overall"] == table["domains"]["ct"] == got


def test_sets_and_domains_are_averaged_unweighted():
    rows = [row(1, "a", "a", "a", dataset="one")] + [row(i, "a", "", "a", dataset="two") for i in range(9)]
    rows += [row(1, "a", "a", "a", domain="ecg", dataset="one")]
    table = computed(rows)
    assert list(table["datasets"]) == ["ct/one", "ct/two", "ecg/one"]
    assert (table["domains"]["ct"]["f1"], table["domains"]["ecg"]["f1"], table["overall"]["f1"]) == (0.5, 1.0, 0.75)
    assert table["overall"]["support"] == 11


def test_unknown_labels_are_wrong_and_counted():
    got = computed([row(1, "a", ["a", "unicorn", "goblin"])])["overall"]
    assert (got["exact_match"], got["unknown"], got["micro_f1"]) == (0.0, 2, 1.0)


def test_zero_over_zero_is_zero():
    got = computed([row(1, "", "", "ab")])["overall"]
    assert (got["f1"], got["f1_present"], got["micro_f1"], got["precision"], got["recall"]) == (0, 0, 0, 0, 0)
    assert (got["accuracy"], got["specificity"], got["exact_match"]) == (1, 1, 1)


def test_a_label_counts_in_the_cases_that_offer_it():
    got = computed([row(1, "a", "a", "ab"), row(2, "c", "c", "bc")])["overall"]
    assert (got["accuracy"], got["recall"]) == (1.0, pytest.approx(2 / 3))


letters = st.sets(st.sampled_from("abcd")).map(sorted)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(letters, letters), min_size=1, max_size=12))
def test_equals_scikit_learn(pairs):
    got = computed([row(i, true, predicted, "abcd") for i, (true, predicted) in enumerate(pairs)])["overall"]
    binary = MultiLabelBinarizer(classes=list("abcd"))
    true, predicted = (binary.fit_transform([pair[side] for pair in pairs]) for side in (0, 1))
    kind = {"average": "macro", "zero_division": 0}
    assert got["f1"] == pytest.approx(oracle.f1_score(true, predicted, **kind))
    assert got["precision"] == pytest.approx(oracle.precision_score(true, predicted, **kind))
    assert got["recall"] == pytest.approx(oracle.recall_score(true, predicted, **kind))
    assert got["micro_f1"] == pytest.approx(oracle.f1_score(true, predicted, average="micro", zero_division=0))
    assert got["exact_match"] == pytest.approx(oracle.accuracy_score(true, predicted))
    per_label = oracle.multilabel_confusion_matrix(true, predicted)
    assert got["accuracy"] == pytest.approx(np.mean([np.trace(one) / one.sum() for one in per_label]))
    assert got["specificity"] == pytest.approx(np.mean([one[0, 0] / max(one[0].sum(), 1) for one in per_label]))


def test_updates_add_up_and_repeats_count_once():
    rows = [row(1, "a", "a"), row(2, "a", "b"), row(3, "b", "b")]
    metric = Clinical()
    for part in (rows[:1], [], rows[1:], rows[:2]):
        metric.update(part)
    assert metric.compute() == computed(rows[::-1])
    metric.reset()
    metric.update([])
    assert metric.compute() == {"overall": {}, "domains": {}, "datasets": {}}


def test_forward_gives_the_batch_and_keeps_the_whole():
    rows = [row(1, "a", "a"), row(2, "a", "b")]
    metric = Clinical()
    assert metric(rows[:1])["overall"]["support"] == 1
    assert metric(rows[1:])["overall"]["exact_match"] == 0
    assert metric.compute() == computed(rows)


def test_update_refuses_what_has_no_space():
    with pytest.raises(ValueError, match=r"7: labels \['z'\]"):
        Clinical().update([row(7, "z", "")])
    with pytest.raises(ValueError, match="or it is empty"):
        Clinical().update([row(7, "", "", "")])


ROWS = [row(i, "ab"[i % 2], "abc"[i % 3], domain=f"d{i % 2}") for i in range(7)]


RANKS = (ROWS[:4], ROWS[3:], [])  # one case on two ranks, and a rank without any


def on_rank(rank):
    metric = Clinical()
    metric.update(RANKS[rank])
    return metric


def test_ranks_agree_with_one_process():
    states = [torch.cat(on_rank(rank).records) for rank in range(3)]
    for rank in range(3):
        metric = on_rank(rank)
        metric.distributed_available_fn = lambda: True
        metric.dist_sync_fn = lambda tensor, group: states
        assert metric.compute() == computed(ROWS)


def in_process(rank, store, out):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    (out / f"{rank}.json").write_text(json.dumps(on_rank(rank).compute()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_three_processes_agree_with_one(tmp_path):
    mp.spawn(in_process, (tmp_path / "store", tmp_path), nprocs=3)
    for rank in range(3):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == computed(ROWS)


def test_predictions_round_trip(tmp_path):
    rows = [row(1, ["naïve ≥ 3\u2028"], [], ["naïve ≥ 3\u2028"]), row(2, "a", ["\ud800"])]
    write_predictions(tmp_path / "p.jsonl", rows)
    assert read_predictions(tmp_path / "p.jsonl") == rows
    assert computed(rows)["overall"]["support"] == 2


GOOD = asdict(row(1, "a", "a"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", r"p.jsonl:2: no JSON"),
        ("[1]", r"p.jsonl:2: not an object"),
        (json.dumps({**GOOD, "id": 5}), r"p.jsonl:2 id: wrong type(.|\n)*got: +5(.|\n)*a text"),
        (json.dumps({**GOOD, "target": "a"}), r"p.jsonl:2 target: wrong type(.|\n)*a list of texts"),
        (json.dumps({**GOOD, "prediction": [None]}), r"p.jsonl:2 prediction: wrong type"),
        (json.dumps({**GOOD, "target": ["abd"], "label_space": ["abc"]}), r"did you mean 'abc'"),
        (json.dumps({**GOOD, "target": [], "label_space": []}), r"p.jsonl:2 label_space: no labels"),
        (json.dumps(GOOD), r"p.jsonl:2 id: id given twice(.|\n)*line 1 has it"),
        (json.dumps({("label_spaces" if k == "label_space" else k): v for k, v in GOOD.items()}), "did you mean"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n\n")
    with pytest.raises(DataError, match=words):
        read_predictions(path)


def test_all_bad_lines_are_named_at_once(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"{\n" + json.dumps(GOOD).encode() + b"\n\xff\n")
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    assert [problem.where for problem in caught.value.problems] == [f"{path}:1", f"{path}:3"]


def test_a_file_without_predictions(tmp_path):
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no predictions"):
        read_predictions(tmp_path / "p.jsonl")
    with pytest.raises(DataError, match="no such file"):
        read_predictions(tmp_path / "q.jsonl")


def test_prediction_of_a_reading():
    case = Case("c", "ct", "set", "diagnosis", "", (), ("a", "b"), Target(labels=("a",)))
    reading = Diagnosis().read("<think></think>\\boxed{b, wild boar}", case, None)
    assert prediction_of(case, reading) == replace(row("c", "a", ["b", "wild boar"]), label_space=("a", "b"))
    assert prediction_of(case, Diagnosis().read("", case, None)).prediction == ()
