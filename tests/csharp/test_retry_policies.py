"""C# retries what Python retries, and as Python does."""

import re

from tests.csharp.scheme import PROTOS
from tilecache.client import _IDEMPOTENT, _SERVICE_CONFIG, ADMIN_SERVICE, STORE_SERVICE
from tilecache.v1 import tile_cache_admin_pb2, tile_metadata_store_pb2

TEXT = (PROTOS / "csharp" / "TileCache.Client" / "RetryPolicies.cs").read_text()


def test_the_same_calls_are_retried() -> None:
    assert array("IdempotentStoreCalls") == _IDEMPOTENT[STORE_SERVICE]
    assert array("IdempotentAdminCalls") == _IDEMPOTENT[ADMIN_SERVICE]


def test_every_retried_call_is_one_of_the_contract() -> None:
    for file, name in (
        (tile_metadata_store_pb2, STORE_SERVICE),
        (tile_cache_admin_pb2, ADMIN_SERVICE),
    ):
        (service,) = file.DESCRIPTOR.services_by_name.values()
        assert service.full_name == name
        assert set(_IDEMPOTENT[name]) <= set(service.methods_by_name)


def test_they_are_retried_in_the_same_way() -> None:
    (method_config,) = _SERVICE_CONFIG["methodConfig"]
    policy = method_config["retryPolicy"]

    assert policy == {
        "maxAttempts": int(value("MaxAttempts")),
        "initialBackoff": seconds("InitialBackoff"),
        "maxBackoff": seconds("MaxBackoff"),
        "backoffMultiplier": int(value("BackoffMultiplier")),
        "retryableStatusCodes": [value("RetryableStatusCodes").split(".")[1].strip(" }").upper()],
    }


def array(name: str) -> tuple[str, ...]:
    """The texts in one of the class's arrays."""
    found = re.search(rf"{name} =\s*{{(.*?)}};", TEXT, re.DOTALL)
    assert found is not None
    return tuple(re.findall(r'"(\w+)"', found[1]))


def value(name: str) -> str:
    """What a property is set to."""
    found = re.search(rf"{name} = (.*),$", TEXT, re.MULTILINE)
    assert found is not None
    return found[1]


def seconds(name: str) -> str:
    """A duration, as service configurations write it."""
    found = re.fullmatch(r"TimeSpan\.FromSeconds\(([\d.]+)\)", value(name))
    assert found is not None
    return f"{found[1]}s"
