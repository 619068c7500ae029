"""A student from a folder of photographs, with the shipped small teachers (or yours).

    python examples/distil_a_folder.py PHOTOS [--out FOLDER] [--steps 50]

With real teachers take a recipe such as single_teacher.yaml or ungated.yaml instead of quickstart.yaml, and a GPU.
"""

import argparse
from pathlib import Path

import agglomerate
from agglomerate.backbones import as_tensor
from teachers.contracts import fit_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of images, looked through with its sub-folders")
    parser.add_argument("--out", type=Path, default=Path("runs/examples"))
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    run = agglomerate.distil(
        "quickstart.yaml", f"data.train=imagefolder:{options.photos.resolve()}", f"out={options.out}",
        "name=photographs", "arms={}", "baseline=null", "eval=null", f"optim.steps={options.steps}",
        "optim.warmup_steps=0",
    )  # fmt: skip
    student = agglomerate.load_student(run)
    first = next(path for path in sorted(options.photos.rglob("*")) if path.is_file())
    features = student(fit_images(as_tensor(first), student.spec))
    print(f"{run}: {first.name} gives a map of {list(features.spatial.shape)}")


if __name__ == "__main__":
    main()
