"""The start of an engine: alone on its devices, in its stage's environment, within its time."""

from __future__ import annotations

from omnibus.errors import StageStartError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import Engine
from omnibus.workers.engines.threads import within
from omnibus.workers.initialisation.environment import engine_environment
from omnibus.workers.initialisation.locks import acquire_device_locks, release_device_locks


async def start_engine(engine: Engine, stage: StageSpec, *, devices: str, timeout: float, who: str) -> None:
    """Load the engine of a replica, called `who` in errors.

    Waits first, at most `timeout` seconds, for others that initialise one of its devices; then it has `timeout` seconds.
    Raises StageStartError naming `who` when one of them is not enough, and what `Engine.start` raises.
    """
    try:
        locks = await acquire_device_locks(devices, timeout=timeout, holder=who)
    except TimeoutError as error:
        raise StageStartError(f"{who}: {error} after {timeout:g} s") from error
    try:
        await within(timeout, _load(engine, stage, devices), f"start-{stage.name}")
    except TimeoutError as error:
        raise StageStartError(
            f"{who}: the engine did not load within {timeout:g} s; a slow one needs more (--stage-init-timeout)"
        ) from error
    finally:
        release_device_locks(locks)


async def _load(engine: Engine, stage: StageSpec, devices: str) -> None:
    async with engine_environment(stage.env, devices):
        await engine.start()
