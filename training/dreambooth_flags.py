"""The flags that train_dreambooth.py has beside those of every trainer; their names are those of diffusers' scripts."""

import argparse
from argparse import BooleanOptionalAction as OnOff
from pathlib import Path

from families import models
from training import flags
from training.ignored_flags import tell_lonely
from utils import cli, faces
from utils.cli import positive

# Of diffusers' dreambooth scripts, what has no place here, and why.
REFUSED = flags.REFUSED | {
    "tokenizer_name": "the tokenizer is the model's own; leave it out",
    "pretrained_vae_model_name_or_path": "the VAE is the model's own, and runs in float32; leave it out",
    "repeats": "use more --max_train_steps: an epoch is once through the photos",
    "pre_compute_text_embeddings": "it is always done where the text encoder isn't trained; leave it out",
    "tokenizer_max_length": "it is the model's own; this flag is for DeepFloyd IF, which is not supported",
    "text_encoder_use_attention_mask": "is for DeepFloyd IF, which is not supported",
    "validation_images": "is for DeepFloyd IF, which is not supported",
    "class_labels_conditioning": "is for DeepFloyd IF, which is not supported",
    "skip_save_text_encoder": "is for DeepFloyd IF, which is not supported",
    "validation_scheduler": "validation images are drawn by DPM-Solver++; leave it out",
    "set_grads_to_none": "it is always done; leave it out",
    "offset_noise": "use --noise_offset 0.1",
    "do_edm_style_training": "is not supported",
    "adam_weight_decay_text_encoder": "all that is trained has --adam_weight_decay",
    "prodigy_beta3": "it is the square root of --adam_beta2; leave it out",
    "prodigy_decouple": "it is always on; leave it out",
    "prodigy_use_bias_correction": "it is always on; leave it out",
    "prodigy_safeguard_warmup": "it is always on; leave it out",
}
RATES = {"lora": 1e-4, "full": 5e-6}
OF_LORA = "rank lora_alpha lora_dropout lora_layers use_dora use_rslora".split()
OF_PRIOR = (
    "class_data_dir class_prompt num_class_images prior_loss_weight sample_batch_size prior_generation_precision"
).split()


def add_subject_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("subject")
    group.add_argument("--instance_data_dir", metavar="DIR", help="5 to 30 photos, with captions or without")
    group.add_argument("--dataset_name", metavar="HUB_ID", help="a hub dataset, in place of --instance_data_dir")
    group.add_argument("--instance_prompt", metavar="TEXT", help="with a rare word: a photo of sks shoes")
    group.add_argument("--mask_loss", type=Path, metavar="DIR", help="masks named as the photos: white is what counts")
    faces.add_face_flags(group)
    flags.add_column_flags(group)
    flags.add_image_flags(group)

    group = parser.add_argument_group("method")
    group.add_argument(
        "--method",
        choices=["lora", "full"],
        default="lora",
        help="a LoRA (rate 1e-4, alpha = rank), or all weights (rate 5e-6, no flags of a LoRA): a whole pipeline",
    )
    group.add_argument("--train_token", metavar="WORD", help="a new word, whose embedding is learnt with the LoRA")
    group.add_argument("--initializer_token", metavar="TEXT", help="where it begins; default: at random")
    group.add_argument("--token_learning_rate", type=float, help="default: --text_encoder_lr or --learning_rate")


def add_prior_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prior preservation")
    group.add_argument("--with_prior_preservation", action=OnOff, default=False, help="train class images beside")
    group.add_argument(
        "--class_data_dir", type=Path, metavar="DIR", help="what is missing is drawn, as validation images are"
    )
    group.add_argument("--class_prompt", metavar="TEXT", help="the subject's kind: a photo of shoes")
    group.add_argument("--num_class_images", type=positive, default=100, metavar="N", help="in all")
    group.add_argument("--prior_loss_weight", type=float, default=1.0, help="beside the 1 of the photos")
    group.add_argument("--sample_batch_size", type=positive, default=4, help="class images drawn at once")
    group.add_argument(
        "--prior_generation_precision",
        choices=["no", "fp32", "fp16", "bf16"],
        help="of drawing them; default: as in training",
    )


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """What argparse can't check by itself, and the defaults that depend on other flags."""

    def need(condition, message):
        if not condition:
            parser.error(message)

    for name in ("output_kohya_format", "train_token") if args.method == "full" else ():
        given = getattr(args, name)
        need(not given, f"--{name} {given}: not with --method full; leave it out, or take --method lora")
    tell_lonely(parser, args, dict.fromkeys(OF_LORA, ("--method lora", args.method == "lora")))
    places = [place for place in (args.instance_data_dir, args.dataset_name) if place]
    need(len(places) == 1, "--instance_data_dir DIR or --dataset_name HUB_ID: give one of the two")
    for name in ("initializer_token", "token_learning_rate"):
        need(not getattr(args, name) or args.train_token, f"--{name}: needs --train_token")
    need(args.face_crop or not args.face_detector, "--face_detector: needs --face_crop")
    need(not (args.face_crop and args.mask_loss), "--face_crop: the masks of --mask_loss are of whole photos")
    rate = args.token_learning_rate
    need(rate is None or 0 < rate < float("inf"), f"--token_learning_rate {rate}: expected more than 0, and finite")
    word = args.train_token
    need(word is None or (word and not any(map(str.isspace, word))), f"--train_token {word!r}: expected one word")
    need(
        not word or not args.instance_prompt or word in args.instance_prompt,
        f"--train_token {word}: isn't in --instance_prompt {args.instance_prompt!r}; write it there",
    )
    for name in ("class_data_dir", "class_prompt") if args.with_prior_preservation else ():
        need(getattr(args, name), f"--with_prior_preservation: needs --{name}")
    prior = "--with_prior_preservation", args.with_prior_preservation
    tell_lonely(parser, args, dict.fromkeys(OF_PRIOR, prior))
    need(args.prior_loss_weight > 0, f"--prior_loss_weight {args.prior_loss_weight:g}: expected more than 0")
    args.learning_rate = RATES[args.method] if args.learning_rate is None else args.learning_rate
    args.lora_alpha = args.rank if args.lora_alpha is None else args.lora_alpha
    if args.effective_batch_size is None and args.gradient_accumulation_steps is None:
        args.gradient_accumulation_steps = 1
    flags.check_training_flags(parser, args)
    return args


def add_flags(parser: argparse.ArgumentParser) -> None:
    """All of them, with defaults that suit a few photos."""
    models.add_model_flags(parser)
    add_subject_flags(parser)
    add_prior_flags(parser)
    flags.add_lora_flags(parser)
    flags.add_training_flags(parser, accumulation=1)
    flags.add_performance_flags(parser)
    flags.add_validation_flags(parser)
    flags.add_run_flags(parser, "runs/dreambooth")
    cli.add_refused_flags(parser, REFUSED)
    parser.set_defaults(
        learning_rate=None, lora_alpha=None, lr_scheduler="constant", lr_warmup_steps=0, max_train_steps=800,
        validation_steps=200, checkpointing_steps=200
    )  # fmt: skip
