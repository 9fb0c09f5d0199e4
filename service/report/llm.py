"""A report by a language model behind any OpenAI-compatible endpoint, checked against what the model was given."""

import asyncio
import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from service.language import translate
from service.report.findings import Finding, comparable_numbers
from service.report.numbers import find_invented, read_numbers
from service.report.writing import Report
from utils.cli import mask_text
from utils.files import parse_json
from utils.wording import data_address, escape_text

HERE = ("localhost", "127.0.0.1", "::1")  # this machine
NAMES = {"en": "English", "pt": "Brazilian Portuguese"}
FREQUENT = {  # words of one language alone, with which an answer's is recognised
    "en": frozenset("the of and to is in it was with for from that this by at are has not".split()),
    "pt": frozenset("o os um uma não em da dos das na ao para com é são foi pela pelo mais de que e".split()),
    "es": frozenset("el la los las en y del con una más es su al pero".split()),  # near Portuguese
}
TASK = """You explain to the person who trains an image or speech model how the training goes. Write in {language}, in
plain words: one short paragraph on what happened, one on what is odd, one on what to try first. Use the findings below
alone. Every number that you write must be one of those given, rounded at most, or the difference or the ratio of two of
them; write it in digits. No headings, no links, no tables."""
ANSWER_TOKENS, IMAGE_TOKENS, CHARACTERS_A_TOKEN = 1200, 1500, 3  # the last two on the safe side
FEWEST_TOKENS = 200  # for which an answer is asked for
MOST_BYTES = 1 << 20  # of an answer
MOST_CHARACTERS = 8000
SIDE = 768  # pixels of an image
REPEATS = 2  # of a request that may succeed a little later
LONGEST_WAIT = 60.0  # seconds that Retry-After may ask for


class Failure(Exception):
    """Why there is no answer: a key of the catalogue, with its values."""

    def __init__(self, key: str, repeat: bool = False, final: bool = False, wait: float | None = None, **values: Any):
        super().__init__(key)
        self.key, self.values = key, values
        self.repeat, self.final = repeat, final  # the same model may answer later; no other model would either
        self.wait = wait  # the seconds that the endpoint asks for


@dataclass(frozen=True)
class Endpoint:
    """`models` are tried in turn; `timeout`: seconds for one request, from its start to its last byte."""

    base_url: str
    models: Sequence[str]
    key: str | None
    timeout: float


@dataclass
class Budget:
    """What may still be spent: tokens, of questions and answers, and requests."""

    tokens: int
    calls: int


@dataclass(frozen=True)
class Answer:
    model: str
    text: str


def ask_models(
    endpoint: Endpoint, budget: Budget, findings: list[Finding], language: str, image: Path | None
) -> Answer:
    """The first answer of a model whose numbers all follow from the findings; else the Failure of the last model."""
    question = write_question(findings, language)
    given = [one.value for _, readings in read_numbers(question) for one in readings]
    failure = Failure("reason.no_budget")
    for model in endpoint.models:
        try:
            text = ask_patiently(endpoint, budget, make_request(model, question, language, image))
            if invented := find_invented(text, given, comparable_numbers(findings)):
                raise Failure("reason.invented", numbers="; ".join(invented[:5]))
            if given and not read_numbers(text):
                raise Failure("reason.no_number")
            if not is_written_in(text, language):
                raise Failure("reason.other_language")
            return Answer(model, text)
        except Failure as error:
            failure = error
            if error.final:
                break
    raise failure


def is_written_in(text: str, language: str) -> bool:
    """Whether a tenth of the words are frequent ones of the language, and fewer those of another."""
    words = re.findall(r"(?<!\d)[^\W\d_]+", text.lower())  # not the e of 1e-4
    shares = {name: sum(word in frequent for word in words) for name, frequent in FREQUENT.items()}
    return shares[language] >= max(1, len(words) / 10) and shares[language] == max(shares.values())


def write_question(findings: list[Finding], language: str) -> str:
    """The findings as JSON: sentences and numbers, without names."""
    shown = [
        {
            "finding": one.key.partition(".")[2],
            "severity": one.severity,
            "says": one.text(language),
            "numbers": {name: float(f"{value:.6g}") for name, value in one.numbers().items()},
            "advice": one.advice_text(language) or "",
        }
        for one in (finding.without_names() for finding in findings)
    ]
    return mask_text(json.dumps(shown, ensure_ascii=False, indent=1))


def make_request(model: str, question: str, language: str, image: Path | None) -> dict[str, Any]:
    """What is sent, in the shape of OpenAI's chat completions."""
    content: str | list[dict[str, Any]] = question
    if image:
        content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": encode_image(image)}}]
    task = TASK.format(language=NAMES[language])
    return {"model": model, "messages": [{"role": "system", "content": task}, {"role": "user", "content": content}]}


