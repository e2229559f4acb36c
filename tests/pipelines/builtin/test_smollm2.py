"""The model from the package registry: made once, checked, refused in one line if it can't be."""

from pathlib import Path

import pytest

from pipelines.builtin import corpus, smollm2
from tests.assets.tiny import make_tiny_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "otr" / "models"


def test_without_a_registry_one_line_has_the_remedy(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ValueError, match=r"can't make builtin:smollm2 \(ERROR: .*: use --model Hugg"
    ) as refused:
        corpus.resolve_path("builtin:smollm2", cache)
    assert "\n" not in str(refused.value)
    assert [*cache.iterdir()] == []


def test_the_model_is_made_once_and_other_weights_are_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny model stands for the converted one."""
    made: list[str] = []

    def convert(module: str, packages: str, output: str, **_: object) -> None:
        make_tiny_model(output)
        made.append(output)

    monkeypatch.setattr(smollm2, "_download", lambda folder: None)
    monkeypatch.setattr(smollm2, "_run", convert)
    with pytest.raises(ValueError, match=r"converted weights have digest .*: use --model"):
        smollm2.model_dir()
    assert [*cache.iterdir()] == []
    right = smollm2._digest(make_tiny_model(cache / "other"))
    assert right != smollm2._digest(make_tiny_model(cache / "another", seed=1))
    monkeypatch.setattr(smollm2, "DIGEST", right)
    first, second = smollm2.model_dir(), smollm2.model_dir()
    assert first == second and first.parent == cache and len(made) == 2
    assert (first / "model.safetensors").is_file()


def test_a_directory_that_another_process_has_made_is_kept(tmp_path: Path) -> None:
    made, other = make_tiny_model(tmp_path / "made"), make_tiny_model(tmp_path / "other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smollm2, "DIGEST", smollm2._digest(made))
        smollm2._publish(made, other)
    assert other.is_dir()
