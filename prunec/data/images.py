"""A folder of images as one normalised tensor, the same in every run.

    folder/*.jpg            images without labels
    folder/CLASS/**/*.jpg   two or more subfolders name the classes, in sorted order, empty ones counted in;
                            where all names are numbers, the number is the class

The picture is read, scaled and cropped as timm and torchvision do it, bit for bit.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor

from prunec import documents
from prunec.data.preprocess import INTERPOLATIONS, Preprocess
from prunec.errors import SourceError, UsageError, brief

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
KINDS = "jpg, png, bmp or webp images"
#: Pillow's names of these kinds: others under their names are refused (PostScript would start a program).
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
#: Pixels that a picture may have, as it is and scaled: decoding and converting them takes up to 1 GB.
MOST_PIXELS = 60_000_000
#: Bytes that the file of a picture may have.
MOST_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in the order of their paths."""

    images: Tensor  # [n, 3, H, W] float32, normalised
    paths: tuple[Path, ...]
    labels: Tensor | None  # [n] int64 where subfolders name the classes
    classes: tuple[str, ...] = ()  # the subfolders' names, in the order of the classes

    def __len__(self) -> int:
        return len(self.paths)


def load_images(folder: Path | str, preprocess: Preprocess, limit: int | None = None) -> ImageSet:
    """Read the images of a folder and of its subfolders.

    Args:
        folder: where they are. Hidden files are left out.
        preprocess: how each is scaled, cropped and normalised.
        limit: at most so many images, evenly spaced over the sorted paths, so that every class has its share.

    Raises:
        SourceError: there is no image, or one cannot be read, or Pillow is missing.
        UsageError: an argument cannot be meant.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}", where="images", remedy="use 1 or more, or leave it out")
    _need_pillow()
    folder = Path(folder).expanduser()
    paths = _thinned(_find(folder), limit)
    images = torch.empty(len(paths), 3, *preprocess.size)
    for place, path in enumerate(paths):
        images[place] = _read(path, preprocess)
    labels, classes = _labels(folder, paths)
    return ImageSet(images, paths, labels, classes)


def read_image(path: Path | str, preprocess: Preprocess) -> Tensor:
    """One picture as a model takes it: [3, H, W], scaled, cropped and normalised.

    Raises:
        SourceError: it cannot be read, or Pillow is missing.
    """
    _need_pillow()
    return _read(Path(path).expanduser(), preprocess)


def decode_image(data: bytes, preprocess: Preprocess, name: str = "the picture") -> Tensor:
    """The same of a file's content, as it comes over a network; an error names it so."""
    _need_pillow()
    return _prepared(lambda: _in_memory(data), name, preprocess)


def _read(path: Path, preprocess: Preprocess) -> Tensor:
    return _prepared(lambda: documents.open_file(path, MOST_BYTES), str(path), preprocess)


def _prepared(opened: Callable[[], IO[bytes]], name: str, preprocess: Preprocess) -> Tensor:
    return preprocess.normalise(_pixels(_fitted(_opened(opened, name, preprocess), preprocess)))


def _in_memory(data: bytes) -> IO[bytes]:
    if len(data) > MOST_BYTES:
        raise documents.Unreadable(
            f"cannot be read: it has {len(data)} bytes, more than {MOST_BYTES}", "make it smaller"
        )
    return io.BytesIO(data)


# --- which files --------------------------------------------------------------------------------------------


