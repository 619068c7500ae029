"""The line of a recipe that names images: folders, scenes, and what is said when it is wrong."""

from pathlib import Path

import numpy as np
import pytest
from image_files import encode, flat, write_folder

from common.errors import UserError
from imagery.decode import BadImage
from imagery.sources import open_source


def test_a_folder_gives_its_images_sorted_at_any_depth(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", 6)
    for name in ("notes.txt", ".hidden.png", "._resource.png", "LOUD.PNG"):
        (tmp_path / "a" / name).write_bytes(encode(flat(99)))
    source = open_source(f"imagefolder:{tmp_path / 'a'}")
    keys = [source.key(index) for index in range(len(source))]
    assert keys == sorted(keys)
    assert set(keys) == {"000.png", "002.png", "004.png", "sub/001.png", "sub/003.png", "sub/005.png", "LOUD.PNG"}
    np.testing.assert_array_equal(source.load(keys.index("sub/003.png")), flat(3))


def test_braces_name_several_folders(tmp_path: Path) -> None:
    for name in "abc":
        write_folder(tmp_path / name, 2)
    source = open_source(f"imagefolder:{tmp_path}/{{a,c}}")
    assert [source.key(index) for index in range(4)] == ["a/000.png", "a/sub/001.png", "c/000.png", "c/sub/001.png"]
    np.testing.assert_array_equal(source.load(3), flat(1))
    with pytest.raises(UserError, match=r"no such folder: .*/d"):
        open_source(f"imagefolder:{tmp_path}/{{a,d}}")


def test_the_fingerprint_is_about_the_images_not_their_place(tmp_path: Path) -> None:
    one, two = (write_folder(tmp_path / name, 3) for name in "ab")
    assert open_source(f"imagefolder:{one}").fingerprint == open_source(f"imagefolder:{two}").fingerprint
    (two / "new.png").write_bytes(encode(flat(1)))
    assert open_source(f"imagefolder:{one}").fingerprint != open_source(f"imagefolder:{two}").fingerprint


def test_a_file_that_disappears_is_a_bad_image(tmp_path: Path) -> None:
    source = open_source(f"imagefolder:{write_folder(tmp_path / 'a', 2)}")
    (tmp_path / "a" / "000.png").unlink()
    with pytest.raises(BadImage):
        source.load(0)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("imagefolder:/no/such/folder", "no such folder: /no/such/folder"),
        ("imagefolder:{tmp}", "no images in"),
        ("imagefolder:", "not which"),
        ("imagefolders:/x", 'did you mean "imagefolder"'),
        ("/some/path", "known: hf, imagefolder, scenes, webdataset"),
        ("scenes:seed=1", "needs a seed and a count"),
        ("scenes:seed=1,count=4,sizes=32", 'no option "sizes" \\(did you mean "size"'),
        ("scenes:seed=one,count=4", "seed is a whole number"),
        ("scenes:seed=1,count=0", "count and size > 0"),
        ("scenes:seed=-1,count=4", "seed >= 0"),
        ("scenes:seed=1,count=4,preset=cosy", "known: default, indoor"),
        ("scenes:seed=1,count=4,size=big", "size is PIXELS or HEIGHTxWIDTH"),
        ("scenes:seed=1,count=4,cache=yes", "cache is true or false"),
        ("scenes:seed=1,count", "write count=VALUE"),
        ("hf:/no/such/set", "no such data set"),
        ("hf:name?column=image&window=8", "window is for streaming"),
        ("hf:name?columns=image", 'did you mean "column"'),
    ],
)
def test_what_is_wrong_is_said(spec: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        open_source(spec.replace("{tmp}", str(tmp_path)))


def test_scenes_are_rendered_in_the_asked_shape_and_cached() -> None:
    source = open_source("scenes:seed=3,count=5,size=24x32,cache=true")
    assert len(source) == 5
    image = source.load(4)
    assert image.shape == (24, 32, 3) and image.dtype == np.uint8 and image.std() > 5
    assert source.load(4) is image  # kept, not rendered again
    again = open_source("scenes:seed=3,count=5,size=24x32")
    np.testing.assert_array_equal(again.load(4), image)
    assert again.load(4) is not again.load(4)
    assert not np.array_equal(again.load(3), image)
    assert not np.array_equal(open_source("scenes:seed=3,count=5,size=24x32,preset=sparse").load(4), image)
    assert not np.array_equal(open_source("scenes:seed=4,count=5,size=24x32").load(4), image)
