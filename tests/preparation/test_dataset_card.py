"""The dataset card: what the hub reads of it, and tables that hold any value."""

from huggingface_hub import DatasetCard

from preparation.writing import dataset_card

METADATA = {
    "counts": {"written": 1200, "train": 1000, "val": 100, "test": 100},
    "source": {"kind": "csv", "rows": 1300},
    "options": {"resolution": 512, "category": ["Shoes", "Bags"], "stratify_by": ["colour"]},
    "captions": {"limit": 77, "over_limit": 1, "longest": 80, "counted_by": "CLIP's tokenizer", "empty": 0},
    "excluded": [{"reason": "no id"}, {"reason": "image missing"}, {"reason": "no id"}],
    "shares": {"colour": {"red": {"count": 900, "share": 0.75}, "black | white": {"count": 300, "share": 0.25}}},
}


def test_the_card_is_valid_and_names_counts_shares_and_what_was_left_out():
    card = DatasetCard(dataset_card(METADATA, ["a photo of red shoes"]))
    assert card.data.task_categories == ["text-to-image"] and card.data.size_categories == ["1K<n<10K"]
    for line in (
        "# Shoes + Bags",
        "1,200 images of 512×512 pixels with captions,",
        "| train | 1,000 |",
        "- a photo of red shoes",
        "- no id: 2",
        "Over 77 tokens: 1 caption; the longest has",
    ):
        assert line in card.text.splitlines(), line


def test_a_caption_is_text_and_neither_html_nor_an_image():
    lines = dataset_card(METADATA, ["<img src=x onerror=y> ![a](http://b)"]).splitlines()
    assert "- &lt;img src=x onerror=y&gt; !\\[a](http://b)" in lines


def test_a_value_with_a_bar_stays_in_its_cell():
    assert "| black \\| white | 300 | 25.0% |" in dataset_card(METADATA, []).splitlines()


def test_photos_of_one_subject_in_several_shapes_say_so():
    text = dataset_card(METADATA | {"shapes": [[512, 512], [512, 640]], "excluded": []}, [])
    assert "# Photos of one subject" in text and "about 512×512 pixels, each in the shape nearest to its own," in text
    assert "Nothing." in text.splitlines()
