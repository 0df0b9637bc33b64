"""Data sets in folders are found and read; broken files are refused by name, and no code in them is executed."""

import io
import os
import pickle
import random
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import MissingDataError
from tasks.dense import npy_files
from tasks.dense.npy_files import BadDataError

from .dense_files import write

NAMES = {"image": "image", "label": "label", "depth": "depth", "normal": "normal"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path, train=12, val=2, size=(8, 12))


def checked(root: Path) -> list[npy_files.Files]:
    found = npy_files.find(root / "train", NAMES)
    npy_files.check(found)
    return found


def saved(path: Path, array: np.ndarray) -> None:
    np.save(path, array)


# Finding and reading


def test_files_come_in_numeric_order(root):
    found = checked(root)
    assert [int(files["image"].stem) for files in found] == list(range(12))
    for files in found:
        assert len({path.stem for path in files.values()}) == 1
        assert {kind: path.parent.name for kind, path in files.items()} == NAMES


def test_an_image_is_what_its_files_hold(root):
    files = checked(root)[10]
    images = npy_files.read(files, 13)
    arrays = {kind: np.load(path) for kind, path in files.items()}
    np.testing.assert_array_equal(images.image[0].movedim(0, -1), arrays["image"])
    np.testing.assert_array_equal(images.label[0], arrays["label"])
    np.testing.assert_array_equal(images.depth[0].movedim(0, -1), arrays["depth"])
    np.testing.assert_allclose(images.normal[0].movedim(0, -1), arrays["normal"], rtol=1e-6)
    assert [field.dtype for field in images] == [torch.float32, torch.int64, torch.float32, torch.float32]
    assert (images.label == -1).any()
    assert (images.normal[:, :, -2:] == 0).all()


@pytest.mark.parametrize("kind", ["image", "depth", "normal"])
@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4"])
def test_floating_point_numbers_of_any_type_and_order_are_read(root, kind, dtype):
    files = checked(root)[0]
    before = npy_files.read(files, 13)
    saved(files[kind], np.asfortranarray(np.load(files[kind]).astype(dtype)))
    npy_files.check([files])
    for ours, theirs in zip(npy_files.read(files, 13), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float64])
def test_labels_of_any_type_are_read(root, dtype):
    files = checked(root)[0]
    label = npy_files.read(files, 13).label
    saved(files["label"], np.load(files["label"]).astype(dtype))
    npy_files.check([files])
    assert torch.equal(npy_files.read(files, 13).label, label)


def test_normals_become_unit_vectors(root):
    files = checked(root)[0]
    before = npy_files.read(files, 13).normal
    saved(files["normal"], 0.9 * np.load(files["normal"]))
    torch.testing.assert_close(npy_files.read(files, 13).normal, before)


def test_what_is_read_is_no_view_of_the_file(root):
    files = checked(root)[0]
    before = {kind: path.read_bytes() for kind, path in files.items()}
    for field in npy_files.read(files, 13):
        field.fill_(0.5)
    assert before == {kind: path.read_bytes() for kind, path in files.items()}


def test_a_kind_that_the_data_set_lacks_is_none(root):
    names = {"image": "image", "label": "label", "depth": "depth"}
    images = npy_files.read(npy_files.find(root / "train", names)[0], 13)
    assert images.normal is None
    assert images.depth is not None


def test_files_of_a_file_manager_are_passed_over(root):
    (root / "train" / "image" / "._3.npy").write_bytes(b"\0")
    (root / "train" / "image" / "README.txt").write_text("hello")
    assert len(checked(root)) == 12


def test_the_fingerprint_is_that_of_names_and_sizes(root, tmp_path_factory):
    def of(root: Path) -> str:
        return npy_files.fingerprint(root, npy_files.find(root / "train", NAMES))

    other = write(tmp_path_factory.mktemp("other"), train=12, val=2, size=(8, 12))
    assert of(root) == of(other)
    saved(other / "train" / "depth" / "3.npy", np.zeros((8, 13, 1), np.float32))
    changed = of(other)
    assert changed != of(root)
    for kind in NAMES:
        (other / "train" / kind / "11.npy").unlink()
    assert of(other) not in (changed, of(root))


# Refusing


def test_a_folder_that_is_missing_or_empty_is_named(root, tmp_path):
    npy_files.require(root, NAMES)
    with pytest.raises(MissingDataError, match=re.escape(f"there is no folder {tmp_path / 'nowhere' / 'train'}")):
        npy_files.require(tmp_path / "nowhere", NAMES)
    for path in (root / "val" / "depth").iterdir():
        path.unlink()
    with pytest.raises(MissingDataError, match=re.escape(f"{root / 'val' / 'depth'} holds no .npy files")):
        npy_files.require(root, NAMES)
    (root / "val" / "depth").rmdir()
    with pytest.raises(MissingDataError, match=re.escape(f"no folder {root / 'val' / 'depth'}")):
        npy_files.require(root, NAMES)


@pytest.mark.parametrize("kind", NAMES)
def test_a_missing_file_is_named(root, kind):
    path = root / "train" / kind / "7.npy"
    path.unlink()
    with pytest.raises(BadDataError, match=re.escape(f"{path} is missing, but there is ")):
        checked(root)


