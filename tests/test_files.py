import pytest

from utils import files
from utils.cli import UserError
from utils.parallel import parallel_map


def square(value: int) -> int:
    return value * value


def fail(value: int) -> int:
    raise ValueError(f"item {value}")


def write(target, text):
    with files.replaced_folder(target) as folder:
        (folder / "a.txt").write_text(text)


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_folder_is_replaced_and_nothing_is_left_beside_it(tmp_path, monkeypatch, can_swap):
    if not can_swap:
        monkeypatch.setattr(files, "swap_folders", lambda a, b: False)
    for text in ("one", "two"):
        write(tmp_path / "d", text)
        assert (tmp_path / "d/a.txt").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_an_error_while_writing_leaves_the_old_folder(tmp_path):
    write(tmp_path / "d", "one")
    with pytest.raises(ValueError), files.replaced_folder(tmp_path / "d") as folder:
        (folder / "a.txt").write_text("two")
        raise ValueError
    assert (tmp_path / "d/a.txt").read_text() == "one" and [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_kill_between_the_two_renames_is_mended(tmp_path):
    write(tmp_path / "d", "one")
    (tmp_path / "d").rename(tmp_path / ".d.old")
    files.recover_folder(tmp_path / "d")
    assert (tmp_path / "d/a.txt").read_text() == "one" and not (tmp_path / ".d.old").exists()
    write(tmp_path / ".d.old", "older")
    files.recover_folder(tmp_path / "d")
    assert (tmp_path / "d/a.txt").read_text() == "one" and not (tmp_path / ".d.old").exists()


def test_what_a_kill_left_behind_does_not_get_in(tmp_path):
    (tmp_path / ".d.partial/sub").mkdir(parents=True)
    (tmp_path / ".d.partial/sub/old.txt").write_text("x")
    write(tmp_path / "d", "one")
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["a.txt"]


def test_two_writers_of_one_folder_are_told(tmp_path):
    with (
        files.replaced_folder(tmp_path / "d") as folder,
        pytest.raises(UserError, match="another process"),
        files.replaced_folder(tmp_path / "d"),
    ):
        pass
    del folder


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    assert list(parallel_map(square, range(50), workers)) == [value * value for value in range(50)]


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for value in range(200):
            taken.append(value)
            yield value

    results = parallel_map(square, items(), 2)
    assert next(results) == 0 and len(taken) < 20
    results.close()


def test_a_failure_in_a_worker_is_raised_here():
    with pytest.raises(ValueError, match="item 0"):
        list(parallel_map(fail, range(3), 2))
