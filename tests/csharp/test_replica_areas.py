"""The cells that the C# replica reads and the areas that it follows are those of the Python one."""

import random
from pathlib import Path

import pytest

from tests.csharp.mono import run_program
from tilecache.following import circle_to_follow
from tilecache.mercator import BoundingBox, blocks_in, cells_in_box, cells_in_circle

SEEDS = range(400)


def test_circles_have_the_same_cells(replica_driver: Path) -> None:
    circles = [random_circle(random.Random(seed)) for seed in SEEDS]

    answers = run(replica_driver, [f"circle {words(circle)}" for circle in circles])

    assert answers == [text_of(cells_in_circle(*circle)) for circle in circles]


def test_circles_have_the_same_blocks(replica_driver: Path) -> None:
    circles = [random_circle(random.Random(seed)) for seed in SEEDS]

    answers = run(replica_driver, [f"blocks 1000000 {words(circle)}" for circle in circles])

    for circle, answer in zip(circles, answers, strict=True):
        blocks = blocks_in(circle[0], cells_in_circle(*circle))
        expected = {"/".join(map(str, key)) for key in blocks} or {""}
        assert set(answer.split(";")) == expected


def test_too_many_blocks_are_told_at_once(replica_driver: Path) -> None:
    assert run(replica_driver, ["blocks 1024 22 0 0 20000000"]) == ["many"]
    (all_blocks,) = run(replica_driver, ["blocks 1024 18 0 0 20000"])
    count = len(all_blocks.split(";"))
    limits = [f"blocks {most} 18 0 0 20000" for most in (count, count - 1)]
    assert run(replica_driver, limits) == [all_blocks, "many"]


def test_boxes_have_the_same_cells(replica_driver: Path) -> None:
    boxes = [random_box(random.Random(seed)) for seed in SEEDS]

    answers = run(replica_driver, [f"box {words((zoom, *box))}" for zoom, box in boxes])

    assert answers == [text_of(cells_in_box(zoom, box)) for zoom, box in boxes]


def test_a_moving_caller_follows_the_same_circles(replica_driver: Path) -> None:
    lines, expected = [], []
    for seed in SEEDS:
        source = random.Random(seed)
        latitude, longitude = source.uniform(-85, 85), source.uniform(-180, 180)
        radius = source.choice([1.0, 300.0, 3_000.0, 40_000.0, 18_000_000.0])
        velocity = source.choice([(0.0, 0.0), (source.uniform(-90, 90), source.uniform(-90, 90))])
        circle = circle_to_follow(latitude, longitude, radius, (17, 15), velocity)
        lines.append(f"around {words((latitude, longitude, radius))} 17;15;15 {words(velocity)}")
        expected.append([circle.latitude, circle.longitude, circle.reach_meters])
        for _ in range(5):
            near = (
                latitude + source.gauss(0, radius / 3e5),
                longitude + source.gauss(0, radius / 3e5),
            )
            lines.append(f"suffices {words((*near, radius))} 15;17")
            expected.append([circle.suffices(*near, radius, (15, 17))])
        lines.append(f"suffices {words((latitude, longitude, radius / 2))} 15;17")
        lines.append(f"suffices {words((latitude, longitude, radius))} 15")
        expected += [[False], [False]]

    answers = run(replica_driver, lines)

    assert {True, False} <= {values[0] for values in expected}
    for answer, values in zip(answers, expected, strict=True):
        found = [
            word == "true" if word in ("true", "false") else float(word) for word in answer.split()
        ]
        assert found == pytest.approx(values, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        ("90.1 0 10 15 0 0", "latitude"),
        ("NaN 0 10 15 0 0", "latitude"),
        ("0 -180.1 10 15 0 0", "longitude"),
        ("0 0 0 15 0 0", "radiusMeters"),
        ("0 0 20015088 15 0 0", "radiusMeters"),
        ("0 0 10 15 NaN 0", "northMps"),
        ("0 0 10 15 0 Infinity", "eastMps"),
        ("0 0 10 - 0 0", "zooms"),
        ("0 0 10 15;23 0 0", "zooms"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    replica_driver: Path, arguments: str, refused: str
) -> None:
    assert run(replica_driver, [f"around {arguments}"]) == [f"refused {refused}"]


def test_a_read_gives_the_tiles_of_its_cells(replica_driver: Path) -> None:
    tiles = [f"{x}_{y}@{x},{y}{'!' if x % 3 == 0 else ''}" for x in range(64) for y in range(32)]
    setup = [
        "new",
        "follow 8/0/0;8/1/0",
        f"block 1 8/0/0 v - false {';'.join(tiles[:1024])} -",
        f"block 1 8/1/0 v - false {';'.join(tiles[1024:])} -",
    ]
    reads = [random_rectangle(random.Random(seed)) for seed in range(100)]

    answers = run(
        replica_driver,
        [
            *setup,
            *(f"read 8 {words(cells)} {usable}" for cells in reads for usable in ("true", "false")),
        ],
    )

    for index, (x_from, x_to, y_from, y_to) in enumerate(reads):
        complete = "true" if x_to < 64 and y_to < 32 else "false"
        inside = [
            tile
            for x in range(x_from, x_to + 1)
            for y in range(y_from, y_to + 1)
            if x < 64 and y < 32
            for tile in [tiles[x * 32 + y]]
        ]
        for answer, expected in zip(
            answers[2 * index :],
            ([tile for tile in inside if "!" not in tile], inside),
            strict=False,
        ):
            known, found = answer.split(" ")
            assert known == complete
            assert sorted(found.split(";")) == sorted(expected or [""])


def run(driver: Path, lines: list[str]) -> list[str]:
    answer = run_program(driver, lines=lines)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


def words(numbers: tuple[float, ...]) -> str:
    return " ".join(map(repr, numbers))


def text_of(cells: object) -> str:
    return ";".join(",".join(map(str, part)) for part in cells)  # type: ignore[attr-defined]


def random_circle(source: random.Random) -> tuple[int, float, float, float]:
    """Some of them cross the antimeridian, or contain a pole."""
    zoom = source.randint(0, 18)
    latitude = source.choice([source.uniform(-90, 90), source.uniform(-85, 85), 0.0, 89.9])
    longitude = source.choice([source.uniform(-180, 180), 179.999, -180.0])
    return zoom, latitude, longitude, 40_000_000 / 2**zoom * source.uniform(0.01, 8) / 2


def random_box(source: random.Random) -> tuple[int, BoundingBox]:
    zoom = source.randint(0, 18)
    edge = 360 / 2**zoom * source.uniform(0.01, 8)
    south, west = source.uniform(-90, 90), source.uniform(-180, 180)
    east = (west + edge + 180) % 360 - 180
    return zoom, BoundingBox(south, west, min(south + edge, 90.0), east)


def random_rectangle(source: random.Random) -> tuple[int, int, int, int]:
    x_from, y_from = source.randrange(64), source.randrange(32)
    return x_from, x_from + source.randrange(20), y_from, y_from + source.randrange(10)
