"""Entry point `run:`: an exported student as a Backbone, from runs/NAME or from the student folder itself.

`from_pretrained` takes a Hub repository too; `run:hub:ORGANISATION/NAME` says the same where backbones go by name. A
student folder may come from anywhere: what its config.json names is held to teachers/artefacts.py.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.atomic import recover
from common.checksums import check_weights
from common.errors import UserError, unknown
from common.json_files import read_json_object
from common.recipes import validate
from distill.recipe_models import StudentNode
from distill.student.model import HeadSpec, Student
from distill.training.export import CARD, CONFIG, SCHEMA, WEIGHTS, write_student
from featsharp_adapter.adapter.folder import upload_folder
from teachers.artefacts import PLAIN, BackboneNode, check_artefact_node
from teachers.contracts import Backbone, BackboneSpec, Features, capability, check_size, state_digest
from teachers.registry import load_backbone

HUB = "hub:"


class StudentAdaptor:
    """The student's heads into one teacher's space; its outputs are in that teacher's raw units."""

    def __init__(self, student: "ExportedStudent", name: str) -> None:
        self.name = name
        self._student = student

    def project(self, features: Features) -> Features:
        """The student's own summary [B, S] and spatial map [B, D, h, w] -> the teacher's [B, S'] and [B, C, h, w]."""
        net, name = self._student.net, self.name
        summary = None
        if name in net.summary_heads:
            if features.summary is None:
                raise UserError(f"adaptor {name} projects the student's summary, and there is none")
            row = self._student.summary_names.index(name)
            width = net.vit.embed_dim
            summary = net.project_summary(name, features.summary[:, row * width : (row + 1) * width])
        # Nobody reads a map that was not distilled.
        return Features(summary, net.project_spatial(name, features.spatial))  # type: ignore[arg-type]


class TextAdaptor(StudentAdaptor):
    """An adaptor into a teacher that reads text: queries are encoded by the recorded teacher itself."""

    def __init__(self, student: "ExportedStudent", name: str) -> None:
        super().__init__(student, name)
        self._loaded: Backbone | None = None

    def encode_text(self, texts: list[str]) -> Tensor:
        """[N] texts -> [N, S'] in the space of the projected summary; loads the teacher on first use."""
        if self._loaded is None:
            loaded = load_backbone(self._student.text_node(self.name))
            if loaded.spec.digest != self._student.teachers[self.name]["spec"]["digest"]:
                raise UserError(
                    f"teacher {self.name} ({loaded.spec.name}) does not have the weights the student learned from"
                )
            self._loaded = loaded.to(self._student.net.mean.device)
        encode = capability(self._loaded, "encode_text")
        if encode is None:
            raise UserError(f"teacher {self.name} ({self._loaded.spec.name}) does not read text")
        return encode(texts)


