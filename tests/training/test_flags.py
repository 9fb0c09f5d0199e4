"""Flags that the trainers share: wrong values are one line, and what may change in a continued run is known."""

import argparse
import re
from types import SimpleNamespace

import pytest

from families import models
from service.report.flags import add_report_flags
from tests.tiny_models import DDPM
from training import batches, flags, setup
from utils import cli, dataset


def make_parser():
    parser = cli.make_parser("a trainer")
    parser.prog = "train.py"
    models.add_model_flags(parser)
    flags.add_data_flags(parser)
    flags.add_lora_flags(parser, alpha="2 x --rank")
    flags.add_training_flags(parser, 3000, 8)
    flags.add_noise_flags(parser)
    flags.add_flow_flags(parser)
    flags.add_optimizer_flags(parser)
    flags.add_image_performance_flags(parser)
    flags.add_image_validation_flags(parser)
    flags.add_run_flags(parser, "runs/x")
    add_report_flags(parser)
    return parser


def parse(line="", recipe=None):
    parser = make_parser()
    args = cli.parse_args(parser, [*line.split(), *(["--config", str(recipe)] if recipe else [])])
    flags.settle_defaults(parser, args, steps=3000, accumulation=8)
    flags.settle_alpha(args, alpha=2)
    flags.check_image_flags(parser, args)
    flags.check_training_flags(parser, args)
    return args


def test_the_defaults_are_the_recipe():
    args = parse()
    recipe = {"resolution": None, "train_batch_size": 2, "learning_rate": 1e-4, "lr_scheduler": "constant_with_warmup"}
    recipe |= {"lr_warmup_steps": 500, "rank": 8, "lora_alpha": 16, "lora_dropout": 0, "max_train_steps": 3000}
    recipe |= {"validation_steps": 500, "checkpointing_steps": 500, "gradient_checkpointing": True, "max_grad_norm": 1}
    recipe |= {"lora_layers": None, "report_to": "tensorboard", "on_nonfinite": "skip"}
    assert {name: getattr(args, name) for name in recipe} == recipe


