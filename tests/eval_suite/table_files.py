"""Small metrics files for the tests of tables and reports."""

from eval_suite.results import BackboneName, Metrics, Result

#: group, task, metric, value, higher is better, standard error
NUMBERS = (
    ("classification", "knn", "top1", 80.0, True, 1.0),
    ("classification", "zero_shot", "top1", 60.0, True, 1.2),
    ("nyudv2", "depth", "rmse", 0.5, False, 0.02),
)


def metrics(
    name: str = "base", *, change: float = 0.0, stderr: bool = True, seed: int | None = 0, suite: str = "small"
) -> Metrics:
    """A file whose every metric is `change` percent better than NUMBERS."""
    results = tuple(
        Result(
            group=group,
            task=task,
            metric=metric,
            value=value * (1 + change / 100 * (1 if higher else -1)),
            higher_is_better=higher,
            seed=seed,
            n=400,
            stderr=error if stderr else None,
        )
        for group, task, metric, value, higher, error in NUMBERS
    )
    backbone = BackboneName(name=name, digest="sha256:00ff")
    return Metrics(schema=1, backbone=backbone, suite=suite, results=results)


def without(whole: Metrics, group: str, absent: dict[str, str] | None = None) -> Metrics:
    """The same file with one group gone."""
    kept = tuple(result for result in whole.results if result.group != group)
    return whole.model_copy(update={"results": kept, "absent": absent or {}})
