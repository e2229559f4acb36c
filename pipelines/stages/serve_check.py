"""Check that vLLM serves what was trained: the last stage of `otr train`.

If the engine cannot run here, the stage reports why and the checkpoint stands: transformers loads
it. If the engine serves something else, that is an error. Ray must be running.
"""

from dataclasses import replace
from pathlib import Path

import psutil
import ray

from evals.hardware import GIB
from evals.serving import adapters
from evals.settings import free_port
from pipelines.config.prepared import PreparedRun
from pipelines.model_size import count_parameters
from pipelines.runtime import console
from pipelines.stages.score import Scorer

_LENGTH = 256  # tokens: enough for `evals.serving.probe`
_MAX_ERROR = 300  # characters of the engine's error


def check_served(run: PreparedRun, checkpoint: Path) -> None:
    """Check that vLLM predicts the same log-probabilities as transformers from a checkpoint.

    Raises:
        ValueError: vLLM predicts otherwise.
    """
    from evals.serving.probe import NotServedError

    with console.stage("serve", "starting vLLM") as stage:
        reason = _obstacle(run)
        if not reason:
            try:
                _check(run, checkpoint)
            except NotServedError as error:
                raise ValueError(f"{checkpoint} is saved but unusable: {error}") from error
            except Exception as error:  # a fault of the engine here, not of the checkpoint
                reason = f"vLLM failed here: {' '.join(str(error).split())[:_MAX_ERROR]}"
        stage.done = not reason
        served = "vLLM and transformers predict the same from the checkpoint"
        stage.say(f"not checked with vLLM: {reason}" if reason else served)


def _check(run: PreparedRun, checkpoint: Path) -> None:
    from otr.models.architecture import max_positions

    positions = max_positions(run.config.train.model) or _LENGTH
    engine = run.config.engine
    engine = replace(
        engine,
        num_replicas=1,
        max_model_len=min(_LENGTH, engine.max_model_len or _LENGTH, positions),
        port=free_port(),  # nobody else asks this engine
    )
    with Scorer((), engine, run.directory) as scorer:
        if (checkpoint / adapters.CONFIG_FILE).is_file():
            scorer.serve_adapters({"base": run.model_dir, "model": checkpoint})
        scorer.check_served("model", checkpoint)


def _obstacle(run: PreparedRun) -> str:
    """Return why the check is impossible here; empty if it is not."""
    model = run.config.train.model
    if model.trust_remote_code:
        return "vLLM never runs code that comes with a model"
    # transformers holds float32 weights, and without a GPU the engine does, too.
    copies = 1 if run.config.engine.gpus else 2
    needed = 4 * copies * (count_parameters(model.path) or 0)
    free = psutil.virtual_memory().available
    # On a cluster, both are on the replica's node, whose memory is looked at there.
    alone = not ray.is_initialized() or sum(node["Alive"] for node in ray.nodes()) == 1
    if alone and needed > free:
        return f"it needs {needed / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free"
    return ""
