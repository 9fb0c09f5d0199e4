"""Every flag of kohya's sd-scripts in docs/coming_from_kohya.md is taken, or refused by its name."""

import re
from pathlib import Path

import pytest

import train_dreambooth
import train_lora

PAGE = Path(__file__).parents[1] / "docs" / "coming_from_kohya.md"


def flags_of_kohya() -> list[str]:
    """Those of the left column, as far as they are whole names."""
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return sorted({flag for row in rows for flag in re.findall(r"--\w+", row)})


@pytest.mark.parametrize("script", [train_lora, train_dreambooth])
def test_kohyas_flags_are_taken_or_refused_with_what_to_use(script, capsys):
    options, named = script.make_parser()._option_string_actions, flags_of_kohya()
    assert len(named) > 60
    of_the_other = ["--prior_loss_weight"] if script is train_lora else ["--train_data_dir"]
    assert [flag for flag in named if flag not in options] == of_the_other
    for flag in ("--network_dim", "--reg_data_dir", "--optimizer_type"):
        with pytest.raises(SystemExit):
            script.parse_args([flag, "x"])
        said = capsys.readouterr().err
        assert f"error: {flag}: " in said and "docs/coming_from_kohya.md" in said and said.count("\n") == 1
