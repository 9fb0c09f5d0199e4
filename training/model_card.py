"""README.md of a run (its model card), summary.json, and the folder on the hub."""

import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from families import kohya, tokens, whole_file
from families.lora import FILE_NAME as WEIGHTS
from families.lora import LABELS
from utils.cli import UserError, mask_text
from utils.files import file_sha256, list_files, read_written, write_json, write_text
from utils.metrics_log import plot_losses, read_metrics, summary_rows
from utils.runs import package_versions
from utils.wording import make_environment

# What is made for users, and what is pushed with it: neither checkpoints nor logs; environment.json describes the
# machine, and stays on it.
RESULT = re.compile(
    r"[^/]+\.safetensors|model_index\.json|(config|vocab|tokenizer_config|added_tokens|special_tokens_map)\.json|"
    r"(unet|vae|text_encoder(_2)?|tokenizer(_2)?|scheduler|feature_extractor)/[^/]+"
)
PUSHED = re.compile(rf"{RESULT.pattern}|README\.md|loss_curve\.png|config\.yaml|validation/[^/]+\.png")
WORDS = {None: "not set", True: "yes", False: "no"}


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a run besides its results; what is not known is left out."""

    base_model: str
    command: str
    prompt: str  # an example of one
    script: str = "train_lora.py"
    method: str = "lora"
    trigger_word: str | None = None
    instance_prompt: str | None = None
    token_files: Sequence[str] = ()
    repo_id: str | None = None
    data: str | Path | None = None
    data_fingerprint: str | None = None
    counts: dict[str, int] = field(default_factory=dict)  # images by split
    rank: int | str | None = None
    alpha: float | str | None = None
    base_lora: str | None = None
    init_lora: str | None = None
    adapter: str | None = None  # lokr or loha; None: a LoRA
    denoiser: str = "unet"  # what the pipeline calls it
    sampling: str | None = None  # further arguments of the pipeline
    settings: dict[str, Any] = field(default_factory=dict)


def read_facts(values: dict[str, Any]) -> CardFacts:
    """Those of the values that a card has a place for."""
    return CardFacts(**{one.name: values[one.name] for one in fields(CardFacts) if one.name in values})


def write_results(
    folder: Path, write_card: Callable[[Path, dict[str, str]], None], counts: dict[str, Any], asked: list[Any]
) -> dict[str, str]:
    """Write the loss curve, the card, and last summary.json, which marks the run as finished; the results by label.

    write_card: gets the folder and the results. counts: see summary_rows. asked: the length asked for.
    """
    records = read_metrics(folder / "metrics.jsonl")
    plot_losses(records, folder / "loss_curve.png")
    seconds = sum(value for one in records for name, value in one.items() if name.startswith("seconds_"))
    summary = counts | {"seconds": seconds}
    rows = summary_rows(records, summary)
    write_card(folder, rows if records else {})
    own = list_files(folder).keys() & read_written(folder, "train")
    files = {name: file_sha256(folder / name) for name in sorted(own) if RESULT.fullmatch(name)}
    write_json(folder / "summary.json", summary | {"asked": asked, "files": files})
    return rows


def write_card(folder: Path, results: dict[str, str], facts: CardFacts) -> None:
    """Write README.md; it shows the first and the last validation grid and the loss curve, if the folder has them."""
    environment = make_environment(Path(__file__).parent / "templates")
    whole = facts.method == "full"
    facts = replace(facts, base_model=mask_text(facts.base_model))
    source = facts.repo_id or folder
    base = "demo/model" if facts.base_model == "demo" else facts.base_model
    known = "rank", "alpha", "base_lora", "init_lora"
    settings = {name: value for name in known if (value := getattr(facts, name)) is not None}
    card = environment.get_template("model_card.md.j2").render(
        front_matter=front_matter(facts),
        name=folder.name,
        facts=facts,
        whole=whole,
        label=LABELS[facts.adapter or "lora"],
        on_hub=is_hub_id(facts.base_model),
        samples=find_samples(folder),
        files=describe_files(folder),
        source=source,
        base_source=source if whole else base,
        weights=WEIGHTS,
        counts=[f"{count:,} {split}" for split, count in facts.counts.items() if count],
        command=facts.command,
        fence="`" * (1 + max(map(len, re.findall("`+", f"`` {facts.command}")))),
        settings=describe_settings(settings | facts.settings),
        results=results,
        has_curve=(folder / "loss_curve.png").is_file(),
        versions=", ".join(f"{package} {version}" for package, version in package_versions().items() if version),
    )
    write_text(folder / "README.md", mask_text(card))


def front_matter(facts: CardFacts) -> str:
    """What the hub reads, as YAML. It refuses a base model that is a path."""
    from huggingface_hub import ModelCardData

    prompt = facts.instance_prompt or facts.trigger_word
    return ModelCardData(
        base_model=facts.base_model if is_hub_id(facts.base_model) else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=([] if facts.method == "full" else ["lora"]) + ["text-to-image", "diffusers"],
        instance_prompt=prompt or None,
    ).to_yaml()


def is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.\-]+/[\w.\-]+", name) is not None and not Path(name).exists()


def find_samples(folder: Path) -> dict[str, Path]:
    """The first and the last validation grid by title, as seen from the folder."""
    grids = [path.relative_to(folder) for path in sorted((folder / "validation").glob("step-*.png"))]
    titles = ("Before training", "After training")
    return dict(zip(titles, dict.fromkeys([grids[0], grids[-1]]) if grids else []))


def describe_files(folder: Path) -> dict[str, str]:
    """What each file of the result in a folder is for."""
    name = folder.resolve().name
    lora_file, word_file = kohya.lora_name(name), kohya.word_name(name)
    word = word_file.removesuffix(".safetensors")
    known = {
        WEIGHTS: "diffusers, and generate.py of the repository that made it",
        lora_file: "ComfyUI, A1111, Forge and kohya's scripts: the same LoRA, with their names of the layers",
        **dict.fromkeys(tokens.FILES, "diffusers: the learnt word"),
        whole_file.whole_name(name): "ComfyUI, A1111 and Forge: the whole pipeline in one file",
        word_file: f"the learnt word: in prompts of ComfyUI `embedding:{word}`, of A1111 and Forge `{word}`",
    }
    return {file: use for file, use in known.items() if (folder / file).is_file()}


def choose_settings(settings: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Of a training on images what its card shows: those of these names that are set."""
    shown = [*names, "multiple_captions"] if settings["multiple_captions"] else names
    return {name: settings[name] for name in shown if settings[name] not in (None, [])}


