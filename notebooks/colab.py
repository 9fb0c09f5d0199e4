"""What the notebooks need of Colab: packages, Drive, secrets, uploads, and scripts whose output is seen as it comes.

It is imported by the notebook's own Python, which has none of the pinned packages; the scripts run in .venv. Outside
Colab all but an upload works too.
"""

import contextlib
import hashlib
import html
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv/bin/python"
DRIVE = Path("/content/drive")
VOICE_DEMO = Path("demo/voice/corpus/held_back")  # recordings of one of espeak-ng's voices
# Colab sets these for its own packages; in another environment they do harm.
NOT_INHERITED = "MPLBACKEND PYTHONPATH UV_SYSTEM_PYTHON UV_CONSTRAINT UV_BUILD_CONSTRAINT UV_PRERELEASE".split()

# Commands


def run(script: str, *words: object) -> None:
    """Run a script of this repository with these words as its command line; show the command, then its output.

    An error ends the cell, and with it `Run all`. The Stop button ends the script as SIGTERM does: a trainer saves a
    checkpoint first.
    """
    given = [script, *map(str, words)]
    print(f"$ python3 {shlex.join(given)}", flush=True)
    stream([str(PYTHON), *given])


def split(text: str) -> list[str]:
    """The words of a form field, as a shell reads them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        sys.exit(f"{text}: {error}; each quote needs its second one")


def stream(command: list[str]) -> None:
    """Run a command and show each line when it comes; exit with one line if it fails."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=script_environment(),
        start_new_session=True,  # or Jupyter's interrupt would reach it too: a trainer stops at once at the second one
    )
    with process:
        try:
            show_lines(process.stdout)
        except KeyboardInterrupt:
            process.terminate()
            show_lines(process.stdout)
            raise
    if process.returncode:
        name = Path(command[1] if command[0] == str(PYTHON) else command[0]).name
        sys.exit(f"{name} ended with exit code {process.returncode}; its message is above")


def script_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in os.environ if name not in NOT_INHERITED} | {"PYTHONUNBUFFERED": "1"}


def show_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, end="", flush=True)


# Packages


def install() -> None:
    """Make .venv with the pinned packages, unless there is one that works."""
    gpus = describe_gpus()
    advice = "none; for more than the demo choose one: Runtime, Change runtime type"
    print("GPU:", "; ".join(gpus) or advice, flush=True)
    attempt = [str(PYTHON), "-c", "import torch"]
    if PYTHON.exists() and subprocess.run(attempt, env=script_environment(), capture_output=True).returncode == 0:
        print(f"packages: {PYTHON.parent.parent} is ready")
        return
    if not shutil.which("uv"):
        stream([sys.executable, "-m", "pip", "install", "--quiet", "uv"])
    began = time.monotonic()
    for command in install_commands(gpus):
        stream(command)
    print(f"packages: installed in {time.monotonic() - began:.0f} s")


def describe_gpus() -> list[str]:
    """`name, compute capability, driver` of each NVIDIA GPU."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []


def install_commands(gpus: list[str]) -> list[list[str]]:
    """uv's commands for these GPUs.

    torch's usual build, CUDA 13, needs a GPU of the Turing generation (7.5) and a driver of the 580 series or newer.
    P100, V100 and older drivers get its build for CUDA 12.6, which brings its own libraries (docs/setup.md).
    """
    venv, requirements = str(PYTHON.parent.parent), str(ROOT / "requirements-training.txt")
    make = [] if PYTHON.exists() else [["uv", "venv", "--quiet", "--python", ">=3.11,<3.15", venv]]
    install = ["uv", "pip", "install", "--quiet", "--python", venv]
    if not any(is_older(*gpu.split(", ")[-2:]) for gpu in gpus):
        return [*make, [*install, "-r", requirements]]
    without = f"grep -Ev '^(cuda|nvidia|triton)' {shlex.quote(requirements)}"
    return [*make, ["bash", "-o", "pipefail", "-c", f"{without} | {shlex.join(install)} --torch-backend cu126 -r -"]]


def is_older(capability: str, driver: str) -> bool:
    return float(capability) < 7.5 or int(driver.partition(".")[0]) < 580


# Drive, secrets, folders, data


def import_colab(name: str) -> Any:
    """A module of google.colab; None outside Colab."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(f"google.colab.{name}")
    return None


