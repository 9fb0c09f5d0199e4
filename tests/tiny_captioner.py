"""A vision-language model far too small to see anything, with its processor and tokenizer, in a folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

WORDS = "red blue green black white boots heels shoes sandals on a the with sole low high plain background".split()
SPECIAL = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
]
CHAT = (
    "{% for message in messages %}{% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}<end_of_utterance>{% endfor %}"
    "{% if add_generation_prompt %} a{% endif %}"
)


def build_captioner(folder: Path) -> str:
    """A model of Idefics3's kind that says a few words about any image, and others about another one."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    side = {"longest_edge": 32}
    images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    Idefics3Processor(images, wrapped, image_seq_len=4, chat_template=CHAT).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Idefics3Config(
        text_config={"model_type": "llama", **sizes, "num_key_value_heads": 2, "vocab_size": len(SPECIAL + WORDS)}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 1.0},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, "initializer_range": 1.0},
        scale_factor=2,
        image_token_id=SPECIAL.index("<image>"),
        pad_token_id=0,
    )
    model, end = Idefics3ForConditionalGeneration(config), SPECIAL.index("</s>")
    model.generation_config.suppress_tokens = [number for number in range(len(SPECIAL)) if number != end]
    model.generation_config.begin_suppress_tokens = [end]  # it says at least one word
    model.save_pretrained(folder)
    return str(folder)
