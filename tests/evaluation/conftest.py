"""The scripted engine of the client's tests."""

from tests.client.conftest import scripted_engine

__all__ = ["scripted_engine"]
