"""speech/voice_files.py: what is written of a voice in training."""

from speech.voice_files import write_card


def test_the_card_has_the_texts_letters_and_not_their_codes(tmp_path):
    facts = {"base_model": "facebook/mms-tts-por", "random_weights": False, "speakers": [], "parts": [], "rate": 16_000}
    facts |= {"text": 'Ação, "já" é <b>', "data": "data/voz", "fingerprint": "1f", "counts": ["2 utterances"]}
    facts |= {"hours": 0.1, "repo_id": "eu/voz", "settings": {}, "encoder": ""}
    write_card(tmp_path, {}, facts)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert 'speak = pipeline("text-to-speech", model="eu/voz")' in card
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert r'sound = speak("Ação, \"já\" é <b>")  # {"audio"' in card
    write_card(tmp_path, {}, facts | {"parts": ["prosody"]})
    card = (tmp_path / "README.md").read_text("utf-8")
    assert card.startswith("---\npipeline_tag:") and "from transformers" not in card  # which refuses it
