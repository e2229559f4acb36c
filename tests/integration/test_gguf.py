"""A checkpoint becomes GGUF with llama.cpp's own converter, and predicts the same.

It needs the package gguf, and LLAMA_CPP, the folder of llama.cpp (its convert_hf_to_gguf.py and the
folders conversion/ and gguf-py/).
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from otr import ModelConfig, load_model, load_tokenizer, save_checkpoint
from pipelines.builtin import smollm2

CONVERTER = Path(os.environ.get("LLAMA_CPP", "")) / "convert_hf_to_gguf.py"
PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.integration
@pytest.mark.skipif(not CONVERTER.is_file(), reason="LLAMA_CPP names no folder of llama.cpp")
@pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed")
def test_a_checkpoint_converts_to_gguf(tmp_path: Path) -> None:
    try:
        config = ModelConfig(str(smollm2.model_dir()))
    except ValueError as error:
        pytest.skip(str(error))
    model = load_model(config)
    checkpoint = save_checkpoint(tmp_path / "step-000001", model, load_tokenizer(config))
    command = [sys.executable, CONVERTER, checkpoint, "--outtype", "f32"]
    command += ["--outfile", tmp_path / "model.gguf"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    ids = AutoTokenizer.from_pretrained(checkpoint)(PROMPT, return_tensors="pt").input_ids
    assert tokenizer(PROMPT).input_ids == ids[0].tolist() and tokenizer.chat_template
    saved = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, saved(ids).logits, rtol=0, atol=1e-3)