def open_place(text: str) -> Path | None:
    """The folder or file of this path, with Drive mounted where it lies there; None for an empty text."""
    if not text.strip():
        return None
    place = Path(text.strip())
    if place.is_relative_to(DRIVE) and not DRIVE.is_mount():
        if not (drive := import_colab("drive")):
            sys.exit(f"{place}: Drive can only be mounted in Colab; give another folder, or leave the field empty")
        drive.mount(str(DRIVE))
    return place


def read_secrets(names: str) -> None:
    """Copy secrets of Colab (the key on the left) into the environment, where the scripts look for them."""
    userdata = import_colab("userdata")
    for name in names.split() if userdata else ():
        try:
            os.environ[name] = userdata.get(name)
            print(f"{name}: from Colab's secrets")
        except (userdata.SecretNotFoundError, userdata.NotebookAccessError, userdata.TimeoutException):
            print(f"{name}: not among Colab's secrets, or this notebook has no access to it")


def sync_flags(keep: Path | None, folder: Path) -> list[str]:
    """Flags that mirror a folder where it is kept, under the same path."""
    if keep is None:
        return []
    (keep / folder).parent.mkdir(parents=True, exist_ok=True)
    return ["--sync_to", str(keep / folder)]


def name_folders(run_name: str, made: str = "data/generated") -> tuple[Path, Path, Path]:
    """The folders of the run, of what is `made` with it, and of its evaluation."""
    if not re.fullmatch(r"\w[\w.-]*", run_name):
        sys.exit(f"run_name: {run_name or 'empty'}; give letters, digits, `_`, `-` and `.`, as for a folder")
    return Path("runs") / run_name, Path(made) / run_name, Path("runs") / f"{run_name}_evaluation"


def find_data(source: str, place: str, trainer: str, uploads: Path) -> Path | str:
    """What the form names: a hub dataset, a folder, an unpacked zip file, what is uploaded, or the demo's data."""
    if source == "demo":
        return VOICE_DEMO if trainer == "train_tts.py" else draw_demo(trainer)
    if source == "hub":
        return place
    if source == "address":
        return open_archive(download_archive(place))
    if source == "upload":
        return open_archive(upload(uploads))
    found = open_place(place)
    if found is None or not found.exists():
        sys.exit(f"place: {place or 'empty'}; give the path of a folder or of a .zip file that exists")
    return open_archive(found)


def draw_demo(trainer: str) -> Path:
    """The demo's subject for train_dreambooth.py, its catalogue for train_lora.py."""
    if trainer == "train_dreambooth.py":
        folder, script, words = Path("data/drawn_subject"), "demo/subject.py", []
    else:
        folder, script, words = Path("data/drawn"), "demo/catalogue.py", ["--num_images", "1800", "--size", "128"]
    if not folder.exists():
        run(script, "--output_dir", folder, *words)
    return folder


def prepare(found: Path | str, run_name: str, flags: str) -> Path:
    """The prepared dataset: the folder itself if it is one, else what prepare_dataset.py makes of it."""
    if (Path(found) / "splits.json").is_file():
        return Path(found)
    folder = Path("data") / run_name
    run("prepare_dataset.py", "--catalogue", found, "--output_dir", folder, *split(flags))
    return folder


def prepare_voice(source: str, place: str, flags: list[str], run_name: str, keep: Path | None) -> Path:
    """The prepared dataset: the folder itself if it is one, else what prepare_speech.py makes of the recordings.

    It is kept in one file, with which a later session goes on: prepared anew on another machine, the last bit of a
    sample might differ, and a run resumes with the same data only.
    """
    folder = Path("data") / run_name
    key = hashlib.sha256(json.dumps([source, place, *flags]).encode()).hexdigest()[:8]
    kept = keep / f"{folder}-{key}.zip" if keep else None
    if kept and kept.is_file() and not folder.exists():
        unpack(kept, folder)
        print(f"data: {folder}, from {kept}")
        return folder
    found = find_data(source, place, "train_tts.py", (keep or Path("data")) / "uploads" / run_name)
    if (Path(found) / "splits.json").is_file():
        return Path(found)
    if keep and "--segment" in flags:
        keep_transcripts(keep)
    run("prepare_speech.py", "--recordings", found, "--output_dir", folder, *flags)
    if kept and not kept.is_file():
        keep_dataset(folder, kept)
    return folder


