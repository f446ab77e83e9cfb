"""Engines that answer by script, as the client's tests have them."""

from tests.client.conftest import scripted_engine

__all__ = ["scripted_engine"]
