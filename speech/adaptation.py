"""Which weights of a voice are trained: all, or those that make one speaker of it."""

import re

from torch.nn import Module, Parameter

from utils.cli import UserError

# What makes the condition, of who speaks and how (see speech.parts), and the layers that hear it.
SPEAKER = (
    r"(.*\.)?(embed_speaker|read_speaker|style_tokens|\w+_to_condition|cond|cond_layer|text_speaker|text_norms)\..*"
)
# By the name that --adapt has for it: which weights, and in words.
TRAINED = {
    "speaker": (SPEAKER, "the table of speakers and all layers that hear who speaks"),
    "decoder": (rf"{SPEAKER}|decoder\..*", "the table of speakers, all layers that hear who speaks, and the decoder"),
    "all": (".*", "all weights"),
}


def freeze_others(model: Module, adapt: str) -> list[Parameter]:
    """The weights that are trained; the others have no gradient from here on. Refused where none is left."""
    for name, parameter in model.named_parameters():
        if not re.fullmatch(TRAINED[adapt][0], name):
            parameter.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError(
            f"--adapt {adapt}: the voice is of one speaker, and no layer of it hears who speaks; "
            "give decoder or all, or begin with a voice of several speakers"
        )
    return trained
