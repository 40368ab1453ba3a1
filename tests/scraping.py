"""Scraping the metrics of a daemon, as Prometheus does."""

import socket
from http.client import HTTPConnection
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 60.0


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.samples = [sample for family in families for sample in family.samples]

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {sample.name for sample in self.samples}

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name and these labels."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert found, f"no sample {name} with {labels}"
        return sum(found)

    def labels(self, name: str) -> dict[str, str]:
        """The labels of the only sample with this name."""
        (sample,) = (sample for sample in self.samples if sample.name == name)
        return dict(sample.labels)


def scrape(address: str | Path) -> Scrape:
    """Scrapes `host:port` or a Unix socket."""
    connection = (
        _UnixConnection(address)
        if isinstance(address, Path)
        else HTTPConnection(address, timeout=TIMEOUT_S)
    )
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        return Scrape(answer.read().decode())
    finally:
        connection.close()


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))
