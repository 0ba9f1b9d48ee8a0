"""Questions about media on disk: their order, what is read from the answer, the overlay, the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from fake_distribution import install
from PIL import Image

import qoqmed
from qoqmed import asking
from qoqmed.boxes import AbsoluteFrame
from qoqmed.errors import MediaError, UserError
from qoqmed.predict import Question
from qoqmed.report.overlay import COLORS, draw
from qoqmed.types import Box, Case, Medium, Target

pytestmark = pytest.mark.usefixtures("tiny", "scripted")

SCRIPTED = """
import json
from pathlib import Path

from qoqmed.types import Rollout


class Scripted:
    def __init__(self, text: str, seen: str):
        self.text, self.seen = text, Path(seen)

    def start(self, policy):
        self.policy = policy

    def generate(self, prompts, sampling, seeds):
        (prompt,) = prompts
        told = {"prompt": self.policy.decode_text(prompt.token_ids.tolist()), "seeds": list(seeds)}
        told |= {"temperature": sampling.temperature, "max_new_tokens": sampling.max_new_tokens}
        self.seen.write_text(json.dumps(told))
        return [[Rollout("predict", 0, (5, 6, 2), self.text, (-0.5, -1.0, 0.0), "stop", seeds[0])]]

    def rest(self):
        pass

    def sync(self, weights):
        pass

    def close(self):
        pass
