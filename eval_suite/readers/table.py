"""All readers by the name a suite file gives them."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidatorFunctionWrapHandler, WrapValidator

from common.plugins import validate_plugin
from eval_suite.readers.captions import CaptionsNode
from eval_suite.readers.class_folders import ClassFoldersNode, ImageNetNode
from eval_suite.readers.coco import CocoNode
from eval_suite.readers.contracts import LabelledData
from eval_suite.readers.dense_folders import DenseFoldersNode
from eval_suite.readers.dense_layouts import Ade20kNode, CocoStuffNode, Voc2012Node
from eval_suite.readers.hf_columns import HfNode
from eval_suite.readers.joined import Joined
from eval_suite.readers.multitask_layouts import NyudMultitaskNode, PascalMultitaskNode
from eval_suite.readers.navi import NaviNode
from eval_suite.readers.nodes import ReaderNode
from eval_suite.readers.probe3d_layouts import NyuProbe3dNode
from eval_suite.readers.question_files import QuestionsNode
from eval_suite.readers.revisited import RevisitedNode
from eval_suite.readers.rgbd_pairs import RgbdPairsNode, ScanNet1500Node
from eval_suite.readers.scenes import ScenesNode
from eval_suite.readers.spair import SpairNode
from eval_suite.readers.vlm_benchmarks import VlmBenchmarkNode
from eval_suite.readers.vlm_hub import VlmHubNode

SingleReader = Annotated[
    ScenesNode
    | ClassFoldersNode
    | ImageNetNode
    | DenseFoldersNode
    | Ade20kNode
    | Voc2012Node
    | CocoStuffNode
    | CocoNode
    | CaptionsNode
    | HfNode
    | NyudMultitaskNode
    | PascalMultitaskNode
    | NyuProbe3dNode
    | NaviNode
    | RgbdPairsNode
    | ScanNet1500Node
    | SpairNode
    | RevisitedNode
    | QuestionsNode
    | VlmBenchmarkNode
    | VlmHubNode,
    Field(discriminator="reader"),
]


class JoinedNode(ReaderNode):
    """One data set to train on and another to test on, e.g. LLaVA conversations and a question benchmark."""

    reader: Literal["joined"]
    train: SingleReader  #: its train split is taken
    test: SingleReader  #: its test split is taken

    def open(self, name: str) -> Joined:
        return Joined(name, _side(self.train, f"{name}.train"), _side(self.test, f"{name}.test"))


def _side(node: SingleReader, name: str) -> LabelledData:
    return node.open_side(name) if isinstance(node, ReaderNode) else node.open(name)


OwnReader = Annotated[SingleReader | JoinedNode, Field(discriminator="reader")]
READERS = "eval_suite.readers"  #: the entry point group of readers that other packages add


def plugin_reader(value: Any, validate: ValidatorFunctionWrapHandler) -> ReaderNode:
    """A reader of ours by its name, or a user's: `reader: class:PACKAGE.MODULE.NAME`, or a registered name."""
    return validate_plugin(ReaderNode, "reader", READERS, value, validate)  # type: ignore[type-abstract]  # never made


ReaderRecipe = Annotated[SerializeAsAny[OwnReader], WrapValidator(plugin_reader)]
