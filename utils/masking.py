"""Secrets stay out of what a run writes down: settings, commands, addresses."""

import re

MASK = "***"
_WORD = r"(?:(?<!train_)(?<!initializer_)token|password|passwd|secret|api[_-]?key|access[_-]?key)"
# By how a name ends: max_tokens and tokenizer_name are no secrets. Nor is --train_token, a word to be learnt.
_SECRET_NAME = re.compile(rf"(?:^|[\W_]){_WORD}$", re.IGNORECASE)
_SECRET_TEXT = (
    # `--hub_token x` and `HF_TOKEN=x`, but not a prompt that speaks of a secret garden.
    (re.compile(rf"(--(?:\w+[_-])*{_WORD}(?:=| +(?!-)))('[^']*'|\"[^\"]*\"|\S+)", re.IGNORECASE), r"\1"),
    (re.compile(rf"(\b(?:\w+_)?{_WORD}=)('[^']*'|\"[^\"]*\"|\S+)", re.IGNORECASE), r"\1"),
    (re.compile(r"(\w://)[^/\s@]+(?=@)"), r"\1"),
    (re.compile(r"()\bhf_[A-Za-z0-9]{16,}"), r"\1"),
)


def mask_text(text: str) -> str:
    """A command or address with the values of its secrets replaced by ***."""
    for pattern, kept in _SECRET_TEXT:
        text = pattern.sub(kept + MASK, text)
    return text


def mask_secrets(value, name: str = ""):
    """Settings of any depth; what a secret's name holds is *** (unless it is empty), every name is kept."""
    if isinstance(value, dict):
        return {key: mask_secrets(item, str(key)) for key, item in value.items()}
    if value and _SECRET_NAME.search(name):
        return MASK
    if isinstance(value, (list, tuple)):
        return [mask_secrets(item, name) for item in value]
    return mask_text(value) if isinstance(value, str) else value
