"""Loading a model's tokenizer, which is much faster to import than `otr.models.load`.

Options for the chat template change the tokenizer itself, and so every checkpoint that is written
with it: scoring, serving and other people's code then render conversations as training did.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerBase

from otr.config import ModelConfig
from otr.data.chat_template import mentioned_names
from otr.hints import did_you_mean, repeated

CHAT_TEMPLATES = {
    "chatml": "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "plain": "{% for message in messages %}"
    "{% if loop.first %}{{ bos_token or '' }}{% endif %}"
    "{% if message.role == 'assistant' %}{{ 'Assistant: ' + message.content + eos_token + '\n' }}"
    "{% else %}{{ message.role | capitalize + ': ' + message.content + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
}
"""Templates that can be named. `chatml` is for tokenizers that have its two tokens, `plain` ends
answers with any tokenizer's own end of sequence."""
TEKKEN = "tekken.json"
"""File of a tokenizer in the format of mistral-common."""
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, with the tokens and chat template of the configuration.

    It may have no chat template, which a corpus of plain texts does not need.

    Raises:
        ValueError: it cannot be loaded, or the tokens or the template can't be read or used.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            config.path, trust_remote_code=config.trust_remote_code
        )
        if is_tekken(config.path) or type(tokenizer).__name__ == "MistralCommonBackend":
            tokenizer = _from_tekken(config.path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"no tokenizer at {config.path!r}: give a Hugging Face directory or hub name ({reason})"
        ) from error
    if config.add_tokens:
        new = [AddedToken(token, normalized=False) for token in added_tokens(config.add_tokens)]
        tokenizer.add_tokens(new)
    if config.chat_template:
        tokenizer.chat_template = template_text(config.chat_template)
    if config.chat_template_args:
        check_chat_template(tokenizer, config.path)
        tokenizer.chat_template = _with_defaults(tokenizer.chat_template, config.chat_template_args)
    if config.changes_template:
        _check_renders(tokenizer, config)
    return tokenizer


def added_tokens(name: str) -> list[str]:
    """Return the tokens in a file, or in a text with one per line.

    Raises:
        ValueError: the file can't be read, or a token is empty or occurs twice.
    """
    text = name
    if "\n" not in name:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--add-tokens {name!r} can't be read: {error}") from None
    tokens = text.splitlines()
    for number, token in enumerate(tokens, 1):
        if not token.strip():
            raise ValueError(f"--add-tokens: line {number} is empty: give one token per line")
    twice = repeated(tokens)
    if twice:
        raise ValueError(f"--add-tokens: {twice[0]!r} occurs twice: leave one out")
    return tokens


def is_tekken(path: str | Path) -> bool:
    """Return whether a directory's tokenizer is in the format of mistral-common."""
    return (Path(path) / TEKKEN).is_file()


def _from_tekken(path: str) -> PreTrainedTokenizerBase:
    """Convert a tokenizer of mistral-common, whose own class has no template and no positions.

    Its chat template is the one beside it, or the one that mistral-common itself renders.
    """
    from transformers.integrations.mistral import convert_tekken_tokenizer
    from transformers.utils import cached_file

    return convert_tekken_tokenizer(str(cached_file(path, TEKKEN)))


def check_chat_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Check that a tokenizer has a chat template.

    Args:
        tokenizer: as loaded.
        path: of the model, for the message.

    Raises:
        ValueError: it has none.
    """
    if not tokenizer.chat_template:
        names = " or ".join(sorted(CHAT_TEMPLATES))
        raise ValueError(
            f"the tokenizer of {path!r} has no chat template: give --chat-template FILE, with the "
            f"template that the model will be used with, or one of otr's own, {names}"
        )


def template_text(name: str) -> str:
    """Return the text of a chat template that is named, in a file, or given as Jinja text.

    Raises:
        ValueError: it is none of these.
    """
    if "{%" in name or "{{" in name:
        return name
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(CHAT_TEMPLATES))
        raise ValueError(
            f"--chat-template {name!r} is no file that can be read ({error}) and none of otr's own "
            f"templates ({known}): {did_you_mean(name, CHAT_TEMPLATES)}"
        ) from None


def _with_defaults(
    template: str | dict[str, str], arguments: Mapping[str, str]
) -> str | dict[str, str]:
    """Return a template in which the arguments have these values unless a caller gives others.

    Some tokenizers have several templates by name, such as one for conversations with tools: each
    gets the arguments.

    Raises:
        ValueError: the template does not mention an argument.
    """
    templates = template if isinstance(template, dict) else {"": template}
    known = frozenset().union(*map(mentioned_names, templates.values()))
    lines = []
    for name, text in arguments.items():
        if name not in known:
            raise ValueError(
                f"--chat-template-args {name}={text}: the chat template has no such argument, "
                f"{did_you_mean(name, known)}"
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        lines.append(f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}")
    made = {
        # A checkpoint's template has them already.
        name: "".join(line for line in lines if line not in each) + each
        for name, each in templates.items()
    }
    return made if isinstance(template, dict) else made[""]


def _check_renders(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    template: Any = tokenizer.apply_chat_template
    try:
        template([{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError as error:
        raise ValueError(
            f"--chat-template {config.chat_template!r} can't be rendered: {error}"
        ) from error
    missing = [token for token in _CHATML_TOKENS if token not in tokenizer.get_vocab()]
    if config.chat_template == "chatml" and missing:
        raise ValueError(
            f"--chat-template 'chatml' needs the token {missing[0]}, which the tokenizer of "
            f"{config.path!r} lacks: use 'plain', or a template of your own"
        )