def encode_image(path: Path) -> str:
    """A small JPEG of an image, without what its file says besides."""
    from PIL import Image  # here: most reports show none

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=85)
    return data_address(packed.getvalue(), "image/jpeg")


def ask_patiently(endpoint: Endpoint, budget: Budget, request: dict[str, Any]) -> str:
    """A model's answer; a request that may succeed later is repeated, after the time that the endpoint asks for."""
    for repeat in range(REPEATS):
        try:
            return ask_once(endpoint, budget, request)
        except Failure as failure:
            wait = 2.0**repeat if failure.wait is None else failure.wait
            if not failure.repeat or wait > LONGEST_WAIT or budget.calls < 1:
                raise
            time.sleep(wait)
    return ask_once(endpoint, budget, request)


def ask_once(endpoint: Endpoint, budget: Budget, request: dict[str, Any]) -> str:
    """The text of one answer; what it cost is taken from the budget."""
    asked = count_tokens(request)
    most = min(ANSWER_TOKENS, budget.tokens - asked)
    if budget.calls < 1 or most < FEWEST_TOKENS:
        raise Failure("reason.no_budget", final=True)
    budget.calls -= 1
    try:
        content = post(endpoint, request | {"max_tokens": most})
    except Failure as failure:
        budget.tokens -= asked if failure.key == "reason.no_answer" else 0  # which may have to be paid all the same
        raise
    text, is_whole, cost = read_answer(content)
    budget.tokens -= cost or asked + len(text) // CHARACTERS_A_TOKEN
    if not is_whole:
        raise Failure("reason.cut_off")
    if not text or len(text) > MOST_CHARACTERS:
        raise Failure("reason.nonsense")
    return text


def count_tokens(request: dict[str, Any]) -> int:
    """An estimate on the high side."""
    task, question = (one["content"] for one in request["messages"])
    has_image = not isinstance(question, str)
    text = question[0]["text"] if has_image else question
    return (len(task) + len(text)) // CHARACTERS_A_TOKEN + IMAGE_TOKENS * has_image


def post(endpoint: Endpoint, request: dict[str, Any]) -> bytes:
    """The body of the answer to one request; a Failure where there is none with status 200, in time."""
    try:
        return asyncio.run(asyncio.wait_for(stream(endpoint, request), endpoint.timeout))
    except TimeoutError:
        raise Failure("reason.no_answer", repeat=True, seconds=endpoint.timeout) from None
    except httpx.TransportError:
        raise Failure("reason.unreachable", repeat=True) from None
    except httpx.HTTPError:
        raise Failure("reason.nonsense") from None


async def stream(endpoint: Endpoint, request: dict[str, Any]) -> bytes:
    """The same without a limit of time. A key goes neither where a redirect leads nor unencrypted to a proxy."""
    address, content = f"{endpoint.base_url}/chat/completions", b""
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    uses_proxy = httpx.URL(address).host not in HERE
    async with (
        httpx.AsyncClient(timeout=None, follow_redirects=False, trust_env=uses_proxy) as client,
        client.stream("POST", address, json=request, headers=headers) as response,
    ):
        check_status(response)
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > MOST_BYTES:
                raise Failure("reason.nonsense")
    return content


def check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status in (401, 403):
        raise Failure("reason.key_refused", final=True, status=status)
    if status == 429:
        asked = response.headers.get("Retry-After", "")
        raise Failure("reason.too_many", repeat=True, wait=float(asked) if asked.isdecimal() else None)
    if status != 200:
        raise Failure("reason.http_error", repeat=status >= 500, status=status)


def read_answer(content: bytes) -> tuple[str, bool, int]:
    """The text of a chat completion, whether it was not cut off, and the tokens that it cost (0: not said)."""
    try:
        answer = parse_json(content)
        choice = answer["choices"][0]
        text = clean(choice["message"]["content"])
        cost = (answer.get("usage") or {}).get("total_tokens")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise Failure("reason.nonsense") from None
    return text, choice.get("finish_reason") != "length", cost if isinstance(cost, int) and cost > 0 else 0


def clean(text: str) -> str:
    """Paragraphs of plain text: neither HTML nor a link, no heading, no control characters."""
    lines = ["".join(one for one in line if one.isprintable()) for line in text.replace("\t", " ").splitlines()]
    return "\n".join(escape_text(line).lstrip("#> ") for line in lines).strip()


def with_answer(report: Report, answer: Answer | Failure, language: str) -> Report:
    """The report with a model's own above it, or with why that is left out."""
    if isinstance(answer, Failure):
        reason = translate(language, answer.key, **answer.values)
        return replace(report, before=(f"*{translate(language, 'report.by_rules', reason=reason)}*",))
    heading, checked = (translate(language, key, model=answer.model) for key in ("report.by_model", "report.checked"))
    return replace(report, before=(f"## {heading}", answer.text, f"*{checked}*"))
