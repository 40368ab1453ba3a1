"""Sets of cells as bits, against sets of Python."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from tilecache.mercator import CellRectangle, count_cells
from tilecache_daemon.geometry.masks import CellMasks, concatenate, mask_cells

Cell = tuple[int, int]

positions = st.integers(0, 70)
rectangles = st.tuples(positions, positions, positions, positions).map(
    lambda ends: CellRectangle(*sorted(ends[:2]), *sorted(ends[2:]))
)
many = st.lists(rectangles, max_size=4)


def cells_of(rectangles: list[CellRectangle]) -> set[Cell]:
    return {
        cell
        for x_from, x_to, y_from, y_to in rectangles
        for cell in product(range(x_from, x_to + 1), range(y_from, y_to + 1))
    }


def read(masks: CellMasks) -> set[Cell]:
    """The cells of masks, bit by bit."""
    return {
        (int(x) * 32 + index % 32, int(y) * 32 + index // 32)
        for x, y, bits in zip(masks.x, masks.y, masks.bits(), strict=True)
        for index in range(1_024)
        if bits[index]
    }


@given(many)
def test_masks_have_the_cells_of_rectangles(rectangles: list[CellRectangle]) -> None:
    masks = mask_cells(rectangles)

    assert read(masks) == cells_of(rectangles)
    assert masks.cell_count == len(cells_of(rectangles))
    order = list(zip(masks.y.tolist(), masks.x.tolist(), strict=True))
    assert order == sorted(set(order))


@given(many)
def test_the_rectangles_of_masks_are_disjoint_and_have_their_cells(
    rectangles: list[CellRectangle],
) -> None:
    found = list(mask_cells(rectangles).rectangles())

    assert cells_of(found) == cells_of(rectangles)
    assert count_cells(found) == len(cells_of(found))


@given(rectangles)
def test_a_rectangle_stays_one(rectangle: CellRectangle) -> None:
    assert list(mask_cells([rectangle]).rectangles()) == [rectangle]


@given(many)
def test_the_bounds_of_a_block_contain_its_cells(rectangles: list[CellRectangle]) -> None:
    masks = mask_cells(rectangles)
    for index, bounds in enumerate(masks.bounds()):
        cells = read(masks.part(index, index + 1))
        assert bounds == CellRectangle(
            min(x for x, _ in cells),
            max(x for x, _ in cells),
            min(y for _, y in cells),
            max(y for _, y in cells),
        )


@given(many, many)
def test_blocks_without_cells_are_left_out(
    rectangles: list[CellRectangle], others: list[CellRectangle]
) -> None:
    masks, taken = mask_cells(rectangles), read(mask_cells(others))
    bits = masks.bits()
    for block, index in product(range(len(bits)), range(1_024)):
        x, y = int(masks.x[block]) * 32 + index % 32, int(masks.y[block]) * 32 + index // 32
        bits[block, index] &= (x, y) not in taken

    rest = masks.having(bits)

    assert read(rest) == cells_of(rectangles) - taken
    assert rest.rows.any(axis=1).all()


@given(many, st.integers(0, 30))
def test_parts_make_up_the_whole(rectangles: list[CellRectangle], at: int) -> None:
    masks = mask_cells(rectangles)
    whole = concatenate([masks.part(0, at), masks.part(at, len(masks.x))])
    assert read(whole) == read(masks)
    assert read(concatenate([])) == set()


def test_a_long_column_is_one_rectangle() -> None:
    column = CellRectangle(7, 7, 3, 1 << 18)
    masks = mask_cells([column])
    assert masks.cell_count == (1 << 18) - 2
    assert list(masks.rectangles()) == [column]
