"""Engines for the tests of the service: the client's fixtures, and the engine's bare socket."""

from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from mmchat.client import EngineClient
from mmchat.client.endpoint import read_endpoint
from tests.client.conftest import new_client, scripted_engine, shared_engine, shared_home

__all__ = ["new_client", "scripted_engine", "shared_engine", "shared_home"]


@pytest.fixture
async def http(
    shared_engine: object, new_client: Callable[..., EngineClient]
) -> AsyncIterator[httpx.AsyncClient]:
    """A stock HTTP client on the running engine's socket."""
    await new_client().start()
    endpoint = read_endpoint()
    assert endpoint is not None
    transport = httpx.AsyncHTTPTransport(uds=endpoint.socket, verify=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        yield client
