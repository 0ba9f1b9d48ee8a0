"""vLLM's OpenAI-compatible server, in a process that mends the import of transformers first. `qoqmed serve` runs it.

vLLM starts its engine in a process of its own, which imports this module again: what stands at the top runs there too.
"""

import runpy

from qoqmed.media.torchvision_ops import repair

repair()

if __name__ == "__main__":  # not in the engine's process
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