class ExportedStudent(Backbone):
    """A distilled student. Its summary is the concatenation of the summary tokens, in the teachers' order."""

    def __init__(
        self,
        net: Student,
        spec: BackboneSpec,
        config: dict[str, Any],
        text_teachers: Mapping[str, BackboneNode] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.spec = spec
        self.teachers: dict[str, Any] = config["teachers"]
        self.summary_names = [name for name in net.teachers if name in net.summary_heads]
        self.num_blocks = len(net.vit.blocks)
        self.config = config
        self._text_teachers = dict(text_teachers or {})

    def forward(self, images: Tensor) -> Features:
        """[B, 3, H, W] in [0, 1], sides multiples of the patch -> summary [B, T*D], spatial [B, D, h, w]."""
        check_size(self.spec, images)
        tokens, spatial = self.net.tokens(images)
        rows = [self.net.teachers.index(name) for name in self.summary_names]
        return Features(tokens[:, rows].flatten(1) if rows else None, spatial)

    def intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Patch maps [B, D, h, w] after the named blocks (0 is the first), each through the last norm."""
        check_size(self.spec, images)
        if beyond := [block for block in blocks if not 0 <= block < self.num_blocks]:
            raise UserError(f"{self.spec.name} has blocks 0 to {self.num_blocks - 1}, no block {beyond[0]}")
        maps = self.net.intermediate(images, set(blocks))
        return [maps[block] for block in blocks]

    def adaptor(self, name: str) -> StudentAdaptor:
        """The heads into teacher `name`; UserError for a teacher it did not learn from."""
        if name not in self.teachers:
            raise unknown("adaptor", name, self.teachers)
        if self.teachers[name]["encodes_text"]:
            return TextAdaptor(self, name)
        return StudentAdaptor(self, name)

    def text_node(self, name: str) -> BackboneNode:
        """Loads the teacher that reads text: the node the user typed, else the recorded one if a file may name it."""
        if name in self._text_teachers:
            return self._text_teachers[name]
        remedy = f"Type it: {{spec: {self.spec.name}, text_teachers: {{{name}: NODE}}}}"
        return check_artefact_node(self.teachers[name]["backbone"], f"{self.spec.name}, teacher {name}", remedy)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights, config.json and README.md; the folder appears complete or not at all."""
        write_student(Path(folder), self.net.state_dict(), self.config)
        return Path(folder)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload the folder to ORGANISATION/NAME on the Hugging Face Hub (log in first); returns the address."""
        with tempfile.TemporaryDirectory() as scratch:
            return upload_folder(self.save_pretrained(Path(scratch) / "student"), repository, private=private)


def from_pretrained(name: str | Path) -> ExportedStudent:
    """An exported student from a run's folder, a student folder, or a Hub repository ORGANISATION/NAME."""
    here = Path(name).exists()
    return load(str(name) if here else f"{HUB}{str(name).removeprefix(HUB)}")


def load(name: str, text_teachers: Mapping[str, BackboneNode] | None = None) -> ExportedStudent:
    """Load runs/NAME, the student folder in it, or hub:ORGANISATION/NAME. UserError where there is no student.

    text_teachers: backbone nodes by teacher, for those that encode text and that the folder may not name itself.
    """
    folder = download(name.removeprefix(HUB)) if name.startswith(HUB) else find_student(Path(name))
    path = folder / CONFIG
    config = read_config(path)
    if foreign := sorted(set(text_teachers or {}) - set(config["teachers"])):
        raise unknown("teacher in text_teachers", foreign[0], config["teachers"])
    check_weights(folder / WEIGHTS, config)
    try:
        heads = {teacher: HeadSpec(**entry["head"]) for teacher, entry in config["teachers"].items()}
        node = student_node(path, config)
        height, width = config["size"]
        net = Student(node, (height, width), heads)
        net.load_state_dict(load_file(folder / WEIGHTS))
        spec = spec_of(name if name.startswith(HUB) else str(folder), config, net)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} does not fit its config.json: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} does not describe a student ({type(error).__name__}: {error})") from error
    return ExportedStudent(net, spec, config, text_teachers).eval().requires_grad_(False)


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a student's config.json; UserError for a damaged one or one of another schema."""
    config = read_json_object(path)
    if config.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {config.get('schema')}, this program reads {SCHEMA}")
    if not isinstance(config.get("teachers"), dict) or not config["teachers"]:
        raise UserError(f"{path} names no teachers")
    return config


def student_node(path: Path, config: Mapping[str, Any]) -> StudentNode:
    """The student that a config.json describes. Its weights lie beside it: it may name no others, and no address."""
    node = validate(StudentNode, config.get("student"), f"{path}: student")
    if node.weights is not None or not PLAIN.fullmatch(node.model):
        raise UserError(f"{path} names weights or a model that a student folder may not name; its own lie beside it")
    return node


def find_student(folder: Path) -> Path:
    """The folder that holds the exported student, at or below `folder`."""
    for candidate in (recover(folder), recover(folder / "student")):
        if (candidate / CONFIG).is_file() and (candidate / WEIGHTS).is_file():
            return candidate
    raise UserError(f"{folder} holds no exported student; train one with: accelerate launch distill/run.py RECIPE.yaml")


def download(repository: str) -> Path:
    """The student folder of a Hub repository, downloaded once and cached; UserError when it cannot be had."""
    try:
        return find_student(Path(snapshot_download(repository, allow_patterns=[WEIGHTS, CONFIG, CARD])))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"no student at {repository}: no such folder, and not on the Hub ({reason})") from error


def spec_of(where: str, config: dict[str, Any], net: Student) -> BackboneSpec:
    """The student's spec; its licence is the list of its teachers'."""
    licences = sorted({entry["spec"]["licence"] for entry in config["teachers"].values()})
    width = net.vit.embed_dim
    return BackboneSpec(
        name=f"run:{where}",
        library="run",
        patch_size=net.vit.patch_embed.patch_size[0],
        spatial_dim=width,
        summary_dim=len(net.summary_heads) * width or None,
        native_size=(config["size"][0], config["size"][1]),
        resizable=True,
        mean=tuple(net.mean.flatten().tolist()),
        std=tuple(net.std.flatten().tolist()),
        licence=" + ".join(licences),
        source=f"distilled from {', '.join(config['teachers'])}",
        digest=state_digest(net),
    )
