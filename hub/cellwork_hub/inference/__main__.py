from cellwork_hub.context import Context
from cellwork_hub.edge import serve
from cellwork_hub.inference.app import build

if __name__ == "__main__":
    context = Context.load()
    serve(build(context), "127.0.0.1", context.ports["inference"])
