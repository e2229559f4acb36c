"""Turn a checkpoint into an MLflow model that `mlflow.transformers.load_model` can load.

MLflow's own `save_model` copies the weights. Here a file and the tokenizer are added to the
checkpoint directory, which stays a Hugging Face directory.
"""

import shutil
from pathlib import Path

MODEL_FILE, COMPONENTS = "MLmodel", "components"
_TOKENIZER_FILES = ("*token*", "chat_template*", "vocab*", "merges*", "*.model", "config.json")
_FLAVOR = {
    "task": "text-generation",
    "instance_type": "TextGenerationPipeline",
    "pipeline_model_type": "AutoModelForCausalLM",
    "source_model_name": "",
    "model_binary": ".",  # the weights lie beside the file
    "components": ["tokenizer"],
    "tokenizer_type": "AutoTokenizer",
}
"""Content of the flavor `transformers`, as MLflow 3.17 writes and reads it."""


def write_mlmodel(checkpoint: Path) -> bool:
    """Add to a checkpoint what MLflow needs to load it; return False for a LoRA adapter.

    MLflow looks for the tokenizer in a folder of its own, so its files are there a second time.
    """
    if not (checkpoint / "config.json").is_file():
        return False
    from mlflow.models import Model

    folder = checkpoint / COMPONENTS / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    for path in {path for pattern in _TOKENIZER_FILES for path in checkpoint.glob(pattern)}:
        if path.is_file():
            shutil.copy(path, folder)
    model = Model()
    model.add_flavor("transformers", **_FLAVOR)
    model.save(str(checkpoint / MODEL_FILE))
    return True
