"""A stand-in for Modal's servers, to which the real SDK and its command line talk over gRPC. It runs no container.

    with modal_server() as (requests, environment):
        subprocess.run(["modal", "run", "cloud/modal_app.py::train", …], env=environment)
    requests["FunctionCreate"]  # what was asked for, as Modal's own messages

A function that is called ends at once, with the exit code 0.
"""

import asyncio
import contextlib
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

from grpclib.const import Handler
from grpclib.server import Server, Stream
from modal._serialization import serialize_data_format
from modal_proto import api_pb2 as api
from modal_proto.api_grpc import ModalClientBase

BUILDER = "2026.10"  # Modal's version of how images are built
FORMAT = api.DATA_FORMAT_PICKLE
SUCCESS = api.GenericResult.GENERIC_STATUS_SUCCESS


class Service:
    """Answers every method of Modal's API, most of them with an empty message."""

    def __init__(self) -> None:
        self.requests: dict[str, list[Any]] = defaultdict(list)  # of each method, in order
        self.ended: list[api.FunctionGetOutputsItem] = []  # calls whose result was not asked for yet

    def __mapping__(self) -> dict[str, Handler]:
        methods = ModalClientBase.__mapping__(Mock())  # paths and types of all methods
        return {path: Handler(self.handler(path, one.reply_type), *one[1:]) for path, one in methods.items()}

    def handler(self, path: str, reply: Any) -> Any:
        name = path.rpartition("/")[2]

        async def handle(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            self.requests[name].append(request)
            await stream.send_message(reply(**self.answer(name, request, len(self.requests[name]))))

        return handle

    def answer(self, name: str, request: Any, number: int) -> dict[str, Any]:
        """The fields without which the SDK does not go on."""
        handle = api.FunctionHandleMetadata(
            function_name="any",
            function_type=api.Function.FUNCTION_TYPE_FUNCTION,
            supported_input_formats=[FORMAT],
            supported_output_formats=[FORMAT],
        )
        match name:
            case "EnvironmentGetOrCreate":
                settings = api.EnvironmentSettings(image_builder_version=BUILDER)
                return {"environment_id": "en-1", "metadata": api.EnvironmentMetadata(settings=settings)}
            case "AppCreate":
                return {"app_id": "ap-1"}
            case "MountGetOrCreate":
                return {"mount_id": f"mo-{number}"}
            case "SecretGetOrCreate":
                return {"secret_id": f"st-{number}"}
            case "VolumeGetOrCreate":
                return {"volume_id": f"vo-{number}", "metadata": api.VolumeMetadata(version=request.version)}
            case "ImageGetOrCreate":
                metadata = api.ImageMetadata(image_builder_version=BUILDER)
                return {"image_id": f"im-{number}", "result": api.GenericResult(status=SUCCESS), "metadata": metadata}
            case "FunctionPrecreate":
                return {"function_id": f"fu-{number}", "handle_metadata": handle}
            case "FunctionCreate":
                ranked = [api.FunctionData.RankedFunction(function=request.function)]
                created = {"function_id": request.existing_function_id, "handle_metadata": handle}
                return created | {"function_data": api.FunctionData(ranked_functions=ranked)}
            case "FunctionBindParams":  # of a function with other options
                return {"bound_function_id": f"{request.function_id}-{number}", "handle_metadata": handle}
            case "FunctionMap":
                return {"function_call_id": f"fc-{number}", "pipelined_inputs": self.call(request.pipelined_inputs)}
            case "FunctionPutInputs":
                return {"inputs": self.call(request.inputs)}
            case "FunctionGetOutputs":
                ended, self.ended = self.ended, []
                return {"outputs": ended}
            case "AppGetLogs":
                return {"app_done": True}
        return {}

    def call(self, inputs: Any) -> list[api.FunctionPutInputsResponseItem]:
        """What each input is called from now on; all of them end at once."""
        names = {one.idx: f"in-{len(self.requests['FunctionMap'])}-{one.idx}" for one in inputs}
        result = api.GenericResult(status=SUCCESS, data=serialize_data_format(0, FORMAT))
        for idx, name in names.items():
            self.ended.append(api.FunctionGetOutputsItem(idx=idx, input_id=name, data_format=FORMAT, result=result))
        return [api.FunctionPutInputsResponseItem(idx=idx, input_id=name) for idx, name in names.items()]


@contextlib.contextmanager
def modal_server() -> Iterator[tuple[dict[str, list[Any]], dict[str, str]]]:
    """What is asked of it, while the server runs in a thread; the environment in which the SDK finds it."""
    service, loop = Service(), asyncio.new_event_loop()
    place = socket.create_server(("127.0.0.1", 0))

    async def serve() -> Server:
        server = Server([service])
        await server.start(sock=place)
        return server

    server = loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    account = {"MODAL_TOKEN_ID": "ak-test", "MODAL_TOKEN_SECRET": "as-test", "MODAL_CONFIG_PATH": os.devnull}
    account["MODAL_SERVER_URL"] = f"http://127.0.0.1:{place.getsockname()[1]}"
    try:
        yield service.requests, {**os.environ, **account}
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
