import logging

import pytest
from huggingface_hub import snapshot_download

from utils.hub import hub_failure, quiet_hub


def test_what_is_not_in_the_cache_is_one_line(tmp_path):
    with pytest.raises(Exception) as caught:
        snapshot_download("owner/name", local_files_only=True, cache_dir=tmp_path)
    assert hub_failure(caught.value) == "the hub can't be reached, and there is no copy in the cache"


def test_the_cause_behind_a_librarys_own_error_is_named():
    try:
        try:
            raise ConnectionError("HTTPSConnectionPool(host=…): Max retries exceeded with url …")
        except ConnectionError as error:
            raise ValueError("We couldn't connect, see https://…") from error
    except ValueError as error:
        assert "can't be reached" in hub_failure(error)


def test_other_errors_keep_their_text_in_one_line():
    assert hub_failure(ValueError('Unknown split "tost".\n Should be one of [train]')) == (
        'Unknown split "tost". Should be one of [train]'
    )
    assert hub_failure(KeyError()) == "KeyError"


def test_the_hubs_own_lines_about_retries_are_off_only_within_the_block():
    retries = logging.getLogger("huggingface_hub.utils._http")
    with quiet_hub():
        assert not retries.isEnabledFor(logging.WARNING)
    assert retries.isEnabledFor(logging.WARNING)


def test_the_lines_come_back_where_two_threads_were_quiet_at_once():
    first, second = quiet_hub(), quiet_hub()
    before = logging.getLogger("diffusers").level
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logging.getLogger("diffusers").level == logging.ERROR
    second.__exit__(None, None, None)
    assert logging.getLogger("diffusers").level == before
