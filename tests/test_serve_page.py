"""The page of serve.py in a real browser: images with and without a LoRA, attributes, history, speech; by keyboard."""

import contextlib
import re

import pytest
import soundfile
import yaml
from playwright.sync_api import expect

import prepare_dataset
from demo.catalogue import write_catalogue
from service.page_api import OF_SCRIPT
from service.pages import TEMPLATES
from speech.voices import save_voice
from tests.browser import open_browser
from tests.serving import served
from tests.speech.test_prosody import rich_voice
from tests.test_generate import write_lora
from tests.tiny_voices import RATE, hum

pytestmark = pytest.mark.slow
TOKEN = "a-token-of-a-test-42"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with what the page reads of it: the LoRA, and the dataset that it was trained on."""
    root = tmp_path_factory.mktemp("page")
    write_catalogue(root / "raw", 24, (48, 64), 0, ["Casual Shoes", "Boots"], damage=False)
    words = (
        f"--catalogue {root / 'raw'} --output_dir {root / 'data'} --resolution 32 --num_workers 1 --trigger_word <sks>"
    )
    assert prepare_dataset.main(prepare_dataset.parse_args(words.split())) == 0
    folder = write_lora(root / "runs/casual_shoes", 0)
    (folder / "config.yaml").write_text(yaml.safe_dump({"train_data_dir": str(root / "data")}))
    return folder


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    save_voice(run.parent / "rich", rich_voice(0))
    soundfile.write(run.parent / "calm.wav", hum("a casa"), RATE)
    flags = ["--lora", run, "--voice", "demo-voice", run.parent / "rich", "--max_steps", 200]
    flags += ["--style_reference", f"calm={run.parent / 'calm.wav'}"]
    with served(tmp_path_factory.mktemp("server"), *flags, SERVE_API_TOKEN=TOKEN) as one:
        yield one
        assert TOKEN not in one.log.read_text()


@pytest.fixture(scope="module")
def browser():
    with open_browser() as one:
        yield one


@contextlib.contextmanager
def opened(browser, url: str, width: int = 1280, locale: str = "en-GB", logged_in: bool = True, expected: str = ""):
    """A page that asks nothing of another server and in which no script fails; `expected`: of the console's error."""
    faults, asked = [], []
    context = browser.new_context(viewport={"width": width, "height": 844}, locale=locale)
    context.set_default_timeout(10_000)
    if logged_in:
        page = context.new_page()
        page.goto(f"{url}/login")
        page.get_by_label(re.compile("Token|Chave")).fill(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{url}/")
        page.close()
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/")
    try:
        yield page
        faults = [one for one in faults if not (expected and expected in one)]
        assert not faults and all(one.startswith((url, "blob:", "data:")) for one in asked), (faults, asked)
    finally:
        context.close()


def make(page, steps: int = 2) -> None:
    page.get_by_text("More settings").click()
    page.get_by_label("Steps").fill(str(steps))
    page.get_by_role("button", name="Make images").click()
    page.locator("p[role=status]").filter(has_text="Done.").wait_for()


def is_drawn(page, image) -> bool:
    return image.evaluate("one => one.decode().then(() => one.naturalWidth)") == 128


def test_without_the_token_there_is_a_form_alone(browser, server):
    with opened(browser, server.url, logged_in=False) as page:
        assert page.url.endswith("/login") and page.get_by_role("heading").inner_text() == "Log in"
        assert "casual_shoes" not in page.content()


def test_a_wrong_token_is_refused(browser, server):
    context = browser.new_context(locale="en-GB")
    page = context.new_page()
    page.goto(f"{server.url}/login")
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button").click()
    assert "This is not the token." in page.get_by_role("alert").inner_text()
    assert context.cookies() == []
    context.close()


def test_images_are_made_with_and_without_the_lora_and_kept_in_the_history(browser, server):
    with opened(browser, server.url) as page:
        page.get_by_label("Prompt").fill("red <b>boots</b>")
        page.get_by_label("Also without LoRA").check()
        page.get_by_label("Keep the seed").check()
        page.get_by_label("Seed", exact=True).first.fill("5")
        make(page)
        entry = page.get_by_role("article")
        images = entry.get_by_role("img").all()
        assert len(images) == 2 and all(is_drawn(page, one) for one in images)
        assert [one.inner_text() for one in entry.locator("figcaption").all()] == ["Seed 5", "without LoRA, seed 5"]
        assert "red <b>boots</b> – seed 5 · 128x128 · 2 steps" in entry.inner_text()
        sources = [one.get_attribute("src") for one in images]
        assert page.evaluate(COMPARE, sources) > 100  # pixels that differ

        page.get_by_label("Also without LoRA").uncheck()
        page.get_by_label("Keep the seed").uncheck()
        page.get_by_role("button", name="Make images").click()
        page.get_by_role("article").nth(1).wait_for()
        assert page.get_by_label("Seed", exact=True).first.input_value() != "5"
        page.reload()
        assert page.get_by_role("article").count() == 2
        page.get_by_role("article").nth(1).get_by_role("button").click()  # the older one
        assert page.get_by_label("Seed", exact=True).first.input_value() == "5"
        assert page.get_by_label("Prompt").input_value() == "red <b>boots</b>"
        assert page.get_by_label("Also without LoRA").is_checked()


COMPARE = """async (sources) => {
  const pixels = await Promise.all(sources.map(async (source) => {
    const image = new Image(), canvas = new OffscreenCanvas(128, 128);
    image.src = source;
    await image.decode();
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.getContext("2d").getImageData(0, 0, 128, 128).data;
  }));
  return pixels[0].reduce((sum, one, index) => sum + (one !== pixels[1][index]), 0);
}"""


def test_attributes_compose_the_caption_that_was_trained_on(browser, server):
    with opened(browser, server.url) as page:
        assert page.get_by_label("Prompt").input_value().startswith("<sks>")
        for name, value in (("article", "Casual Shoes"), ("colour", "Navy Blue"), ("gender", "Women")):
            page.locator(f"select[name={name}]").select_option(value)
            expect(page.get_by_label("Prompt")).to_have_value(re.compile(value.lower()))
        page.locator("select[name=season]").select_option("")
        expect(page.get_by_label("Prompt")).not_to_have_value(re.compile("collection"))
        composed = (
            "<sks>, a professional product photo of navy blue casual shoes, women's, centered on white background"
        )
        expect(page.get_by_label("Prompt")).to_have_value(composed)

        page.get_by_label("Prompt").fill("on a table")  # one's own words stay
        page.locator("select[name=gender]").select_option("Men")
        expect(page.get_by_label("Prompt")).to_have_value(f"on a table, {composed}".replace("women", "men"))
        page.locator("select[name=gender]").select_option("Women")
        expect(page.get_by_label("Prompt")).to_have_value(f"on a table, {composed}")


def test_the_attributes_are_at_first_those_of_the_prompt(browser, server):
    with opened(browser, server.url) as page:
        prompt = page.get_by_label("Prompt").input_value()
        values = page.locator(".pickers select").evaluate_all("all => all.map((one) => one.value.toLowerCase())")
        assert values and all(one and one in prompt for one in values)


def test_a_fault_in_a_folded_field_is_shown(browser, server):
    with opened(browser, server.url) as page:
        page.get_by_text("More settings").click()
        page.get_by_label("Side in pixels").fill("1")
        page.get_by_text("More settings").click()
        page.get_by_role("button", name="Make images").click()
        expect(page.get_by_label("Side in pixels")).to_be_focused()


def test_work_can_be_stopped(browser, server):
    with opened(browser, server.url) as page:
        page.get_by_label("Prompt").fill("boots")
        page.get_by_text("More settings").click()
        page.get_by_label("Steps").fill("200")
        page.get_by_label("Number of images").fill("8")
        page.get_by_role("button", name="Make images").click()
        expect(page.locator("progress")).to_have_js_property("value", 0)
        expect(page.locator("progress")).not_to_have_js_property("value", 0)
        again = []
        page.on("request", lambda request: again.append(request.url))
        page.get_by_label("Prompt").focus()
        page.keyboard.press("Control+Enter")
        page.get_by_role("button", name="Stop").click()
        page.locator("p[role=status]").filter(has_text="Stopped.").wait_for()
        assert page.get_by_role("article").count() == 0 and again == []


def test_speech_is_spoken_and_played(browser, server):
    with opened(browser, server.url) as page:
        page.get_by_label("Text").fill("Bom dia!")
        page.get_by_label("Voice").select_option("demo-voice/davi")
        page.get_by_role("button", name="Speak").click()
        expect(page.locator("audio")).not_to_have_js_property("readyState", 0)
        assert 0.3 < page.evaluate("document.querySelector('audio').duration") < 5


def test_a_voice_is_offered_the_manners_that_it_has_learnt(browser, server):
    with opened(browser, server.url) as page:
        page.get_by_label("Text").fill("a casa")
        expect(page.get_by_label("Pitch")).to_be_hidden()
        page.get_by_label("Voice").select_option("rich")
        page.get_by_label("Pitch").fill("-1.5")
        page.get_by_label("Speak like").select_option("calm")
        with page.expect_request("**/v1/audio/speech") as sent:
            page.get_by_role("button", name="Speak").click()
        expect(page.locator("audio")).not_to_have_js_property("readyState", 0)
        expected = {"pitch": -1.5, "energy": 0, "style_reference": "calm"}
        assert expected.items() <= sent.value.post_data_json.items()
        page.get_by_label("Voice").select_option("demo-voice/davi")
        with page.expect_request("**/v1/audio/speech") as sent:
            page.get_by_role("button", name="Speak").click()
        expect(page.locator("#speech p[role=status]")).to_have_text("Done.")
        assert not expected.keys() & sent.value.post_data_json.keys()


def test_the_keyboard_is_enough(browser, server):
    with opened(browser, server.url) as page:
        page.get_by_label("Prompt").fill("boots")
        seen = set()
        for _ in range(30):
            page.keyboard.press("Tab")
            seen.add(page.evaluate("document.activeElement.name || document.activeElement.textContent.trim()"))
        assert {
            "casual_shoes",
            "seed",
            "lock",
            "n",
            "compare",
            "More settings",
            "Make images",
            "voice",
            "Speak",
        } <= seen
        page.get_by_text("More settings").focus()
        page.keyboard.press("Enter")
        page.get_by_label("Steps").fill("1")
        page.get_by_label("Prompt").focus()
        page.keyboard.press("Control+Enter")
        page.get_by_role("article").wait_for()


def test_a_refusal_is_explained_in_portuguese(browser, server):
    with opened(browser, server.url, locale="pt-BR", expected="400 (Bad Request)") as page:
        page.get_by_label("Prompt").fill("botas")
        page.get_by_text("Mais opções").click()
        page.get_by_label("Passos").evaluate("one => one.removeAttribute('max')")
        page.get_by_label("Passos").fill("999")
        page.get_by_role("button", name="Gerar imagens").click()
        said = "O servidor recusou a requisição (a mensagem da API está em inglês): `steps` 999: at most 200 here"
        expect(page.locator("#images p[role=status]")).to_contain_text(said)


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_a_phone_in_portuguese(browser, server, width):
    with opened(browser, server.url, width, "pt-BR") as page:
        assert page.locator("html").get_attribute("lang") == "pt-BR"
        assert page.get_by_role("heading", level=1).inner_text() == "Imagens e fala"
        page.get_by_label("Prompt").fill("botas")
        page.get_by_text("Mais opções").click()
        page.get_by_label("Passos").fill("1")
        page.get_by_role("button", name="Gerar imagens").click()
        page.get_by_role("article").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        heights = "[...document.querySelectorAll('button, select, textarea')].map(one => one.offsetHeight)"
        assert all(height >= 36 for height in page.evaluate(heights) if height)


def test_the_script_says_what_the_catalogue_has():
    said = set(re.findall(r'(?:say|word)\("(\w+)"', (TEMPLATES / "page.js").read_text("utf-8")))
    assert {f"pages.{name}" for name in said} == set(OF_SCRIPT)
