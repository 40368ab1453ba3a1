"""Which circle is followed around the one that is needed."""

from tilecache.following import circle_to_follow
from tilecache_daemon.models import Limits


def test_no_circle_is_larger_than_the_daemon_takes() -> None:
    most = Limits().max_radius_meters

    assert circle_to_follow(0, 0, most, (0,), (0.0, 0.0)).reach_meters == most
    assert circle_to_follow(0, 0, 0.9 * most, (0,), (90.0, 0.0)).reach_meters == most
