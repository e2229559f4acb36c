"""The private interfaces of Ray that tuning uses exist and behave as it expects."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from pyarrow.fs import LocalFileSystem
from ray import tune
from ray.train._internal.storage import StorageContext
from ray.train.v2._internal.constants import get_env_vars_to_propagate

from tests.integration.conftest import ray_cluster  # noqa: F401
from tuning import _compat


def test_ray_train_passes_a_variable_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTR_TEST_VARIABLE", "value")
    monkeypatch.setattr(_compat, "ENV_VARS_TO_PROPAGATE", _compat.ENV_VARS_TO_PROPAGATE)
    assert "OTR_TEST_VARIABLE" not in get_env_vars_to_propagate()
    _compat.pass_to_train_processes("OTR_TEST_VARIABLE")
    try:
        assert get_env_vars_to_propagate()["OTR_TEST_VARIABLE"] == "value"
    finally:
        _compat.ENV_VARS_TO_PROPAGATE.discard("OTR_TEST_VARIABLE")


def test_a_trial_s_files_are_uploaded_where_tune_reads_them(tmp_path: Path) -> None:
    storage = StorageContext(
        storage_path=str(tmp_path / "storage"),
        experiment_dir_name="sweep",
        trial_dir_name="trial",
    )
    local = tmp_path / "local"
    local.mkdir()
    (local / "result.json").write_text("{}")
    trial: Any = SimpleNamespace(storage=storage, local_path=str(local))
    assert not _compat.is_syncing(trial)
    _compat.upload_trial(trial)
    assert isinstance(storage.storage_filesystem, LocalFileSystem)
    assert (tmp_path / "storage" / "sweep" / "trial" / "result.json").read_text() == "{}"


@pytest.mark.integration
@pytest.mark.usefixtures("ray_cluster")
def test_a_restored_tuner_takes_callbacks_and_search_algorithm(tmp_path: Path) -> None:
    assert ray.cluster_resources()[_compat.HEAD_NODE] == 1

    class Count(tune.Callback):
        steps = 0

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            self.steps += 1

    def train(config: dict[str, Any]) -> None:
        if not (tmp_path / "resumed").exists():
            raise ValueError("not yet")

    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    run_config = tune.RunConfig(name="sweep", storage_path=str(tmp_path), verbose=0)
    tune.Tuner(train, run_config=run_config).fit()
    (tmp_path / "resumed").touch()
    tuner = tune.Tuner.restore(str(tmp_path / "sweep"), train, resume_errored=True)
    count, search = Count(), tune.search.BasicVariantGenerator(max_concurrent=1)
    _compat.set_process_objects(tuner, [count], search)
    [result] = tuner.fit()
    assert result.error is None and count.steps > 0
    assert search.total_samples == 1
