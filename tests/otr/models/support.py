"""What was tried with a toy of each family: ``python -m tests.otr.models.support``.

Prints the table of docs/reference/models.md. Each cell comes from a run, see the functions.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from otr import LoraConfig, MemoryConfig, ModelConfig, Objective, TrainConfig, Workers, load_model
from otr.loop.checkpoint import Snapshot
from otr.loop.loop import train
from otr.models.layout import Layout
from otr.models.lora import add_adapters, load_adapters, merge_adapters
from otr.models.parts import head, hidden_states
from otr.models.structure import towers
from tests.assets.tiny import byte_tokenizer
from tests.otr.models.families import MODELS, packed_rows, toy
from tests.otr.runs import ROWS, batches, config, join_ranks

STEPS, WORLD = 3, 2
COLUMNS = (
    *("family", "packed examples are computed", "frozen", "resumes", "two workers"),
    *("sharded (FSDP)", "LoRA, merged", "read by transformers"),
)
Weights = dict[str, torch.Tensor]


def lines() -> Iterator[str]:
    """Yield the table."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    with tempfile.TemporaryDirectory() as folder:
        for name, found in tried(Path(folder)).items():
            model = MODELS[name]
            cells = (model.label, model.examples, found.pop("frozen") or "nothing")
            yield f"| {' | '.join([*cells, *found.values()])} |"


def tried(folder: Path, names: tuple[str, ...] = tuple(MODELS)) -> dict[str, dict[str, str]]:
    """Try everything with the toys of some families.

    Returns:
        For each family the frozen parts, and "yes" or the error per try, in the table's order.
    """
    for name in names:
        toy(MODELS[name].config()).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
        trained(folder / name, folder / f"{name}-alone")
    mp.spawn(_on_two_ranks, (folder, names), nprocs=WORLD)
    return {
        name: {
            "frozen": ", ".join(towers(load_model(ModelConfig(str(folder / name))))),
            "resume": outcome(lambda name=name: check_resume(folder, name)),
            "ddp": outcome(lambda name=name: check_ranks(folder, name, "ddp")),
            "fsdp": outcome(lambda name=name: check_ranks(folder, name, "fsdp")),
            "lora": outcome(lambda name=name: check_lora(folder, name)),
            "export": outcome(lambda name=name: check_export(folder, name)),
        }
        for name in names
    }


def outcome(check: Callable[[], None]) -> str:
    """Return "yes" if a check passes, else the first line of its error."""
    try:
        check()
    except Exception as error:  # the table is to have the other rows too
        return f"no: {str(error).strip().splitlines()[0]}"
    return "yes"


def check_resume(folder: Path, name: str) -> None:
    """Check that a run that goes on from its checkpoint ends with the same bits."""
    out = folder / f"{name}-again"
    trained(folder / f"{name}-alone" / "2", out, resume_from=folder / f"{name}-alone" / "2")
    whole, again = weights(folder / f"{name}-alone" / "3"), weights(out / "3")
    assert whole.keys() == again.keys(), "other weights"
    different = [key for key in whole if not torch.equal(whole[key], again[key])]
    assert not different, f"{different[0]} differs"


def check_ranks(folder: Path, name: str, strategy: str) -> None:
    """Check that two workers train a model that computes what the model of one does.

    Not its weights: Adam moves biases that change nothing, such as those of keys, by noise.
    """
    alone, shared = (
        logits(load_model(ModelConfig(str(folder / each))).eval())
        for each in (f"{name}-alone/3", f"{name}-{strategy}")
    )
    assert_close(shared, alone, 3e-3)


def check_lora(folder: Path, name: str) -> None:
    """Check that adapters train, not in towers, and that the merged model is the adapted one."""
    base = ModelConfig(str(folder / name))
    model = add_adapters(load_model(base), LoraConfig(rank=2))
    inside = [n for n, _ in model.named_parameters() if "lora" in n and "vision" in n]
    assert not inside, f"an adapter in {inside}"
    run = config(folder / name, Objective("sft"), STEPS, lora=LoraConfig(rank=2))
    train(model, batches(STEPS), run, _writes(folder / f"{name}-lora"))  # type: ignore[arg-type]
    adapted = load_adapters(folder / f"{name}-lora" / "3", base).eval()
    before = logits(load_model(base).eval())
    found = logits(adapted)  # type: ignore[arg-type]
    assert (found - before).abs().max() > 1e-3, "the adapters change nothing"
    merged = merge_adapters(adapted)
    assert_close(logits(merged), found, 1e-4)


def check_export(folder: Path, name: str) -> None:
    """Check that transformers reads the checkpoint and computes the same logits from it."""
    path = folder / f"{name}-alone" / "3"
    theirs, loaded = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"], loaded
    ids = packed_rows()["input_ids"][:1, :6]
    ours = load_model(ModelConfig(str(path))).eval()
    found = head(ours).logits(hidden_states(ours, ids, Layout.of(torch.ones_like(ids))))
    wanted = theirs.eval()(input_ids=ids.long(), use_cache=False).logits[0]
    assert_close(found, wanted, 1e-4)
    assert theirs.generation_config is not None


def assert_close(found: torch.Tensor, wanted: torch.Tensor, share: float) -> None:
    """Check that logits differ by at most a share of the largest one."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=share * float(wanted.abs().max()))


def logits(model: Any) -> torch.Tensor:
    batch = packed_rows()
    with torch.no_grad():
        return head(model).logits(
            hidden_states(model, batch["input_ids"], Layout.of(batch["segment_ids"]))
        )


def weights(directory: Path) -> Weights:
    found: Weights = {}
    for path in directory.glob("*.safetensors"):
        found |= load_file(path)
    return found


def trained(model: Path, out: Path, *, resume_from: Path | None = None, **change: object) -> None:
    """Train all weights for STEPS steps, with a checkpoint after each; write them to `out`/STEP."""
    run = config(model, Objective("sft"), STEPS, checkpoint_interval=1, **change)
    first = 0 if resume_from is None else int(resume_from.name)
    train(
        load_model(run.model),
        batches(STEPS)[first:],
        run,
        _writes(out),
        resume_from=resume_from,
    )


def _writes(out: Path) -> Callable[[dict[str, float], Snapshot | None], None]:
    def report(_: dict[str, float], snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            snapshot.write(out / str(snapshot.step), byte_tokenizer())

    return report


def _on_two_ranks(rank: int, folder: Path, names: tuple[str, ...]) -> None:
    join_ranks(rank, folder, WORLD)
    group = torch.distributed.new_group(backend="gloo")
    half = ROWS // WORLD
    mine = [{k: v[rank * half :][:half] for k, v in batch.items()} for batch in batches(STEPS)]
    for name in names:
        for strategy in ("ddp", "fsdp"):
            run: TrainConfig = config(
                folder / name,
                Objective("sft"),
                STEPS,
                micro_batch_size=half,
                workers=Workers(WORLD),
                memory=MemoryConfig(strategy=strategy),  # type: ignore[arg-type]
            )
            out = folder / f"{name}-{strategy}"

            def report(_: Any, snapshot: Snapshot | None, out: Path = out) -> None:
                if snapshot is not None:
                    replace(snapshot, probe=None).write(out, byte_tokenizer(), group=group)

            train(load_model(run.model), mine, run, report)


if __name__ == "__main__":
    print("\n".join(lines()))
