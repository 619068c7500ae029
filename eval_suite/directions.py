"""Whether more of a metric is better: known for the usual names, asked for otherwise."""

import re

_HIGHER = (
    r"top[-_ @]?\d+|(pixel|class|mean_class|mean_per_class)?_?accuracy|acc|m?iou|m?ap(_?\d+)?|map_(easy|medium|hard)"
    r"|maxf|f1|f[-_]?score|odsf|oisf|ods|ois|anls|exact_match|precision|auc|auroc|psnr|ssim"
    r"|pck(@|_)?[\d.]*|recall(@|_)?[\d.]*(px|cm|deg)?|r@\d+|d[123]|delta[123]"
)
_LOWER = (
    r"rmse(_log)?|mse|mae|abs_?rel|sq_?rel|log10|silog"
    r"|(mean|median|angular|mean_angular)_error|m?err(or)?|fid|loss"
)
#: a task in front, as in depth_rmse or text_to_image_recall1
_PREFIX = r"(?:[a-z0-9]+_)*?"


_UNBOUNDED = r"psnr|ssim|auc|auroc"  #: better when higher, and no percentages


def is_share(metric: str) -> bool:
    """Whether a metric is a share of what is right, which some write in percent and some as a part of 1."""
    return known_direction(metric) is True and not re.fullmatch(f"{_PREFIX}(?:{_UNBOUNDED})", metric.strip().lower())


def known_direction(metric: str) -> bool | None:
    """True where a higher value is better, False where a lower one is, None where the name does not say."""
    name = metric.strip().lower()
    higher = re.fullmatch(f"{_PREFIX}(?:{_HIGHER})", name) is not None
    lower = re.fullmatch(f"{_PREFIX}(?:{_LOWER})", name) is not None
    return higher if higher != lower else None
