"""The examples with which a caller begins run as they stand."""

import re
from pathlib import Path

import pytest

from tests.daemon_process import DaemonProcess
from tests.tiles import insert, tile, tile_key
from tests.wheels import CHECKOUT, CLIENT
from tilecache.mercator import cell_at

KYIV = (50.4501, 30.5234)


@pytest.mark.parametrize(
    "document", [CHECKOUT / "README.md", CLIENT / "README.md"], ids=["daemon", "client"]
)
def test_a_readmes_examples_print_the_tiles_around(
    document: Path, shared_daemon: DaemonProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)
    stored = tile(tile_key(18, *cell_at(18, *KYIV)))
    insert(shared_daemon.client, stored)

    for example in examples:
        exec(example.replace("/run/tilecache/tilecache.sock", str(shared_daemon.socket_path)), {})

    assert f"/var/lib/tiles/{stored.file_path}" in capsys.readouterr().out
