"""Flags that the trainers share: wrong values are one line, and what may change in a continued run is known."""

import re

import pytest

from families import models
from training import flags
from utils import cli


def make_parser():
    parser = cli.make_parser("a trainer")
    parser.prog = "train.py"
    models.add_model_flags(parser)
    flags.add_data_flags(parser)
    flags.add_lora_flags(parser)
    flags.add_training_flags(parser)
    flags.add_performance_flags(parser)
    flags.add_validation_flags(parser)
    flags.add_run_flags(parser, "runs/x")
    return parser


def parse(line=""):
    parser = make_parser()
    args = cli.parse_args(parser, line.split())
    flags.check_training_flags(parser, args)
    return args


def test_the_defaults_are_the_recipe():
    args = parse()
    recipe = {"resolution": 512, "train_batch_size": 2, "learning_rate": 1e-4, "lr_scheduler": "constant_with_warmup"}
    recipe |= {"lr_warmup_steps": 500, "rank": 8, "lora_alpha": 16, "lora_dropout": 0, "max_train_steps": 3000}
    recipe |= {"validation_steps": 500, "checkpointing_steps": 500, "gradient_checkpointing": True, "max_grad_norm": 1}
    recipe |= {"lora_layers": ["to_k", "to_q", "to_v", "to_out.0"], "report_to": "tensorboard", "on_nonfinite": "skip"}
    assert {name: getattr(args, name) for name in recipe} == recipe


@pytest.mark.parametrize(
    "line",
    [
        "--learning_rate 0",
        "--learning_rate nan",
        "--text_encoder_lr 0",
        "--lora_alpha 0",
        "--snr_gamma 0",
        "--snr_gamma -5",
        "--max_grad_norm 0",
        "--adam_epsilon 0",
        "--adam_beta1 1",
        "--adam_beta2 1.5",
        "--adam_weight_decay -1",
        "--lora_dropout 1",
        "--ema_decay 1",
        "--lr_power 0",
        "--lr_warmup_steps -1",
        "--validation_steps -1",
        "--checkpointing_steps -1",
        "--num_validation_images -1",
        "--cache_crops -1",
        "--dataloader_num_workers -1",
        "--train_batch_size 0",
        "--train_batch_size many",
        "--caption_dropout 1.1",
        "--held_out nan",
        "--rank 0",
        "--resolution x",
        "--lr_scheduler sometimes",
    ],
)
def test_a_value_that_can_not_be_is_one_line_with_the_flag(capsys, line):
    with pytest.raises(SystemExit) as ended:
        parse(line)
    said = capsys.readouterr().err
    flag, value = line.split()
    assert ended.value.code == 2 and said.count("\n") == 1
    assert re.search(rf"{flag}:? (invalid (choice|\w+ value): ')?{re.escape(value)}", said)


@pytest.mark.parametrize(
    "line,said",
    [
        ("--no-center_crop --cache_crops 0", "endless crops can't be cached"),
        ("--use_8bit_adam --optimizer prodigy", "--use_8bit_adam: not with --optimizer prodigy"),
        ("--early_stopping_patience 3 --validation_steps 0", "--early_stopping_patience 3: needs --validation_steps"),
    ],
)
def test_flags_that_contradict_each_other(capsys, line, said):
    with pytest.raises(SystemExit):
        parse(line)
    assert said in capsys.readouterr().err


def test_flags_that_go_together():
    assert parse("--no-center_crop --cache_crops 0 --no-cache_latents").cache_crops == 0
    assert parse("--use_8bit_adam").optimizer == "adamw8bit"
    assert parse("--early_stopping_patience 3 --validation_steps 0 --validation_epochs 1").validation_epochs == 1
    assert parse("--train_batch_size auto --effective_batch_size 16").train_batch_size == "auto"


def test_only_what_changes_nothing_in_training_is_free_to_change():
    every = set(vars(parse()))
    assert set(flags.NOT_IN_TRAINING) <= every  # no name there is misspelt
    free = flags.free_to_change(parse())
    trained = (
        "seed rank lora_alpha learning_rate effective_batch_size resolution train_data_dir snr_gamma mixed_precision"
    )
    trained += " random_flip caption_dropout optimizer lr_scheduler lora_layers num_validation_samples use_ema"
    assert not free & set(trained.split())
    assert {"train_batch_size", "gradient_accumulation_steps", "max_train_steps", "report_to"} <= free


@pytest.mark.parametrize("schedule", flags.SCHEDULES)
def test_the_length_is_free_only_where_the_rate_does_not_depend_on_it(schedule):
    free = flags.free_to_change(parse(f"--lr_scheduler {schedule}"))
    assert ("max_train_steps" in free) == ("num_train_epochs" in free) == schedule.startswith("constant")


RESTARTS = "--lr_scheduler cosine_with_restarts"


@pytest.mark.parametrize(
    "line, partner, with_it",
    [
        ("--ema_decay 0.9", "--use_ema", "--use_ema"),
        ("--hub_model_id a/b", "--push_to_hub", "--push_to_hub"),
        ("--lr_power 2.5", "--lr_scheduler polynomial", "--lr_scheduler polynomial"),
        ("--lr_num_cycles 3 --lr_scheduler cosine", RESTARTS, RESTARTS),
        ("--cache_crops 9", "--no-center_crop", "--no-center_crop"),
        ("--dataset_config_name en", "--dataset_name", "--dataset_name a/b"),
        ("--lr_warmup_steps 5 --lr_scheduler constant", "an --lr_scheduler that warms up", "--lr_scheduler cosine"),
    ],
)
def test_a_flag_that_does_nothing_alone_is_an_error_and_from_a_recipe_a_warning(
    capsys, caplog, tmp_path, line, partner, with_it
):
    flag, value = line.split()[:2]
    with pytest.raises(SystemExit):
        parse(line)
    assert f"{flag} {value}: does nothing without {partner}" in capsys.readouterr().err
    pairs = line.replace("--", "").split()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("".join(f"{key}: {one}\n" for key, one in zip(pairs[::2], pairs[1::2])))
    parse(f"--config {recipe}")
    assert caplog.messages == [f"--config: `{flag[2:]}: {value}` does nothing without {partner}"]
    caplog.clear()
    parse(f"{line} {with_it}")
    assert not caplog.messages


@pytest.mark.parametrize("line", ["--set_grads_to_none", "--text_encoder_lr 0.001"])
def test_what_published_diffusers_commands_carry_is_only_a_warning(caplog, line):
    parse(line)
    assert len(caplog.messages) == 1 and f"{line} does nothing" in caplog.messages[0]