@pytest.mark.parametrize(
    "line",
    [
        "--learning_rate 0",
        "--learning_rate nan",
        "--text_encoder_lr 0",
        "--timestep_shift 0",
        "--timestep_shift dynamic",
        "--mode_scale 2",
        "--logit_mean 11",
        "--lora_alpha 0",
        "--snr_gamma 0",
        "--huber_c 1e-30",
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
        "--blocks_on_cpu -1",
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


def test_a_shift_that_can_not_be_names_the_words_that_can(capsys):
    with pytest.raises(SystemExit):
        parse("--timestep_shift junk")
    assert "--timestep_shift junk: expected a number, above 0, at most 100, or auto, or none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line,said",
    [
        ("--no-center_crop --cache_crops 0", "unlimited crops can't be cached"),
        ("--use_8bit_adam --optimizer prodigy", "--use_8bit_adam: not with --optimizer prodigy"),
        (
            "--optimizer adafactor --adam_beta2 0.9",
            "--adam_beta2 0.9: does nothing without --optimizer adamw or another",
        ),
        ("--logging_dir README.md", "--logging_dir README.md: the run itself writes that; give another name"),
        ("--logging_dir checkpoint-2", "--logging_dir checkpoint-2: the run itself writes that"),
        ("--logging_dir /r/best --output_dir /r", "--logging_dir /r/best: the run itself writes that"),
        ("--logging_dir best/x", "--logging_dir best/x: the run itself writes that"),
        ("--early_stopping_patience 3 --validation_steps 0", "--early_stopping_patience 3: needs --validation_steps"),
        (
            "--aspect_ratio_buckets 64,64 --no-use_aspect_ratio_buckets",
            "--aspect_ratio_buckets: not with --no-use_aspect_ratio_buckets",
        ),
        ("--use_dora --output_kohya_format", "--output_kohya_format: not with --use_dora"),
        ("--blocks_on_cpu 9 --no-gradient_checkpointing", "--blocks_on_cpu 9: not with --no-gradient_checkpointing"),
        ("--memory auto --no-gradient_checkpointing", "--memory auto: not with --no-gradient_checkpointing"),
        ("--blocks_on_cpu 9 --compile", "--blocks_on_cpu 9: not with --compile"),
        ("--blocks_on_cpu 9 --quantize_base nf4", "--blocks_on_cpu 9: not with --quantize_base nf4"),
        ("--train_data_dir a --dataset_name b/c", "--train_data_dir a: does nothing with --dataset_name b/c; give one"),
    ],
)
def test_flags_that_contradict_each_other(capsys, line, said):
    with pytest.raises(SystemExit) as ended:
        parse(line)
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and ended.value.code == 2


def test_flags_that_go_together():
    assert parse("--no-center_crop --cache_crops 0 --no-cache_latents").cache_crops == 0
    assert parse("--use_8bit_adam").optimizer == "adamw8bit"
    assert parse("--early_stopping_patience 3 --validation_steps 0 --validation_epochs 1").validation_epochs == 1
    assert parse("--train_batch_size auto --effective_batch_size 16").train_batch_size == "auto"


def batch_of(processes, line, recipe=None):
    args = parse(line, recipe)
    plan = batches.plan_batch(
        args.train_batch_size, args.gradient_accumulation_steps, args.effective_batch_size, processes
    )
    return plan.micro, plan.effective


@pytest.mark.parametrize(
    "line, one, two",
    [
        ("", (2, 16), (2, 16)),  # the defaults are divided among the processes
        ("--train_batch_size 4", (4, 4), (4, 8)),  # the command line counts on each process, as in diffusers
        ("--gradient_accumulation_steps 3", (2, 6), (2, 12)),
        ("--train_batch_size 4 --gradient_accumulation_steps 2", (4, 8), (4, 16)),
        ("--train_batch_size 4 --effective_batch_size 12", (4, 12), (4, 12)),
        ("--train_batch_size auto", (16, 16), (8, 16)),
        ("--effective_batch_size 2", (2, 2), (1, 2)),
    ],
)
def test_batch_flags_count_on_each_process_and_defaults_are_divided(line, one, two):
    assert (batch_of(1, line), batch_of(2, line)) == (one, two)


def test_the_batch_of_a_recipe_is_divided_and_the_command_line_wins_over_it(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train_batch_size: 4\n")
    assert [batch_of(processes, "", recipe) for processes in (1, 2)] == [(4, 4), (2, 4)]
    assert batch_of(2, "--train_batch_size 8", recipe) == (8, 16)
    recipe.write_text("train_batch_size: 4\ngradient_accumulation_steps: 2\neffective_batch_size: 16\n")
    assert [batch_of(processes, "", recipe) for processes in (1, 2)] == [(4, 16), (4, 16)]  # of a run on two processes


def test_steps_win_over_epochs_but_not_those_of_a_recipe(caplog, tmp_path):
    def length(line, recipe=None):
        args = parse(line, recipe)
        return args.max_train_steps, args.num_train_epochs

    assert length("") == (3000, None) and length("--num_train_epochs 2") == (None, 2) and not caplog.messages
    assert length("--max_train_steps 600 --num_train_epochs 2") == (600, None)
    (message,) = caplog.messages
    assert message.startswith("--num_train_epochs 2 does nothing beside --max_train_steps 600")
    (recipe := tmp_path / "recipe.yaml").write_text("max_train_steps: 600\n")
    assert length("--num_train_epochs 2", recipe) == (None, 2) and length("", recipe) == (600, None)


def test_alpha_follows_the_rank():
    lines = ("", "--rank 16", "--rank 4", "--rank 4 --lora_alpha 16")
    assert [parse(line).lora_alpha for line in lines] == [16, 32, 8, 16]


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
IGNORED = [
    ("--ema_decay 0.9", "--use_ema", "--use_ema"),
    ("--hub_model_id a/b", "--push_to_hub", "--push_to_hub"),
    ("--lr_power 2.5", "--lr_scheduler polynomial", "--lr_scheduler polynomial"),
    ("--lr_num_cycles 3 --lr_scheduler cosine", RESTARTS, RESTARTS),
    ("--cache_crops 9", "--no-center_crop", "--no-center_crop"),
    ("--dataset_config_name en", "--dataset_name", "--dataset_name a/b"),
]


@pytest.mark.parametrize("line, needed, with_it", IGNORED)
def test_a_flag_that_does_nothing_alone_is_an_error_and_with_its_partner_is_not(caplog, capsys, line, needed, with_it):
    with pytest.raises(SystemExit) as ended:
        parse(line)
    flag, value, *_ = line.split()
    assert ended.value.code == 2 and capsys.readouterr().err == (
        f"train.py: error: {flag} {value}: does nothing without {needed}; add that, or leave {flag} out; see --help\n"
    )
    parse(f"{line} {with_it}")
    assert not caplog.messages


@pytest.mark.parametrize("line, needed, with_it", IGNORED)
def test_a_recipe_may_have_a_flag_that_does_nothing_alone(caplog, tmp_path, line, needed, with_it):
    words = iter(line.split())
    settings = {flag.removeprefix("--"): value for flag, value in zip(words, words)}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("".join(f"{flag}: {value}\n" for flag, value in settings.items()))
    name, value = next(iter(settings.items()))
    assert str(getattr(parse(recipe=recipe), name)) == value
    assert caplog.messages == [f"--config: `{name}: {value}` does nothing without {needed}"]
    caplog.clear()
    parse(with_it, recipe)
    assert not caplog.messages
    if len(settings) == 1:  # given on the command line it is an error, whatever the recipe says
        with pytest.raises(SystemExit):
            parse(line, recipe)


def test_a_default_that_is_spelt_out_is_the_same_setting():
    plain = cli.settings_of(parse(""))
    assert cli.settings_of(parse("--loss_type l2 --adapter lora")) == plain
    assert cli.settings_of(parse("--adapter dora")) == cli.settings_of(parse("--use_dora")) != plain


def test_only_the_pipeline_of_sdxl_is_called_with_a_clip_skip_by_the_card():
    args = parse("--clip_skip 1")
    starts = [SimpleNamespace(noising=DDPM, family=family) for family in ("sd1", "sd2", "sdxl")]
    assert [setup.describe_sampling(args, start) for start in starts] == [None, None, "clip_skip=1"]


def test_a_default_value_is_no_ignored_flag(caplog):
    parse("--ema_decay 0.999 --lr_power 1 --lr_num_cycles 1 --cache_crops 4")
    parse("--lr_scheduler constant --lr_warmup_steps 0")  # commands for diffusers have both
    assert not caplog.messages


@pytest.mark.parametrize("as_recipe", [False, True])
@pytest.mark.parametrize(
    "line, message",
    [
        ("--text_encoder_lr 5e-06", "--text_encoder_lr 5e-06 does nothing without --train_text_encoder"),
        ("--set_grads_to_none", "--set_grads_to_none does nothing: it is always done"),
    ],
)
def test_flags_that_published_commands_carry_are_only_warned_of(caplog, tmp_path, line, message, as_recipe):
    if as_recipe:
        name, *value = line.removeprefix("--").split()
        (tmp_path / "recipe.yaml").write_text(f"{name}: {value[0] if value else 'true'}\n")
        parse(recipe=tmp_path / "recipe.yaml")
    else:
        parse(line)
    assert caplog.messages == [message]
    caplog.clear()
    parse("--text_encoder_lr 5e-06 --train_text_encoder")
    assert not caplog.messages


def test_a_warm_up_of_a_constant_rate_is_only_warned_of_since_published_commands_have_it(caplog):
    parse("--lr_scheduler constant --lr_warmup_steps 5")
    assert caplog.messages == ["--lr_warmup_steps 5 does nothing with --lr_scheduler constant"]


def test_folders_stay_as_they_are_given_one_or_several(tmp_path):
    (tmp_path / "a:3").mkdir()
    one = parse(f"--train_data_dir {tmp_path}/a:3").train_data_dir
    assert one == f"{tmp_path}/a:3" and dataset.split_repeats(one) == (one, 1)  # a folder of that name
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train_data_dir: [s3://x/a, b:3]\ncaption_prefix: ['', 'my shoes,']\n")
    args = parse(recipe=recipe)
    assert args.train_data_dir == ["s3://x/a", "b:3"] and args.caption_prefix == ["", "my shoes,"]
    assert dataset.list_folders(args.train_data_dir) == ["s3://x/a", "b"] and dataset.split_repeats("b:3") == ("b", 3)


@pytest.mark.parametrize("more", ["--caption_prefix x y", "--mask_loss none masks"])
def test_a_folder_may_train_twice_with_other_captions_or_masks(more):
    assert parse(f"--train_data_dir a a {more}").train_data_dir == ["a", "a"]


@pytest.mark.parametrize(
    "line, said",
    [
        ("--train_data_dir a b:0", "--train_data_dir: b:0: expected 1 to 10,000 repeats, such as b:3"),
        (
            "--train_data_dir a b --caption_prefix my",
            '--caption_prefix: 1 for 2 data sets; give one for each, in quotes, ""',
        ),
        ("--caption_prefix my shoes", "--caption_prefix: 2 for 1 data set;"),
        ("--train_data_dir a b --mask_loss c", "--mask_loss: 1 for 2 data sets; give one for each, `none` where"),
        ("--train_data_dir a b --mask_loss none none", "--mask_loss none none: no data set has masks; leave it out"),
        ("--shuffle_tags 0", "--shuffle_tags 0: expected a whole number, 1 to 1,000, or leave it out"),
        ("--train_data_dir a b a/:3", "--train_data_dir a b a/:3: has a twice; give it once, as a:4"),
        ("--train_data_dir a a --caption_prefix x x", "--train_data_dir a a: has a twice; give it once, as a:2"),
    ],
)
def test_data_sets_that_can_not_be_are_one_line(capsys, line, said):
    with pytest.raises(SystemExit):
        parse(line)
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1


@pytest.mark.parametrize("line", ["to_k,to_q", "to_k to_q", "to_k, to_q", "to_k,to_q,"])
def test_layers_of_a_lora_are_given_with_commas_or_blanks(line, tmp_path):
    assert parse(f"--lora_layers {line}").lora_layers == ["to_k", "to_q"]
    assert setup.read_adapter(parse(f"--lora_layers {line} --rank 4 --lora_alpha 2")).targets == ("to_k", "to_q")
    for content in ("to_k,to_q", "[to_k, to_q]"):
        (tmp_path / "recipe.yaml").write_text(f"lora_layers: {content}\n")
        assert parse(recipe=tmp_path / "recipe.yaml").lora_layers == ["to_k", "to_q"]


def test_the_switch_and_the_list_of_aspect_ratio_buckets():
    assert parse().use_aspect_ratio_buckets is None and parse().aspect_ratio_buckets is None
    assert parse("--use_aspect_ratio_buckets").use_aspect_ratio_buckets is True
    assert parse("--no-use_aspect_ratio_buckets").use_aspect_ratio_buckets is False
    assert parse("--aspect_ratio_buckets 512,512;384,640").aspect_ratio_buckets == "512,512;384,640"
    assert parse("--aspect_ratio_buckets 64,96 --use_aspect_ratio_buckets").aspect_ratio_buckets == "64,96"


@pytest.mark.parametrize(
    "value", ["512", "512,", "512;512", "512,512;", "a,b", "0,64", "64,-64", "64, 64", "64x64", "1,2,3"]
)
def test_a_wrong_list_of_aspect_ratio_buckets_is_one_line(capsys, value):
    with pytest.raises(SystemExit) as ended:
        cli.parse_args(make_parser(), [f"--aspect_ratio_buckets={value}"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert f"--aspect_ratio_buckets {value}: expected heights and widths, as 512,512;384,640" in error
    assert "--use_aspect_ratio_buckets" in error


def test_the_former_switch_says_what_it_is_called_now(capsys):
    parser = make_parser()
    cli.add_refused_flags(parser, flags.REFUSED)
    with pytest.raises(SystemExit):
        cli.parse_args(parser, ["--no-aspect_ratio_buckets"])
    assert "the switch is --no-use_aspect_ratio_buckets" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["--logit_mean 0.5", "--logit_std 2", "--weighting_scheme logit_normal --mode_scale 1"]
)
def test_a_flag_of_another_weighting_is_an_error(line, capsys):
    with pytest.raises(SystemExit):
        parse(line)
    assert "--weighting_scheme" in capsys.readouterr().err
    assert parse("--weighting_scheme logit_normal --logit_mean 0.5").logit_mean == 0.5


@pytest.mark.parametrize(
    "word, said",
    [
        ("a:x", "expected 1 to 10,000 repeats, such as a:3"),
        ("a:-2", "expected 1 to 10,000 repeats, such as a:3"),
        ("a:3, b", "several are divided by blanks"),
        ("a,b", "several are divided by blanks"),
    ],
)
def test_folders_written_wrongly_are_refused_with_how_to_write_them(tmp_path, monkeypatch, word, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        flags.data_set(word)
    (tmp_path / word).mkdir()
    assert flags.data_set(word) == word
