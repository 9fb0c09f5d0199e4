"""Features of prompts on the disk: the same tensors, and no file that is left behind."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from families.feature_file import FeatureFile


def test_what_is_read_is_what_was_added_whatever_its_type(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = {
        "": {"embeds": torch.randn(7, 3), "pooled": torch.randn(5)},
        "red boots": {"embeds": torch.randn(2, 9).to(torch.bfloat16).T, "mask": torch.tensor([True, False])},
    }
    file = FeatureFile()
    for text, features in made.items():
        file.add(text, features)
    with ThreadPoolExecutor(4) as pool:
        for text, found in zip(list(made) * 50, pool.map(file.__getitem__, list(made) * 50)):
            assert found.keys() == made[text].keys()
            for name, tensor in made[text].items():
                assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    file["red boots"]["embeds"].zero_()
    assert torch.equal(file["red boots"]["embeds"], made["red boots"]["embeds"])
    assert os.listdir(tmp_path) == []
    with pytest.raises(KeyError):
        file["blue boots"]
