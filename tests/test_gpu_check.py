"""tests/gpu/check.py: that whoever has a GPU gets a report, whatever a step does; its steps run there, not here."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gpu import check, commands, report, steps
from tests.gpu.commands import Failed, Machine, Setup, Skipped
from tests.gpu.steps import Step
from utils.cli import UserError

MACHINE = Machine("a GPU", "bf16", 1, 80.0, 16, {})


@pytest.fixture
def setup(tmp_path):
    for name in ("logs", "results"):
        (tmp_path / name).mkdir()
    return Setup(tmp_path, "cuda", False, None, MACHINE)


def fake(name: str, limit: int = 20, needs: tuple[str, ...] = (), alone: bool = False) -> Step:
    return Step(name, f"step {name}", lambda setup: "", limit, needs, alone)


def names(chosen: list[Step]) -> list[str]:
    return [step.name for step in chosen]


# Which steps, and in which order


@pytest.mark.parametrize("half, device", [("bf16", "cuda"), ("fp16", "cuda"), ("no", "mps"), ("bf16", "cpu")])
def test_a_step_comes_after_those_that_it_needs(half, device):
    all_steps = steps.list_steps(half, device)
    assert len(set(names(all_steps))) == len(all_steps)
    for number, step in enumerate(all_steps):
        assert set(step.needs) <= set(names(all_steps[:number])), step.name


def test_the_most_important_steps_come_first_and_each_family_has_its_own():
    order = names(steps.list_steps("bf16"))
    said = "environment lora_bf16 lora_fp16 resume out_of_memory adamw8bit compile memory_sd1 train_sd1 two_processes"
    assert [order.index(name) for name in said.split()] == sorted(order.index(name) for name in said.split())
    for model in commands.MODELS:
        kinds = ("weights", "memory", "train", "generate") + ("nf4",) * model.is_flow
        assert {f"{kind}_{model.family}" for kind in kinds} <= set(order)


def test_a_mac_gets_its_own_steps_and_a_gpu_none_of_them():
    mac = names(steps.list_steps("bf16", "mps"))
    assert mac == steps.ON_MAC
    assert not {"precision", "lora_bf16", "lora_fp16", "adamw8bit", "tf32", "out_of_memory", "sharded"} & set(mac)
    assert not set(steps.MAC_ONLY) & set(names(steps.list_steps("bf16")))
    assert set(mac) <= set(names(steps.list_steps("bf16", "cpu")))  # there they are tested
    assert {step.needs for step in steps.list_steps("bf16", "mps") if step.name == "resume"} == {("lora_no",)}


def test_on_a_mac_one_step_runs_at_a_time_and_no_operator_goes_to_the_cpu(setup):
    mac = setup._replace(device="mps")
    assert check.count_jobs(mac) == 1
    assert commands.environment(mac)["PYTORCH_ENABLE_MPS_FALLBACK"] == "0"
    assert check.parse_args(["--device", "mps"]).output_dir.name.startswith("mac_check-")
    assert check.parse_args([]).output_dir.name.startswith("gpu_check-")


def test_only_takes_a_step_and_what_it_needs():
    chosen = check.choose_steps(steps.list_steps("fp16"), ["resume"])
    assert names(chosen) == ["weights_sd1", "lora_fp16", "resume"]
    with pytest.raises(UserError, match="--only resum: no such step.*resume"):
        check.choose_steps(steps.list_steps("bf16"), ["resum"])


def test_what_measures_time_runs_alone():
    a, b, alone, late = fake("a"), fake("b"), fake("alone", alone=True), fake("late", needs=("a",))
    assert check.next_step([a, b], [], set(), 2) == a
    assert check.next_step([b], [a], set(), 1) is None  # no room
    assert check.next_step([alone, b], [a], set(), 2) is None  # it waits, and nothing overtakes it
    assert check.next_step([alone, b], [], set(), 2) == alone
    assert check.next_step([b], [alone], set(), 2) is None
    assert check.next_step([late, b], [a], set(), 2) == b  # what it needs is under way
    assert check.next_step([late], [], {"a"}, 2) == late


def test_steps_run_beside_each_other_where_there_is_room(setup):
    assert check.count_jobs(setup) == 3
    assert check.count_jobs(setup._replace(machine=MACHINE._replace(memory_gib=15))) == 1
    assert check.count_jobs(setup._replace(device="cpu")) == 1


def test_large_models_need_the_disk_of_one_at_a_time():
    all_steps = steps.list_steps("bf16")
    large = {model.family: model.disk for model in commands.MODELS if model.is_flow}
    one = {family: check.needed_gib(check.choose_steps(all_steps, [f"train_{family}"])) for family in large}
    assert one == {family: size + check.RESULTS_GIB for family, size in large.items()}
    small = check.needed_gib([step for step in all_steps if not step.name.endswith(tuple(large))])
    assert check.needed_gib(all_steps) == small + max(large.values())


def test_a_large_model_is_deleted_once_no_step_needs_it(setup):
    families = ("sd1", "z_image", "qwen_image")
    for family in families:
        (setup.folder / "models" / family).mkdir(parents=True)
    todo = [fake("nf4_qwen_image", needs=("weights_qwen_image",))]
    check.delete_unneeded(check.Check(setup, todo, 0, todo, keep_files=True))
    assert {path.name for path in (setup.folder / "models").iterdir()} == set(families)
    check.delete_unneeded(check.Check(setup, todo, 0, todo))
    assert {path.name for path in (setup.folder / "models").iterdir()} == {"sd1", "qwen_image"}


# What happens to a step


def passes(setup: Setup, step: Step) -> str:
    """The source of a program that does what a step does that passes."""
    text = json.dumps({"status": "pass", "figure": f"{step.name} | fast", "reason": ""})
    return f"open({str(setup.folder / 'results' / step.name) + '.json'!r}, 'w').write({text!r})"


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def run_fakes(setup: Setup, programs: dict[str, str], fakes: list[Step], time_limit: float = 60) -> list[report.Row]:
    """Run these steps, each by its program, or by one that passes."""

    def command(setup: Setup, step: Step) -> list[str]:
        return [sys.executable, "-c", programs.get(step.name) or passes(setup, step)]

    return check.run_all(setup, fakes, 1, time_limit, command)


def test_a_step_that_fails_or_hangs_hides_no_other(setup):
    child = f"import subprocess; p = subprocess.Popen(['sleep', '60']); open({str(setup.folder / 'pid')!r}, 'w')"
    table = setup.folder / "gpu_check.json"
    programs = {
        "dies": "raise SystemExit('error: out of luck')",
        "hangs": f"{child}.write(str(p.pid)); p.wait()",
        "reads": f"import shutil; shutil.copy({str(table)!r}, {str(setup.folder / 'before.json')!r})",
    }
    fakes = [fake("works"), fake("dies"), fake("hangs", limit=1), fake("reads"), fake("needs", needs=("dies",))]
    rows = {row.name: row for row in run_fakes(setup, programs, [*fakes, fake("last")])}
    assert {name: row.status for name, row in rows.items()} == {
        "works": "pass",
        "dies": "fail",
        "hangs": "fail",
        "reads": "fail",  # it ended without a result
        "needs": "skipped",
        "last": "pass",
    }
    assert "exit code 1" in rows["dies"].reason and "error: out of luck" in rows["dies"].reason
    assert "time limit of 1 s" in rows["hangs"].reason and rows["hangs"].seconds < 10
    assert rows["needs"].reason == "it needs dies"
    assert not is_running(int((setup.folder / "pid").read_text()))
    before = json.loads((setup.folder / "before.json").read_text())["steps"]  # while the fourth step ran
    assert [(one["name"], one["status"]) for one in before if one["name"] != "needs"] == [
        ("works", "pass"),
        ("dies", "fail"),
        ("hangs", "fail"),
    ]
    lines = (setup.folder / "gpu_check.md").read_text().splitlines()
    assert "| a GPU | step works | pass | works \\| fast |" in lines
    assert [line.split(" | ")[1] for line in lines[4:]] == [f"step {one}" for one in (*names(fakes), "last")]


def test_ctrl_c_ends_what_is_under_way_and_the_report_is_whole(setup):
    pid = setup.folder / "pid"
    hangs = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); os.kill(os.getppid(), {signal.SIGINT})"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_fakes(setup, {"hangs": f"{hangs}; time.sleep(60)"}, [fake("works"), fake("hangs"), fake("last")])
    finally:
        signal.signal(signal.SIGINT, before)
    assert not is_running(int(pid.read_text()))
    found = json.loads((setup.folder / "gpu_check.json").read_text())["steps"]
    assert [(one["status"], one["reason"]) for one in found] == [("pass", "")] + [("skipped", "interrupted")] * 2


def test_the_time_limit_of_all_ends_the_check(setup):
    began = time.monotonic()
    rows = run_fakes(setup, {"hangs": "import time; time.sleep(60)"}, [fake("hangs"), fake("last")], 1)
    assert time.monotonic() - began < 20
    assert [row.reason for row in rows] == ["the check's --time_limit of 1 s was over"] * 2


def test_a_step_says_why_it_failed_or_was_skipped(setup):
    def raising(error: Exception) -> Step:
        def run(_: Setup) -> str:
            raise error

        return fake("x")._replace(run=run)

    assert steps.run_step(setup, raising(Skipped("one GPU"))) == {
        "status": "skipped",
        "figure": "",
        "reason": "one GPU",
    }
    assert steps.run_step(setup, raising(Failed("off")))["status"] == "fail"
    assert steps.run_step(setup, raising(KeyError("loss")))["reason"] == "KeyError: 'loss'"
    assert steps.run_step(setup, fake("x")) == {"status": "pass", "figure": "", "reason": ""}


def test_mistakes_are_one_line(tmp_path):
    def refused(*words: str) -> str:
        with pytest.raises(UserError) as error:
            check.main(check.parse_args([*words, "--output_dir", str(tmp_path)]))
        return str(error.value)

    assert "add --tiny" in refused("--device", "cpu")
    assert "give a checkout of diffusers" in refused("--baseline", str(tmp_path))
    (tmp_path / "mine").touch()
    assert "is not empty" in refused("--device", "cpu", "--tiny")
    assert os.listdir(tmp_path) == ["mine"]


# What a step reads and compares


def test_the_last_words_of_a_log_speak_of_the_error():
    log = "10/20\r20/20\nTraceback\nValueError: too large\n=====\ntrain_lora.py FAILED\n=====\n"
    assert commands.last_words(log) == "ValueError: too large"
    assert commands.last_words("first\nsecond\n---\n") == "second"
    assert commands.last_words("\n") == "it printed nothing"


def test_another_precision_than_asked_for_is_a_failure():
    log = "mixed precision: bf16\ndevice: a GPU; precision: bf16, as requested; the probe on this device passed; batch"
    commands.check_precision("run", log, "bf16")
    commands.check_precision("run", "device: x; precision: float32, as requested; batch", "no")
    log = log.replace("bf16, as requested", "float32 will be used, because in bf16 attention gives NaN")
    with pytest.raises(Failed, match="asked for bf16, and found: float32 will be used"):
        commands.check_precision("run", log, "bf16")


def test_losses_that_are_apart_fail():
    assert commands.apart([1.0, 2.0], [1.0, 2.2]) == pytest.approx(0.1)
    assert "1.0e-01 apart at most" in steps.within(0.1, 0.2, "losses")
    for off in (0.3, math.nan):
        with pytest.raises(Failed, match="losses are"):
            steps.within(off, 0.2, "losses")
    with pytest.raises(Failed, match="2 losses against 1"):
        commands.apart([1.0, 2.0], [1.0])


def test_the_rate_leaves_out_the_first_steps():
    assert commands.steps_per_second([30.0, 31.0, 31.5, 32.0, 32.5, 33.0, 33.5, 34.0]) == pytest.approx(2)
    with pytest.raises(Failed, match="only 1 optimizer steps"):
        commands.steps_per_second([1.0])


def test_the_estimate_is_read_from_what_a_dry_run_prints():
    from training.dry_run import describe_memory

    rows = describe_memory({"training": {"weights": 3 * 2**30, "activations": 2**29}}, 1)
    assert steps.read_estimate("\n".join(map(str, rows))) == pytest.approx(3.5)


def test_a_script_is_measured_and_ends_as_it_would(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "weight = torch.nn.Parameter(torch.ones(4))\n"
        "optimizer = torch.optim.AdamW([weight])\n"
        "for _ in range(3):\n"
        "    weight.grad = torch.ones(4)\n"
        "    optimizer.step()\n"
        "sys.exit(5 if sys.argv[1:] == ['--flag', 'x'] and __name__ == '__main__' else 1)\n"
    )
    record = tmp_path / "record.json"
    words = [sys.executable, "tests/gpu/measured.py", "--record", record, script, "--flag", "x"]
    assert subprocess.run(words, cwd=check.ROOT).returncode == 5
    found = json.loads(record.read_text())
    assert found["steps"] == sorted(found["steps"]) and len(found["steps"]) == 3 <= 3 * found["seconds"]
    assert 0.05 < found["peak_gib"]["reserved"] < 4


@pytest.mark.very_slow
def test_the_check_passes_on_a_cpu_with_tiny_models(tmp_path):
    out = tmp_path / "check"
    words = "--device cpu --tiny --only resume generate_oom operators generate_cpu recipe --output_dir".split()
    subprocess.run([sys.executable, "tests/gpu/check.py", *words, out], cwd=check.ROOT, check=True)
    found = {one["name"]: one for one in json.loads((out / "gpu_check.json").read_text())["steps"]}
    assert {one["status"] for one in found.values()} == {"pass"}
    assert "equal to the byte" in found["resume"]["figure"]
    assert "halved to 16, all made" in found["generate_oom"]["figure"]
    assert "UNet: 0.0e+00 apart" in found["operators"]["figure"]
    assert found["generate_cpu"]["figure"].startswith("0 levels of 255")
    assert "s a step of 2 samples" in found["recipe"]["figure"]
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["logs", "records", "results"]
