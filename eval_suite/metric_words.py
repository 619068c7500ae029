"""What each metric counts, for people who read a report."""

import re

WORDS = {
    r"top\d+": "Share of images whose class is right (among the first so many), percent.",
    r"mean_class_accuracy|class_accuracy": "Mean over classes of the share that is right, percent.",
    r"pixel_accuracy": "Share of labelled pixels whose class is right, percent.",
    r"(\w+_)?miou": "Intersection over union, counted over the whole test set, mean over classes, percent.",
    r"(\w+_)?maxf": "Saliency: the best F-measure (beta squared 0.3) over thresholds, percent.",
    r"(\w+_)?odsf(_py)?": "Boundaries: F-measure at the best threshold of the whole set, percent.",
    r"(\w+_)?rmse": "Root mean squared error; of depth in metres, of normals in degrees.",
    r"(si_)?d[123]": "Share of pixels whose depth is within a factor 1.25 (squared, cubed), percent.",
    r"(normals_)?mean": "Mean angle between predicted and true surface normal, degrees.",
    r"recall_[\d.]+(px|cm)": "Share of points found within that distance in the other view, percent.",
    r"recall_[\d.]+": "Share of pixels whose surface normal is within that angle, percent.",
    r"pck_[\d.]+": "Share of keypoints found within that share of the object's longer side, percent, mean over kinds.",
    r"text_to_image_recall\d+": "Share of captions whose image is among the first so many, percent.",
    r"image_to_text_recall\d+": "Share of images one of whose captions is among the first so many, percent.",
    r"map_\w+": "Mean average precision of the ranking, percent.",
    r"box_ap|mask_ap|ap(_\w+)?": "COCO's average precision over overlaps of 0.5 to 0.95, percent.",
}


def explain(metric: str) -> str | None:
    """A sentence, or None for a name that this package does not give (question kinds, a user's own metrics)."""
    return next((text for pattern, text in WORDS.items() if re.fullmatch(pattern, metric)), None)
