"""Lists that are answered in pages."""

from collections.abc import Callable, Iterator
from typing import Any


def read_pages(call: Callable[..., Any], request: Any, timeout_s: float) -> Iterator[Any]:
    """The answers of a list's call, one after the other; `timeout_s` is for each. Raises CallError.

    `request` is changed: its `page_token` is that of the next page.
    """
    while True:
        answer = call(request, timeout=timeout_s)
        yield answer
        request.page_token = answer.next_page_token
        if not request.page_token:
            return
