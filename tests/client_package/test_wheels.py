"""What is in the two wheels."""

import sys
import tarfile
from email.parser import BytesHeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.wheels import CHECKOUT, CLIENT, build_client, build_daemon, run

CONTRACT = CHECKOUT / "protos" / "tilecache"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    return ZipFile(build_client(tmp_path_factory.mktemp("client")))


def test_the_clients_wheel_carries_its_modules_the_contract_and_the_licence(
    client: ZipFile,
) -> None:
    package = CLIENT / "tilecache"
    modules = {
        path.relative_to(CLIENT): path
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    contract = {
        "tilecache" / path.relative_to(CONTRACT): path for path in CONTRACT.rglob("*.proto")
    }
    licence = {metadata_folder(client) / "licenses" / "LICENSE": CHECKOUT / "LICENSE"}

    expected = {
        str(name): path.read_bytes() for name, path in (modules | contract | licence).items()
    }
    packed = {name: client.read(name) for name in client.namelist()}

    assert expected.items() <= packed.items()
    assert {name for name in packed if name not in expected} == {
        str(metadata_folder(client) / name) for name in ("METADATA", "WHEEL", "RECORD")
    }
    assert "tilecache/py.typed" in packed


def test_the_client_says_its_licence_and_what_it_is(client: ZipFile) -> None:
    text = client.read(str(metadata_folder(client) / "METADATA"))
    metadata = BytesHeaderParser().parsebytes(text)

    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.8"
    assert b"# tilecache-client" in text


def test_a_wheel_made_from_the_source_distribution_is_the_same(
    client: ZipFile, tmp_path: Path
) -> None:
    run(sys.executable, "-m", "build", "--outdir", tmp_path, CLIENT)
    (source,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")

    with ZipFile(wheel) as made:
        assert contents(made) == contents(client)
    with tarfile.open(source) as members:
        assert not [member.name for member in members if member.issym()]


def test_the_daemons_wheel_leaves_the_client_to_its_own(tmp_path: Path) -> None:
    with ZipFile(build_daemon(tmp_path)) as daemon:
        folders = {Path(name).parts[0] for name in daemon.namelist()}

    assert folders == {
        "tilecache_daemon",
        "tilecache_daemon-0.1.0.data",
        "tilecache_daemon-0.1.0.dist-info",
    }


def contents(wheel: ZipFile) -> dict[str, bytes]:
    """All files but the list of them, whose order may differ."""
    return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/RECORD")}


def metadata_folder(wheel: ZipFile) -> Path:
    (folder,) = {Path(name).parts[0] for name in wheel.namelist() if ".dist-info/" in name}
    return Path(folder)
