"""The training loop of ylacombe/finetune-hf-vits on given batches; started by tts_speed.py in that checkout.

Model, discriminator, features, losses and alignment are that repository's, in the order of its loop. Its own script
can't run on today's datasets, which decode audio by torchcodec: so its data is made ready beforehand, for nothing.
"""

import sys
import time
from pathlib import Path

import torch
from monotonic_align import maximum_path
from utils.configuration_vits import VitsConfig

from utils import VitsDiscriminator, VitsFeatureExtractor, VitsModelForPreTraining, slice_segments

WEIGHTS = {"duration": 1.0, "kl": 1.5, "mel": 35.0, "gen": 1.0, "fmaps": 1.0, "disc": 3.0}  # of its examples


def read_losses() -> dict:
    """The losses of its script, which can't be imported without all that it needs."""
    text = Path("run_vits_finetuning.py").read_text("utf-8")
    start, end = text.index("def discriminator_loss"), text.index("# LOGGING AND EVALUATION METHODS")
    names: dict = {"torch": torch}
    exec(text[start:end], names)
    return names


def train(job: dict) -> list[float]:
    """The seconds of each step."""
    losses, config = read_losses(), VitsConfig(**job["config"])
    config.pad_token_id = 0  # which transformers gave every config when it was written
    config._attn_implementation = "eager"
    model = VitsModelForPreTraining(config).train()
    discriminator, model.discriminator = model.discriminator, None
    extractor = VitsFeatureExtractor(sampling_rate=config.sampling_rate)
    options = {"lr": 2e-5, "betas": (0.8, 0.99), "eps": 1e-8}
    optimizers = [torch.optim.AdamW(one.parameters(), **options) for one in (model, discriminator)]
    assert isinstance(discriminator, VitsDiscriminator)
    batches, seconds = [make_batch(extractor, one) for one in job["batches"]], []
    for step in range(job["steps"]):
        began = time.perf_counter()
        take_step(model, discriminator, optimizers, extractor, batches[step % len(batches)], losses)
        seconds.append(time.perf_counter() - began)
    return seconds


def make_batch(extractor: VitsFeatureExtractor, batch: dict) -> dict:
    labels, mels = extractor._torch_extract_fbank_features(batch["waveforms"])
    frames = torch.arange(labels.shape[2])[None] < batch["frames"][:, None]
    tokens = torch.arange(batch["tokens"].shape[1])[None] < batch["lengths"][:, None]
    masks = {"mask": tokens.long(), "label_mask": frames.long()}
    return {
        **masks,
        "tokens": batch["tokens"],
        "labels": labels,
        "mels": mels,
        "waveforms": batch["waveforms"][:, None],
    }


def take_step(model, discriminator, optimizers: list, extractor, batch: dict, losses: dict) -> None:
    found = model(
        input_ids=batch["tokens"],
        attention_mask=batch["mask"],
        labels=batch["labels"],
        labels_attention_mask=batch["label_mask"],
        return_dict=True,
        monotonic_alignment_function=maximum_path,
    )
    size, hop = model.segment_size, extractor.hop_length
    mel_target = slice_segments(batch["mels"], found.ids_slice, size)
    mel = extractor._torch_extract_fbank_features(found.waveform.squeeze(1))[1]
    target = slice_segments(batch["waveforms"], found.ids_slice * hop, model.config.segment_size)

    real, decoded = discriminator(target)[0], discriminator(found.waveform.detach())[0]
    (losses["discriminator_loss"](real, decoded)[0] * WEIGHTS["disc"]).backward()
    torch.nn.utils.clip_grad_norm_(discriminator.parameters(), 1.0)
    optimizers[1].step()
    optimizers[1].zero_grad()

    features = discriminator(target)[1]
    decoded, decoded_features = discriminator(found.waveform)
    parts = {
        "duration": torch.sum(found.log_duration),
        "mel": torch.nn.functional.l1_loss(mel_target, mel),
        "kl": losses["kl_loss"](
            found.prior_latents,
            found.posterior_log_variances,
            found.prior_means,
            found.prior_log_variances,
            found.labels_padding_mask,
        ),
        "fmaps": losses["feature_loss"](features, decoded_features),
        "gen": losses["generator_loss"](decoded)[0],
    }
    sum(WEIGHTS[name] * loss for name, loss in parts.items()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizers[0].step()
    optimizers[0].zero_grad()


def main() -> None:
    job = torch.load(sys.argv[1])
    torch.save(train(job), sys.argv[1])
