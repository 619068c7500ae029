"""What torchrun's own report says of a user error."""

from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from common.errors import UserError, guard


def fail(argv: list[str]) -> None:
    raise UserError("optim.steps: no number")


def test_the_report_of_torchrun_ends_with_our_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(told))
    assert guard(fail, []) == 2
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(told))
    report = str(ChildFailedError("run.py", {0: failure}))
    assert "traceback : error: optim.steps: no number" in report


def test_a_launcher_that_cannot_be_told_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    assert guard(fail, []) == 2
    assert capsys.readouterr().err == "error: optim.steps: no number\n"
