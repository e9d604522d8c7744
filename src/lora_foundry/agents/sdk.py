"""What the other modules of this room take from the protocol's SDK, which is an extra: whoever lacks it reads how to get it."""

from lora_foundry.extras import missing_package

try:
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ResourceNotFoundError, ToolError
    from mcp.server.transport_security import TransportSecuritySettings
    from mcp.types import (
        CallToolResult,
        ContentBlock,
        ImageContent,
        ResourceLink,
        TextContent,
        ToolAnnotations,
    )
except ModuleNotFoundError as error:
    raise missing_package("The server for agents", error) from error

__all__ = [
    "CallToolResult",
    "ContentBlock",
    "ImageContent",
    "MCPServer",
    "ResourceLink",
    "ResourceNotFoundError",
    "TextContent",
    "ToolAnnotations",
    "ToolError",
    "TransportSecuritySettings",
]
