"""Commands for the scripts of diffusers are read here, and what they ask for is what they get."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import train_dreambooth
import train_lora
from families.flow import sigma_levels
from families.names import FAMILIES
from families.published import read_published, write_configs
from families.sampling import native_size

CONSTANT = "--lr_scheduler=constant --lr_warmup_steps=0"
# The flags of every command for Stable Diffusion, SDXL, FLUX.1, FLUX.2 Klein and Qwen-Image in the READMEs of the
# examples of diffusers, at commit 58eb52c, and of those for Z-Image at commit 9aabdc7. Of FP8, what else they ask for.
LORA = [
    f"--dataset_name=a/b --caption_column=text --resolution=512 --random_flip --train_batch_size=1 {CONSTANT} "
    "--num_train_epochs=100 --checkpointing_steps=5000 --learning_rate=1e-04 --seed=42 --output_dir=out "
    "--validation_prompt=dragon --report_to=wandb",
    *(
        f"--dataset_name=a/b --caption_column=text --resolution=1024 --train_batch_size=1 --num_train_epochs=2 "
        f"--learning_rate=1e-04 {CONSTANT} --output_dir=out --validation_prompt=dragon {more}"
        for more in (
            "--pretrained_vae_model_name_or_path=c/d --random_flip --checkpointing_steps=500 --mixed_precision=fp16 "
            "--seed=42 --report_to=wandb --push_to_hub",
            "--pretrained_vae_model_name_or_path=c/d --checkpointing_steps=2 --mixed_precision=fp16 "
            "--max_train_steps=20 --validation_epochs=20 --seed=1234",
            "--random_flip --checkpointing_steps=500 --seed=42 --train_text_encoder --report_to=wandb --push_to_hub",
        )
    ),
]
SUBJECT = "--instance_data_dir=photos --output_dir=out --instance_prompt=sks --train_batch_size=1 "
SMALL = SUBJECT + f"--resolution=512 {CONSTANT} --push_to_hub "
PRIOR = SMALL + "--with_prior_preservation --prior_loss_weight=1.0 --class_data_dir=c --class_prompt=dog "
PRIOR += "--num_class_images=200 --max_train_steps=800 "
LARGE = SUBJECT + f"--resolution=1024 --gradient_accumulation_steps=4 --learning_rate=1e-4 {CONSTANT} --push_to_hub "
LARGE += "--mixed_precision=fp16 --report_to=wandb --max_train_steps=500 --validation_prompt=sks "
LARGE += "--validation_epochs=25 --seed=0 "
Z_IMAGE = (
    "--use_8bit_adam --optimizer=adamW --lr_scheduler=constant --lr_warmup_steps=100",
    "--optimizer=prodigy --learning_rate=1.0 --lr_scheduler=constant_with_warmup --lr_warmup_steps=100",
)
FLUX1 = (
    SUBJECT + f"--mixed_precision=bf16 --resolution=512 --guidance_scale=1 --gradient_accumulation_steps=4 {CONSTANT} "
)
FLUX1 += (
    "--optimizer=prodigy --learning_rate=1. --report_to=wandb --max_train_steps=500 --validation_prompt=sks --seed=0 "
)
KLEIN = (  # of 4B and of 9B
    SUBJECT + "--gradient_checkpointing --cache_latents --resolution=1024 --guidance_scale=1 --use_8bit_adam --seed=0 "
    "--gradient_accumulation_steps=4 --optimizer=adamW --learning_rate=1e-4 --report_to=wandb --lr_scheduler=constant "
    "--lr_warmup_steps=100 --max_train_steps=500 --validation_prompt=sks --validation_epochs=25 --push_to_hub"
)
QWEN_IMAGE = (
    SUBJECT + f"--mixed_precision=bf16 --resolution=1024 --gradient_accumulation_steps=4 --use_8bit_adam {CONSTANT} "
    "--learning_rate=2e-4 --report_to=wandb --max_train_steps=500 --validation_prompt=sks --validation_epochs=25 "
    "--seed=0 --push_to_hub"
)
DREAMBOOTH = [
    SMALL + "--gradient_accumulation_steps=1 --learning_rate=5e-6 --max_train_steps=400",
    PRIOR + "--gradient_accumulation_steps=1 --learning_rate=5e-6",
    PRIOR + "--gradient_accumulation_steps=2 --gradient_checkpointing --use_8bit_adam --learning_rate=5e-6",
    PRIOR + "--gradient_accumulation_steps=1 --gradient_checkpointing --use_8bit_adam --set_grads_to_none "
    "--enable_xformers_memory_efficient_attention --learning_rate=2e-6",
    PRIOR + "--sample_batch_size=1 --gradient_accumulation_steps=1 --gradient_checkpointing --learning_rate=5e-6",
    PRIOR + "--train_text_encoder --use_8bit_adam --gradient_checkpointing --learning_rate=2e-6",
    SMALL + "--gradient_accumulation_steps=1 --checkpointing_steps=100 --learning_rate=1e-4 --report_to=wandb "
    "--max_train_steps=500 --validation_prompt=sks --validation_epochs=50 --seed=0",
    LARGE + "--pretrained_vae_model_name_or_path=c/d",
    LARGE + "--use_8bit_adam",
    *(LARGE + f"--cache_latents --gradient_checkpointing --guidance_scale=5.0 {more}" for more in Z_IMAGE),
    FLUX1 + "--validation_epochs=25 --push_to_hub",
    FLUX1 + "--train_text_encoder --push_to_hub",
    KLEIN,
    QWEN_IMAGE,
]
COMMANDS = [(train_lora, line) for line in LORA] + [(train_dreambooth, line) for line in DREAMBOOTH]


@pytest.mark.parametrize("script, line", COMMANDS)
def test_the_commands_of_diffusers_readmes_are_read_and_mean_the_same(script, line):
    model = "stabilityai/stable-diffusion-xl-base-1.0" if "1024" in line else "CompVis/stable-diffusion-v1-4"
    args = script.parse_args([f"--pretrained_model_name_or_path={model}", *line.split()])
    given = dict(word.removeprefix("--").split("=") for word in line.split() if "=" in word)
    assert args.train_batch_size == 1 and args.effective_batch_size is None  # so it counts on each process
    assert args.gradient_accumulation_steps == int(given.get("gradient_accumulation_steps", 1))
    steps = given.get("max_train_steps")
    assert args.max_train_steps == (steps and int(steps))
    assert args.num_train_epochs == (None if steps else int(given["num_train_epochs"]))
    assert args.pretrained_vae_model_name_or_path == given.get("pretrained_vae_model_name_or_path")


# Of these scripts' flags those that do not work here.
REFUSED = {
    train_lora: "cache_dir debug_loss dream_detail_preservation dream_training enable_npu_flash_attention foreach_ema "
    "hub_token input_perturbation local_rank non_ema_revision offload_ema proportion_empty_prompts revision "
    "timestep_bias_begin timestep_bias_end timestep_bias_multiplier timestep_bias_portion timestep_bias_strategy "
    "tracker_project_name validation_prompts variant",
    train_dreambooth: "adam_weight_decay_text_encoder cache_dir class_labels_conditioning do_edm_style_training "
    "hub_token local_rank offset_noise pre_compute_text_embeddings prodigy_beta3 prodigy_decouple "
    "prodigy_safeguard_warmup pretrained_text_encoder_4_name_or_path pretrained_tokenizer_4_name_or_path "
    "prodigy_use_bias_correction repeats revision skip_save_text_encoder "
    "bnb_quantization_config_path enable_npu_flash_attention do_fp8_training final_validation_prompt "
    "fsdp_text_encoder offload skip_final_inference text_encoder_out_layers text_encoder_use_attention_mask "
    "tokenizer_max_length tokenizer_name upcast_before_saving "
    "validation_images validation_scheduler variant",
}


@pytest.mark.parametrize("script", REFUSED)
def test_what_does_not_work_is_refused_with_what_to_do_instead(script, capsys):
    for name in REFUSED[script].split():
        with pytest.raises(SystemExit):
            script.parse_args([f"--{name}", "1"])
        said = capsys.readouterr().err
        assert f"error: --{name}: " in said and "unrecognized" not in said and said.count("\n") == 1


def test_an_absolute_folder_of_logs_and_every_filter_of_diffusers_are_accepted():
    for name in "bicubic bilinear box hamming lanczos nearest nearest_exact".split():
        args = train_lora.parse_args(["--image_interpolation_mode", name, "--logging_dir", "/elsewhere/logs"])
        assert (args.image_interpolation_mode, args.logging_dir) == (name, "/elsewhere/logs")


def test_the_default_resolution_is_the_models_own(tmp_path):
    assert train_lora.parse_args([]).resolution is None
    for family, side in {"sd1": 512, "sd2": 768, "sdxl": 1024}.items():
        assert native_size(str(write_configs(family, tmp_path / family))) == side


# Of each family of flow matching: what its script changes in the scheduler, and the shift that gives its noise levels.
FLOW = {
    "flux1": ({}, "none"),
    "flux2_klein": ({}, "none"),
    "qwen_image": ({"shift": 3.0}, "none"),
    "z_image": ({}, "auto"),
}


@pytest.mark.parametrize("family", FLOW)
def test_the_noise_levels_of_diffusers_scripts_are_had_by_the_shift_that_the_page_names(family):
    changes, shift = FLOW[family]
    config = read_published(family)["scheduler/scheduler_config.json"]
    theirs = FlowMatchEulerDiscreteScheduler.from_config(config, **changes).sigmas
    own = FlowMatchEulerDiscreteScheduler.from_config(config)

    def levels(shift):
        return sigma_levels(own, shift, lambda size: FAMILIES[family].mu(own.config, *(side // 8 for side in size)))(
            (1024, 1024)
        )

    assert torch.allclose(levels(shift), theirs, rtol=0, atol=1e-6)
    assert shift == "auto" or (levels("auto").mean() > theirs.mean() + 0.05)  # towards noise
