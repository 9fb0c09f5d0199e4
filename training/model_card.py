"""The card of a run, README.md, and the folder on the hub."""

import glob
import json
import os
import re
from pathlib import Path
from urllib.parse import quote

import yaml

from families.lora import FILE_NAME as WEIGHTS
from utils.cli import UserError
from utils.files import list_files, write_json, write_text
from utils.metrics_log import plot_losses, read_metrics, summary_rows, summary_table
from utils.runs import mask_text, package_versions

# Not the checkpoints nor the logs; environment.json tells of the machine, and stays on it.
PUSHED = re.compile(
    r"README\.md|[^/]+\.safetensors|loss_curve\.png|config\.yaml|validation/[^/]+\.png|model_index\.json|"
    r"(unet|vae|text_encoder(_2)?|tokenizer(_2)?|scheduler|feature_extractor)/[^/]+"
)


def write_card(folder: Path, facts: dict, samples: tuple[Path | None, Path | None], records: list[dict]) -> None:
    """README.md of a run, from what is known; what is not is left out.

    facts: base_model, command and prompt (an example); if known also script, trigger_word, instance_prompt, repo_id,
    data (its name), data_fingerprint, counts {split: n}, rank, alpha, settings {label: value}, summary (see
    summary_rows).
    samples: the first and the last validation grid, in the folder.
    """
    lines = ["---", yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True).strip(), "---", ""]
    lines += [f"# {folder.name}", "", _what_it_is(facts), ""]
    first, last = (sample if sample and sample.is_file() else None for sample in samples)
    shown = [("Before training", first), ("After training", last if last != first else None)]
    for title, sample in shown:
        if sample:
            lines += [f"{title} (`{sample.stem}`):", "", f"![{title}]({_link(sample, folder)})", ""]
    lines += ["## Use", "", "```python", *_snippet(folder, facts), "```", ""]
    data = _data(facts)
    lines += ["## Data", "", *data, ""] if data else []
    lines += ["## Training", "", "```bash", mask_text(facts["command"]), "```", ""]
    settings = {key: facts[key] for key in ("rank", "alpha") if facts.get(key) is not None} | facts.get("settings", {})
    lines += _table(("setting", "value"), settings)
    if records:
        lines += _table(("result", "value"), summary_rows(records, facts.get("summary", {})))
    if (folder / "loss_curve.png").is_file():
        lines += ["![Loss curve](loss_curve.png)", ""]
    versions = ", ".join(f"{package} {version}" for package, version in package_versions().items() if version)
    lines += [f"Made with {versions}."]
    write_text(folder / "README.md", "\n".join(lines).rstrip() + "\n")


def write_results(folder: Path, facts: dict, counts: dict, asked: list) -> str:
    """The loss curve, the card, and last summary.json, which says that the run is done; the summary as a table.

    facts: see write_card. counts: what the run came to (see summary_rows). asked: the length that was asked for.
    """
    records = read_metrics(folder / "metrics.jsonl")
    plot_losses(records, folder / "loss_curve.png")
    seconds = sum(value for one in records for name, value in one.items() if name.startswith("seconds_"))
    summary = counts | {"seconds": seconds}
    grids = sorted((folder / "validation").glob("step-*.png")) or [None]
    write_card(folder, facts | {"summary": summary}, (grids[0], grids[-1]), records)
    write_json(folder / "summary.json", summary | {"asked": asked})
    return summary_table(records, summary)


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.\-]+/[\w.\-]+", name) is not None and not Path(name).exists()


def _front_matter(facts: dict) -> dict:
    """What the hub reads. It refuses a base model that is a path."""
    base = facts["base_model"]
    front = {"base_model": base} if _is_hub_id(base) else {}
    front |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    prompt = facts.get("instance_prompt") or facts.get("trigger_word")
    front |= {"instance_prompt": prompt} if prompt else {}
    return front | {"tags": ["lora"] * (facts.get("method") != "full") + ["text-to-image", "diffusers"]}


