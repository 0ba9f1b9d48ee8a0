"""`qoqmed serve`: vLLM's own server on an exported model; text and pictures by its API, and what it says of an ECG."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny_policy as tiny
import torch
from PIL import Image

from qoqmed.policy.loading import Loaded
from qoqmed.serve import command

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    loaded = tiny.load(tiny.SHARP, heads=2)  # of 32: the kernel on a CPU knows no smaller ones
    loaded.processor.resize_between(28 * 28, 84 * 84)
    return loaded


@pytest.fixture(scope="module")
def address(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    loaded.policy.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = command(folder, port=port, arguments=["--enforce-eager", "--max-model-len", "512", "--dtype", "float32"])
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, start_new_session=True)
    try:
        for _ in range(180):
            assert process.poll() is None, "the server has ended"
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def ask(address: str, content: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 5, "temperature": 0}
    body |= {"logprobs": True, "return_token_ids": True, "ignore_eos": True}
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.loads(answer.read()))


def greedy(loaded: Loaded, content: list[dict[str, Any]]) -> list[int]:
    model = tiny.plain_copy(loaded.policy).model.eval()
    batch = loaded.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    with torch.no_grad():
        out = model.generate(**batch, do_sample=False, max_new_tokens=5, eos_token_id=None)
    return out[0, batch["input_ids"].shape[1] :].tolist()


def test_text_and_a_picture_answer_as_under_transformers(address: str, loaded: Loaded) -> None:
    text = {"type": "text", "text": "What is on this?"}
    assert ask(address, [text])["choices"][0]["token_ids"] == greedy(loaded, [text])
    array = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    found = ask(address, [{"type": "image_url", "image_url": {"url": url}}, text])["choices"][0]["token_ids"]
    assert found == greedy(loaded, [{"type": "image", "image": array}, text])


def test_the_server_knows_no_ecg(address: str) -> None:
    """Its list of content parts is closed: docs/rollouts.md says what to do instead."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(address, [{"type": "ecg", "ecg": [[0.0]]}, {"type": "text", "text": "Which rhythm?"}])
    with caught.value as answer:
        assert answer.code == 400