@pytest.mark.parametrize("name", ["a.npy", "07.npy", "-1.npy", "1 .npy", "²3.npy"])
def test_a_name_that_is_no_number_is_refused(root, name):
    path = root / "train" / "image" / name
    path.write_bytes(b"")
    with pytest.raises(BadDataError, match=re.escape(f"{path}: expected a number as the file's name")):
        checked(root)


SHAPES = [
    ("image", (8, 12), "expected (height, width, 3)"),
    ("image", (3, 8, 12), "expected (3, 8, 3)"),
    ("image", (0, 12, 3), ""),
    ("label", (8, 12, 1), "expected (8, 12)"),
    ("label", (12, 8), "expected (8, 12)"),
    ("depth", (8, 12), "expected (8, 12, 1)"),
    ("normal", (8, 12, 1), "expected (8, 12, 3)"),
]


@pytest.mark.parametrize(("kind", "shape", "message"), SHAPES)
def test_a_wrong_shape_is_named(root, kind, shape, message):
    path = root / "train" / kind / "0.npy"
    saved(path, np.zeros(shape, np.float32))
    with pytest.raises(BadDataError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        checked(root)


def test_an_image_of_another_size_than_the_first_is_named(root):
    for kind, rest in (("image", (3,)), ("label", ()), ("depth", (1,)), ("normal", (3,))):
        saved(root / "train" / kind / "5.npy", np.zeros((8, 16, *rest), np.float32))
    message = f"{root / 'train' / 'image' / '5.npy'} has shape (8, 16, 3); expected (8, 12, 3)"
    with pytest.raises(BadDataError, match=re.escape(message)):
        checked(root)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("image", np.uint8), ("depth", np.int32), ("normal", np.complex64), ("label", bool), ("label", "S1")],
)
def test_a_wrong_type_is_named(root, kind, dtype):
    path = root / "train" / kind / "3.npy"
    saved(path, np.zeros(np.load(path).shape, dtype))
    with pytest.raises(BadDataError, match=rf"{re.escape(str(path))} holds .*; expected "):
        checked(root)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("left", [0, 5, 40, 100, -1])
def test_a_truncated_file_is_named(root, kind, left):
    path = root / "train" / kind / "4.npy"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(BadDataError, match=re.escape(str(path))):
        checked(root)


class Bomb:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def bombs(path: Path) -> dict[str, bytes]:
    array = np.empty((8, 12), object)
    array[:] = Bomb(path)
    inside, archive = io.BytesIO(), io.BytesIO()
    np.save(inside, array, allow_pickle=True)
    np.savez(archive, array=array, allow_pickle=True)
    code = f"__import__('os').mkdir({str(path)!r})"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {code}}}".ljust(118)
    executable = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(400)
    return {
        "in the array": inside.getvalue(),
        "for a file": pickle.dumps(Bomb(path)),
        "in an archive": archive.getvalue(),
        "code for a header": executable,
    }


@pytest.mark.parametrize("where", bombs(Path("x")))
@pytest.mark.parametrize("kind", NAMES)
def test_a_pickle_is_refused_and_not_executed(root, kind, where, tmp_path):
    trap = tmp_path / "sprung"
    path = root / "train" / kind / "2.npy"
    path.write_bytes(bombs(trap)[where])
    with pytest.raises(BadDataError, match=re.escape(f"{path} can't be read as a .npy file of numbers")):
        checked(root)
    files = {k: root / "train" / k / "2.npy" for k in NAMES}
    with pytest.raises(BadDataError, match=re.escape(str(path))):
        npy_files.read(files, 13)
    assert not trap.exists()
    if where == "for a file":
        pickle.loads(path.read_bytes())
        assert trap.exists()  # the bomb itself works


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_a_garbled_header_raises_nothing_else(root):
    path = root / "train" / "depth" / "0.npy"
    whole = path.read_bytes()
    chance = random.Random(0)
    for _ in range(300):
        garbled = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            garbled[chance.randrange(128)] = chance.choice([*b"{}()',:0123456789 <>|fiO\\\n", chance.randrange(256)])
        path.write_bytes(garbled)
        with suppress(BadDataError):
            npy_files.check([{"image": root / "train" / "image" / "0.npy", "depth": path}])


VALUES = [
    ("image", 255.0, "holds colours from .* to 255; expected 0 to 1"),
    ("image", -1.0, "holds colours from -1 "),
    ("image", np.nan, "a number that is not finite"),
    ("label", 13, "holds labels from -1 to 13; expected whole numbers from -1 to 12"),
    ("label", -2, "holds labels from -2 "),
    ("label", 1.5, "expected whole numbers from -1 to 12"),
    ("label", np.nan, "a number that is not finite"),
    ("depth", np.nan, "a number that is not finite"),
    ("depth", np.inf, "a number that is not finite"),
    ("depth", -1.0, "holds a depth of -1; expected 0 or more"),
    ("normal", np.nan, "a number that is not finite"),
    ("normal", 127.0, "holds a normal of length 219.97; expected 1"),
]


@pytest.mark.parametrize(("kind", "value", "message"), VALUES)
def test_a_value_out_of_range_is_named_when_it_is_read(root, kind, value, message):
    files = checked(root)[6]
    array = np.load(files[kind])
    array[4, 5] = value
    saved(files[kind], array)
    npy_files.check([files])
    with pytest.raises(BadDataError, match=f"{re.escape(str(files[kind]))}.*{message}"):
        npy_files.read(files, 13)
