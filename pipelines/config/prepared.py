"""A run with its names resolved: absolute paths, loaded benchmarks, a local base model.

`prepare` is called once per command; its parts are passed on. Benchmarks are read and a model from
the Hugging Face hub is downloaded at the first use, once.
"""

import atexit
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from evals import hardware, prompts, tasks
from evals.benchmark import Benchmark, Item
from evals.serving.adapters import CONFIG_FILE
from evals.settings import EngineSettings
from otr.config import ModelConfig
from otr.training.sources import absolute_path
from pipelines import _compat
from pipelines.builtin import corpus
from pipelines.config import defaults
from pipelines.config.presets import SweepConfig

if TYPE_CHECKING:
    from otr.training.corpus import CorpusReport

_HUB_SECONDS = 5.0
_WEIGHT_FILES = ["*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack"]


@dataclass(frozen=True)
class PreparedRun:
    """A run whose paths every process on its machines can open."""

    config: SweepConfig
    """The configuration with absolute paths and without ``builtin:`` names."""
    adapter: Path | None = None
    """LoRA adapter of the base model, to be scored with it."""
    read: "CorpusReport | None" = None
    """What the training data holds, if it was read already."""

    @cached_property
    def decided(self) -> "PreparedRun":
        """This run with a value for each option that was left open.

        A ValueError if model or data can't be read: see `defaults.decide`.
        """
        return defaults.decide(self)

    @cached_property
    def corpus(self) -> "CorpusReport":
        """The inspected training data; a ValueError if it can't be used."""
        from otr.training.corpus import inspect_corpus  # imports transformers

        return self.read or inspect_corpus(self.config.train.data, self.config.train.model)

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return Path(self.config.output) / self.config.name

    @property
    def stop_file(self) -> Path:
        """Once this file exists, the trials save and stop."""
        return self.directory / "stop"

    @cached_property
    def loaded_benchmarks(self) -> list[Benchmark]:
        """The benchmarks as published; a ValueError if one is unknown, missing or broken."""
        config = self.config
        return [
            tasks.load(name, config.benchmark_dir or None, max_items=config.max_items or None)
            for name in config.benchmarks
        ]

    @cached_property
    def benchmarks(self) -> list[Benchmark]:
        """The benchmarks with the limits of answers that suit the model.

        A ValueError as for `loaded_benchmarks`, or if thinking can't be switched as asked.
        """
        return prompts.fit_thinking(self._tokenizer_dir, self.loaded_benchmarks, self._positions)

    @cached_property
    def judge(self) -> Benchmark | None:
        """The benchmark of the search (`search.benchmark`), if there is one.

        A ValueError as for `benchmarks`, or if it shares items with them.
        """
        name, config = self.config.search.benchmark, self.config
        if not name:
            return None
        limit = config.max_items or None
        loaded = tasks.load(name, config.benchmark_dir or None, max_items=limit)
        _check_disjoint(loaded, self.loaded_benchmarks)
        return prompts.fit_thinking(self._tokenizer_dir, [loaded], self._positions)[0]

    @cached_property
    def engine(self) -> EngineSettings:
        """The engine's settings, with what they leave open chosen for benchmarks and machine.

        A ValueError if a benchmark does not fit the model, or the model does not fit the machine:
        see `evals.prompts.fit_context` and `evals.hardware.fit`.
        """
        scored = [*self.benchmarks, *filter(None, [self.judge])]
        with_context = prompts.fit_context(
            self._tokenizer_dir, scored, self.config.engine, self._positions
        )
        return hardware.fit(with_context, self._config_dir)

    @property
    def example_prompt(self) -> str:
        """The first prompt of the first benchmark, as the model sees it."""
        first = self.benchmarks[0]
        one = replace(first, items=first.items[:1])
        tokenizer = prompts.load_tokenizer(self._tokenizer_dir)
        return prompts.make_prompts(tokenizer, self._tokenizer_dir, one, self.engine).rendered[0]

    @cached_property
    def _config_dir(self) -> Path:
        return local_model(self.config.train.model.path, weights=False)

    @cached_property
    def _tokenizer_dir(self) -> Path:
        if self.adapter and (self.adapter / "tokenizer_config.json").is_file():
            return self.adapter
        model = self.config.train.model
        if not _needs_view(model, self._config_dir):
            return self._config_dir
        folder = Path(tempfile.mkdtemp(prefix="otr-tokenizer-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return write_with_template(model, self._config_dir, folder / "tokenizer")

    @cached_property
    def _positions(self) -> int | None:
        from otr.models.architecture import max_positions  # imports transformers

        return max_positions(replace(self.config.train.model, path=str(self._config_dir)))

    @cached_property
    def model_dir(self) -> Path:
        """The base model's directory; a ValueError if the model is not available.

        With a chat template of the configuration's, or a tokenizer that otr converts, it is one in
        the run's directory: the base model is asked as the trained ones are.
        """
        model = self.config.train.model
        directory = local_model(model.path)
        if not _needs_view(model, directory):
            return directory
        return write_with_template(model, directory, self.directory / "base_model")


def prepare(config: SweepConfig, builtin_files: Path | None = None) -> PreparedRun:
    """Write the built-in files that a configuration names and make its local paths absolute.

    Args:
        config: the configuration as given.
        builtin_files: directory for the built-in files; by default one below `config.output`.

    Raises:
        ValueError: an unknown ``builtin:`` name, or a model directory that does not exist.
    """
    folder = builtin_files or corpus.builtin_dir(config.output)
    if _reads_hub(config):
        _check_hub()

    def resolve(name: str) -> str:
        return absolute_path(corpus.resolve_path(name, folder, config.benchmark_dir))

    def resolve_benchmark(name: str) -> str:
        parts = tasks.parse_name(name)
        address, mark, label = parts.address.partition("#")
        path = corpus.resolve_path(address, folder, config.benchmark_dir)
        return name if path == address else f"file:{path}{mark}{label}{parts.suffix}"

    data, model = config.train.data, config.train.model
    if model.chat_template:  # every process gets the text; the file may exist on this host alone
        from otr.models.tokenizer import template_text  # imports transformers

        model = replace(model, chat_template=template_text(model.chat_template))
    if model.add_tokens:
        from otr.models.tokenizer import added_tokens

        model = replace(model, add_tokens="".join(f"{t}\n" for t in added_tokens(model.add_tokens)))
    path = resolve(model.path)
    return PreparedRun(
        replace(
            config,
            output=str(Path(config.output).absolute()),
            train=replace(
                config.train,
                model=replace(model, path=path if Path(path).is_dir() else model.path),
                data=replace(
                    data,
                    paths=tuple(map(resolve, data.paths)),
                    validation=tuple(map(resolve, data.validation)),
                ),
            ),
            benchmarks=tuple(map(resolve_benchmark, config.benchmarks)),
            search=replace(config.search, benchmark=resolve_benchmark(config.search.benchmark)),
        )
    )


def prepare_to_score(config: SweepConfig, builtin_files: Path | None = None) -> PreparedRun:
    """Prepare a run as `prepare` does; the model may also be a LoRA adapter.

    Raises:
        ValueError: see `prepare`, or the adapter's base model is missing.
    """
    directory = Path(config.train.model.path).absolute()
    if not (directory / CONFIG_FILE).is_file():
        return prepare(config, builtin_files)
    from otr.models.lora import base_path  # imports torch

    base = ModelConfig(base_path(directory))
    if Path(base.path).is_absolute() and not Path(base.path).is_dir():
        raise ValueError(
            f"the base model of the adapter in {directory} is not at {base.path}: set "
            f"base_model_name_or_path in {CONFIG_FILE} to its directory"
        )
    of_base = replace(config, train=replace(config.train, model=base))
    return replace(prepare(of_base, builtin_files), adapter=directory)


@contextmanager
def prepare_temporarily(
    config: SweepConfig, prepared_by: Callable[[SweepConfig, Path], PreparedRun] = prepare
) -> Iterator[PreparedRun]:
    """Prepare a run for a command that leaves nothing behind: built-in files are deleted after."""
    with TemporaryDirectory() as folder:
        yield prepared_by(config, Path(folder))


def _check_disjoint(judge: Benchmark, benchmarks: Sequence[Benchmark]) -> None:
    """Check that a search does not decide by items that its result is reported on.

    Raises:
        ValueError: an item of the search's benchmark is also one of `benchmarks`.
    """
    asked = {_question(item): item.id for item in judge.items}
    for benchmark in benchmarks:
        shared = [asked[q] for q in map(_question, benchmark.items) if q in asked]
        if shared:
            raise ValueError(
                f"--search.benchmark {judge.name} shares {len(shared)} of its {len(asked)} items "
                f"with --benchmarks {benchmark.name} (the first: {shared[0]}): what the search "
                "chose by them would look too good on them. Give parts without common items, as "
                "in --search.benchmark gsm8k:items=1-200 --benchmarks gsm8k:items=201-1319"
            )


def _question(item: Item) -> str:
    return " ".join(item.prompt.lower().split())


def _check_hub_name(model: str) -> None:
    """Check that a model that is no directory may be one on the Hugging Face hub.

    Raises:
        ValueError: its name can only be that of a directory.
    """
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model) or Path(model).exists():
        raise ValueError(
            f"no model {model!r}: there is no such directory; give the directory of a model, or "
            "its name on the Hugging Face hub, such as HuggingFaceTB/SmolLM2-135M"
        )


def _reads_hub(config: SweepConfig) -> bool:
    """Return whether the model, data or benchmarks are on the Hugging Face hub.

    Raises:
        ValueError: the model is neither a directory nor the name of one on the hub.
    """
    model, data = config.train.model.path, config.train.data
    if not (model.startswith("builtin:") or Path(model).is_dir()):
        _check_hub_name(model)
        return True
    names = [*data.paths, *data.validation]
    if any(name.startswith("hf:") for name in names):
        return True
    if config.benchmark_dir or os.environ.get(tasks.FOLDER_VARIABLE):
        return False
    benchmarks = [name for name in (*config.benchmarks, config.search.benchmark) if name]
    return any(name.startswith("builtin:gsm8k") for name in names + benchmarks) or not all(
        name.startswith(("builtin:", "file:", "class:")) for name in benchmarks
    )


def _check_hub() -> None:
    """Read from the cache alone, from now on, if the Hugging Face hub does not answer.

    Without this, its client tries each file for half a minute.
    """
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except _compat.hub_errors() as error:
        _compat.read_hub_from_cache()
        reason = str(error).strip().partition("\n")[0]
        note = f"the Hugging Face hub does not answer ({reason}): using the local cache"
        print(note, file=sys.stderr)


def _needs_view(model: ModelConfig, directory: Path) -> bool:
    """Return whether training's tokenizer is not simply the one in the model's directory."""
    from otr.models.tokenizer import is_tekken  # imports transformers

    return model.changes_template or is_tekken(directory)


def write_with_template(model: ModelConfig, directory: Path, target: Path) -> Path:
    """Write a model directory with the tokenizer and template of training; weights are links.

    Args:
        model: the configuration.
        directory: the model's own directory.
        target: the directory to write; it is replaced.

    Returns:
        `target`.

    Raises:
        ValueError: the template can't be used, see `otr.models.tokenizer.load_tokenizer`.
    """
    from otr.models.tokenizer import TEKKEN, load_tokenizer  # imports transformers

    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".writing-") as folder:
        made = Path(folder) / target.name
        load_tokenizer(replace(model, path=str(directory), add_tokens="")).save_pretrained(made)
        for file in directory.iterdir():
            replaced = file.name.startswith("chat_template") or file.name == TEKKEN
            if not (made / file.name).exists() and not replaced:
                (made / file.name).symlink_to(file.resolve())
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    return target


def local_model(path: str, *, weights: bool = True) -> Path:
    """Return a model's directory; download a model on the Hugging Face hub to the local cache.

    Args:
        path: a directory, or the name of a model on the hub.
        weights: also download the weights.

    Raises:
        ValueError: `path` is neither a directory nor a model on the hub.
    """
    if Path(path).is_dir():
        return Path(path).absolute()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, ignore_patterns=None if weights else _WEIGHT_FILES))
    except _compat.hub_errors() as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"no model {path!r}: not a directory, and not on the Hugging Face hub ({reason})"
        ) from error
