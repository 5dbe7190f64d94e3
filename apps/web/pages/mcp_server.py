"""The results of MCP tools: every picture as image content, the report as JSON.

Gradio's own server (6.31) gives a client that asks for no progress one text, Python's form of the
outputs, and others only those pictures that are an output of their own.
"""

import base64
import json
from functools import partial
from pathlib import Path
from typing import Any

import gradio.mcp
from mcp import types
from mcp.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from apps.web.jobs.request import LONGEST_DATA_URL


class ResultServer(gradio.mcp.GradioMCPServer):
    """Gradio's server for endpoints whose last output is a report, and the others are PNG files."""

    # Its own limit, 4 MB, is less than a photograph as a data URL.
    StreamableHTTPSessionManager = staticmethod(
        partial(StreamableHTTPSessionManager, max_request_body_size=LONGEST_DATA_URL)
    )

    def create_mcp_server(self) -> Server:
        """Make the server; a result's structured content is the report."""
        server = super().create_mcp_server()
        call_tool = server.request_handlers[types.CallToolRequest]

        async def with_report(request: types.CallToolRequest) -> types.ServerResult:
            answer = await call_tool(request)
            result = answer.root
            if not result.isError:
                result.structuredContent = json.loads(result.content[-1].text)
            return answer

        server.request_handlers[types.CallToolRequest] = with_report
        return server

    async def _execute_tool_without_progress(self, job: Any) -> list[Any]:
        (outputs,) = await super()._execute_tool_without_progress(job)
        return list(outputs)

    def postprocess_output_data(
        self, data: Any, root_url: str
    ) -> list[types.ImageContent | types.TextContent]:
        """Return each picture, with its address, and at the end the report."""
        *pictures, report = data
        content: list[types.ImageContent | types.TextContent] = []
        for one in pictures:
            for file in one if isinstance(one, list) else [one]:
                # The file itself: encoded again, it would lose its settings.
                encoded = base64.b64encode(Path(file["path"]).read_bytes()).decode()
                content += [
                    types.ImageContent(type="image", data=encoded, mimeType="image/png"),
                    types.TextContent(type="text", text=f"Image URL: {file['url']}"),
                ]
        return [*content, types.TextContent(type="text", text=json.dumps(report))]


def install() -> None:
    """Have launch(mcp_server=True) serve results this way; Gradio has no setting for it."""
    gradio.mcp.GradioMCPServer = ResultServer