def keep_dataset(folder: Path, kept: Path) -> None:
    """Pack a dataset into a .zip file, and copy the page that corrects its transcripts, if it has one, beside it."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    packed = shutil.make_archive(str(kept.with_suffix(".partial")), "zip", folder)
    Path(packed).rename(kept)
    print(f"data: kept in {kept}")
    for page in folder.glob("corrections.html"):
        print("to correct the transcripts:", shutil.copy(page, kept.with_suffix(".corrections.html")))


def keep_transcripts(keep: Path) -> None:
    """Let prepare_speech.py keep there what takes it longest, the transcripts of long recordings."""
    here, there = Path("data/cache/segments"), keep.absolute() / "data/segments"
    there.mkdir(parents=True, exist_ok=True)
    if not here.exists():
        here.parent.mkdir(parents=True, exist_ok=True)
        here.symlink_to(there)


def download_archive(address: str) -> Path:
    """A copy of the .zip file at an address; a download that was cut off goes on where it was."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.path.endswith(".zip"):
        sys.exit(f"place: {address or 'empty'}; give the address of a .zip file, https://…/NAME.zip")
    name = f"{Path(parts.path).stem}-{hashlib.sha256(address.encode()).hexdigest()[:8]}.zip"
    file, partial = Path("data/downloads") / name, Path("data/downloads") / f".{name}.partial"
    if not file.exists():
        print(f"downloading {address}", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        command = "curl --fail --location --silent --show-error --continue-at - --output".split()
        stream([*command, str(partial), address])
        partial.rename(file)
    return file


def upload(folder: Path) -> Path:
    """The folder with the uploaded files, asked for where it is empty."""
    if not (folder.is_dir() and any(folder.iterdir())):
        if not (files := import_colab("files")):
            sys.exit("source upload: works in Colab only; choose `folder` and give its path")
        files.upload(str(folder))
    return folder


def open_archive(found: Path) -> Path:
    """The folder itself; or, of a zip file or of a folder that holds nothing else, what is in it, on the local disk."""
    if found.is_dir():
        inside = list(found.iterdir())
        if len(inside) != 1 or inside[0].suffix != ".zip":
            return found
        found = inside[0]
    folder = Path("data/unpacked") / found.stem
    if not folder.exists():
        unpack(found, folder)
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def unpack(archive: Path, folder: Path) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.unpack_archive(archive, partial, "zip")
    partial.rename(folder)


# Batch


def choose_batch(
    trainer: str, data_flags: list[object], flags: list[str], measure: str, keep: Path | None
) -> list[str]:
    """Flags for the batch that trains fastest on this GPU, which benchmark.py finds in some minutes.

    The samples a step are those of `flags`, so that a run may go on with a batch of another GPU. What was measured is
    kept, for each kind of GPU and `flags`. `measure`: with a GPU, always, never.
    """
    gpus = describe_gpus()
    if measure == "never" or (measure == "with a GPU" and not gpus):
        print("batch: not measured; train_flags or the defaults decide")
        return []
    device = gpus[0].partition(",")[0] if gpus else "CPU"
    key = hashlib.sha256(json.dumps([trainer, *flags]).encode()).hexdigest()[:8]
    folder = Path("runs/benchmarks") / f"{re.sub(r'[^a-z0-9]+', '-', device.lower())}-{key}"
    measured = folder / "benchmark.json"
    kept = (keep or Path()) / measured
    if not (kept.is_file() and "recommended" in json.loads(kept.read_text())):
        few = "--repeats", 3, "--generate_batch_sizes", "--output_dir", folder
        run("benchmark.py", "--trainer", trainer, *few, "--", *data_flags, *flags)
        if keep:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.with_suffix(".partial").write_bytes(measured.read_bytes())
            kept.with_suffix(".partial").rename(kept)
    best = json.loads(kept.read_text())["recommended"]
    words = [f"--{name}={best[name]}" for name in ("train_batch_size", "gradient_accumulation_steps")]
    switches = ["gradient_checkpointing", *["compile"] * (trainer != "train_tts.py")]  # which has no --compile
    words += [f"--{'' if best[name] else 'no-'}{name}" for name in switches]
    print(f"batch: {shlex.join(words)}, as measured on {device} ({kept})")
    return words


# Results


def find_run(keep: Path | None, run_name: str) -> Path:
    """The folder in which a run is kept; exits with the names of the runs there if it has none of that name."""
    folder = (keep or Path()) / name_folders(run_name)[0]
    if not (folder / "config.yaml").is_file():
        beside = sorted(path.parent.name for path in folder.parent.glob("*/config.yaml"))
        sys.exit(f"run_name: no run in {folder}; there are: {', '.join(beside) or 'none'}")
    return folder


def watch(run: Path, minutes: float = 0, language: str | None = None) -> None:
    """Show a run again every so many minutes until it is finished; once with 0. `language`: of the report, en or pt."""
    from IPython.display import clear_output

    while not show_run(run, language) and minutes:
        time.sleep(60 * minutes)
        clear_output(wait=True)


def show_run(run: Path, language: str | None = None) -> bool:
    """Show the figures of a run, the report in words, its loss curve, its newest validation; whether it has ended."""
    from IPython.display import Image, display

    from utils.console import print_table
    from utils.metrics_log import draw_losses, read_metrics
    from utils.runs import describe_progress

    rows, has_ended = describe_progress(run)
    print_table(rows.items())
    show_report(run, language)
    curve = io.BytesIO()
    draw_losses(read_metrics(run / "metrics.jsonl")).savefig(curve, format="png", dpi=80)
    display(Image(curve.getvalue()))
    for newest in sorted(run.glob("validation/step-*.png"))[-1:]:
        print(f"\n{newest}")
        display(Image(newest))
    play((str(sound), sound) for sound in newest_sounds(run))
    return has_ended


def show_report(run: Path, language: str | None) -> None:
    """Show the report by rules; its faults end no cell."""
    from service.language import choose_language
    from service.report.writing import write_report

    try:
        print(f"\n{write_report(run, choose_language(language))}")
    except Exception as error:
        print(f"\nno report: {error}")


def report(run: Path, language: str, *words: str) -> None:
    """What report_run.py prints, by the notebook's own Python: it needs none of the pinned packages but httpx."""
    stream([sys.executable, str(ROOT / "report_run.py"), "--run", str(run), "--lang", language, *words])


def newest_sounds(run: Path) -> list[Path]:
    """What a voice said in its newest validation, each sentence with its recording where it has one."""
    sounds = sorted(run.glob("validation/step-*.wav"))
    real = [one for one in sounds if one.stem.endswith("_real")]
    spoken = [one for one in sounds if one not in real]
    newest = [one for one in spoken if one.name.partition("_")[0] == spoken[-1].name.partition("_")[0]]
    return sorted(newest + real, key=lambda one: one.stem.partition("_")[2])


def play(sounds: Iterable[tuple[str, Path]]) -> None:
    """Show a player for each sound, below its title."""
    from IPython.display import Audio, display

    for title, sound in sounds:
        print(f"\n{title}")
        display(Audio(filename=str(sound)))


def write_texts(texts: str, file: Path) -> Path:
    """Write each of the texts, which bars divide, on a line of the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{' '.join(one.split())}\n" for one in texts.split("|")), "utf-8")
    return file


def play_set(folder: Path) -> None:
    """Show players for what synthesize.py made."""
    from utils.metrics_log import read_metrics

    play((row["text"], folder / row["file_name"]) for row in read_metrics(folder / "metadata.jsonl"))


def show_page(page: Path) -> None:
    """Show a page that is one file, if it is there, in a frame of its own."""
    from IPython.display import HTML, display

    if page.is_file():
        content = html.escape(page.read_text("utf-8"))
        display(HTML(f'<div><iframe srcdoc="{content}" width="100%" height="800"></iframe></div>'))


def show_sheet(images: Path) -> None:
    """Show the first contact sheet of a generated set, if it has one."""
    from IPython.display import Image, display

    for sheet in sorted(images.glob("sheets/*"))[:1]:
        display(Image(sheet))


def copy_results(folder: Path, keep: Path | None) -> None:
    """Copy a folder, without its cache, to where results are kept."""
    if keep:
        shutil.copytree(folder, keep / folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("features", ".*"))
        print(f"copied to {keep / folder}")


def download(*folders: Path) -> None:
    """Pack what lies in these folders, but no logs and no folders of checkpoints; the browser downloads it."""
    archive = Path(f"{folders[0]}.zip")
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(path for folder in folders for path in folder.glob("[!.]*")):
            if path.is_file():
                packed.write(path)
    if files := import_colab("files"):
        files.download(str(archive))
    else:
        print(f"packed: {archive}")
