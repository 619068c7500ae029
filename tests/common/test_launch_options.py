"""What a launcher was told is done, or refused with what to set instead; never passed over."""

import pytest

from common.errors import UserError
from common.launch_options import OPTIONS, ZERO, check_launch, refuse_unheeded

ASKED = {
    "--mixed_precision": "fp16",
    "--dynamo_backend": "INDUCTOR",
    "--gradient_accumulation_steps": "4",
    "--offload_optimizer_device": "cpu",
    "--offload_param_device": "nvme",
    "--use_fsdp": "true",
    "--use_megatron_lm": "true",
    "--use_parallelism_config": "true",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_not_heeded_is_refused(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, nothing = OPTIONS[option]
    for other, _ in OPTIONS.values():
        monkeypatch.delenv(other, raising=False)
    refuse_unheeded({})
    for value in nothing:
        monkeypatch.setenv(variable, value)
        refuse_unheeded({})
    monkeypatch.setenv(variable, ASKED[option])
    with pytest.raises(UserError, match=f"launched with {option} .*set the field instead"):
        refuse_unheeded({option: "the field"})
    refuse_unheeded({}, {option: [ASKED[option].lower()]})


def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", ZERO):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"WORLD_SIZE": "2"}, "no RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "no MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "RANK=2 of WORLD_SIZE=2"),
        ({ZERO: "x"}, f"{ZERO}=x"),
        ({ZERO: "4"}, f"{ZERO}=4"),
    ],
    ids=str,
)
def test_a_launch_that_contradicts_itself(said: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    no_launcher(monkeypatch)
    check_launch()
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        check_launch()


def test_a_whole_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    no_launcher(monkeypatch)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1", ZERO: "3"}.items():
        monkeypatch.setenv(name, value)
    check_launch()
