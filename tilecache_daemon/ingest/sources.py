"""The sources of an import: directories, MBTiles files and PMTiles archives."""

from pathlib import Path

from tilecache_daemon.ingest.errors import SourceError
from tilecache_daemon.ingest.found import Source
from tilecache_daemon.ingest.mbtiles import MBTilesFile
from tilecache_daemon.ingest.pmtiles_archive import PMTilesArchive
from tilecache_daemon.ingest.schemes import Scheme
from tilecache_daemon.ingest.tile_directory import TileDirectory


def open_source(path: Path, zooms: range | None = None, scheme: Scheme | None = None) -> Source:
    """The source at a path, limited to `zooms` if given; raises SourceError.

    `scheme` is how rows are counted, whatever the source says about it. An archive is
    checked as a whole, so that nothing of a damaged one is stored.
    """
    if path.is_dir():
        return TileDirectory(path, zooms, scheme)
    if path.suffix.lower() == ".mbtiles":
        return MBTilesFile(path, zooms, scheme)
    if path.suffix.lower() == ".pmtiles":
        return PMTilesArchive(path, zooms, scheme)
    raise SourceError(f"{path}: neither a directory nor an .mbtiles or .pmtiles file")
