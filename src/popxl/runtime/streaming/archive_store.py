"""An object store, as archives use it: names, whole objects, and errors that say where. Retries are `obstore`'s own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from popxl.errors import PopxlError, PopxlValueError, StreamingMemoryError

from .archive_codec import extra

_FORMS = "write s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///directory."


class ObjectStore:
    """The objects under a URL. Several threads may use it at once.

    Args:
        url: Without credentials: those come from where the store's own tools take them.
        create: Whether to make the directory of a ``file:`` URL if it is missing.

    Raises:
        PopxlError: The extra ``object`` is not installed.
        PopxlValueError: The URL names no store.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        self._obstore = extra("obstore")
        stores: Any = extra("obstore.store")
        _refuse_secrets(url)
        self.url = url
        options = {"mkdir": True} if create and url.startswith("file:") else {}
        try:
            self._objects: Any = stores.from_url(url, **options)
        except Exception as error:  # of many types
            raise PopxlValueError(f"{url!r} names no object store: {_first_line(error)}.", hint=_FORMS) from error

    def keys(self, prefix: str) -> list[str]:
        """The names of all objects under a prefix."""
        with self._errors(f"listing {prefix}"):
            return [meta["path"] for batch in self._obstore.list(self._objects, prefix=prefix) for meta in batch]

    def get(self, key: str, most_bytes: int) -> bytes | None:
        """An object, or None if it is not there; its size is checked before it is fetched."""
        with self._errors(f"getting {key}"):
            try:
                found = self._obstore.get(self._objects, key)
            except FileNotFoundError:
                return None
            if found.meta["size"] > most_bytes:
                raise StreamingMemoryError(
                    f"{self.url}: {key} has {found.meta['size']} bytes, and at most {most_bytes} were expected.",
                    hint="something else has written it; push the generation again.",
                )
            return bytes(found.bytes())

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        with self._errors(f"putting {key}"):
            self._obstore.put(self._objects, key, content, use_multipart=False)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless it is there; return whether it was not."""
        with self._errors(f"putting {key}"):
            exceptions: Any = extra("obstore.exceptions")
            try:
                self._obstore.put(self._objects, key, content, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError:
                return False
            return True

    @contextmanager
    def _errors(self, what: str) -> Generator[None]:
        try:
            yield
        except PopxlError:
            raise
        except Exception as error:  # of many types
            raise StreamingMemoryError(
                f"{self.url}: {what} failed: {_first_line(error)}.",
                hint="check the URL, the network and the credentials; what is archived already is not sent again.",
            ) from error


def _refuse_secrets(url: str) -> None:
    """URLs are printed, in errors and by shells, so nothing secret may be in one. This error does not print it."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise PopxlValueError("The URL names no object store: it cannot be read.", hint=_FORMS) from error
    if parts.password or parts.query or parts.fragment:
        raise PopxlValueError(
            "The URL of an archive has a password, a query or a fragment.",
            hint="credentials belong in the environment, such as AWS_SECRET_ACCESS_KEY or AZURE_STORAGE_SAS_KEY.",
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
