"""Our vision-language models as a model of lmms-eval (extra `lmms`).

    lmms-eval --model agglomerate --model_args folder=FOLDER --tasks pope,gqa --device cuda --batch_size 8

FOLDER is what `python -m eval_suite vlm --out FOLDER` trained. A language model that was a folder of the machine it was
trained on is typed again: `folder=FOLDER,language_model=PATH`.
"""

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model
from lmms_eval.models.registry_v2 import ModelManifest

from eval_suite.vlm.requests import generate, likelihoods
from eval_suite.vlm.saved import load_vlm

NAME = "agglomerate"


def manifest() -> ModelManifest:
    """What the entry point `lmms_eval.models` gives: our class under our name."""
    return ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.{Agglomerate.__name__}")


@register_model(NAME)
class Agglomerate(lmms):
    """A trained folder, one process. Greedy only; pictures only."""

    def __init__(
        self,
        folder: str,
        backbone: str | None = None,
        language_model: str | None = None,
        device: str = "cpu",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        """`backbone` and `language_model` replace what the folder names; the last three are lmms-eval's own."""
        super().__init__()
        self.vlm = load_vlm(folder, device or "cpu", backbone, language_model)
        self.batch = int(batch_size) if str(batch_size).isdigit() else int(max_batch_size or 1)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return generate(self.vlm, requests, self.task_dict, self.batch, progress=True)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return likelihoods(self.vlm, requests, self.task_dict, progress=True)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError(f"{type(self).__name__} answers single-round tasks")
