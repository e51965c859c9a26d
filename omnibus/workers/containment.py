"""The border around a stage's own code: what leaves it stops here, whatever it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from omnibus.errors import EngineError, OmnibusError
from omnibus.wire.failure import describe

T = TypeVar("T")


async def contained(work: Awaitable[T]) -> T | OmnibusError:
    """The result of a stage's code or an error of our tree; raises nothing but the cancellation of this very task.

    The code may raise CancelledError itself, as an inner task's does that was cancelled, or what would end the process.
    """
    try:
        return await work
    except OmnibusError as error:
        return error
    except asyncio.CancelledError as error:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        return _foreign(error)
    except BaseException as error:  # noqa: BLE001 its receiver logs it
        return _foreign(error)


def _foreign(error: BaseException) -> EngineError:
    made = EngineError(describe(error))
    made.__cause__ = error
    return made
