"""What a launcher was told is done, or refused with what to set instead; never passed over."""

import pytest

from common.errors import UserError
from common.launch_options import OPTIONS, refuse_unheeded

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