def _find(folder: Path) -> tuple[Path, ...]:
    """Every image below a folder, sorted by its path."""
    if not folder.is_dir():
        what = "this is a file, not a folder" if folder.exists() else "there is no such folder"
        raise SourceError(what, where=str(folder), remedy=f"give a folder of {KINDS}")
    try:
        found = (path for path in _walk(folder) if not _hidden(path.relative_to(folder)))
        files = [path for path in found if not path.is_dir()]
    except OSError as error:
        raise SourceError(
            f"the folder cannot be read: {error.strerror}", where=str(folder), remedy="check its permissions"
        ) from error
    paths = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not paths:
        held = f"none of its {len(files)} files is an image" if files else "the folder is empty"
        raise SourceError(held, where=str(folder), remedy=f"put {KINDS} there, or name another folder")
    return tuple(sorted(paths, key=lambda path: path.relative_to(folder).as_posix()))


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder; a subfolder may be a link, but no link further down is followed."""
    here = folder.resolve()
    for child in folder.iterdir():
        if not child.is_dir():
            yield child
        elif child.is_symlink() and child.resolve() in (here, *here.parents):
            raise SourceError(
                "the link leads back to a folder that it lies in",
                where=str(child),
                remedy="remove the link, or name another folder",
            )
        else:
            yield from child.rglob("*")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _thinned(paths: tuple[Path, ...], limit: int | None) -> tuple[Path, ...]:
    if limit is None or limit >= len(paths):
        return paths
    return tuple(paths[place * len(paths) // limit] for place in range(limit))


def _labels(folder: Path, paths: tuple[Path, ...]) -> tuple[Tensor | None, tuple[str, ...]]:
    """The class of each image, where subfolders name two classes or more and no image lies beside them."""
    subfolders = [child for child in folder.iterdir() if child.is_dir()]
    names = sorted(child.name for child in subfolders if not child.name.startswith("."))
    parts = [path.relative_to(folder).parts for path in paths]
    if len(names) < 2 or any(len(part) < 2 for part in parts):
        return None, ()
    if are_numbers(names):
        names.sort(key=int)
        numbers = {name: int(name) for name in names}
    else:
        numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[part[0]] for part in parts]), tuple(names)


def are_numbers(names: Sequence[str]) -> bool:
    """Whether subfolders are called by the numbers of their classes."""
    return all(name.isdecimal() and len(name) < 10 for name in names)


# --- one picture --------------------------------------------------------------------------------------------


def _opened(opened: Callable[[], IO[bytes]], name: str, how: Preprocess) -> Image.Image:
    """The picture in RGB, which can be scaled so; SourceError when it is broken or too large."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), opened() as file:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is lower
            with Image.open(file, formats=FORMATS) as picture:
                _check_size(picture.size, _scaled(picture.size, how))
                return _to_rgb(picture)
    except documents.Unreadable as error:
        raise SourceError(
            f"the image {error}", where=name, remedy=f"{error.remedy}, or move it out of the folder"
        ) from error
    except UnidentifiedImageError as error:
        raise _refused(name, f"the image cannot be read: cannot identify image file as {KINDS}") from error
    except Image.DecompressionBombError as error:  # Pillow's own bound is higher
        raise _refused(
            name, f"the image cannot be read: it has far more than {MOST_PIXELS // 10**6} million pixels"
        ) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = brief(str(error), 300) or type(error).__name__
        raise _refused(name, f"the image cannot be read: {reason}") from error


def _refused(name: str, what: str) -> SourceError:
    return SourceError(
        what, where=name, remedy="replace the file by a whole one, or move it out of the folder"
    )


def _check_size(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    most = f"more than {MOST_PIXELS // 10**6} million"
    for (width, height), verb in ((size, "has"), (scaled, "would have, scaled to cover the model's input,")):
        if width * height > MOST_PIXELS:
            raise documents.Unreadable(
                f"cannot be read: it {verb} {width} x {height} pixels, {most}",
                "make it smaller or less elongated",
            )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits of grey, which convert() would clip at 255
        return picture.convert("I").point(lambda value: value * (1 / 256)).convert("RGB")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _scaled(found: tuple[int, int], how: Preprocess) -> tuple[int, int]:
    """Width and height that a picture is scaled to: it just covers `scaled`, or is stretched to it."""
    (width, height), (down, across) = found, how.scaled
    if how.fit == "stretch":
        return across, down
    if down * width >= across * height:  # the height decides
        return int(down * width / height), down
    return across, int(across * height / width)


def _fitted(picture: Image.Image, how: Preprocess) -> Image.Image:
    """Scaled, then cropped around its centre."""
    from PIL import Image

    scaled, (rows, columns) = _scaled(picture.size, how), how.size
    if scaled != picture.size:
        picture = picture.resize(scaled, Image.Resampling(INTERPOLATIONS.index(how.interpolation)))
    left, top = how.margin(scaled[0], columns), how.margin(scaled[1], rows)
    return picture.crop((left, top, left + columns, top + rows))


def _pixels(picture: Image.Image) -> Tensor:
    """An RGB picture as [3, H, W] in 0..1."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1) / 255


# --- guards -------------------------------------------------------------------------------------------------


def _need_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError as error:
        raise SourceError(
            "Pillow is not installed, which reads the images", where="images", remedy="pip install pillow"
        ) from error
