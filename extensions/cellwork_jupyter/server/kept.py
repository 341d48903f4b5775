"""What the cells of one kernel said last, kept beside the kernel, so that a page that comes back finds it.

A page shows the outputs of what it asked for itself; what a cell says while no page is there is said to nobody. Here each
execution of a cell is followed to its end, whoever is there: `asked` sees it pass on its way to the kernel, `told` every
message of the kernel. The newest execution of a cell is kept, all together `MOST_BYTES`; the oldest that has ended goes first.
It lives as long as the kernel and is never written: the notebook is the page's to write.

Widgets that a running cell has made are kept too, as the kernel announced them: a page that joins in the middle would hear of a
button and not of its layout, and could show neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

MOST_BYTES = 32 * 1024 * 1024
MOST_WIDGETS = 10_000
WHOLE = ("display_data", "execute_result", "error")

Message = dict[str, Any]


@dataclass
class Execution:
    cell: str
    code: str
    header: dict[str, Any]
    """Of the request, by which the kernel's messages name it."""
    outputs: list[dict[str, Any]] = field(default_factory=list)
    count: int | None = None
    begun: bool = False
    ended: datetime | None = None
    changes: int = 0
    size: int = 0
    clear_next: bool = False
    widgets: dict[str, list[bytes]] = field(default_factory=dict)
    """While it runs: message id -> the announcement of a widget, as it came from the kernel."""
    pages: set[str] = field(default_factory=set)
    """Who has heard of them."""
    waiting: set[str] = field(default_factory=set)
    """Pages that were joining when it ended, and are still to be told of them."""

    @property
    def id(self) -> str:
        return str(self.header["msg_id"])

    @property
    def page(self) -> str:
        return str(self.header.get("session", ""))

    def forget_widgets(self) -> None:
        """Let go what was announced, once the cell has ended and whoever came meanwhile was told."""
        if self.ended and not self.waiting:
            self.widgets.clear()

    def as_json(self) -> dict[str, Any]:
        """Return what the page needs. What has not begun waits, or was given up after an error above, of which a kernel does not tell."""
        return {
            "id": self.id, "page": self.page, "cell": self.cell, "code": self.code, "outputs": self.outputs, "count": self.count,
            "changes": self.changes, "begun": self.begun, "ended": self.ended and self.ended.isoformat(),
        }  # fmt: skip


class Kept:
    """The executions of one kernel."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.executions: dict[str, Execution] = {}
        self._of_cell: dict[str, str] = {}
        self.joining: set[str] = set()
        """Pages that are connecting: they hear nothing yet, and are told then what they have missed (`missed`)."""
        self._captured: dict[str, str] = {}
        """Output widget -> the request whose outputs it takes; the page shows those inside of the widget."""

    def asked(self, header: dict[str, Any], metadata: dict[str, Any], content: dict[str, Any]) -> None:
        """Note an execute request of a cell; what no cell asked for (completion, a console) is nobody's to find again."""
        cell = metadata.get("cellId")
        if not isinstance(cell, str) or content.get("silent"):
            return
        self.executions.pop(self._of_cell.get(cell, ""), None)
        execution = Execution(cell, str(content.get("code", "")), header)
        self.executions[execution.id] = execution
        self._of_cell[cell] = execution.id

    def missed(self, page: str) -> dict[str, list[bytes]]:
        """Return what cells that run now, or did when `page` came, have announced and it has not heard, in its order; it has joined then."""
        self.joining.discard(page)
        found: dict[str, list[bytes]] = {}
        for execution in self.executions.values():
            if page != execution.page and page not in execution.pages:
                execution.pages.add(page)
                found |= execution.widgets
            execution.waiting.discard(page)
            execution.forget_widgets()
        return found

    def told(self, message: Message, size: int, parts: list[bytes] | None = None) -> None:
        """Take a message of the kernel, of `size` bytes; `parts` is as it came."""
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "comm_msg":
            self._note_capture(message)
        execution = self.executions.get(message["parent_header"].get("msg_id", ""))
        if execution is None or execution.ended:
            if kind == "update_display_data":
                self._update(content, None)
            return
        if kind == "execute_input":
            execution.count, execution.begun = content["execution_count"], True
        elif kind == "status":
            if content["execution_state"] == "idle":
                execution.ended, execution.waiting = datetime.now(UTC), set(self.joining)
                execution.forget_widgets()
        elif kind == "comm_open" and parts and len(execution.widgets) < MOST_WIDGETS:
            execution.widgets[message["header"]["msg_id"]] = parts
            return
        elif execution.id in self._captured.values():
            return
        elif kind == "update_display_data":
            self._update(content, execution)
        elif kind == "clear_output":
            execution.clear_next = bool(content.get("wait"))
            if not execution.clear_next:
                execution.outputs, execution.size = [], 0
        elif kind == "stream" or kind in WHOLE:
            self._add(execution, kind, content, size)
            return
        else:
            return
        execution.changes += 1

    def _note_capture(self, message: Message) -> None:
        content = message["content"]
        state = (content.get("data") or {}).get("state") or {}
        if "msg_id" in state:
            self._captured[content["comm_id"]] = state["msg_id"]
            if not state["msg_id"]:
                del self._captured[content["comm_id"]]

    def _update(self, content: dict[str, Any], execution: Execution | None) -> None:
        name = content.get("transient", {}).get("display_id")
        for one in self.executions.values():
            for output in one.outputs:
                if name and output.get("display_id") == name:
                    output |= {"data": content["data"], "metadata": content["metadata"]}
                    one.changes += 1

    def _add(self, execution: Execution, kind: str, content: dict[str, Any], size: int) -> None:
        if execution.clear_next:
            execution.outputs, execution.size, execution.clear_next = [], 0, False
        if execution.size + size > self.most_bytes:
            return
        last = execution.outputs[-1] if execution.outputs else {}
        if kind == "stream" and last.get("name") == content["name"]:
            last["text"] += content["text"]
        else:
            execution.outputs.append(_output(kind, content))
        execution.size += size
        execution.changes += 1
        self._make_room(execution)

    def _make_room(self, newest: Execution) -> None:
        for execution in list(self.executions.values()):
            if sum(one.size for one in self.executions.values()) <= self.most_bytes:
                return
            if execution.ended and execution is not newest:
                del self.executions[execution.id]

    def end(self, text: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The kernel is gone: end what ran with an error that says `text`; return header and content of each such message."""
        said = []
        for execution in self.executions.values():
            if execution.ended is None:
                content = {"ename": "KernelDied", "evalue": text, "traceback": [f"\x1b[31mKernelDied\x1b[0m: {text}"]}
                execution.outputs.append(_output("error", content))
                execution.ended = datetime.now(UTC)
                execution.changes += 1
                said.append((execution.header, content))
        return said


def _output(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return a message's content as an output of a notebook; a display's name stays with it, for updates."""
    if kind == "stream":
        return {"output_type": kind, "name": content["name"], "text": content["text"]}
    if kind == "error":
        return {"output_type": kind, **{key: content[key] for key in ("ename", "evalue", "traceback")}}
    output = {"output_type": kind, "data": content["data"], "metadata": content["metadata"]}
    if kind == "execute_result":
        output["execution_count"] = content["execution_count"]
    if name := content.get("transient", {}).get("display_id"):
        output["display_id"] = name
    return output
