"""Recipe nodes of how a run is carried out: arithmetic, checkpoints, logs, cache of views, probes."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from common.errors import nearest
from common.recipes import Count, Node, Threads

#: DeepSpeed settings that other fields of a recipe decide, or that would change what is computed.
DEEPSPEED_OWNED = {
    "train_batch_size": "optim.batch_size",
    "train_micro_batch_size_per_gpu": "optim.batch_size and optim.accumulate",
    "gradient_accumulation_steps": "optim.accumulate",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim",
    "scheduler": "optim",
    "fp16": "engine.precision",
    "bf16": "engine.precision",
    "bfloat16": "engine.precision",
    "amp": "engine.precision",
    "torch_autocast": "engine.precision",
    "data_types": "engine.precision",
    "communication_data_type": "engine.precision",
    "zero_allow_untested_optimizer": "optim.name",
    "zero_force_ds_cpu_optimizer": "optim.name",
    "steps_per_print": "log.every",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.offload_optimizer": "optim.name: its updates would be DeepSpeed's own",
    "zero_optimization.zero_quantized_weights": "engine.precision",
    "zero_optimization.zero_quantized_gradients": "engine.precision",
    "zero_optimization.zero_hpz_partition_size": "engine.zero_stage",
}
#: DeepSpeed settings of the first level that change how fast it goes and what it says, and nothing that is computed.
#: DeepSpeed passes over names that it does not know, and some of those it knows change gradients, weights or images.
DEEPSPEED_FREE = (
    "zero_optimization",
    "aio",
    "checkpoint",
    "comms_logger",
    "csv_monitor",
    "disable_python_gc",
    "dump_state",
    "flops_profiler",
    "gradient_predivide_factor",
    "log_level",
    "memory_breakdown",
    "prescale_gradients",
    "tensorboard",
    "timers",
    "wall_clock_breakdown",
    "wandb",
)


class EngineNode(Node):
    """How the arithmetic is done; none of it changes what is computed."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"  #: auto: bf16 where the hardware has it
    deepspeed: Literal["auto", "on", "off"] = "auto"  #: auto: when launched with --use_deepspeed
    zero_stage: Literal[1, 2, 3] | None = None  #: None: what the launcher says (--zero_stage), else 2
    checkpointing: bool = False  #: compute the student's activations again in the backward pass: less memory, more time
    threads: Threads | None = None  #: of torch on the CPU; None: the cores, shared by the processes
    compile: bool = False  #: torch.compile of the student: minutes at the start, less time a step
    #: torch.compile of frozen teachers and of what sharpens them; every size is compiled anew, full chunks and the last
    compile_teachers: bool = False
    #: further settings, as DeepSpeed's JSON has them
    deepspeed_config: dict[str, Any] = Field(default_factory=dict)
    teachers: Literal["replicated", "zero3"] = "replicated"  #: zero3: every process holds a share of their weights
    patience: float = Field(10.0, gt=0)  #: minutes a process waits for the others before it calls them lost

    @model_validator(mode="after")
    def _whole_teachers(self) -> "EngineNode":
        if self.compile_teachers and self.teachers == "zero3":
            raise ValueError("compile_teachers wants whole teachers: leave out engine.teachers: zero3")
        return self

    @field_validator("deepspeed_config")
    @classmethod
    def _not_ours(cls, config: dict[str, Any]) -> dict[str, Any]:
        zero = config.get("zero_optimization") or {}
        if not isinstance(zero, dict):
            raise ValueError("zero_optimization is a mapping")
        for name in [*config, *(f"zero_optimization.{key}" for key in zero)]:
            if name in DEEPSPEED_OWNED:
                raise ValueError(f"{name} is decided by {DEEPSPEED_OWNED[name]}")
        for name in config:
            if name not in DEEPSPEED_FREE:
                known = ", ".join(DEEPSPEED_FREE)
                raise ValueError(
                    f'"{name}" is no setting that changes speed alone{nearest(name, DEEPSPEED_FREE)}: {known}'
                )
        return config


class CheckpointNode(Node):
    """When to save, and how many checkpoints to keep."""

    every: Count = 500  #: updates between two checkpoints
    keep: Count = 2  #: newest checkpoints that stay on disk
    background: bool = True  #: written while training goes on; false: training waits, and the copy never lies beside it
    grace: float = Field(27.0, gt=0)  #: seconds from a signal to the end, saved or not; schedulers kill after 30


class LogNode(Node):
    """`log.jsonl` is always written; trackers are Accelerate's."""

    every: Count = 1  #: updates between two lines
    #: further ones, by Accelerate's names
    trackers: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)


class CacheNode(Node):
    """Teacher views kept on disk (`distill.targets.view_cache`). It changes nothing that is computed."""

    folder: str  #: where the views lie; runs may share it
    max_gib: float = Field(50.0, gt=0)  #: a run that may need more does not start
    across_runs: bool = False  #: keep crops that never come again in this run, for others of the same data and seed


class EvalNode(Node):
    """What probes the student. Without it a run ends with the exported student."""

    suite: str  #: suite file
    overrides: list[str] = Field(
        default_factory=list
    )  #: of the suite, e.g. probes.imagenet1k_zero_shot.adaptor=dfn_clip
    teachers: bool = True  #: probe the teachers too, as rows to compare with
    #: probe the student before its first update too; left out, a single run does (its baseline), an ablation does not
    untrained: bool | None = None
