"""NLL, accuracy and KL per example against float64 computations of one example at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from otr import ModelConfig, load_model, measure
from otr.config import LoraConfig
from otr.data import Example
from otr.models.lora import add_adapters
from tests.assets.tiny import make_tiny_model

DRAWN = np.random.default_rng(0)
LENGTHS = (9, 40, 2, 17, 33, 5)


def example(length: int) -> Example:
    """Random tokens; about half of them are targets, the last one always."""
    targets = [False, *(DRAWN.random(length - 1) < 0.5).tolist()]
    targets[-1] = True
    return DRAWN.integers(0, 256, length).tolist(), targets


EXAMPLES = [example(length) for length in LENGTHS]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[PreTrainedModel]:
    """Two models of the same shape, the second one untied."""
    folder = tmp_path_factory.mktemp("models")
    paths = [make_tiny_model(folder / str(seed), tied=not seed, seed=seed) for seed in (0, 1)]
    return [load_model(ModelConfig(str(path))) for path in paths]


def log_probs(model: PreTrainedModel, one: Example) -> torch.Tensor:
    """The log-probabilities [T, V] before each target of an example, alone, in float64."""
    ids, targets = one
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model.double()(torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1)[torch.tensor(targets[1:])]


def targets_of(one: Example) -> torch.Tensor:
    return torch.tensor([token for token, target in zip(*one, strict=True) if target])


def copies(models: list[PreTrainedModel]) -> list[PreTrainedModel]:
    """The same models again, for the float64 computation."""
    return [load_model(ModelConfig(model.name_or_path)) for model in models]


@pytest.mark.parametrize("tokens_at_once", [4096, 50, 1], ids=lambda n: f"{n} tokens at once")
def test_nll_and_accuracy_of_each_example(models, tokens_at_once, monkeypatch) -> None:
    monkeypatch.setattr(measure, "TOKENS_AT_ONCE", tokens_at_once)
    (exact, _), found = copies(models), measure.reference_sums(models[0], EXAMPLES)
    for i, one in enumerate(EXAMPLES):
        expected, target = log_probs(exact, one), targets_of(one)
        assert found.tokens[i] == len(target)
        nll = -expected.gather(1, target[:, None]).sum().item()
        assert found.nll[i] == pytest.approx(nll, rel=1e-5)
        assert found.right[i] == (expected.argmax(-1) == target).sum()


def test_the_most_likely_token_is_right_and_no_other(models) -> None:
    ids, targets = EXAMPLES[0][0], [False] * len(EXAMPLES[0][0]) + [True]
    states = measure.predict_states(models[0], [([*ids, 0], targets)])
    best = int(states.head.logits(states.hidden_TD).argmax())
    answers = [([*ids, token], targets) for token in (best, best - 1)]
    assert measure.reference_sums(models[0], answers).right == [1, 0]


@pytest.mark.parametrize("logits_at_once", [2**24, 259 * 3], ids=["whole", "3 rows at once"])
def test_kl_is_that_of_the_whole_vocabulary(models, logits_at_once, monkeypatch) -> None:
    monkeypatch.setattr(measure, "LOGITS_AT_ONCE", logits_at_once)
    base, other = (measure.predict_states(model, EXAMPLES) for model in models)
    exact = copies(models)
    for i, one in enumerate(EXAMPLES):
        p, q = (log_probs(model, one) for model in exact)
        kl = (p.exp() * (p - q)).sum().item()
        assert kl > 0.1
        assert measure.kl_sums(base, other)[i] == pytest.approx(kl, rel=1e-5)
    assert measure.kl_sums(base, base) == [0] * len(EXAMPLES)
    assert measure.kl_sums(base, other) != pytest.approx(measure.kl_sums(other, base), rel=1e-2)


def test_an_example_does_not_see_the_others(models) -> None:
    together = measure.reference_sums(models[0], EXAMPLES)
    others = measure.reference_sums(models[0], [*map(example, LENGTHS[:5]), EXAMPLES[5]])
    assert others.nll[5] == pytest.approx(together.nll[5], rel=1e-5)


def test_the_forward_pass_is_in_the_precision_of_training(models) -> None:
    full, half = (measure.reference_sums(models[0], EXAMPLES, d) for d in ("float32", "bfloat16"))
    assert half.nll == pytest.approx(full.nll, rel=0.02)
    assert half.nll != pytest.approx(full.nll, rel=1e-5)


def test_adapters_count(models, tmp_path: Path) -> None:
    base = measure.predict_states(models[0], EXAMPLES)
    adapted = add_adapters(copies(models)[0], LoraConfig(rank=2))
    assert measure.kl_sums(base, measure.predict_states(adapted, EXAMPLES)) == pytest.approx(
        [0] * len(EXAMPLES), abs=1e-4
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.05)
    assert min(measure.kl_sums(base, measure.predict_states(adapted, EXAMPLES))) > 1e-3
