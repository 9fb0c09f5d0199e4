import json
import random

import pytest
from PIL import Image

from preparation.selection import select_products
from utils.catalogue import Source, file_or_bytes, read_catalogue, split_records
from utils.cli import UserError

HEADER = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"


def row(product_id, name="A shoe", colour="Black", year="2012") -> str:
    return f"{product_id},Men,Footwear,Shoes,Casual Shoes,{colour},Fall,{year},Casual,{name}"


def write(folder, text, images=(), encoding="utf-8", ending=".jpg"):
    (folder / "images").mkdir(parents=True)
    (folder / "styles.csv").write_bytes(text.encode(encoding))
    for name in images:
        Image.new("RGB", (8, 8), "red").save(folder / "images" / f"{name}{ending}")
    return folder


def read(folder, **source):
    return read_catalogue(Source(str(folder), **source))


def ids(found) -> list[str]:
    return [one.id for one in found.products]


def reasons(found) -> dict:
    return {(one.id, one.row): one.reason for one in found.rejected}


def test_unquoted_commas_are_recovered_and_quoted_ones_are_no_repair(tmp_path):
    text = "\n".join([HEADER, row(1, "Rook Shoes, red, wide"), row(2, '"Quoted, name"'), row(3)])
    found = read(write(tmp_path / "c", text, "123"))
    assert [one.attributes["name"] for one in found.products] == ["Rook Shoes, red, wide", "Quoted, name", "A shoe"]
    assert found.recovered == [2] and found.rows == 3 and not found.rejected


def test_a_row_that_cannot_be_recovered_is_reported_with_its_line(tmp_path):
    torn_elsewhere = "2,Men,Footwear,Shoes,Casual Shoes,Black,Fall,Summer,2012,Casual,A shoe"
    text = "\n".join([HEADER, row(1), torn_elsewhere, "3,Men,Footwear", row(4)])
    found = read(write(tmp_path / "c", text, "1234"))
    assert ids(found) == ["1", "4"]
    assert reasons(found) == {("2", 3): "row can't be read", ("3", 4): "row can't be read"}


def test_eleven_columns_keep_their_image_and_nine_need_no_name(tmp_path):
    eleven = "\n".join([HEADER + ",image", row(1, "Shoes, red") + ",other.jpg", row(2) + ",2.jpg", row(3) + ","])
    found = read(write(tmp_path / "eleven", eleven, ["other", "2", "3"]))
    assert [one.image.name for one in found.products] == ["other.jpg", "2.jpg", "3.jpg"]
    assert found.products[0].attributes["name"] == "Shoes, red" and "image" not in found.products[0].attributes
    nine = "\n".join(line.rpartition(",")[0] for line in [HEADER, row(1), row(2)])
    found = read(write(tmp_path / "nine", nine, "12"))
    assert ids(found) == ["1", "2"] and found.products[0].attributes["colour"] == "Black"


def test_known_columns_are_known_whatever_their_case_and_an_unknown_header_is_quoted_as_it_is(tmp_path):
    header = HEADER.replace("id,gender", "ID,Gender").replace("baseColour", "color")
    found = read(write(tmp_path / "c", f"{header}\n{row(1)}", "1"))
    assert ids(found) == ["1"] and found.columns[:2] == ["id", "gender"] and "colour" in found.columns
    with pytest.raises(UserError, match="found `number,color,baseColour`"):
        read(write(tmp_path / "d", "number,color,baseColour\n1,red,red"))


