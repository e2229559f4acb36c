"""The core needs torch and transformers only: it works where Ray, MLflow and vLLM are missing."""

import subprocess
import sys
from pathlib import Path

from tests.assets.tiny import make_tiny_model
from tests.assets.without import without

OPTIONAL = ("ray", "mlflow", "vllm", "datasets", "tuning", "evals", "pipelines", "otr.training")

SCRIPT = """
import sys
import torch
import otr
from otr.loop import train
from tests.otr.runs import batches, config

logits, hidden, weight = torch.randn(4, 9), torch.randn(4, 8), torch.randn(9, 8)
target, objective = torch.tensor([1, 2, otr.IGNORE_INDEX, 3]), otr.Objective(num_samples=4)
assert otr.token_loss(logits, target, objective).num_tokens == 3
assert otr.linear_token_loss(hidden, weight, target, objective).loss_sum.isfinite()

from otr.integrations import use_objective
from transformers import AutoModelForCausalLM

ids = torch.arange(9)[None]
theirs = use_objective(AutoModelForCausalLM.from_pretrained({model!r}), "otr", num_samples=4)
assert theirs(input_ids=ids, labels=ids).loss.isfinite()

run = config({model!r}, objective, 2)
model, tokenizer, log = otr.load_model(run.model), otr.load_tokenizer(run.model), []

def report(metrics, snapshot):
    log.append(metrics["loss"])
    if snapshot is not None:
        snapshot.write({out!r}, tokenizer)

train(model, batches(2), run, report)
assert len(log) == 2 and otr.load_checkpoint({out!r})["step"] == 2
assert not {{"ray", "mlflow", "vllm", "datasets"}} & set(sys.modules)
"""


def test_losses_and_training_without_optional_packages(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    script = without(OPTIONAL) + SCRIPT.format(model=str(model), out=str(tmp_path / "out"))
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_configuration_is_imported_without_torch() -> None:
    slow = "{'torch', 'transformers', 'numpy'}"
    script = f"import sys, otr, otr.config; sys.exit(bool({slow} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", script], check=True)
