"""A server of the Model Context Protocol over standard input, with one tool that notes its calls.

python mcp_server.py NOTES
"""

from __future__ import annotations

import sys
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("places")


@server.tool()
def look(where: str) -> str:
    """Look somewhere."""
    with Path(sys.argv[1]).open("a") as notes:
        notes.write(f"look {where}\n")
    return f"seen {where}"


if __name__ == "__main__":
    server.run()
