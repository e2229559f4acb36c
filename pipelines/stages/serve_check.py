"""The proof that vLLM serves what was trained: the last stage of `otr train`.

In: a resolved `SweepConfig`, a checkpoint, the run's directory. Out: a line on the terminal. Where
the engine can't be had here, that line says why: the checkpoint is sound as far as transformers
goes. Where it serves something else, that is an error. Ray must be running.
"""

from dataclasses import replace
from pathlib import Path

import psutil

from evals.serving import adapters
from evals.settings import free_port
from pipelines.checks.machine import GIB, parameters
from pipelines.config.presets import SweepConfig
from pipelines.runtime import console
from pipelines.stages.scoring import Scorer

_LENGTH = 256  # tokens: enough for `evals.serving.probe`
_LONGEST = 300  # of an engine's error, in characters


def prove(config: SweepConfig, checkpoint: str, directory: Path) -> None:
    """See that vLLM gives a checkpoint's log-probabilities as transformers does.

    Raises:
        ValueError: it gives others.
    """
    from evals.serving.probe import NotServedError

    with console.stage("prove", "starting vLLM") as stage:
        reason = _out_of_reach(config)
        if not reason:
            try:
                _serve(config, checkpoint, directory)
            except NotServedError as error:
                raise ValueError(f"{checkpoint} is saved, but not to be used: {error}") from error
            except Exception as error:  # which tells of the engine here, not of the checkpoint
                reason = f"it could not serve it here: {' '.join(str(error).split())[:_LONGEST]}"
        stage.done = not reason
        served = "vLLM serves the checkpoint with transformers' log-probabilities"
        stage.say(f"not proven in vLLM: {reason}" if reason else served)


def _serve(config: SweepConfig, checkpoint: str, directory: Path) -> None:
    from otr.models.architecture import max_positions

    most = max_positions(config.train.model) or _LENGTH
    engine = replace(
        config.engine,
        num_replicas=1,
        max_model_len=min(_LENGTH, config.engine.max_model_len, most),
        port=free_port(),  # nobody else asks this engine
    )
    with Scorer(replace(config, engine=engine), directory) as scorer:
        if (Path(checkpoint) / adapters.CONFIG_FILE).is_file():
            scorer.plan({"base": config.train.model.path, "model": checkpoint})
        scorer.prove("model", checkpoint)


def _out_of_reach(config: SweepConfig) -> str:
    """Why it is not even tried; empty where it is."""
    if config.train.model.trust_remote_code:
        return "it never runs code that comes with a model"
    # Of transformers in float32, and without a GPU of the engine too.
    copies = 1 if config.engine.gpus else 2
    needed = 4 * copies * (parameters(config.train.model.path) or 0)
    free = psutil.virtual_memory().available
    if needed > free:
        return f"it needs {needed / GIB:.0f} GiB of memory, {free / GIB:.0f} are free"
    return ""
