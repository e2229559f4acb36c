"""Measure how fast this machine trains, so that a search can be planned.

Shapes: B packed rows of a micro-batch, S sequence length.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

from otr.config import TrainConfig, Workers

MOST_PASSES = 4
"""Most forward passes of a measured step."""


class _Measured(Exception):
    """The speed is known; nothing more needs to be trained."""


def tokens_per_second(configs: Sequence[TrainConfig], tokens_per_row: float) -> list[float]:
    """Return the tokens per second of one worker of each run, in a process of its own.

    Each run takes two optimizer steps on random tokens, of which the second is measured.

    Args:
        configs: the runs.
        tokens_per_row: tokens of a packed row, padding excluded.

    Raises:
        Exception: any error of the first steps, such as too little memory.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_measure, [*configs], tokens_per_row).result()


def _measure(configs: Sequence[TrainConfig], tokens_per_row: float) -> list[float]:
    import torch
    from transformers.utils import logging

    from otr.loop.loop import train
    from otr.models.load import as_base, load_model
    from otr.models.lora import add_adapters
    from otr.models.tokenizer import load_tokenizer

    logging.disable_progress_bar()
    found = []
    for config in configs:
        torch.set_num_threads(max(1, int(config.workers.cpus)))
        tokenizer = load_tokenizer(config.model)
        model: Any = load_model(config.model, tokenizer, quantize=config.lora.quantize)
        if config.workers.gpus:
            model.to("cuda")
        if config.lora.rank:
            model = add_adapters(model, config.lora)
        base = None
        if config.needs_base:
            base = as_base(load_model(config.model, tokenizer), config.model.dtype)
        passes = min(config.accumulation, MOST_PASSES)
        short = replace(
            config,
            data=replace(config.data, validation=()),
            memory=replace(config.memory, strategy="single"),
            workers=Workers(cpus=config.workers.cpus, gpus=config.workers.gpus),
            global_batch_size=config.micro_batch_size * passes,
            max_steps=9,  # not reached: the last step would save
            log_interval=1,
            patience=0,
        )
        length = config.data.sequence_length
        filled = max(2, min(length, round(tokens_per_row)))
        ids_BS = torch.randint(
            0, model.config.get_text_config().vocab_size, (config.micro_batch_size, length)
        )
        real_BS = (torch.arange(length) < filled).expand_as(ids_BS)
        batch = {
            "input_ids": ids_BS.int(),
            "loss_mask": real_BS.clone(),
            "segment_ids": real_BS.int(),
        }
        if config.objective.needs_start:  # the time does not depend on the values
            batch["start"] = torch.full(ids_BS.shape, -1.0)
        ends: list[float] = []

        def report(metrics: dict[str, float], snapshot: Any, ends: list[float] = ends) -> None:
            ends.append(time.perf_counter())
            if len(ends) == 2:
                raise _Measured

        with suppress(_Measured):
            train(model, [batch] * passes * 9, short, report, base=base)
        found.append(filled * config.micro_batch_size * passes / (ends[1] - ends[0]))
    return found
