"""What the evaluation of a voice concludes, in sentences, and what of it can't be trusted."""

from typing import Any

from evaluation.report.formatting import format_difference, format_interval, read_estimate
from evaluation.spoken import FEW, judge_difference
from utils.cli import counted

SOME = 30  # sentences: with fewer, only large differences are seen
UNHEARD = 0.15  # characters of the recordings that a recogniser may hear wrong, for a verdict on the voice
MISHEARD = 0.05  # from there on it is said
UNLIKE = 0.5  # cosine of the recordings of one speaker, below which an encoder hardly knows them
APART = 0.2  # of the pitch
NAMES = {"real": "recordings", "copy": "copy-synthesis"}


def find_figure(metrics: dict[str, Any], name: str) -> dict[str, Any] | None:
    found = (one for one in metrics["figures"] if one["id"] == name and one.get("value") is not None)
    return next(found, None)


def say(figure: dict[str, Any]) -> str:
    value, around = format_interval(read_estimate(figure), figure.get("unit", ""))
    return f"{value} ({around})" if around else value


def judge_voice(metrics: dict[str, Any]) -> tuple[str, list[str], list[str]]:
    """(a headline, sentences, what can't be trusted)."""
    doubts = find_doubts(metrics)
    sentences = [judge_beside(metrics, name) for name in ("similarity", "mcd", "f0_correlation")]
    sentences += [judge_pitch(metrics), judge_tempo(metrics), judge_speed(metrics), judge_people(metrics)]
    return judge_understanding(metrics), [one for one in sentences if one], doubts


def judge_understanding(metrics: dict[str, Any]) -> str:
    n, cer = len(metrics["utterances"]), find_figure(metrics, "cer")
    if n < FEW:
        return f"No verdict: {counted(n, 'sentence')} are too few, give {FEW} or more."
    if cer is None:
        return "No verdict on how well it is understood: there is no recogniser (--asr)."
    real = cer["beside"].get("real")
    if real is None:
        return f"{say(cer)} of the characters are heard wrong; what recordings get is not known."
    if real["value"] > UNHEARD:
        wrong = format_interval(read_estimate(real), "%")[0]
        return f"No verdict on how well it is understood: of the recordings too, the recogniser hears {wrong} wrong."
    apart, around = format_difference(read_estimate(real["difference"]), "%")
    told = f"{say(cer)} of the characters are heard wrong, {format_interval(read_estimate(real), '%')[0]} of recordings"
    if judge_difference(real["difference"], "lower")[1] == "bad":
        return f"Less well understood than the recordings: {told}."
    return f"Not shown to be less well understood than the recordings: {told} ({apart}, {around})."


def judge_beside(metrics: dict[str, Any], name: str) -> str:
    """A figure in a sentence, with what it is beside recordings, or else beside copy-synthesis."""
    figure = find_figure(metrics, name)
    if figure is None:
        return ""
    kind = next((kind for kind in NAMES if kind in figure["beside"]), None)
    if kind is None:
        return f"{figure['name']}: {say(figure)}."
    other = figure["beside"][kind]
    words, _ = judge_difference(other["difference"], figure["better"])
    value = format_interval(read_estimate(other), figure["unit"])[0]
    return f"{figure['name']}: {say(figure)}; {NAMES[kind]} {value}, {words}."


def judge_pitch(metrics: dict[str, Any]) -> str:
    """Where the voice is much higher or lower than the recordings, and whether it buzzes at its frame rate."""
    pairs = [(one.get("pitch"), one.get("real_pitch")) for one in generated_sounds(metrics)]
    known = sorted((pitch, real) for pitch, real in pairs if pitch and real)
    if not known:
        return ""
    pitch, real = known[len(known) // 2][0], sorted(real for _, real in known)[len(known) // 2]
    if abs(pitch / real - 1) <= APART:
        return ""
    frames = metrics.get("frame_rate")
    buzz = "; that is the rate of its decoder's frames: it buzzes, train it longer with discriminators"
    said = buzz if frames and abs(pitch / frames - 1) < 0.05 else ""
    return f"Its pitch is {pitch:.0f} Hz, that of the recordings {real:.0f} Hz{said}."


def judge_tempo(metrics: dict[str, Any]) -> str:
    figure = find_figure(metrics, "length")
    if figure is None or figure["n"] < FEW or figure["low"] <= 1 <= figure["high"]:
        return ""
    share = abs(figure["value"] - 1)
    return f"It is {'slower' if figure['value'] > 1 else 'faster'} than the recordings: {100 * share:.0f} % in length."


def judge_speed(metrics: dict[str, Any]) -> str:
    figure = find_figure(metrics, "real_time_factor")
    where = metrics.get("made", {}).get("hardware")
    return f"Speaks {1 / figure['value']:,.3g} times as fast as real time on {where}." if figure and where else ""


def preferences_of(human: dict[str, Any]) -> list[dict[str, Any]]:
    """What listeners said of the voice and each other one; metrics.json of earlier versions has only one."""
    return human.get("preferences") or [one for one in [human.get("preference")] if one]


def judge_people(metrics: dict[str, Any]) -> str:
    human = metrics.get("human")
    if not human:
        return ""
    parts = []
    if "mean" in human:
        means = {kind: format_interval(read_estimate(one))[0] for kind, one in human["mean"].items()}
        parts.append(f"mean opinion {means['generated']} of 5, recordings {means['real']}")
    for found in preferences_of(human):
        share, around = format_interval(read_estimate(found), "%")
        parts.append(f"preferred to {found['against']} in {share} ({around}): {found['verdict']}")
    return f"Listeners: {'; '.join(parts)}."


def generated_sounds(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    return [row["sounds"]["generated"] for row in metrics["utterances"]]


def is_recording(sounds: dict[str, dict[str, Any]]) -> bool:
    """Whether what was judged as the voice is the file of the recording: the sets are one folder, or copies."""
    generated, real = (sounds.get(kind, {}).get("sha256") for kind in ("generated", "real"))
    return generated is not None and generated == real


def find_doubts(metrics: dict[str, Any]) -> list[str]:
    """What is said before the figures: few sentences, models that may not fit, sentences left out."""
    n, doubts = len(metrics["utterances"]), list(metrics.get("left_out", []))
    if same := sum(is_recording(row["sounds"]) for row in metrics["utterances"]):
        doubts.append(f"{same} of {counted(n, 'generated sound')} are the recordings themselves, byte for byte.")
    if FEW <= n < SOME:
        doubts.append(f"{n} sentences are few: only large differences are seen.")
    cer = find_figure(metrics, "cer")
    real = (cer or {}).get("beside", {}).get("real")
    if real and real["value"] > MISHEARD:
        wrong = format_interval(read_estimate(real), "%")[0]
        doubts.append(
            f"The recogniser hears {wrong} of the characters of the recordings wrong: many of the voice's errors "
            "may be the recogniser's own. Use a better one for this language (--asr)."
        )
    like = find_figure(metrics, "similarity")
    own = (like or {}).get("beside", {}).get("real")
    if own and own["value"] < UNLIKE:
        doubts.append(
            "The speaker encoder finds the recordings of one speaker not alike (cosine "
            f"{own['value']:.2f}): its figures say little (--speaker_encoder)."
        )
    models = metrics.get("made", {}).get("models", {})
    if used := [name for name, source in models.items() if source == "demo"]:
        doubts.append(
            f"The demo's {' and '.join(used)} learnt from espeak-ng's voices: trust those figures for such voices only."
        )
    return doubts
