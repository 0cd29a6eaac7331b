"""All methods that Temporal has: what the running server says by reflection, and what the SDK's descriptors say."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import temporalio.api
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

REFLECTION = "grpc.reflection.v1.ServerReflection"
PACKAGE = "reflection"
ONE, MANY = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED
TEXT, DATA, PART = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_BYTES, FieldDescriptorProto.TYPE_MESSAGE
MESSAGES: dict[str, list[tuple[str, int, Any, Any, str]]] = {
    "Request": [("file_containing_symbol", 4, ONE, TEXT, ""), ("list_services", 7, ONE, TEXT, "")],
    "Response": [("files", 4, ONE, PART, "Files"), ("services", 6, ONE, PART, "Services")],
    "Files": [("file_descriptor_proto", 1, MANY, DATA, "")],
    "Services": [("service", 1, MANY, PART, "Service")],
    "Service": [("name", 1, ONE, TEXT, "")],
}
"""The part of grpc/reflection/v1/reflection.proto that this needs: name, number, how many, type, message."""


def _message(name: str) -> type[Message]:
    file = FileDescriptorProto(name="reflection.proto", package=PACKAGE, syntax="proto3")
    for message, fields in MESSAGES.items():
        added = file.message_type.add(name=message)
        for field, number, label, kind, of in fields:
            made = added.field.add(name=field, number=number, label=label, type=kind)
            if of:
                made.type_name = f".{PACKAGE}.{of}"
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


async def methods_of_server(address: str) -> set[str]:
    """Return the full names (`service/Method`) of everything that a server offers, by asking it."""
    request, response = _message("Request"), _message("Response")
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(
            f"/{REFLECTION}/ServerReflectionInfo",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )()

        async def ask(**what: str) -> Any:
            await call.write(request(**what))
            return await call.read()

        names = [service.name for service in (await ask(list_services="*")).services.service]
        found: set[str] = set()
        for name in names:
            for data in (await ask(file_containing_symbol=name)).files.file_descriptor_proto:
                found |= set(_methods(FileDescriptorProto.FromString(data)))
        call.cancel()
    return found


def methods_of_sdk() -> set[str]:
    """Return the same from the SDK's descriptors, which may be newer than the server.

    They are read from the source: importing these modules needs a library that nothing else here does.
    """
    sources = [path.read_text(encoding="utf-8") for path in Path(temporalio.api.__path__[0]).rglob("service_pb2.py")]
    return {name for source in sources for name in _methods(FileDescriptorProto.FromString(_serialized(source)))}


def _serialized(source: str) -> bytes:
    """Return the argument of `AddSerializedFile` in a generated module."""
    (data,) = (
        node.args[0].value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "AddSerializedFile"
        and isinstance(node.args[0], ast.Constant)
    )
    assert isinstance(data, bytes)
    return data


def _methods(file: FileDescriptorProto) -> Iterator[str]:
    for service in file.service:
        yield from (f"{file.package}.{service.name}/{method.name}" for method in service.method)
