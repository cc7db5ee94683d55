"""What other processes do for tests, begun beside the tests that come before."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_pool = ThreadPoolExecutor(1)  # one core is left to the tests


@functools.cache
def begun(work: Callable[..., Any], *args: Any) -> Future[Any]:
    """``work(*args)``, once for all tests."""
    return _pool.submit(work, *args)
