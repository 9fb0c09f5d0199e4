"""What the page offers to compose a prompt: the attributes of the dataset that a LoRA was trained on."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from families.lora_mix import run_folder
from utils.cli import UserError
from utils.dataset import list_folders, read_metadata, read_split
from utils.runs import read_settings
from utils.wording import PLACEHOLDER, fill_template

logger = logging.getLogger(__name__)
MOST_VALUES = 30  # of an attribute, the most frequent


@dataclass(frozen=True)
class Pickers:
    """`values` of each attribute that a caption names; `example` is a caption that was trained on, `chosen` its values.

    An attribute that has one value alone is always in the prompt.
    """

    template: str
    add_trigger: Callable[[str], str]
    values: dict[str, list[str]]
    example: str
    chosen: dict[str, str]

    def composes_as(self, other: "Pickers") -> bool:
        return self.values == other.values and self.compose(self.chosen) == other.compose(self.chosen)

    def compose(self, chosen: dict[str, str]) -> str:
        """The caption that a training image with these attributes had."""
        known = {name: found[0] for name, found in self.values.items() if len(found) == 1}
        known |= {name: value for name, value in chosen.items() if value in self.values.get(name, ())}
        return self.add_trigger(fill_template(self.template, dict[str, str | None](known)))


def read_pickers(weights: Path, default_template: str, add_trigger: Callable[[str, str | None], str]) -> Pickers | None:
    """Those of the (first) dataset of a LoRA's run; None where the run or its dataset is not at hand.

    `add_trigger`: what makes a caption of a text and the dataset's trigger word.
    """
    folder = run_folder(weights.parent)
    try:
        settings = read_settings(folder)
        data, prefixes = list_folders(settings.get("train_data_dir")), settings.get("caption_prefix")
        if not data:
            return None
        options, records = read_metadata(Path(data[0]))["options"], read_split(Path(data[0]), "train")
    except UserError as error:
        logger.warning("the page has no attributes to choose for %s: %s", folder, error)
        return None
    template, word = options.get("caption_template") or default_template, options.get("trigger_word")
    counts = {name: Counter(one.get(name) for one in records) for name in dict.fromkeys(PLACEHOLDER.findall(template))}
    values = {name: [value for value, _ in found.most_common(MOST_VALUES) if value] for name, found in counts.items()}
    first = records[0] if records else {"text": ""}
    prefix = f"{prefixes[0]} " if prefixes and prefixes[0] else ""
    return Pickers(
        template=template,
        add_trigger=lambda text: prefix + add_trigger(text, word),
        values={name: found for name, found in values.items() if found},
        example=prefix + first["text"],
        chosen={name: first[name] for name in values if first.get(name)},
    )