def _what_it_is(facts: dict) -> str:
    base = facts["base_model"]
    link = f"[{base}](https://huggingface.co/{base})" if _is_hub_id(base) else f"`{base}`"
    rank = f" of rank {facts['rank']}" if facts.get("rank") else ""
    word = facts.get("trigger_word")
    trigger = f" Its trigger is `{word}`: write it in the prompt." if word else ""
    if prompt := facts.get("instance_prompt"):
        trigger += f" Its instance prompt is `{prompt}`: ask for the subject in these words."
    kind = f"A LoRA{rank} for {link}" if facts.get("method") != "full" else f"A pipeline, {link} trained further"
    return f"{kind}, made by `{facts.get('script', 'train_lora.py')}`.{trigger}"


def _snippet(folder: Path, facts: dict) -> list[str]:
    where = facts.get("repo_id") or folder
    base, remark, whole = facts["base_model"], "", facts.get("method") == "full"
    if base == "demo" and not whole:
        base, remark = "demo/model", "  # from the repository's own folder"
    base = where if whole else base
    load = [] if whole else [f'pipeline.load_lora_weights({_quoted(where)}, weight_name="{WEIGHTS}")']
    for n, name in enumerate(facts.get("token_files", ())):  # SDXL has one for each of its text encoders
        end = "_2" if n else ""
        load.append(
            f"pipeline.load_textual_inversion({_quoted(where)}, weight_name={_quoted(name)}, "
            f"text_encoder=pipeline.text_encoder{end}, tokenizer=pipeline.tokenizer{end})"
        )
    return [
        "import torch",
        "from diffusers import DiffusionPipeline",
        "",
        f"pipeline = DiffusionPipeline.from_pretrained({_quoted(base)}, dtype=torch.float32){remark}",
        *load,
        f'pipeline({_quoted(facts["prompt"])}).images[0].save("image.png")',
    ]


def _quoted(text) -> str:
    return json.dumps(str(text), ensure_ascii=False)


def _link(path: Path, folder: Path) -> str:
    return quote(path.relative_to(folder).as_posix())


def _data(facts: dict) -> list[str]:
    counts = ", ".join(f"{count:,} {split}" for split, count in facts.get("counts", {}).items() if count)
    lines = [f"{facts['data']}{': ' + counts if counts else ''}."] if facts.get("data") else []
    return lines + ([f"Fingerprint `{facts['data_fingerprint']}`."] if facts.get("data_fingerprint") else [])


def _table(head: tuple[str, str], rows: dict) -> list[str]:
    cells = [
        (str(key).replace("_", " "), mask_text(_in_words(value)).replace("|", "\\|")) for key, value in rows.items()
    ]
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells), ""]


def _in_words(value) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    words = {None: "not set", True: "yes", False: "no"}
    return next((word for key, word in words.items() if value is key), str(value))


def hub_token() -> str:
    """HF_TOKEN; ask for it before the training, not after."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UserError("--push_to_hub: HF_TOKEN is not set; export a token that may write, or leave the flag out")
    return token


def files_to_push(folder: Path) -> list[str]:
    """The LoRA (and its other formats), the card, the curve, the validation images, the settings."""
    return [name for name in list_files(folder) if PUSHED.fullmatch(name)]


def push_folder(folder: Path, repo_id: str, private: bool) -> str:
    """Upload `files_to_push` in one commit and return the address; a failure leaves the run as it is and says so."""
    from huggingface_hub import HfApi

    token, names = hub_token(), files_to_push(folder)
    if not {WEIGHTS, "model_index.json"} & set(names):
        raise UserError(f"--push_to_hub {repo_id}: {folder} holds no {WEIGHTS}; train first")
    for name in names:
        if token.encode() in (folder / name).read_bytes():
            raise UserError(f"--push_to_hub {repo_id}: {name} contains the value of HF_TOKEN; remove it, then push")
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        # Whole names, since a pattern's * would match a / too, and so the checkpoints.
        patterns = [glob.escape(name) for name in names]
        api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=patterns, commit_message="Upload weights")
    except Exception as error:  # of many kinds, by the hub's own library and those beneath it
        reason = mask_text(" ".join(str(error).split())) or type(error).__name__
        raise UserError(
            f"--push_to_hub {repo_id}: {reason}; the run is whole in {folder}; mend that and push again"
        ) from error
    return f"{api.endpoint}/{repo_id}"


def push_run(folder: Path, repo_id: str | None) -> None:
    """A run's folder to a private repository, of the folder's name where none is given."""
    print(f"uploaded to {push_folder(folder, repo_id or folder.name, private=True)}")