def test_the_caption_may_be_a_column_that_has_a_short_name(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "1.png", "productDisplayName": "Rook", "baseColour": "Red"}'
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    found = read(tmp_path, caption_column="productDisplayName")
    assert found.products[0].text == "Rook" and found.products[0].attributes == {"colour": "Red"}


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".png", ".webp", ".JPG", ".gif", ".bmp", ".tif"])
def test_every_ending_is_found(tmp_path, ending):
    assert ids(read(write(tmp_path / "c", "\n".join([HEADER, row(1)]), "1", ending=ending))) == ["1"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_bom_crlf_and_latin1(tmp_path, encoding):
    found = read(write(tmp_path / "c", "\r\n".join([HEADER, row(1, "Café’s shoe"), row(2)]) + "\r\n", "12", encoding))
    assert ids(found) == ["1", "2"] and found.products[0].attributes["name"] == "Café’s shoe"
    assert bool(found.notes) == (encoding == "cp1252")


def test_captions_of_an_unknown_encoding_are_noted(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("Café".encode("cp1252"))
    found = read(tmp_path)
    assert found.products[0].text == "Café" and found.notes == ["captions not in UTF-8, read as Latin-1: a.txt"]


def test_empty_cells_are_missing_and_no_word(tmp_path):
    found = read(write(tmp_path / "c", "\n".join([HEADER, row(1, "", "NA", "2012.0"), row(2, "x", "")]), "12"))
    first, second = (one.attributes for one in found.products)
    assert first["colour"] is None and first["name"] is None and first["year"] == "2012" and second["colour"] is None


def test_the_kinds_of_duplicates_differ_and_the_first_is_kept(tmp_path):
    text = "\n".join([HEADER, row(1), row(1), row(1, "Another"), row(2), row(3)])
    found = read(write(tmp_path / "c", text, "12"))
    assert ids(found) == ["1", "2"]
    assert reasons(found) == {("1", 3): "row given twice", ("1", 4): "id used twice", ("3", 6): "no image"}


def test_an_id_cannot_leave_its_folder(tmp_path):
    text = "\n".join([HEADER, row("../../etc"), row(".x"), row(1)])
    found = read(write(tmp_path / "c", text, "1"))
    assert ids(found) == ["1"] and set(reasons(found).values()) == {"id is no file name"}


def test_an_open_quote_swallows_no_other_row(tmp_path):
    text = "\n".join([HEADER, row(1, '"Open shoe'), row(2), row(3, '12" boot'), row(4)])
    found = read(write(tmp_path / "c", text, "1234"))
    assert ids(found) == ["1", "2", "3", "4"]


def test_a_quoted_cell_may_hold_a_line_end():
    assert split_records(["a,b", '1,"two', 'lines"', "2,x"], 2) == [
        (1, ["a", "b"]),
        (2, ["1", "two\nlines"]),
        (4, ["2", "x"]),
    ]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_table_holds_no_row_is_lost(tmp_path, seed):
    rng = random.Random(seed)
    lines = ["".join(rng.choice('a1,",;\t é') for _ in range(rng.randint(1, 90))) for _ in range(60)]
    lines = [line for line in lines if line.strip()]
    found = read(write(tmp_path / "c", "\n".join([HEADER, *lines]), "1"))
    assert len(found.products) + len(found.rejected) == found.rows
    assert {one.row for one in found.rejected} <= set(range(2, len(lines) + 2))


def test_a_missing_header_or_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"styles.csv: line 1.*`id`"):
        read(write(tmp_path / "c", row(1), "1"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d/styles.csv").write_text(HEADER)
    with pytest.raises(UserError, match="images/"):
        read(tmp_path / "d")


def test_a_plain_folder_with_captions(tmp_path):
    for name in ("a.jpg", "a.png", "sub/b.webp", "no caption.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a red shoe\n")
    (tmp_path / "sub/b.txt").write_text("a blue shoe")
    (tmp_path / "notes.doc").write_text("x")
    found = read(tmp_path)
    assert {one.id: one.text for one in found.products} == {
        "a": "a red shoe",
        "a-png": "a red shoe",
        "no_caption": None,
        "sub_b": "a blue shoe",
    }
    assert "1 .doc" in found.notes[0]


def test_what_of_a_folder_is_not_read_is_named_with_its_reason(tmp_path):
    for name in ("me.png", "noise.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "noise.txt").write_bytes(b"a\x00\x07photo")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "you.txt").write_text("a photo of you")
    found = read(tmp_path)
    assert ids(found) == ["me"] and found.rows == 4
    lines = " | ".join(str(one) for one in found.rejected)
    assert "noise.png (row noise.png): caption is no text – noise.txt holds '\\x00'" in lines
    assert "IMG_1.HEIC (row IMG_1.HEIC): HEIC is not read – convert it to JPEG" in lines
    assert "lost.jpg (row lost.jpg): broken link" in lines
    assert found.notes == ["captions without an image: you.txt"]


def test_images_without_a_line_are_named(tmp_path):
    for name in ("a.png", "b.png", "c.bmp"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}')
    found = read(tmp_path)
    assert found.notes == [f"images without a line in {tmp_path.name}/metadata.jsonl: b.png, c.bmp"]


def test_an_empty_folder_and_another_table_are_named(tmp_path):
    with pytest.raises(UserError, match="it is empty"):
        read(tmp_path)
    (tmp_path / "products.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"products.csv; expected styles.csv"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_an_imagefolder(tmp_path, kind):
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    rows = [("a.png", "a red, shoe", "Red"), ("b.png", "a blue shoe", ""), ("c.png", "gone", "Red")]
    if kind == "jsonl":
        lines = [json.dumps(dict(zip(("file_name", "text", "colour"), values))) for values in rows] + ["{broken"]
    else:
        lines = ["file_name,text,colour", *(f'{name},"{text}",{colour}' for name, text, colour in rows), "x"]
    (tmp_path / f"metadata.{kind}").write_text("\n".join(lines))
    found = read(tmp_path)
    assert [(one.id, one.text, one.attributes["colour"]) for one in found.products] == [
        ("a", "a red, shoe", "Red"),
        ("b", "a blue shoe", None),
    ]
    assert sorted(one.reason for one in found.rejected) == ["no image", "row can't be read"]
    assert found.rows == 4


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_dataset_that_datasets_reads(tmp_path, kind):
    import datasets

    rows = {"image": [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")], "id": [7, 8]}
    rows |= {"baseColour": ["Red", "NA"], "text": ["a red shoe", "a blue shoe"]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    (tmp_path / "d").mkdir()
    dataset.to_parquet(tmp_path / "d/x.parquet") if kind == "parquet" else dataset.save_to_disk(tmp_path / "d")
    found = read(tmp_path / "d")
    assert [(one.id, one.text, one.attributes["colour"]) for one in found.products] == [
        ("7", "a red shoe", "Red"),
        ("8", "a blue shoe", None),
    ]
    assert file_or_bytes(found.dataset, found.products[0].image)[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="--image_column photo"):
        read(tmp_path / "d", image_column="photo")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: folder.rmdir(), "no such folder"),
        (lambda folder: folder.rmdir() or folder.write_text(""), "is a file"),
        (lambda folder: None, "it is empty"),
        (lambda folder: (folder / "styles.csv").write_text(HEADER), "no folder images/"),
        (lambda folder: (folder / "metadata.csv").write_text("a,b\n1,2\n"), "line 1: found `a,b`"),
        (lambda folder: (folder / "state.json").write_text("{}"), "its split train can't be read"),
    ],
)
def test_what_can_not_be_read_is_reported_with_the_flag_that_named_it(tmp_path, make, message):
    (tmp_path / "place").mkdir()
    make(tmp_path / "place")
    with pytest.raises(UserError, match=f"^--real .*place.*{message}"):
        read(tmp_path / "place", flag="--real")


def test_an_unknown_category_is_answered_with_near_ones(tmp_path):
    found = read(write(tmp_path / "c", "\n".join([HEADER, row(1), row(2)]), "1"))
    products, rejected, counts = select_products(found, ["casual shoes"], "article")
    assert len(products) == 1 and len(rejected) == 1 and counts["Casual Shoes"] == 2
    with pytest.raises(UserError, match=r'"Casual Shoes" \(2\)'):
        select_products(found, ["Casul Shoe"], "article")


def test_a_caption_that_is_a_list_is_no_text_and_lists_are_no_attributes(tmp_path):
    for name in "abcd":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    rows = ['{"file_name": "a.png", "text": ["x", "y"]}', '{"file_name": "b.png", "text": {"en": "x"}}']
    rows += ['{"file_name": "c.png", "text": "a shoe", "boxes": [[1, 2]], "colour": "Red"}', "[" * 100_000]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows) + '\n{"file_name": "d.png", "text": 5}\n')
    found = read(tmp_path)
    assert [(one.id, one.text, one.attributes) for one in found.products] == [("c", "a shoe", {"colour": "Red"})]
    reasons = [(one.id, one.reason) for one in found.rejected]
    assert reasons == [(f"{name}.png", "caption is no text") for name in "ab"] + [
        ("", "row can't be read"),
        ("d.png", "caption is no text"),
    ]
