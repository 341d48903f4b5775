from cellwork_hub.context import Context
from cellwork_hub.edge import serve
from cellwork_hub.gate import Gate
from cellwork_hub.login import Login
from cellwork_hub.platform.app import build

if __name__ == "__main__":
    context = Context.load()
    serve(Gate(build(context), Login.of(context, "cellwork")), "127.0.0.1", context.ports["cellwork"])
