"""The tiles of every input of `tilecache import`: pictures that tell their cells."""

from io import BytesIO

from PIL import Image

Cell = tuple[int, int, int]

CELLS: list[Cell] = [(5, 18, 10), (6, 37, 21), (6, 37, 20), (7, 75, 42), (7, 75, 43)]
"""The tiles of every input, with rows counted from the north. All are in Ukraine."""
BOUNDS = "30.9375,48.9224992637583,33.75,52.4827802220782"
"""Of the cells of the highest zoom: west, south, east, north."""
MIRRORED_BOUNDS = "30.9375,-52.4827802220782,33.75,-48.9224992637583"


def picture(cell: Cell, kind: str = "PNG") -> bytes:
    """An image whose colour tells its cell."""
    file = BytesIO()
    Image.new("RGB", (8, 8), cell).save(file, kind)
    return file.getvalue()


def cell_of(content: bytes) -> Cell:
    """The cell of such an image, if it is a PNG."""
    with Image.open(BytesIO(content)) as image:
        colour = image.getpixel((0, 0))
    assert isinstance(colour, tuple)
    zoom, x, y = colour
    return zoom, x, y


def flipped(cell: Cell) -> Cell:
    zoom, x, y = cell
    return zoom, x, (1 << zoom) - 1 - y
