"""What `accelerate launch` was told, and this program does not go by, is refused: the environment says what it was."""

import os
from collections.abc import Collection, Mapping

from common.errors import UserError

ZERO = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
#: Option of `accelerate launch` -> the variable it sets, and its values that ask for nothing.
OPTIONS: dict[str, tuple[str, frozenset[str]]] = {
    "--mixed_precision": ("ACCELERATE_MIXED_PRECISION", frozenset({"no", "none"})),
    "--dynamo_backend": ("ACCELERATE_DYNAMO_BACKEND", frozenset({"no"})),
    "--gradient_accumulation_steps": ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", frozenset({"1", "auto", "none"})),
    "--offload_optimizer_device": ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", frozenset({"none"})),
    "--offload_param_device": ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", frozenset({"none"})),
    "--use_fsdp": ("ACCELERATE_USE_FSDP", frozenset({"false"})),
    "--use_megatron_lm": ("ACCELERATE_USE_MEGATRON_LM", frozenset({"false"})),
    "--use_parallelism_config": ("ACCELERATE_USE_PARALLELISM_CONFIG", frozenset({"false"})),
}


def check_launch() -> None:
    """UserError where the environment says that a launcher started this process, and contradicts itself."""
    numbers = {}
    for name, low, high in (("WORLD_SIZE", 1, 10**6), ("RANK", 0, 10**6), ("LOCAL_RANK", 0, 10**6), (ZERO, 0, 3)):
        value = os.environ.get(name)
        if value is None:
            continue
        if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
            raise UserError(f"the environment says {name}={value}; a launcher sets a number from {low} on: unset it")
        numbers[name] = int(value)
    if (world := numbers.get("WORLD_SIZE", 1)) < 2:
        return
    remedy = "start with torchrun or accelerate launch, which set it, or unset WORLD_SIZE"
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(f"the environment says WORLD_SIZE={world}, and no {name}; {remedy}")
    if numbers["RANK"] >= world:
        raise UserError(f"the environment says RANK={numbers['RANK']} of WORLD_SIZE={world}; {remedy}")


def refuse_unheeded(instead: Mapping[str, str], heeded: Mapping[str, Collection[str]] | None = None) -> None:
    """UserError for an option that would be passed over in silence, and what `check_launch` finds.

    instead: by option, what to set in its place. heeded: by option, values that are what the program does anyway.
    """
    check_launch()
    for option, (variable, nothing) in OPTIONS.items():
        value = os.environ.get(variable, "").lower()
        if value and value not in nothing and value not in (heeded or {}).get(option, ()):
            hint = f"; set {instead[option]} instead," if option in instead else ","
            without = f"with {option} no" if "no" in nothing else "without it"
            raise UserError(
                f"launched with {option} {value} (by the command line or `accelerate config`), which this program does "
                f"not go by{hint} and launch {without}"
            )