def describe_settings(settings: dict[str, Any]) -> dict[str, str]:
    return {name.replace("_", " "): describe_value(value) for name, value in settings.items()}


def describe_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return WORDS[value] if value is None or isinstance(value, bool) else str(value)


def hub_token() -> str:
    """HF_TOKEN; to be asked for before the training, not after it."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UserError("--push_to_hub: HF_TOKEN is not set; export a token that may write, or leave the flag out")
    return token


def files_to_push(folder: Path) -> list[str]:
    """The LoRA (and its other formats), the card, the curve, the validation images, the settings."""
    return [name for name in list_files(folder) if PUSHED.fullmatch(name)]


def push_folder(folder: Path, repo_id: str, private: bool) -> str:
    """Upload `files_to_push` in one commit and return the address; a failure is an error and the run stays as it is."""
    from huggingface_hub import HfApi

    token, names = hub_token(), files_to_push(folder)
    if not {WEIGHTS, "model_index.json", "config.json"} & set(names):  # a LoRA, a pipeline, a voice
        raise UserError(f"--push_to_hub {repo_id}: {folder} holds no {WEIGHTS}; train first")
    for name in names:
        if token.encode() in (folder / name).read_bytes():
            raise UserError(f"--push_to_hub {repo_id}: {name} contains the value of HF_TOKEN; remove it, then push")
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        # Whole names: the * of a pattern would match a / too, and so the checkpoints.
        patterns = [glob.escape(name) for name in names]
        api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=patterns, commit_message="Upload weights")
    except Exception as error:  # of many kinds, from the hub's library and those that it uses
        reason = mask_text(" ".join(str(error).split())) or type(error).__name__
        raise UserError(
            f"--push_to_hub {repo_id}: {reason}; the run is complete in {folder}; correct the cause and push again"
        ) from error
    return f"{api.endpoint}/{repo_id}"


def push_run(folder: Path, repo_id: str | None) -> None:
    """Upload a run to a private repository, with the folder's name if none is given."""
    print(f"uploaded to {push_folder(folder, repo_id or folder.name, private=True)}")
