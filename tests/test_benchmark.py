"""benchmark.py as a user starts it, on a model far too small to draw anything."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import benchmark
import train_lora
import train_tts
from benchmarking import drawings, folder, report, trainer
from benchmarking.measuring import Job, run_settings
from benchmarking.search import Trial
from speech.voices import save_voice
from tests.tiny_models import build_tiny
from tests.tiny_voices import SPEAKERS, tiny_voice, write_speech
from utils.cli import UserError

ROOT = Path(__file__).resolve().parent.parent
MEASURE = "--resolution 16 --effective_batch_size 2 --max_train_steps 20 --repeats 2 --generate_batch_sizes 1"
TRAIN = "--validation_inference_steps 2 --num_validation_images 1 --rank 4 --lr_warmup_steps 2 --logging_steps 5"


def start(*words: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "benchmark.py", *words], cwd=ROOT, env=environment, **streams)


def read_job(*words: str) -> Job:
    return benchmark.read_job(benchmark.parse_args(list(words)))


def test_words_after_two_dashes_are_flags_of_the_trainer(tmp_path):
    args = benchmark.parse_args(["--resolution", "64", "--", "--rank", "64", "--validation_prompt", "two words"])
    assert shlex.split(args.trainer_flags) == ["--rank", "64", "--validation_prompt", "two words"]
    found = benchmark.read_trainer_args(
        read_job("--output_dir", str(tmp_path), "--resolution", "64", "--", "--rank", "64")
    )
    assert (found.rank, found.resolution) == (64, 64)


def test_the_trainer_is_the_one_that_the_recipe_is_for(tmp_path):
    job = read_job("--recipe", "configs/persona.yaml", "--output_dir", str(tmp_path))
    assert job.script == "train_dreambooth.py" and job.drawn  # its photos are not here
    args = benchmark.read_trainer_args(job)
    assert args.rank == 32 and args.instance_data_dir == str(tmp_path / "images")
    (tmp_path / "mine").mkdir()
    (tmp_path / "voice.yaml").write_text("segment_frames: 32\nmax_train_steps: 5\n")
    assert read_job("--recipe", str(tmp_path / "voice.yaml")).script == "train_tts.py"
    job = read_job("--recipe", "configs/demo_lora.yaml", "--train_data_dir", str(tmp_path / "mine"))
    assert job.script == "train_lora.py" and not job.drawn
    assert benchmark.read_trainer_args(job).train_data_dir == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "no.yaml"], "--recipe no.yaml: No such file"),
        (["--train_data_dir", "nowhere"], "--train_data_dir nowhere: is not there"),
        (["--config_file", "no.yaml"], "--config_file no.yaml: No such file"),
        (["--config_file", "accelerate_configs/multi_node.yaml"], "is for 2 machines"),
        (["--", "--memory", "auto"], "--memory auto: .* tries gradient checkpointing .* itself; leave it out"),
    ],
)
def test_what_is_not_there_or_is_to_be_measured_is_one_line(words, said):
    with pytest.raises(UserError, match=said):
        read_job(*words)


@pytest.mark.parametrize(
    "words", [["--family", "sdxl"], ["--random_weights"], ["--", "--rank", "0"], ["--trainer_flags", "'"]]
)
def test_flags_that_contradict_or_that_the_trainer_refuses_end_it(words, capsys):
    with pytest.raises(SystemExit):
        benchmark.read_trainer_args(read_job(*words))
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_launch_config_decides_processes_and_precision():
    job = read_job("--config_file", "accelerate_configs/cpu_2proc.yaml")
    assert (job.processes, job.mixed_precision) == (2, "no")
    assert trainer.launch_words(job.config_file)[1:] == [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "accelerate_configs/cpu_2proc.yaml",
    ]


@pytest.mark.parametrize(
    ("config", "flag", "shards"), [("fsdp", [], 2), ("fsdp", ["--no-shard"], 1), ("multi_gpu", ["--shard"], 2)]
)
def test_weights_are_divided_as_the_launch_config_or_the_trainers_flag_says(config, flag, shards, tmp_path):
    model = build_tiny(tmp_path / "tiny", "sd1")
    words = ["--config_file", f"accelerate_configs/{config}.yaml", "--pretrained_model_name_or_path", model]
    words += ["--resolution", "16", "--output_dir", str(tmp_path / "out"), "--mixed_precision", "no"]
    job = read_job(*words, "--", *flag)
    prepared = benchmark.prepare(job)
    assert prepared.args.shard == (shards > 1)  # what the trainers that are measured get
    assert prepared.recipe.shards == shards  # what the memory of a device is estimated for


@pytest.mark.parametrize(
    ("code", "output", "status", "why"),
    [
        (
            1,
            "x\ntrain_lora.py: error: --rank 0: expected more\n",
            "failed",
            "train_lora.py: error: --rank 0: expected more",
        ),
        (None, "out of memory: 4 samples at once from here on, as many a step as before\n", "out of memory", "memory"),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n", "out of memory", "memory"),
        (-9, "training: 1/10 steps\n", "out of memory", "killed"),
        (3, "", "failed", "exit code 3"),
    ],
)
def test_why_a_trainer_ended_is_said(code, output, status, why):
    found = trainer.why_failed(trainer.Ended(code, 1.0, output))
    assert found[0] == status and why in found[1]


def test_where_nothing_fits_the_last_line_says_what_to_try(capsys):
    recipe = {"effective_batch_size": 2, "processes": 1, "resolution": 512}
    facts = {"machine": {"type": "cpu", "free_gib": 1.0}, "recipe": recipe}
    for gib, fits in ((1.1, False), (0.5, True)):
        report.print_plan(facts | {"estimates": dict.fromkeys(("False", "True"), [0, gib * 2**30, gib * 2**30])})
        assert capsys.readouterr().out.splitlines()[-1].startswith("nothing fits into the memory; try a") != fits
    rows = [{"status": "not tried", "why": "estimated"}, {"status": "out of memory", "why": "full"}]
    assert report.why_nothing(facts | {"rows": rows}).startswith("nothing fits into the memory; try a lower")
    rows.append({"status": "failed", "why": "no disk"})
    assert report.why_nothing(facts | {"rows": rows}) == "nothing could be measured: no disk"


def test_a_trainer_is_stopped_when_enough_is_known_and_when_its_memory_is_full(tmp_path):
    def run(program: str, enough=lambda: False) -> trainer.Ended:
        return trainer.run_trainer([sys.executable, "-uc", program], tmp_path / "log", enough)

    began = time.monotonic()
    assert run("import time; time.sleep(60)", lambda: time.monotonic() > began + 0.1).code is None
    full = run("import time; print('MPS backend out of memory'); time.sleep(60)")
    assert full.code is None and trainer.why_failed(full)[0] == "out of memory"
    assert run("import sys; sys.exit(3)").code == 3 and time.monotonic() < began + 30


def facts(**more) -> dict:
    machine = {"device": "CPU", "name": "x", "torch": "2"}
    return {
        "machine": machine | more,
        "settings": {"rank": 8, "max_train_steps": 5},
        "rows": [1],
        "recommended": {"a": 1},
    }


def test_a_folder_goes_on_with_the_same_and_refuses_others(tmp_path):
    rest = {"command": "b", "commit": "c", "date": "d", "recipe": {}}
    folder.write_benchmark(tmp_path, facts())
    longer = {"settings": {"rank": 8, "max_train_steps": 9}}
    assert folder.continue_or_refuse(tmp_path, facts() | rest | longer | {"rows": []}, False)["rows"] == [1]
    for other, said in ((facts(device="MPS"), "was CPU, now MPS"), (facts() | {"settings": {"rank": 4}}, "rank was 8")):
        with pytest.raises(UserError, match=said):
            folder.continue_or_refuse(tmp_path, other | rest | {"rows": []}, False)
        assert folder.continue_or_refuse(tmp_path, other | rest | {"rows": []}, True)["rows"] == []
    again = folder.continue_or_refuse(tmp_path, facts() | rest | {"rows": []}, True)
    assert again["before"] == {"a": 1} and again["rows"] == []
    for damage, said in (('{"rows": [', "damaged .*"), ('{"rows": []}', "has no machine;")):
        (tmp_path / "benchmark.json").write_text(damage)
        with pytest.raises(UserError, match=f"benchmark.json: {said} .* add --overwrite to measure anew"):
            folder.continue_or_refuse(tmp_path, facts() | rest | {"rows": []}, False)
        assert folder.continue_or_refuse(tmp_path, facts() | rest | {"rows": []}, True)["rows"] == []


def test_a_folder_that_would_be_refused_is_refused_before_any_work(tmp_path):
    out = tmp_path / "out"
    folder.check_folder(out, False)
    assert not out.exists()
    out.mkdir()
    (out / "benchmark.json").write_text('{"rows": [')
    with pytest.raises(UserError, match=r"benchmark.json: damaged .* add --overwrite to measure anew"):
        folder.check_folder(out, False)
    folder.check_folder(out, True)
    folder.write_benchmark(out, facts())
    folder.check_folder(out, False)  # a copy of what another machine wrote
    (out / "precious.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds files that no script wrote \(benchmark.json\)"):
            folder.check_folder(out, overwrite)


@pytest.mark.very_slow
def test_a_tiny_benchmark_from_start_to_command_line_and_again(tmp_path):
    model, out = build_tiny(tmp_path / "tiny", "sd1"), tmp_path / "benchmark"
    words = [*MEASURE.split(), "--pretrained_model_name_or_path", model, "--output_dir", str(out), "--", *TRAIN.split()]
    process = start(*words)
    while not (out / "training.log").exists() and process.poll() is None:
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130 and children
    assert not psutil.wait_procs(children, timeout=10)[1]  # nothing runs on

    process = start(*words)
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    found = json.loads((out / "benchmark.json").read_text())
    assert [(one["micro_batch"], one["gradient_checkpointing"]) for one in found["rows"]][:2] == [
        (1, False),
        (2, False),
    ]
    for row in found["rows"]:
        step = row["seconds_per_step"]
        assert row["status"] == "ok" and step["low"] <= step["median"] <= step["high"] and step["repeats"] >= 2
        assert row["memory_gib"] > 0 and row["samples_per_second"] == pytest.approx(2 / step["median"])
    assert found["generation"][0]["seconds_per_image"]["median"] > 0 and found["rates"]["captions_per_second"] > 0
    command = found["recommended"]["command"]
    assert f"the data was made up; for yours, add --train_data_dir DIR\n{command}" in shown
    args = train_lora.parse_args(shlex.split(command)[2:])
    assert (args.effective_batch_size, args.rank, args.max_train_steps) == (2, 4, 20)
    parts = {name: value for name, value in found["estimate"].items() if name not in ("seconds", "max_train_steps")}
    assert found["estimate"]["seconds"] == pytest.approx(sum(parts.values())) and parts["steps"] > 0

    began = time.time()
    assert start(*words).wait(120) == 0
    again = json.loads((out / "benchmark.json").read_text())
    assert {**again, "date": ""} == {**found, "date": ""} and (out / "training.log").stat().st_mtime < began
    settings = (out / "config.yaml").read_text()
    refused = start(*words, "--use_ema")
    assert "use_ema was False, now True" in refused.communicate(timeout=120)[1] and refused.returncode == 1
    assert (out / "config.yaml").read_text() == settings


@pytest.fixture(scope="module")
def voice_words(tmp_path_factory):
    """Of a benchmark of a tiny voice; its discriminators are small."""
    folder = tmp_path_factory.mktemp("voice")
    save_voice(folder / "voice", tiny_voice(speakers=2))
    words = ["--trainer", "train_tts.py", "--pretrained_model_name_or_path", str(folder / "voice"), "--repeats", "1"]
    return [*words, "--trainer_flags", "--segment_frames 8 --num_validation_samples 1 --num_train_epochs 2"]


def test_a_voice_is_estimated_and_spoken_with_sounds_that_are_made_up(voice_words, tmp_path):
    job = read_job(*voice_words, "--effective_batch_size", "4", "--output_dir", str(tmp_path / "out"))
    facts = benchmark.describe_job(job, dry_run=True)
    assert not (tmp_path / "out").exists()
    assert facts["settings"]["train_data_dir"] == str(tmp_path / "out/sounds")  # to compare with the folder's benchmark
    assert job.drawn and facts["recipe"]["examples"] == drawings.SOUNDS and facts["flops"]["per_sample"] > 0
    assert facts["recipe"]["max_train_steps"] == 2 * drawings.SOUNDS / 4
    plain, checkpointed = facts["estimates"]["False"], facts["estimates"]["True"]
    assert plain[0] == 0 and plain[2] > plain[1] and checkpointed[2] < plain[2]
    assert not {"compile", "latent_cache_dir"} & facts["settings"].keys()
    settings = run_settings(job, facts, Trial(True, False, 2), 4, 3)
    assert settings.keys() == facts["settings"].keys() and settings["gradient_checkpointing"]
    rates = benchmark.time_voice(job, 1)
    assert rates["loading_utterances_per_second"] > 0 and rates["spoken_seconds_per_second"] > 0


@pytest.mark.very_slow
def test_a_transformer_of_the_published_size_is_estimated_from_its_configs(tmp_path):
    words = ["--family", "flux2_klein", "--random_weights", "--mixed_precision", "no", "--resolution", "256"]
    facts = benchmark.describe_job(read_job(*words, "--output_dir", str(tmp_path / "out")), dry_run=True)
    assert facts["recipe"]["model"] == "black-forest-labs/FLUX.2-klein-base-4B" and facts["recipe"]["random_weights"]
    encoding, one, two = facts["estimates"]["True"]
    weights = 4 * 3.876e9  # of the transformer, frozen in float32
    assert weights < one < two < 1.3 * weights and encoding < 1.1 * 4 * 4.022e9
    assert facts["flops"]["per_sample"] > 2 * 3.876e9 * (256 / 16) ** 2 and not (tmp_path / "out").exists()


@pytest.mark.very_slow
def test_a_benchmark_of_a_voice_from_start_to_command_line(voice_words, tmp_path):
    data = write_speech(tmp_path / "data", 4, 1, SPEAKERS)
    out, more = tmp_path / "out", ["--effective_batch_size", "1", "--train_data_dir", str(data)]
    process = start(*voice_words, *more, "--output_dir", str(out))
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    found = json.loads((out / "benchmark.json").read_text())
    assert {row["status"] for row in found["rows"]} == {"ok"} and not found["generation"]
    assert "8 steps (2 epochs) take about" in shown and "utterances loaded a second" in shown
    command = shlex.split(found["recommended"]["command"])
    args = train_tts.parse_args(command[2:])
    assert command[1] == "train_tts.py" and (args.num_train_epochs, args.effective_batch_size) == (2, 1)


def test_the_memory_of_a_small_model_is_not_rounded_to_nothing():
    step = {"median": 1.5, "low": 1.2, "high": 2.7}
    row = {
        "gradient_checkpointing": False,
        "compile": False,
        "micro_batch": 4,
        "status": "ok",
        "seconds_per_step": step,
    }
    row |= {"samples_per_second": 2.68, "memory_gib": 51.26, "estimated_gib": 0.0184}
    said = "4 at once: 1.5 s a step (1.2 to 2.7), 2.68 samples/s, 51.3 GiB (estimated 0.0184 GiB)"
    assert report.describe_row(row) == said
