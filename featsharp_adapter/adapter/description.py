"""What an adapter is, in plain data: the content of `adapter.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from common.checksums import CHECKSUM
from common.errors import UserError
from teachers.artefacts import portable
from teachers.contracts import BackboneSpec

FORMAT = 1
#: The option by which a recipe consents to running code of others; never taken from a file that describes an adapter.
CONSENT_OPTION = "trust_remote_code"
#: What the same weights at the same size can still differ in, and by which their maps do. None: an older file.
MUST_AGREE = {"spatial": "reads", "patches of": "patch_size", "mean": "mean", "std": "std"}


@dataclass(frozen=True)
class AdapterMeta:
    """For which teacher, by which upsampler, how it was trained and how good it is."""

    teacher: BackboneSpec  #: whose features it was made for; its digest is checked on loading
    teacher_node: str | dict[str, Any]  #: the backbone node of a recipe that loads this teacher
    upsampler: str
    factor: int
    options: dict[str, Any] = field(default_factory=dict)  #: of the upsampler
    normaliser: str = "phi_s"  #: of `normalisers.NORMALISERS`
    conditional_heads: int | None = None  #: of the conditional bias; None: there is none
    published_views: bool = False  #: its teacher sees images resized without antialiasing
    training: dict[str, Any] = field(default_factory=dict)  #: steps, data, seed, ...; empty if never trained
    fidelity: dict[str, Any] = field(default_factory=dict)  #: held-out errors, see `fidelity.py`; empty if not measured

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the format's number; names of files lose the folders of this machine."""
        return {"format": FORMAT, **asdict(self.portable())}

    def portable(self) -> "AdapterMeta":
        """As a file or a card says it."""
        facts = asdict(self)
        teacher = BackboneSpec.from_dict(portable(facts["teacher"]))
        changed = {name: portable(facts[name]) for name in ("teacher_node", "training", "fidelity")}
        return replace(self, teacher=teacher, **changed)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str) -> "AdapterMeta":
        """The inverse of `to_dict`; UserError, naming `source`, for anything else."""
        if data.get("format") != FORMAT:
            raise UserError(f"{source} is not an adapter description of format {FORMAT}")
        fields = {key: value for key, value in data.items() if key not in ("format", CHECKSUM)}
        try:
            # A description may come from anywhere: it does not consent to running anybody's code.
            options = {key: value for key, value in fields.get("options", {}).items() if key != CONSENT_OPTION}
            return cls(**{**fields, "options": options, "teacher": BackboneSpec.from_dict(fields["teacher"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{source} does not describe an adapter ({error})") from error

    def check_teacher(self, name: str, spec: BackboneSpec) -> None:
        """UserError unless `spec` is the very teacher that adapter `name` was trained on: weights, size, map."""
        made_for = self.teacher
        if spec.digest != made_for.digest:
            raise UserError(
                f"adapter {name} was trained on {made_for.name} ({made_for.digest[:19]}), this teacher is {spec.name} "
                f"with other weights ({spec.digest[:19]}); train one for it with featsharp_adapter/train.py"
            )
        if spec.native_size != made_for.native_size:
            raise UserError(
                f"adapter {name} was trained on {made_for.name} at {made_for.native_size} px, this one runs at "
                f"{spec.native_size} px; give the teacher that size, or train an adapter for this one"
            )
        for what, fact in MUST_AGREE.items():
            mine, other = getattr(made_for, fact), getattr(spec, fact)
            if mine != other and None not in (mine, other):
                raise UserError(
                    f"adapter {name} was trained on {made_for.name} with {what} {mine}, this one has {other}; give the "
                    "teacher the node that it was trained with, or train an adapter for this one"
                )
