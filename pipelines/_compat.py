"""Private interfaces of Ray and MLflow that the pipelines depend on.

Everything here may change in any release of its library. `tests/pipelines/test_compat.py` fails
when an upstream name disappears or behaves differently. Imports are inside the functions: importing
Ray or MLflow takes seconds.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
START_TIMEOUTS = "timed out during startup", "Timed out waiting for file"
"""What Ray's errors say when one of its processes was not ready in time."""


@dataclass(frozen=True)
class AutoscalerStatus:
    """The node section of `ray status`."""

    active_types: frozenset[str]
    """Node types with at least one active node. A node without a type is listed by its id,
    which begins with "node_"."""
    messages: tuple[str, ...]
    """One line per pending node and per recent launch failure, without duplicates."""


def autoscaler_status() -> AutoscalerStatus | None:
    """Return what the autoscaler of the connected cluster reports; None before its first report.

    Ray offers no structured report that covers both autoscaler versions
    (github.com/ray-project/ray/issues/41551), so this reads the text of `ray status --verbose`.
    Upstream: `ray.autoscaler._private.commands.debug_status` and the two keys of its arguments in
    `ray._private.ray_constants`, Ray 2.60.
    """
    import ray
    from ray._private import ray_constants
    from ray.autoscaler._private.commands import debug_status

    text = debug_status(
        internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS) or b"",
        internal_kv_get(ray_constants.DEBUG_AUTOSCALING_ERROR) or b"",
        verbose=True,
        address=ray.get_runtime_context().gcs_address,
    )
    return parse_autoscaler_status(text)


def parse_autoscaler_status(text: str) -> AutoscalerStatus | None:
    """Parse the text of `ray status --verbose`; None where it holds no node section."""
    sections = re.search(r"Active:\n(.*?)Pending:\n(.*?)Recent failures:\n(.*?)\n\n", text, re.S)
    if sections is None:
        return None
    active, pending, failures = sections.groups()
    lines = re.sub(r" \(latest_attempt: \S+\)", "", pending + failures).splitlines()
    messages = dict.fromkeys(" ".join(line.split()).removesuffix(" -") for line in lines)
    return AutoscalerStatus(
        active_types=frozenset(re.findall(r"^ \d+ (\S+)", active, re.M)),
        messages=tuple(line for line in messages if line and not line.startswith("(no ")),
    )


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the Hugging Face hub's client, those of its HTTP library included.

    That library differs between versions (requests, httpx, httpx2), and an error of a connection is
    not always an OSError. Upstream: `huggingface_hub.errors.HTTPError`, huggingface_hub 2.4.
    """
    from huggingface_hub.errors import HTTPError

    return OSError, ValueError, HTTPError


def read_hub_from_cache() -> None:
    """Let this process, and those that it starts, read the hub's files from the cache alone.

    The variable is read at import, so it comes too late here. `datasets` copies the constant when
    it is imported, which takes a second and may not have happened yet. Upstream:
    `huggingface_hub.constants.HF_HUB_OFFLINE`, huggingface_hub 2.4, and
    `datasets.config.HF_HUB_OFFLINE`, datasets 5.2.
    """
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def internal_kv_get(key: str) -> bytes | None:
    """Read a key of the connected cluster's internal key-value store.

    The autoscaler publishes its report and the standing resource request there and nowhere else.
    Upstream: `ray.experimental.internal_kv`, Ray 2.60.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    return _internal_kv_get(key)


@contextmanager
def own_sessions() -> Iterator[None]:
    """Give each process of a local Ray that starts during the body a session of its own.

    Signals to a process group (of Ctrl-C, `timeout`, a batch system) would end Ray before the run
    can save. Ray itself did so until it needed SIGINT for its drivers
    (https://github.com/ray-project/ray/pull/6008). Its processes still end with this one, since the
    kernel ends them; on other systems than Linux a reaper kills the process group instead, so there
    they stay in it. Upstream: `ray._private.services.ConsolePopen`, which starts each process, and
    `ray._private.utils.detect_fate_sharing_support_linux`, Ray 2.60.
    """
    from ray._private import services, utils

    popen = services.ConsolePopen
    if utils.detect_fate_sharing_support_linux():
        services.ConsolePopen = partial(popen, start_new_session=True)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        services.ConsolePopen = popen  # type: ignore[misc]


@contextmanager
def our_signal_handlers() -> Iterator[None]:
    """Keep this process's handler of SIGTERM while Ray starts in it.

    Ray's would exit at once, which leaves Serve running on a cluster. Upstream:
    `ray._private.utils.set_sigterm_handler`, which `ray.init` calls, Ray 2.60.
    """
    from ray._private import utils

    set_handler = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler


def start_ray(**options: Any) -> None:
    """Start a local Ray; once more if it has not started in the 30 seconds that Ray allows.

    Args:
        options: arguments of `ray.init`.
    """
    import ray

    once_more_if_slow(lambda: ray.init(address="local", **options))


def once_more_if_slow(start: Callable[[], T]) -> T:
    """Return what `start` returns; call it again if its processes of Ray were not ready in time.

    Ray gives the process that holds the cluster's state 30 seconds, and as long again to the one of
    the node. A busy machine can take longer. Ray then raises a bare Exception or RuntimeError and
    leaves its processes running. Upstream: `ray._private.node.Node`, Ray 2.60.
    """
    import psutil

    before = set(psutil.Process().children(recursive=True))
    try:
        return start()
    except Exception as error:
        if not any(text in str(error) for text in START_TIMEOUTS):
            raise
        for process in set(psutil.Process().children(recursive=True)) - before:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return start()


def session_log_dir() -> Path | None:
    """Return the log directory of the Ray node that this process started or joined, if any.

    `ray.get_runtime_context()` has the session's name but not its directory. Upstream:
    `ray._private.worker._global_node`, Ray 2.60.
    """
    import ray

    node = ray._private.worker._global_node
    return Path(node.get_logs_dir_path()) if node else None


def cluster_schema() -> dict[str, Any]:
    """Return the JSON schema of cluster files for `ray up`.

    Ray validates with this file but exposes no function that returns it
    (github.com/ray-project/ray/pull/7261). Upstream: `ray/autoscaler/ray-schema.json`, Ray 2.60.
    """
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def mlflow_schema_revision() -> str:
    """Return the schema revision of the sqlite stores that the installed MLflow writes.

    MLflow refuses a store of another revision only after it has been opened for writing
    (github.com/mlflow/mlflow/issues/21053); a check before the run needs the revision. Upstream:
    `mlflow.store.db.utils`, MLflow 3.17.
    """
    from mlflow.store.db.utils import _get_latest_schema_revision

    return _get_latest_schema_revision()
