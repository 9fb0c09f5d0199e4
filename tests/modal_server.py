"""A stand-in for Modal's servers: the real SDK and its command line talk to it over gRPC, and it runs no container.

It records each request. A call of a function is answered with exit code 0.
"""

import asyncio
import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from grpclib.const import Handler
from grpclib.server import Server, Stream
from modal._serialization import serialize_data_format
from modal_proto import api_pb2 as api
from modal_proto.api_grpc import ModalClientBase

BUILDER = "2026.10"
DONE = api.GenericResult(status=api.GenericResult.GENERIC_STATUS_SUCCESS)


class ModalServer:
    """Answers every method of Modal's API: those below as the SDK needs it, the rest with an empty message."""

    def __init__(self) -> None:
        self.requests: dict[str, list[Any]] = defaultdict(list)  # of each method
        self.functions: dict[str, str] = {}  # {id: name}

    def __mapping__(self) -> dict[str, Handler]:
        methods = ModalClientBase.__mapping__(defaultdict_of_none)
        return {path: Handler(self.answer(path.rpartition("/")[2], one.reply_type), *one[1:]) for path, one in methods.items()}

    def answer(self, name: str, reply_type: type) -> Any:
        async def handle(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            self.requests[name].append(request)
            if os.environ.get("SHOW"): print(name, flush=True)
            fields = ANSWERS[name](self, request) if name in ANSWERS else {}
            await stream.send_message(reply_type(**fields))

        return handle

    def handle_of(self, function_id, request):
        return {"function_id": function_id, "handle_metadata": self.metadata(function_id)}

    def metadata(self, function_id):
        formats = [api.DATA_FORMAT_PICKLE, api.DATA_FORMAT_CBOR]
        return api.FunctionHandleMetadata(
            function_name=self.functions[function_id], function_type=api.Function.FUNCTION_TYPE_FUNCTION,
            supported_input_formats=formats, supported_output_formats=formats)

    def precreate(self, request):
        function_id = f"fu-{len(self.functions)}"
        self.functions[function_id] = request.function_name
        return {"function_id": function_id, "handle_metadata": self.metadata(function_id)}

    def bind(self, request):
        function_id = f"fu-{len(self.functions)}"
        self.functions[function_id] = self.functions[request.function_id]
        return {"bound_function_id": function_id, "handle_metadata": self.metadata(function_id)}

class _N:
    def __getattr__(self, n): return None
defaultdict_of_none = _N()

ANSWERS = {
    "EnvironmentGetOrCreate": lambda s, r: {"environment_id": "en-1", "metadata": api.EnvironmentMetadata(name="main", settings=api.EnvironmentSettings(image_builder_version=BUILDER))},
    "AppCreate": lambda s, r: {"app_id": "ap-1"},
    "MountPutFile": lambda s, r: {"exists": True},
    "MountGetOrCreate": lambda s, r: {"mount_id": f"mo-{len(s.requests['MountGetOrCreate'])}"},
    "ImageGetOrCreate": lambda s, r: {"image_id": f"im-{len(s.requests['ImageGetOrCreate'])}", "result": DONE, "metadata": api.ImageMetadata(image_builder_version=BUILDER)},
    "VolumeGetOrCreate": lambda s, r: {"volume_id": f"vo-{len(s.requests['VolumeGetOrCreate'])}", "metadata": api.VolumeMetadata(name=r.deployment_name, version=r.version)},
    "SecretGetOrCreate": lambda s, r: {"secret_id": f"st-{len(s.requests['SecretGetOrCreate'])}"},
    "FunctionPrecreate": ModalServer.precreate,
    "FunctionCreate": lambda s, r: {"function_data": api.FunctionData(ranked_functions=[api.FunctionData.RankedFunction(function=r.function)]), "function_id": r.existing_function_id, "handle_metadata": s.metadata(r.existing_function_id)},
    "FunctionBindParams": ModalServer.bind,
    "FunctionMap": lambda s, r: {"function_call_id": "fc-1", "pipelined_inputs": [api.FunctionPutInputsResponseItem(input_id="in-1", idx=0)]},
    "FunctionGetOutputs": lambda s, r: {"outputs": [api.FunctionGetOutputsItem(input_id="in-1", idx=0, data_format=api.DATA_FORMAT_CBOR, result=api.GenericResult(status=DONE.status, data=serialize_data_format(0, api.DATA_FORMAT_CBOR)))]},
    "AppGetLogs": lambda s, r: {"app_done": True},
}
