"""GPUs by NVIDIA's data sheets: what a plan can be made for, and what a run's MFU is held against."""

from dataclasses import dataclass

from common.errors import unknown


@dataclass(frozen=True)
class Gpu:
    """memory in GiB as the driver shows it; dense TFLOPS in bf16 and in fp32 without TF32 (which adapters use)."""

    title: str
    memory: float
    bf16: float
    fp32: float


GPUS = {
    "l40s": Gpu("L40S 48 GB", 44.5, 362, 91.6),
    "a100-40": Gpu("A100 40 GB", 39.5, 312, 19.5),
    "a100": Gpu("A100 80 GB", 79.2, 312, 19.5),
    "h100": Gpu("H100 SXM 80 GB", 79.2, 989, 67),
    "h100-pcie": Gpu("H100 PCIe 80 GB", 79.2, 756, 51),
    "h200": Gpu("H200 141 GB", 139.8, 989, 67),
}
#: Of a GPU's memory: what tensors may take. The rest is the CUDA context, NCCL's buffers and fragmentation.
USABLE = 0.9


def find_gpu(name: str) -> Gpu:
    """By its name in the table; UserError with the names there are."""
    if name.lower() not in GPUS:
        raise unknown("GPU", name, GPUS)
    return GPUS[name.lower()]
