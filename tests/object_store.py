"""A real S3 server on loopback, for as long as a test module needs one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

SETTINGS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[Any]:
    """A boto3 client of an empty server; the environment leads s3fs, here and in child processes, to it too."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    log = logging.getLogger("werkzeug")
    level = log.level
    log.setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"):
                patch.delenv(name, raising=False)
            for name, value in {**SETTINGS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
                patch.setenv(name, value)
            # fsspec keeps file systems by their arguments, and the environment is none of these.
            s3fs.S3FileSystem.clear_instance_cache()
            client = boto3.client("s3")
            yield client
            client.close()
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
        log.setLevel(level)