"""
BOXES = '[{"bbox_2d": [28, 14, 56, 42], "label": "edema", "image": 2}, {"bbox_2d": [0, 0, 28, 28], "label": "top"}]'
RESPONSE = f"<think>It is bright.</think>\n```json\n{BOXES}\n```\n\\boxed{{edema}}"


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine that answers what the recipe says, and notes what it was asked."""
    site = tmp_path_factory.mktemp("scripted")
    install(site, "scripted-engine", {"rollouts": {"scripted": "scripted_engine:Scripted"}}, SCRIPTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield


def recipe(folder: Path, text: str = RESPONSE) -> Path:
    rollout = {"name": "scripted", "text": text, "seen": str(folder / "seen.json"), "max_new_tokens": 11}
    return tiny_run.place(folder, rollout=rollout, rewards={"format": 1.0}).recipe


def seen(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return found


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Pictures of 56 x 56 and 112 x 56 pixels (the second shown at half its size), a volume, an ECG at 500 Hz."""
    import nibabel

    rng = np.random.default_rng(0)
    paths = {name: tmp_path / f"{name}.{end}" for name, end in (("a", "png"), ("b", "png"), ("ecg", "npy"))}
    Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(paths["a"])
    Image.fromarray(rng.integers(0, 256, (112, 112), dtype=np.uint8)).save(paths["b"])
    np.save(paths["ecg"], rng.standard_normal((12, 5000)).astype(np.float32))
    paths["volume"] = tmp_path / "v.nii.gz"
    nibabel.save(nibabel.Nifti1Image(rng.random((20, 30, 8), dtype=np.float32), np.eye(4)), paths["volume"])
    return paths


# ---- the question


def test_media_stand_in_the_order_given(tmp_path: Path, files: dict[str, Path]) -> None:
    made = qoqmed.predict(
        recipe(tmp_path),
        "What now?",
        [
            ("image", files["a"]),
            Medium("ecg", str(files["ecg"]), options={"rate_hz": 500}),
            ("volume", files["volume"]),
        ],
    )
    prompt = seen(tmp_path)["prompt"]
    order = [prompt.index(part) for part in ("<|image_pad|>", "<|ecg_pad|>", "What now?")]
    assert order == sorted(order)
    assert prompt.index("<|ecg_pad|>") < prompt.rindex("<|image_pad|>") < prompt.index("What now?")
    assert prompt.count("<|vision_start|>") == 1 + 2  # the picture, two slices (data.frames)
    assert {place: len(of) for place, of in made.pictures.items()} == {0: 1, 2: 2}


def test_the_other_order(tmp_path: Path, files: dict[str, Path]) -> None:
    target, question, media = asking.split_words(
        ["RUN", "--ecg", str(files["ecg"]), "--ecg.rate_hz=500", f"--image={files['a']}", "Why?"]
    )
    assert (target, question) == ("RUN", "Why?")
    assert [(m.modality, dict(m.options)) for m in media] == [("ecg", {"rate_hz": 500}), ("image", {})]
    qoqmed.predict(recipe(tmp_path), question, media)
    prompt = seen(tmp_path)["prompt"]
    assert prompt.index("<|ecg_pad|>") < prompt.index("<|image_pad|>") < prompt.index("Why?")


def test_without_labels_the_question_goes_as_it_is(tmp_path: Path) -> None:
    made = qoqmed.predict(recipe(tmp_path, "<think>Hm.</think> Rather not."), "Is it?")
    assert seen(tmp_path)["prompt"] == "<|im_start|>user\nIs it?\n<|im_start|>assistant\n"
    assert (made.reading.reasoning, made.reading.answer.text, made.reading.answer.labels) == (
        "Hm.",
        "Rather not.",
        None,
    )
    assert made.reading.flaws == ()
    assert made.mean_log_prob == -0.5


def test_with_labels_it_is_a_diagnosis(tmp_path: Path, files: dict[str, Path]) -> None:
    made = qoqmed.predict(recipe(tmp_path), "Which?", [("image", files["a"])] * 2, labels=["normal", "edema"])
    assert "Which? Choose from: normal, edema. Reason in <think></think>" in seen(tmp_path)["prompt"]
    assert made.reading.answer.labels == ("edema",)


def test_a_domain_asks_its_own_question(tmp_path: Path) -> None:
    from qoqmed.domains.catalogue import ecg

    made = qoqmed.predict(recipe(tmp_path), domain="ecg")
    assert made.case.text == ecg.phrasings[0] and made.case.domain == "ecg"


def test_arrays_are_media_too(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    made = qoqmed.predict(recipe(tmp_path), "What?", [("image", noise)])
    assert made.files == ("array",) and np.array_equal(made.pictures[0][0], noise)


def test_sampling_is_greedy_unless_asked(tmp_path: Path) -> None:
    qoqmed.predict(recipe(tmp_path), "What?")
    assert (seen(tmp_path)["temperature"], seen(tmp_path)["max_new_tokens"]) == (0.0, 11)
    first = seen(tmp_path)["seeds"]
    qoqmed.predict(recipe(tmp_path), "What?", temperature=0.7, seed=1, max_new_tokens=3)
    assert (seen(tmp_path)["temperature"], seen(tmp_path)["max_new_tokens"]) == (0.7, 3)
    assert seen(tmp_path)["seeds"] != first


def test_the_policy_itself_answers(tmp_path: Path, files: dict[str, Path]) -> None:
    here = tiny_run.place(tmp_path)
    media = [("image", files["a"])]
    greedy = [qoqmed.predict(here.recipe, "What?", media).rollout.token_ids for _ in range(2)]
    drawn = {qoqmed.predict(here.recipe, "What?", media, temperature=1.0, seed=s).rollout.token_ids for s in (1, 1, 2)}
    assert greedy[0] == greedy[1] and len(drawn) == 2


# ---- the command


def run(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = tiny_run.command("predict", *words)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_json(tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--image", files["a"], "--image", files["b"], "--label", "edema", "--label", "normal", "--json", "Which?")
    code, out, err = run(recipe(tmp_path), *words, capsys=capsys)
    assert code == 0, err
    found = json.loads(out)
    assert found["media"][1] == {
        "modality": "image",
        "file": str(files["b"]),
        "pictures": 1,
        "width": 112,
        "height": 112,
    }
    # by hand: 56 x 56 of both as the model sees them (b: 112 x 112 is above max_pixels 7056, so 3 x 3 cells of 28)
    first, second = found["boxes"]
    assert (first["label"], first["medium"]) == ("edema", 1)
    assert first["normalised"] == pytest.approx([28 / 84, 14 / 84, 56 / 84, 42 / 84])
    assert first["pixels"] == pytest.approx([37.33, 18.67, 74.67, 56.0])
    assert (second["label"], second["medium"], second["pixels"]) == ("top", 0, [0, 0, 28, 28])
    assert found["reasoning"] == "It is bright." and found["answer"] == {"labels": ["edema"], "text": "edema"}
    assert (found["finish_reason"], found["tokens"], found["mean_log_prob"]) == ("stop", 3, -0.5)
    assert found["flaws"] == [] and found["labels"] == ["edema", "normal"] and found["response"] == RESPONSE


def test_text_and_raw(tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--image", files["a"], "--image", files["b"], "Which?")
    code, out, _ = run(recipe(tmp_path), *words, capsys=capsys)
    assert code == 0
    assert all(part in out for part in ("reasoning: It is bright.", "answer: edema", "mean log-prob -0.5", "end: stop"))
    assert "37" in out and "b.png" in out
    assert run(recipe(tmp_path), *words, "--raw", capsys=capsys)[:2] == (0, RESPONSE + "\n")


def test_the_overlay_holds_boxes_at_the_pictures_own_size(
    tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    words = ("--image", files["a"], "--image", files["b"], "--overlay", out, "Which?")
    assert run(recipe(tmp_path), *words, capsys=capsys)[0] == 0
    with Image.open(out) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (112, 56 + 2 + 112, 3)  # side by side, a gap of 2, at the original sizes
    left = 56 + 2
    assert tuple(sheet[26, 0]) == COLORS[0]  # left edge of the box on the first picture
    assert tuple(sheet[40, left + 37]) == COLORS[1]  # left edge of the other label's box on the second
    assert tuple(sheet[55, left + 50]) == COLORS[1]  # its bottom edge
    assert np.array_equal(sheet[60:112, left + 80 :], np.asarray(Image.open(files["b"]).convert("RGB"))[60:112, 80:])


def test_the_overlay_keeps_what_no_box_covers() -> None:
    ground = np.full((400, 600, 3), 200, np.uint8)
    sheet = np.asarray(draw([(ground, [Box(0.5, 0.5, 0.75, 0.75, "nodule")])]))
    changed = np.argwhere((sheet != ground).any(-1))
    assert sheet.shape == ground.shape
    assert changed.min(0)[1] == 299 and changed.max(0).tolist() == [300, 450]  # a dark line of 1 around the box
    assert (sheet[210:290, 310:440] == 200).all()  # inside


@pytest.mark.parametrize("label", ["", "Größe: 5 cm, 右肺", "x" * 200])
def test_the_overlay_takes_any_label(label: str) -> None:
    corner = [Box(0.0, 0.0, 1.0, 1.0, label), Box(0.98, 0.98, 0.981, 0.981, label)]
    assert draw([(np.zeros((30, 40, 3), np.uint8), corner)]).size == (40, 30)


# ---- wrong input


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--imag", "a.png", "What?"], ["--imag", "--ecg, --image, --video, --volume", "did you mean 'image'?"]),
        (["--image", "none.png", "What?"], ["--image none.png: the path does not exist"]),
        (["--image", "https://example.org/a.png", "What?"], ["a URL is no medium"]),
        (["--image", "ecg.npy", "What?"], ["--image ecg.npy", "cannot be read"]),
        (["--ecg", "ecg.npy", "What?"], ["--ecg ecg.npy: nothing says the file's rate"]),
        (["--ecg.rate_hz", "500", "--ecg", "ecg.npy", "What?"], ["the option stands before its medium"]),
        (["--volume", "v.nii.gz", "--volume.axis", "up", "What?"], ["--volume v.nii.gz", "axial, coronal, sagittal"]),
        (["--image"], ["--image: the option needs a value"]),
        (["--image", "a.png", "two", "questions"], ["too many words", "two | questions"]),
        (["--image", "a.png"], ["there is no question"]),
        (["--domain", "fundos"], ["there is no question", "did you mean 'fundus'?"]),
        (["--label", "a", "--label", "A", "What?"], ["the label 'A' reads like another one"]),
        (["--overlay", "o.png", "What?"], ["there is no picture to draw boxes on"]),
        (["--overlay", "o.jpg", "--image", "a.png", "What?"], ["the overlay is a PNG file"]),
        (["--overlay", "a.png", "--image", "a.png", "What?"], ["would replace a picture"]),
        (["--overlay", "no/o.png", "--image", "a.png", "What?"], ["cannot be written there"]),
        (["--temperature", "-1", "What?"], ["--temperature"]),
        (["<|image_pad|>"], ["special token"]),
    ],
)
def test_wrong_input_is_one_message(
    words: list[str],
    expected: list[str],
    tmp_path: Path,
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(recipe(tmp_path), *words, capsys=capsys)
    assert code == 2 and not out, err
    assert err.count("error: ") == 1 and all(part in err for part in expected), err
    assert not (tmp_path / "seen.json").exists() and "Traceback" not in err


def test_nothing_to_ask(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing here can be loaded"):
        qoqmed.predict(tmp_path, "What?")


def test_a_folder_of_slices_is_its_own_root(tmp_path: Path, files: dict[str, Path]) -> None:
    """A link in it that leaves it is refused, before anything is loaded."""
    outside, inside = tmp_path / "outside.dcm", tmp_path / "all" / "series"
    outside.write_bytes(files["a"].read_bytes())
    inside.mkdir(parents=True)
    (inside / "1.dcm").symlink_to(outside)
    with pytest.raises(MediaError, match="leaves the data root"):
        asking.place_of(Medium("volume", str(inside)))


def test_no_form_is_a_flaw_where_none_was_asked_for() -> None:
    case = Case("predict", "ct", "", "predict", "Is it?", (), (), Target())
    for text, answer in [("Well.\nAnswer: yes", "yes"), ("<answer>yes</answer>", "yes"), ("Yes.", "Yes.")]:
        reading = Question().read(text, case, AbsoluteFrame([]))
        assert (reading.answer.text, reading.flaws) == (answer, ())
