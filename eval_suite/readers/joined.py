"""Training data and test data from two different sets."""

from common.errors import UserError
from eval_suite.readers.contracts import (
    TRAIN,
    CaptionedImages,
    ClassifiedImages,
    ConversationImages,
    DenseImages,
    ImagePairs,
    InstanceImages,
    KeypointImages,
    LabelledData,
    QuestionImages,
    RankedImages,
)


class Joined(LabelledData):
    """The split decides which of the two is asked; classes must be the same in both."""

    def __init__(self, name: str, train: LabelledData, test: LabelledData) -> None:
        self.name = name
        self._train = train
        self._test = test

    def classes(self, split: str) -> ClassifiedImages:
        found = self._of(split).classes(split)
        if split != TRAIN and found.names != self._train.classes(TRAIN).names:
            raise UserError(f'data "{self.name}": the two sets do not have the same classes')
        return found

    def dense(self, split: str) -> DenseImages:
        found = self._of(split).dense(split)
        if split != TRAIN:
            known = self._train.dense(TRAIN).names
            for label, names in found.names.items():
                if label in known and len(names) != len(known[label]):
                    raise UserError(
                        f'data "{self.name}": "{label}" has {len(known[label])} classes to train on '
                        f"and {len(names)} to test on"
                    )
                if label in known and names != known[label]:
                    at = next(
                        at for at, (one, other) in enumerate(zip(known[label], names, strict=True)) if one != other
                    )
                    raise UserError(
                        f'data "{self.name}": class {at} of "{label}" is "{known[label][at]}" to train on and '
                        f'"{names[at]}" to test on; name the classes alike in both, in one order'
                    )
        return found

    def captions(self, split: str) -> CaptionedImages:
        return self._of(split).captions(split)

    def pairs(self, split: str) -> ImagePairs:
        return self._of(split).pairs(split)

    def keypoints(self, split: str) -> KeypointImages:
        return self._of(split).keypoints(split)

    def instances(self, split: str) -> InstanceImages:
        found = self._of(split).instances(split)
        if split != TRAIN and found.names != self._train.instances(TRAIN).names:
            raise UserError(f'data "{self.name}": the two sets do not have the same categories')
        return found

    def questions(self, split: str) -> QuestionImages:
        return self._of(split).questions(split)

    def conversations(self, split: str) -> ConversationImages:
        return self._of(split).conversations(split)

    def ranked(self, split: str) -> RankedImages:
        return self._of(split).ranked(split)

    def _of(self, split: str) -> LabelledData:
        return self._train if split == TRAIN else self._test
