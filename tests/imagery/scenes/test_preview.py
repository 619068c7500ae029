"""The command line draws a sheet, and says what is wrong."""

from pathlib import Path

import pytest
from PIL import Image

from imagery.scenes.__main__ import main


def test_a_sheet_is_drawn(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    assert main(["preview", str(out), "--count", "2", "--size", "64"]) == 0
    with Image.open(out) as sheet:
        assert sheet.width > 64 * 8
        assert len(set(sheet.convert("L").resize((64, 64)).getdata())) > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sheet.jpg"], "png"),
        (["nowhere/sheet.png"], "does not exist"),
        (["sheet.png", "--count", "0"], "--count"),
        (["sheet.png", "--size", "8"], "--size"),
    ],
)
def test_bad_requests_end_with_a_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", str(tmp_path / arguments[0]), *arguments[1:]]) == 2
    assert message in capsys.readouterr().err
